"""The gRPC wire format over HTTP/2: timeouts, metadata, statuses, message framing.

Source: grpc/doc/PROTOCOL-HTTP2.md and grpc/doc/compression.md.
"""

from __future__ import annotations

import base64
import binascii
import gzip
import logging
import re
import zlib
from collections.abc import Iterable
from urllib.parse import quote

from lakemesh.server.errors import Code, StatusError
from lakemesh.server.h2_hpack import Field, encode_field

_log = logging.getLogger(__name__)

PREFIX_BYTES = 5
ENCODINGS = b"identity,deflate,gzip"
_TIMEOUT = re.compile(rb"([0-9]{1,8})([HMSmun])")
_UNITS = {b"H": 3600.0, b"M": 60.0, b"S": 1.0, b"m": 1e-3, b"u": 1e-6, b"n": 1e-9}
_WINDOW_BITS = {b"gzip": 31, b"deflate": 15}
# Hop-by-hop or the protocol's own: not metadata of the call.
_NOT_METADATA = frozenset(
    {
        b"te",
        b"content-type",
        b"content-length",
        b"host",
        b"grpc-timeout",
        b"grpc-encoding",
        b"grpc-accept-encoding",
        b"grpc-message-type",
    }
)
_KEY = re.compile(r"[0-9a-z_.\-]+")
_VALUE = re.compile(r"[\x20-\x7e]*")
_OURS = frozenset({"content-type", "te", "trailer", "grpc-status", "grpc-message"})
_SAFE_IN_MESSAGE = "".join(chr(c) for c in range(0x20, 0x7F) if chr(c) != "%")


def timeout_seconds(value: bytes) -> float:
    """A `grpc-timeout` header. Raises INVALID_ARGUMENT."""
    match = _TIMEOUT.fullmatch(value)
    if match is None:
        raise StatusError(Code.INVALID_ARGUMENT, "malformed grpc-timeout")
    return int(match[1]) * _UNITS[match[2]]


def read_metadata(fields: Iterable[Field]) -> tuple[tuple[str, str | bytes], ...]:
    """A request's metadata; values of `-bin` keys are bytes. Raises INVALID_ARGUMENT."""
    metadata: list[tuple[str, str | bytes]] = []
    for name, value in fields:
        if name in _NOT_METADATA:
            continue
        key = name.decode("ascii")
        if key.endswith("-bin"):
            # Equal keys may have been joined by a comma on the way.
            metadata.extend((key, _unbase64(part, key)) for part in value.split(b","))
        else:
            metadata.append((key, value.decode("latin-1")))
    return tuple(metadata)


def _unbase64(value: bytes, key: str) -> bytes:
    try:
        return base64.b64decode(value.strip() + b"=" * (-len(value.strip()) % 4), validate=True)
    except binascii.Error:
        raise StatusError(Code.INVALID_ARGUMENT, f"metadata {key} is not base64") from None


def encode_metadata(metadata: Iterable[tuple[str, str | bytes]]) -> bytes:
    """Metadata of an answer as a header block; an entry that cannot be sent is left out."""
    block = b""
    for key, value in metadata:
        key = key.lower()
        if not _KEY.fullmatch(key) or key in _OURS:
            _log.warning("metadata left out: its key cannot be sent", extra={"key": key})
            continue
        if key.endswith("-bin"):
            raw = value.encode() if isinstance(value, str) else value
            encoded = base64.b64encode(raw).rstrip(b"=")
        else:
            text = value if isinstance(value, str) else value.decode("latin-1")
            if not _VALUE.fullmatch(text):
                _log.warning("metadata left out: its value cannot be sent", extra={"key": key})
                continue
            encoded = text.strip().encode("ascii")
        block += encode_field(key.encode("ascii"), encoded)
    return block


