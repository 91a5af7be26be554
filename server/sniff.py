"""What a connection speaks, told from its first bytes without answering any of them."""

from __future__ import annotations

import enum

from hpack import Decoder
from hpack.exceptions import HPACKError

from lakemesh.server import h2_frames as h2

_HELD_BYTES = 65536
"""Read before a choice: more than any well-behaved peer sends up to its first HEADERS' end."""
_MAX_INCREMENT = h2.MAX_WINDOW - h2.DEFAULT_WINDOW
_GRPC = b"application/grpc"
_FORWARDING = (b"x-forwarded-", b"x-envoy-")
_FORWARDED = frozenset({b"forwarded", b"via", b"x-real-ip"})


class Choice(enum.Enum):
    """Who takes a connection."""

    HTTP1 = "http/1"
    GRPC = "grpc"
    """HTTP/2 whose first request is gRPC and came without a proxy."""
    H2 = "h2"
    """Any other HTTP/2: JSON, a proxy's pooled connection, or frames that need an answer."""


class Sniffer:
    """Fed the bytes of one connection until it has a choice; `held` then has all of them.

    A gRPC client sends its preface and SETTINGS and waits for the server's SETTINGS before its
    first HEADERS (measured, grpcio 1.85), and h2spec also waits for an acknowledgement of its own.
    So a peer in that state has to be greeted (`wants_greeting`, `greeting`), and whoever takes
    the connection later leaves one acknowledgement out in each direction (`AckFilter`).
    """

    __slots__ = ("_at", "_block", "_increments", "_settings_seen", "_stream", "greeted", "held")

    def __init__(self) -> None:
        self.held = bytearray()
        self.greeted = False
        self._at = 0
        self._increments = 0
        self._settings_seen = False
        self._stream = 0
        self._block = b""

    @property
    def wants_greeting(self) -> bool:
        """Whether the peer sent its part of the HTTP/2 handshake and may be waiting for ours."""
        return self._settings_seen and not self.greeted

    @property
    def has_preface(self) -> bool:
        return self._at > 0

    def feed(self, data: bytes) -> Choice | None:
        """The choice, or None while more bytes are needed. Not to be called after a choice."""
        held = self.held
        held += data
        if not self._at:
            seen = len(held)
            preface = h2.PREFACE
            if seen < len(preface):
                return None if preface.startswith(held) else Choice.HTTP1
            if not held.startswith(preface):
                return Choice.HTTP1
            self._at = len(preface)
        while True:
            choice = self._frame()
            if choice is not _CONTINUE:
                return choice

    def _frame(self) -> Choice | None:
        """Read one frame at `_at`; `_CONTINUE` when there may be another one behind it."""
        held, at = self.held, self._at
        if len(held) - at < 9:
            return None if at < _HELD_BYTES else Choice.H2
        word, flags, stream = h2.frame_header.unpack_from(held, at)
        kind, length = word & 0xFF, word >> 8
        if (
            at >= _HELD_BYTES
            or length > h2.FRAME_BYTES
            or not self._expected(kind, flags, stream, length)
        ):
            return Choice.H2
        end = at + 9 + length
        if len(held) < end:
            return None
        payload = bytes(held[at + 9 : end])
        self._at = end
        if kind == h2.SETTINGS:
            if not flags & h2.ACK:
                self._settings_seen = True
                return _CONTINUE if _good_settings(payload) else Choice.H2
        elif kind == h2.WINDOW_UPDATE:
            increment = int.from_bytes(payload, "big") & h2.MAX_WINDOW
            self._increments += increment
            if not increment or self._increments > _MAX_INCREMENT:
                return Choice.H2
        else:
            if kind == h2.HEADERS:
                self._stream = stream
            fragment = _fragment(payload, flags) if kind == h2.HEADERS else payload
            if fragment is None:
                return Choice.H2
            self._block += fragment
            if flags & h2.END_HEADERS:
                return _choice_by_headers(self._block)
        return _CONTINUE

    def _expected(self, kind: int, flags: int, stream: int, length: int) -> bool:
        """Whether a frame belongs to the plainest opening there is.

        Everything else, from a PING to a broken frame, is answered by the terminated edge, which
        knows how, and which serves gRPC too.
        """
        if self._stream:
            return kind == h2.CONTINUATION and stream == self._stream
        if kind == h2.SETTINGS:
            if flags & h2.ACK:
                return self.greeted and not stream and not length
            return not self._settings_seen and not stream and length % 6 == 0
        if not self._settings_seen:
            return False
        if kind == h2.WINDOW_UPDATE:
            return not stream and length == 4
        return kind == h2.HEADERS and stream & 1 == 1


