"""A served HTTP/2 edge for tests: an echo service, a small HTTP app, a loopback port."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

from lakemesh.server.h2_connection import H2Connection
from lakemesh.server.h2_limits import H2Limits
from lakemesh.server.identity import Identifier
from lakemesh.server.pipeline import Limits, Pipeline
from lakemesh.server.services import ServiceTable
from lakemesh.telemetry.recorder import NullRecorder
from lakemesh.telemetry.tracing import Tracer

PACKAGE = "lakemesh.test.v1"
SERVICE = f"{PACKAGE}.EchoService"


def _describe() -> None:
    file = descriptor_pb2.FileDescriptorProto(
        name="lakemesh/test/v1/echo.proto", package=PACKAGE, syntax="proto3"
    )
    message = file.message_type.add(name="Packet")
    kinds = descriptor_pb2.FieldDescriptorProto
    for number, (name, kind) in enumerate(
        (("body", kinds.TYPE_BYTES), ("count", kinds.TYPE_INT32), ("size", kinds.TYPE_INT32)), 1
    ):
        message.field.add(name=name, number=number, type=kind, label=kinds.LABEL_OPTIONAL)
    service = file.service.add(name="EchoService")
    for name, client, server in (
        ("Echo", False, False),
        ("Hang", False, False),
        ("Many", False, True),
        ("Sum", True, False),
        ("Chat", True, True),
        ("Deaf", True, False),
    ):
        service.method.add(
            name=name,
            input_type=f".{PACKAGE}.Packet",
            output_type=f".{PACKAGE}.Packet",
            client_streaming=client,
            server_streaming=server,
        )
    descriptor_pool.Default().Add(file)


_describe()
Packet: Any = message_factory.GetMessageClass(
    descriptor_pool.Default().FindMessageTypeByName(f"{PACKAGE}.Packet")
)


class Echo:
    """The service under test; counts what was really begun and what was stopped."""

    def __init__(self) -> None:
        self.begun = 0
        self.stopped = 0
        self.sent = 0
        self.release = asyncio.Event()
        self.hanging = asyncio.Event()
        self.all_stopped = asyncio.Event()

    async def Echo(self, request: Any, context: Any) -> Any:
        self.begun += 1
        return request

    async def Hang(self, request: Any, context: Any) -> Any:
        self.begun += 1
        self.hanging.set()
        try:
            await self.release.wait()
        except asyncio.CancelledError:
            self.stopped += 1
            if self.stopped == self.begun:
                self.all_stopped.set()
            raise
        return request

    async def Many(self, request: Any, context: Any) -> AsyncIterator[Any]:
        body = b"x" * request.size
        for count in range(request.count):
            self.sent = count + 1
            yield Packet(body=body, count=count)

    async def Sum(self, requests: AsyncIterator[Any], context: Any) -> Any:
        total = count = 0
        async for request in requests:
            total += len(request.body)
            count += 1
        return Packet(size=total, count=count)

    async def Chat(self, requests: AsyncIterator[Any], context: Any) -> AsyncIterator[Any]:
        async for request in requests:
            yield request

    async def Deaf(self, requests: AsyncIterator[Any], context: Any) -> Any:
        """Reads nothing until it is released."""
        self.hanging.set()
        await self.release.wait()
        return Packet()


class HttpApp:
    """A few paths of plain ASGI."""

    def __init__(self) -> None:
        self.disconnected = asyncio.Event()
        self.streaming = asyncio.Event()
        self.sent = 0
        self.scopes: list[Any] = []

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        self.scopes.append(scope)
        path = scope["path"]
        if path == "/forever":
            await self._forever(receive, send)
        elif path == "/flood":
            await self._flood(send)
        elif path == "/raise":
            raise RuntimeError("an app of the test that fails")
        elif path == "/size":
            size = 0
            more = True
            while more:
                message = await receive()
                size += len(message.get("body", b""))
                more = message.get("more_body", False)
            await _answer(send, json.dumps({"size": size}).encode())
        elif path == "/early":
            await _answer(send, b"{}")
        else:
            body = b""
            more = True
            while more:
                message = await receive()
                body += message.get("body", b"")
                more = message.get("more_body", False)
            await _answer(send, body or b'{"hello":"world"}')

    async def _forever(self, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"first\n", "more_body": True})
        self.streaming.set()
        while (await receive())["type"] != "http.disconnect":
            pass
        self.disconnected.set()

    async def _flood(self, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        for _ in range(2048):
            await send({"type": "http.response.body", "body": b"y" * 16384, "more_body": True})
            self.sent += 1
        await send({"type": "http.response.body", "body": b""})


async def _answer(send: Any, body: bytes) -> None:
    headers = [
        (b"content-type", b"application/json"),
        (b"content-length", str(len(body)).encode()),
    ]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})


class _Uncounted:
    def ended(self, path: str, code: str, transport: str, seconds: float) -> None:
        """These tests read no metrics."""


def make_pipeline(limits: Limits | None = None) -> Pipeline:
    return Pipeline(
        limits=limits or Limits(),
        identifier=Identifier(trust_forwarded=False),
        tracer=Tracer(NullRecorder()),
        metrics=_Uncounted(),
    )


class Served:
    """The edge on a port of the system's choice."""

    def __init__(self, limits: H2Limits, call_limits: Limits | None = None) -> None:
        self.limits = limits
        self.echo = Echo()
        self.app = HttpApp()
        self.services = ServiceTable()
        self.services.add(self.echo, SERVICE)
        self.pipeline = make_pipeline(call_limits)
        self.connections: list[H2Connection] = []
        self.port = 0

    @property
    def target(self) -> str:
        return f"127.0.0.1:{self.port}"

    def make(self) -> H2Connection:
        connection = H2Connection(
            app=self.app, services=self.services, pipeline=self.pipeline, limits=self.limits
        )
        self.connections.append(connection)
        return connection


@contextlib.asynccontextmanager
async def serve(
    limits: H2Limits | None = None, call_limits: Limits | None = None
) -> AsyncIterator[Served]:
    served = Served(limits or H2Limits(), call_limits)
    loop = asyncio.get_running_loop()
    server = await loop.create_server(served.make, "127.0.0.1", 0)
    served.port = server.sockets[0].getsockname()[1]
    try:
        yield served
    finally:
        server.close()
        for connection in served.connections:
            connection.abort()
        async with asyncio.timeout(5):
            await asyncio.gather(*(connection.closed for connection in served.connections))