def encode_status(error: StatusError) -> bytes:
    """The trailers of a failed call as a header block."""
    block = encode_field(b"grpc-status", b"%d" % error.code)
    if error.message:
        message = quote(error.message, safe=_SAFE_IN_MESSAGE, errors="replace")
        block += encode_field(b"grpc-message", message.strip().encode("ascii"))
    details = error.details_trailer()
    if details is not None:
        encoded = base64.b64encode(details).rstrip(b"=")
        block += encode_field(b"grpc-status-details-bin", encoded)
    return block


def too_large(size: int, limit: int) -> StatusError:
    """grpc's words for a message over the limit."""
    return StatusError(
        Code.RESOURCE_EXHAUSTED, f"received message larger than max ({size} vs. {limit})"
    )


def decompress(encoding: bytes, data: bytes, limit: int) -> bytes:
    """A compressed message; expands at most `limit` bytes of it.

    Raises RESOURCE_EXHAUSTED beyond that, INTERNAL for bytes that are not compressed.
    """
    bits = _WINDOW_BITS.get(encoding)
    if bits is None:
        raise StatusError(Code.INTERNAL, "compressed message without a grpc-encoding")
    inflate = zlib.decompressobj(wbits=bits)
    try:
        message = inflate.decompress(data, limit + 1)
    except zlib.error:
        raise StatusError(Code.INTERNAL, f"message is not {encoding.decode()}") from None
    if len(message) > limit:
        raise StatusError(
            Code.RESOURCE_EXHAUSTED, f"decompressed message larger than max ({limit})"
        )
    if not inflate.eof:
        raise StatusError(Code.INTERNAL, f"message is not {encoding.decode()}")
    return message


def supported_encoding(encoding: bytes) -> bool:
    """Whether requests in this `grpc-encoding` can be read."""
    return encoding in (b"", b"identity") or encoding in _WINDOW_BITS


def frame_message(payload: bytes, *, compress: bool) -> bytes:
    """A length-prefixed message, in gzip when that is asked for and makes it smaller."""
    if compress:
        smaller = gzip.compress(payload, compresslevel=1, mtime=0)
        if len(smaller) < len(payload):
            return b"\x01" + len(smaller).to_bytes(4, "big") + smaller
    return b"\x00" + len(payload).to_bytes(4, "big") + payload


class MessageReader:
    """Takes a body apart into messages. Holds at most one window and one message."""

    __slots__ = ("_buffer", "_encoding", "_length", "_limit")

    def __init__(self, encoding: bytes, limit: int) -> None:
        """`limit` bounds one message, as sent and decompressed."""
        self._buffer = bytearray()
        self._encoding = encoding
        self._limit = limit
        self._length: int | None = None

    def feed(self, data: bytes) -> None:
        """More of the body. Raises RESOURCE_EXHAUSTED as soon as a prefix announces too much."""
        self._buffer += data
        self._look()

    def _look(self) -> None:
        buffer = self._buffer
        if self._length is None and len(buffer) >= PREFIX_BYTES:
            if buffer[0] > 1:
                raise StatusError(Code.INTERNAL, "malformed message prefix")
            length = int.from_bytes(buffer[1:PREFIX_BYTES], "big")
            if length > self._limit:
                raise too_large(length, self._limit)
            self._length = length

    @property
    def whole(self) -> bool:
        """Whether a complete message is waiting."""
        return self._length is not None and len(self._buffer) >= PREFIX_BYTES + self._length

    @property
    def empty(self) -> bool:
        return not self._buffer

    def take(self) -> tuple[bytes, int]:
        """The next complete message, decompressed, and how many bytes of body it was."""
        if self._length is None:
            raise ValueError("no complete message")
        size = PREFIX_BYTES + self._length
        compressed = self._buffer[0] == 1
        message = bytes(memoryview(self._buffer)[PREFIX_BYTES:size])
        del self._buffer[:size]
        self._length = None
        self._look()
        if compressed:
            message = decompress(self._encoding, message, self._limit)
        return message, size
