"""HTTP/2 frames (RFC 9113): numbers, builders, and what makes a request head well formed."""

from __future__ import annotations

import enum
import re
import struct

from lakemesh.server.h2_hpack import Field

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
FRAME_BYTES = 16384
"""Largest frame accepted: the default SETTINGS_MAX_FRAME_SIZE, which is never raised here."""
DEFAULT_WINDOW = 65535
MAX_WINDOW = 0x7FFFFFFF
MAX_STREAM_ID = 0x7FFFFFFF

DATA, HEADERS, PRIORITY, RST_STREAM, SETTINGS = 0, 1, 2, 3, 4
PUSH_PROMISE, PING, GOAWAY, WINDOW_UPDATE, CONTINUATION = 5, 6, 7, 8, 9

END_STREAM = ACK = 0x1
END_HEADERS = 0x4
PADDED = 0x8
WITH_PRIORITY = 0x20

SETTINGS_ENABLE_PUSH = 2
SETTINGS_MAX_CONCURRENT_STREAMS = 3
SETTINGS_INITIAL_WINDOW_SIZE = 4
SETTINGS_MAX_FRAME_SIZE = 5
SETTINGS_MAX_HEADER_LIST_SIZE = 6

frame_header = struct.Struct(">IBI")
"""Length and type in one word (length << 8 | type), flags, stream id: nine bytes."""
setting = struct.Struct(">HI")
_word = struct.Struct(">I")
_window_update = struct.Struct(">IBII")


class ErrorCode(enum.IntEnum):
    """RFC 9113 section 7."""

    NO_ERROR = 0
    PROTOCOL_ERROR = 1
    INTERNAL_ERROR = 2
    FLOW_CONTROL_ERROR = 3
    SETTINGS_TIMEOUT = 4
    STREAM_CLOSED = 5
    FRAME_SIZE_ERROR = 6
    REFUSED_STREAM = 7
    CANCEL = 8
    COMPRESSION_ERROR = 9
    CONNECT_ERROR = 10
    ENHANCE_YOUR_CALM = 11


def frame(kind: int, flags: int, stream_id: int, payload: bytes = b"") -> bytes:
    """One frame."""
    return frame_header.pack(len(payload) << 8 | kind, flags, stream_id) + payload


def headers_frames(stream_id: int, block: bytes, *, end_stream: bool, frame_bytes: int) -> bytes:
    """A header block as HEADERS and, when it is long, CONTINUATION frames."""
    flags = END_STREAM if end_stream else 0
    if len(block) <= frame_bytes:
        return frame(HEADERS, flags | END_HEADERS, stream_id, block)
    parts = [frame(HEADERS, flags, stream_id, block[:frame_bytes])]
    for at in range(frame_bytes, len(block), frame_bytes):
        last = END_HEADERS if at + frame_bytes >= len(block) else 0
        parts.append(frame(CONTINUATION, last, stream_id, block[at : at + frame_bytes]))
    return b"".join(parts)


def window_update(stream_id: int, increment: int) -> bytes:
    return _window_update.pack(4 << 8 | WINDOW_UPDATE, 0, stream_id, increment)


def rst_stream(stream_id: int, code: int) -> bytes:
    return _window_update.pack(4 << 8 | RST_STREAM, 0, stream_id, code)


def goaway(last_stream_id: int, code: int, debug: bytes = b"") -> bytes:
    return frame(GOAWAY, 0, 0, _word.pack(last_stream_id) + _word.pack(code) + debug)


def settings(values: dict[int, int]) -> bytes:
    return frame(SETTINGS, 0, 0, b"".join(setting.pack(key, v) for key, v in values.items()))


class ConnectionFault(Exception):
    """A rule of the connection was broken: GOAWAY with this code, and the end."""

    def __init__(self, code: ErrorCode, why: str) -> None:
        super().__init__(why)
        self.code = code
        self.why = why


class MalformedRequest(Exception):
    """RFC 9113 section 8.1.1: answered with RST_STREAM(PROTOCOL_ERROR)."""


NAME = re.compile(rb"[!#$%&'*+\-.^_`|~0-9a-z]+")
BAD_VALUE = re.compile(rb"[\x00\r\n]|^[ \t]|[ \t]$")
_CONNECTION_FIELDS = frozenset(
    {b"connection", b"proxy-connection", b"keep-alive", b"transfer-encoding", b"upgrade"}
)
_PSEUDO = frozenset({b":method", b":scheme", b":authority", b":path"})


class RequestHead:
    """A checked request head.

    `fields` are the ordinary headers in order, names in lower case, values as they came.
    `content_length` is None when the peer did not state one.
    """

    __slots__ = ("authority", "content_length", "content_type", "fields", "method", "path", "size")

    def __init__(self, fields: list[Field], size: int) -> None:
        """`size` is the header list's. Raises MalformedRequest."""
        pseudo: dict[bytes, bytes] = {}
        ordinary: list[Field] = []
        self.content_length: int | None = None
        self.content_type = b""
        host = b""
        for item in fields:
            name, value = item
            if BAD_VALUE.search(value):
                raise MalformedRequest("field value")
            if name[:1] == b":":
                if ordinary or name in pseudo or name not in _PSEUDO:
                    raise MalformedRequest("pseudo-header")
                pseudo[name] = value
                continue
            if not NAME.fullmatch(name) or name in _CONNECTION_FIELDS:
                raise MalformedRequest("field name")
            if name == b"te":
                if value.lower() != b"trailers":
                    raise MalformedRequest("te")
            elif name == b"content-type":
                self.content_type = value
            elif name == b"content-length":
                if not value.isdigit() or len(value) > 18:
                    raise MalformedRequest("content-length")
                if self.content_length not in (None, int(value)):
                    raise MalformedRequest("content-length")
                self.content_length = int(value)
            elif name == b"host":
                host = value
            ordinary.append(item)
        self.method = pseudo.get(b":method", b"")
        self.path = pseudo.get(b":path", b"")
        self.authority = pseudo.get(b":authority", host)
        self.fields = ordinary
        self.size = size
        connect = self.method == b"CONNECT"
        if not self.method or connect != (b":scheme" not in pseudo) or connect == bool(self.path):
            raise MalformedRequest("pseudo-headers")
        if not connect and self.path[:1] != b"/" and (self.method, self.path) != (b"OPTIONS", b"*"):
            raise MalformedRequest("path")


def check_trailers(fields: list[Field]) -> None:
    """Raises MalformedRequest for what may not stand in a trailer section."""
    for name, value in fields:
        if not NAME.fullmatch(name) or name in _CONNECTION_FIELDS or BAD_VALUE.search(value):
            raise MalformedRequest("trailer")


def strip_headers(stream_id: int, flags: int, payload: bytes) -> bytes:
    """HEADERS without padding and the priority fields nobody uses any more."""
    end = len(payload)
    at = 0
    if flags & PADDED:
        if not payload:
            raise ConnectionFault(ErrorCode.FRAME_SIZE_ERROR, "padding")
        at = 1
        end -= payload[0]
    if flags & WITH_PRIORITY:
        if len(payload) < at + 5:
            raise ConnectionFault(ErrorCode.FRAME_SIZE_ERROR, "priority")
        if int.from_bytes(payload[at : at + 4], "big") & MAX_STREAM_ID == stream_id:
            raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "stream depends on itself")
        at += 5
    if end < at:
        raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "padding")
    return payload[at:end]
