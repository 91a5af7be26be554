"""A raw HTTP/2 client on the `h2` package, which may also break the rules."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

import h2.config
import h2.connection
import h2.events
import h2.exceptions

Headers = list[tuple[str, str]]
WAIT = 5.0
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"


class Answer:
    """What came back on one stream."""

    def __init__(self) -> None:
        self.headers: dict[str, str] = {}
        self.trailers: dict[str, str] = {}
        self.body = bytearray()
        self.reset: int | None = None
        self.done = asyncio.Event()

    @property
    def status(self) -> str:
        return self.headers[":status"]

    @property
    def grpc_status(self) -> str | None:
        return self.trailers.get("grpc-status", self.headers.get("grpc-status"))


class Peer:
    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer
        self.h2 = h2.connection.H2Connection(h2.config.H2Configuration(header_encoding="utf-8"))
        self.answers: dict[int, Answer] = {}
        self.goaway: h2.events.ConnectionTerminated | None = None
        self.goaways: list[h2.events.ConnectionTerminated] = []
        self.ended = asyncio.Event()
        self.going = asyncio.Event()
        self.settled = asyncio.Event()
        self.reading = True
        """False: data is not acknowledged, so the windows run out."""
        self.windows = asyncio.Event()
        self._task = asyncio.create_task(self._read())

    async def _read(self) -> None:
        with contextlib.suppress(ConnectionError):
            while data := await self.reader.read(65536):
                try:
                    events = self.h2.receive_data(data)
                except h2.exceptions.ProtocolError:
                    break
                for event in events:
                    self._event(event)
                self.flush()
        self.ended.set()
        self.going.set()
        for answer in self.answers.values():
            answer.done.set()
        self.windows.set()

    def _event(self, event: Any) -> None:
        answer = self.answers.get(getattr(event, "stream_id", 0) or 0)
        if isinstance(event, h2.events.ConnectionTerminated):
            self.goaway = event
            self.goaways.append(event)
            self.going.set()
        elif isinstance(event, h2.events.RemoteSettingsChanged):
            self.settled.set()
        elif isinstance(event, h2.events.WindowUpdated):
            self.windows.set()
        elif answer is None:
            return
        elif isinstance(event, h2.events.ResponseReceived):
            answer.headers = dict(event.headers)  # type: ignore[arg-type]  # decoded to str
        elif isinstance(event, h2.events.TrailersReceived):
            answer.trailers = dict(event.headers)  # type: ignore[arg-type]  # decoded to str
        elif isinstance(event, h2.events.DataReceived):
            answer.body += event.data
            if self.reading and event.flow_controlled_length:
                with contextlib.suppress(h2.exceptions.ProtocolError):
                    self.h2.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
        elif isinstance(event, h2.events.StreamReset):
            answer.reset = event.error_code
            answer.done.set()
        elif isinstance(event, h2.events.StreamEnded):
            answer.done.set()

    def flush(self) -> None:
        data = self.h2.data_to_send()
        if data and not self.writer.is_closing():
            self.writer.write(data)

    def raw(self, data: bytes) -> None:
        self.flush()
        self.writer.write(data)

    def open(self, headers: Headers, *, end: bool = True) -> int:
        stream_id = self.h2.get_next_available_stream_id()
        self.answers[stream_id] = Answer()
        self.h2.send_headers(stream_id, headers, end_stream=end)
        self.flush()
        return stream_id

    async def upload(self, stream_id: int, data: bytes, *, end: bool = True) -> None:
        """Send a body as the windows allow."""
        view = memoryview(data)
        while view:
            room = min(self.h2.local_flow_control_window(stream_id), 16384, len(view))
            if room <= 0:
                self.windows.clear()
                async with asyncio.timeout(WAIT):
                    await self.windows.wait()
                if self.ended.is_set():
                    raise ConnectionResetError
                continue
            self.h2.send_data(stream_id, bytes(view[:room]))
            self.flush()
            view = view[room:]
            await self.writer.drain()
        if end:
            self.h2.end_stream(stream_id)
            self.flush()

    async def answer(self, stream_id: int) -> Answer:
        answer = self.answers[stream_id]
        async with asyncio.timeout(WAIT):
            await answer.done.wait()
        return answer

    async def get(self, path: str, method: str = "GET") -> Answer:
        return await self.answer(self.open(http_head(path, method)))

    async def post(self, path: str, body: bytes) -> Answer:
        head = [*http_head(path, "POST"), ("content-type", "application/json")]
        stream_id = self.open(head, end=False)
        await self.upload(stream_id, body)
        return await self.answer(stream_id)

    def call(self, method: str, message: bytes, *extra: tuple[str, str]) -> int:
        """Send a unary gRPC request of a small message."""
        stream_id = self.open(grpc_head(method, *extra), end=False)
        self.h2.send_data(stream_id, framed(message), end_stream=True)
        self.flush()
        return stream_id

    async def wait_cut(self) -> h2.events.ConnectionTerminated | None:
        """Wait until the server closed the connection; its GOAWAY, if it sent one."""
        async with asyncio.timeout(WAIT):
            await self.ended.wait()
        return self.goaway

    async def close(self) -> None:
        self.writer.close()
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)
        with contextlib.suppress(ConnectionError):
            await self.writer.wait_closed()


@contextlib.asynccontextmanager
async def connect(port: int) -> AsyncIterator[Peer]:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    peer = Peer(reader, writer)
    peer.h2.initiate_connection()
    peer.flush()
    try:
        async with asyncio.timeout(WAIT):
            await peer.settled.wait()
        yield peer
    finally:
        await peer.close()


def http_head(path: str, method: str = "GET") -> Headers:
    return [
        (":method", method),
        (":scheme", "http"),
        (":authority", "localhost"),
        (":path", path),
    ]


def grpc_head(method: str, *extra: tuple[str, str]) -> Headers:
    return [
        *http_head(f"/lakemesh.test.v1.EchoService/{method}", "POST"),
        ("te", "trailers"),
        ("content-type", "application/grpc"),
        *extra,
    ]


def framed(message: bytes) -> bytes:
    return b"\0" + len(message).to_bytes(4, "big") + message


def frame(kind: int, flags: int, stream_id: int, payload: bytes = b"") -> bytes:
    """One raw frame, right or wrong."""
    return (
        len(payload).to_bytes(3, "big")
        + bytes((kind, flags))
        + stream_id.to_bytes(4, "big")
        + payload
    )


async def read_frame(reader: asyncio.StreamReader) -> tuple[int, int, int, bytes]:
    """Type, flags, stream and payload of the next frame; type -1 at the end."""
    try:
        head = await reader.readexactly(9)
        payload = await reader.readexactly(int.from_bytes(head[:3], "big"))
    except (asyncio.IncompleteReadError, ConnectionError):
        return -1, 0, 0, b""
    return head[3], head[4], int.from_bytes(head[5:], "big"), payload