_CONTINUE: Choice = object()  # type: ignore[assignment]  # told apart by identity only


def _good_settings(payload: bytes) -> bool:
    for key, value in h2.setting.iter_unpack(payload):
        if (
            (key == h2.SETTINGS_ENABLE_PUSH and value > 1)
            or (key == h2.SETTINGS_INITIAL_WINDOW_SIZE and value > h2.MAX_WINDOW)
            or (key == h2.SETTINGS_MAX_FRAME_SIZE and not h2.FRAME_BYTES <= value < 1 << 24)
        ):
            return False
    return True


def _fragment(payload: bytes, flags: int) -> bytes | None:
    """The header block fragment of a HEADERS frame (RFC 9113 section 6.2), None if malformed."""
    padding = 0
    if flags & h2.PADDED:
        if not payload:
            return None
        padding, payload = payload[0], payload[1:]
    if flags & h2.WITH_PRIORITY:
        if len(payload) < 5:
            return None
        payload = payload[5:]
    if padding > len(payload):
        return None
    return payload[: len(payload) - padding]


def _choice_by_headers(block: bytes) -> Choice:
    try:
        headers = Decoder().decode(block, raw=True)
    except HPACKError:
        return Choice.H2
    grpc = False
    for name, value in headers:
        if name == b"content-type":
            # application/grpc, +proto or ;charset: but not application/grpc-web.
            grpc = value.startswith(_GRPC) and value[16:17] in (b"", b"+", b";")
        elif name.startswith(_FORWARDING) or name in _FORWARDED:
            return Choice.H2
    return Choice.GRPC if grpc else Choice.H2


_ACK_FRAME = h2.frame(h2.SETTINGS, h2.ACK, 0)


def greeting(streams: int, header_list_bytes: int) -> bytes:
    """Our SETTINGS, with limits that whoever takes the connection keeps, and the acknowledgement
    of the peer's."""
    ours = {
        h2.SETTINGS_MAX_CONCURRENT_STREAMS: streams,
        h2.SETTINGS_MAX_HEADER_LIST_SIZE: header_list_bytes,
    }
    return h2.settings(ours) + _ACK_FRAME


FAREWELL = h2.goaway(0, h2.ErrorCode.NO_ERROR)
"""For a greeted peer that never asked anything: it may connect again and lose nothing."""


class AckFilter:
    """Leaves the first SETTINGS acknowledgement out of a stream of HTTP/2 frames.

    Feed it from a frame's start on; up to 8 bytes of an unfinished frame header are held back.
    Once `done`, bytes need not come through it any more.
    """

    __slots__ = ("_head", "_skip", "done")

    def __init__(self) -> None:
        self.done = False
        self._head = b""
        self._skip = 0

    def feed(self, data: bytes) -> bytes:
        """What is to be passed on."""
        if self.done:
            return data
        data = self._head + data
        self._head = b""
        at = self._skip
        while at + 9 <= len(data):
            if data.startswith(_ACK_FRAME, at):
                self.done = True
                return data[:at] + data[at + 9 :]
            at += 9 + int.from_bytes(data[at : at + 3], "big")
        if at < len(data):
            self._head, data = data[at:], data[:at]
            self._skip = 0
        else:
            self._skip = at - len(data)
        return data
