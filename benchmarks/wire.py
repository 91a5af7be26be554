"""Lean HTTP/1.1 and HTTP/2 clients that send one fixed request over and over.

They know just enough to keep a server honest: the status and the whole body must come. Anything
more would measure the client.
"""

from __future__ import annotations

import asyncio
import struct
from typing import cast

from benchmarks.payload import BODY

_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
_DATA, _HEADERS, _RST, _SETTINGS, _PING, _GOAWAY = 0, 1, 3, 4, 6, 7
_END_STREAM = 0x1
_END_HEADERS = 0x4
_ACK = 0x1
_WINDOW = 2**31 - 1


class BadAnswer(Exception):
    """The server answered something other than 200, or closed."""


def http1_request(host: str, path: str) -> bytes:
    head = (
        f"POST {path} HTTP/1.1\r\nhost: {host}\r\ncontent-type: application/json\r\n"
        f"content-length: {len(BODY)}\r\n\r\n"
    )
    return head.encode() + BODY


class Http1Connection(asyncio.Protocol):
    """One keep-alive connection, one request at a time."""

    def __init__(self, request: bytes) -> None:
        self._request = request
        self._buffer = b""
        self._waiter: asyncio.Future[None] | None = None
        self._transport: asyncio.Transport | None = None
        self.closed = False

    @classmethod
    async def open(cls, host: str, port: int, path: str) -> Http1Connection:
        request = http1_request(f"{host}:{port}", path)
        loop = asyncio.get_running_loop()
        _, protocol = await loop.create_connection(lambda: cls(request), host, port)
        return protocol

    async def ask(self) -> None:
        """One request. Raises BadAnswer."""
        if self.closed or self._transport is None:
            raise BadAnswer("the connection was closed between two requests")
        self._waiter = asyncio.get_running_loop().create_future()
        self._transport.write(self._request)
        await self._waiter

    def close(self) -> None:
        if self._transport is not None:
            self._transport.close()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def connection_lost(self, error: Exception | None) -> None:
        self.closed = True
        self._end(BadAnswer(f"the connection was closed: {error or 'by the server'}"))

    def data_received(self, data: bytes) -> None:
        data = self._buffer + data if self._buffer else data
        end = data.find(b"\r\n\r\n")
        if end < 0:
            self._buffer = data
            return
        head = data[:end].lower()
        at = head.find(b"content-length:")
        if at < 0:
            self._end(BadAnswer(f"no content-length: {head[:200]!r}"))
            return
        stop = head.find(b"\r", at)
        length = int(head[at + 15 : stop if stop > 0 else len(head)])
        if len(data) < end + 4 + length:
            self._buffer = data
            return
        self._buffer = b""
        ok = data.startswith(b"HTTP/1.1 200")
        self._end(None if ok else BadAnswer(repr(data[:300])))

    def _end(self, error: BadAnswer | None) -> None:
        waiter, self._waiter = self._waiter, None
        if waiter is None or waiter.done():
            return
        if error is None:
            waiter.set_result(None)
        else:
            waiter.set_exception(error)


def frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    return struct.pack(">IBI", len(payload) << 8 | kind, flags, stream) + payload


def literal(name: bytes, value: bytes) -> bytes:
    """A header field without indexing (RFC 7541 section 6.2.2); both shorter than 127 bytes."""
    return b"\0" + bytes([len(name)]) + name + bytes([len(value)]) + value


def http2_opening() -> bytes:
    """Preface, SETTINGS with a large window for streams, and one for the connection."""
    settings = struct.pack(">HI", 4, _WINDOW)
    window = struct.pack(">I", _WINDOW - 65535)
    return _PREFACE + frame(_SETTINGS, 0, 0, settings) + frame(8, 0, 0, window)


def http2_head(host: str, method: bytes, path: str, *fields: tuple[bytes, bytes]) -> bytes:
    block = literal(b":method", method) + literal(b":scheme", b"http")
    block += literal(b":authority", host.encode()) + literal(b":path", path.encode())
    return block + b"".join(literal(name, value) for name, value in fields)


class Http2Connection(asyncio.Protocol):
    """One connection, as many streams at once as are asked for."""

    def __init__(self, host: str, path: str) -> None:
        self._head = http2_head(
            host,
            b"POST",
            path,
            (b"content-type", b"application/json"),
            (b"content-length", str(len(BODY)).encode()),
        )
        self._next = 1
        self._buffer = b""
        self._waiters: dict[int, asyncio.Future[None]] = {}
        self._transport: asyncio.Transport | None = None
        self.closed = False

    @classmethod
    async def open(cls, host: str, port: int, path: str) -> Http2Connection:
        loop = asyncio.get_running_loop()
        _, protocol = await loop.create_connection(lambda: cls(f"{host}:{port}", path), host, port)
        return protocol

    async def ask(self) -> None:
        """One request on a stream of its own. Raises BadAnswer."""
        if self.closed or self._transport is None:
            raise BadAnswer("the connection was closed between two requests")
        stream = self._next
        self._next += 2
        waiter = asyncio.get_running_loop().create_future()
        self._waiters[stream] = waiter
        self._transport.write(
            frame(_HEADERS, _END_HEADERS, stream, self._head)
            + frame(_DATA, _END_STREAM, stream, BODY)
        )
        await waiter

    def close(self) -> None:
        if self._transport is not None:
            self._transport.close()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._transport.write(http2_opening())

    def connection_lost(self, error: Exception | None) -> None:
        self.closed = True
        for stream in list(self._waiters):
            self._end(stream, BadAnswer(f"the connection was closed: {error or 'by the server'}"))

    def data_received(self, data: bytes) -> None:
        data = self._buffer + data if self._buffer else data
        at, size = 0, len(data)
        while size - at >= 9:
            word, flags, stream = struct.unpack_from(">IBI", data, at)
            length, kind = word >> 8, word & 0xFF
            if size - at < 9 + length:
                break
            at += 9
            if kind <= _HEADERS:
                # The first field of an answer is the status; 0x88 is ":status: 200" (RFC 7541).
                if kind == _HEADERS and data[at] != 0x88:
                    self._end(stream, BadAnswer(repr(data[at : at + 300])))
                elif flags & _END_STREAM:
                    self._end(stream, None)
            elif kind == _SETTINGS and not flags & _ACK:
                self._send(frame(_SETTINGS, _ACK, 0, b""))
            elif kind == _PING and not flags & _ACK:
                self._send(frame(_PING, _ACK, 0, data[at : at + 8]))
            elif kind == _RST:
                self._end(stream, BadAnswer(f"stream reset: {data[at : at + 4].hex()}"))
            at += length
        self._buffer = data[at:]

    def _send(self, data: bytes) -> None:
        cast(asyncio.Transport, self._transport).write(data)

    def _end(self, stream: int, error: BadAnswer | None) -> None:
        waiter = self._waiters.pop(stream, None)
        if waiter is None or waiter.done():
            return
        if error is None:
            waiter.set_result(None)
        else:
            waiter.set_exception(error)
