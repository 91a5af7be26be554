"""A port with a small service and a small HTTP app behind it, in this process or one of its own.

As a program: `port_serving.py worker HOST PORT [SECONDS]` and
`port_serving.py supervise HOST PORT WORKERS`.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import json
import os
import ssl
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

from lakemesh.server.errors import Code, StatusError, invalid_argument
from lakemesh.server.identity import Identifier
from lakemesh.server.lifecycle import Grace, StartFailed, run_worker
from lakemesh.server.pipeline import Limits, Pipeline
from lakemesh.server.port import GrpcEdge, Port, PortLimits, bind
from lakemesh.server.services import ServiceTable
from lakemesh.server.supervisor import Patience, supervise
from lakemesh.telemetry.recorder import NullRecorder
from lakemesh.telemetry.tracing import Tracer

PACKAGE = "lakemesh.test.port.v1"
SERVICE = f"{PACKAGE}.PortService"


def _describe() -> None:
    file = descriptor_pb2.FileDescriptorProto(
        name="lakemesh/test/port/v1/port.proto", package=PACKAGE, syntax="proto3"
    )
    message = file.message_type.add(name="Packet")
    kinds = descriptor_pb2.FieldDescriptorProto
    for number, (name, kind) in enumerate(
        (("body", kinds.TYPE_BYTES), ("count", kinds.TYPE_INT32), ("text", kinds.TYPE_STRING)), 1
    ):
        message.field.add(name=name, number=number, type=kind, label=kinds.LABEL_OPTIONAL)
    service = file.service.add(name="PortService")
    for name, client, server in (
        ("Echo", False, False),
        ("Plain", False, False),
        ("Who", False, False),
        ("Wait", False, False),
        ("Fail", False, False),
        ("Many", False, True),
        ("Sum", True, False),
        ("Chat", True, True),
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


class Service:
    """What the gRPC tests call."""

    def __init__(self) -> None:
        self.waiting = asyncio.Semaphore(0)
        """One permit for each call that began to wait."""
        self.cancelled = asyncio.Event()

    async def Echo(self, request: Any, context: Any) -> Any:
        await context.send_initial_metadata((("first", "1"),))
        context.set_trailing_metadata((("last-bin", b"\x00\xff"),))
        return request

    async def Plain(self, request: Any, context: Any) -> Any:
        return request

    async def Who(self, request: Any, context: Any) -> Any:
        remaining = context.time_remaining()
        known = {
            "peer": context.peer(),
            "transport": context.transport,
            "metadata": [(k, v) for k, v in context.invocation_metadata() if isinstance(v, str)],
            "remaining": remaining,
            "pid": os.getpid(),
        }
        return Packet(text=json.dumps(known))

    async def Wait(self, request: Any, context: Any) -> Any:
        """`count` milliseconds."""
        self.waiting.release()
        try:
            await asyncio.sleep(request.count / 1000)
        except asyncio.CancelledError:
            self.cancelled.set()
            raise
        return request

    async def Fail(self, request: Any, context: Any) -> Any:
        raise invalid_argument("text: is wrong", ("text", "is wrong"))

    async def Many(self, request: Any, context: Any) -> AsyncIterator[Any]:
        for count in range(request.count):
            yield Packet(body=request.body, count=count)
        if request.text:
            raise StatusError(Code.ABORTED, request.text)

    async def Sum(self, requests: AsyncIterator[Any], context: Any) -> Any:
        total = 0
        async for request in requests:
            total += len(request.body)
        return Packet(count=total)

    async def Chat(self, requests: AsyncIterator[Any], context: Any) -> AsyncIterator[Any]:
        async for request in requests:
            yield request


class App:
    """What the HTTP tests ask: says what it was asked, or waits as long as the path says."""

    def __init__(self) -> None:
        self.ready = True
        self.waiting = asyncio.Semaphore(0)
        self.disconnected = asyncio.Event()

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        body = b""
        more = True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                self.disconnected.set()
                return
            body += message["body"]
            more = message["more_body"]
        path = scope["path"]
        status = 200
        if path.startswith("/wait/"):
            self.waiting.release()
            await asyncio.sleep(int(path[6:]) / 1000)
        elif path == "/readyz":
            status = 200 if self.ready else 503
        answer = json.dumps(
            {
                "method": scope["method"],
                "path": path,
                "version": scope["http_version"],
                "scheme": scope["scheme"],
                "client": scope["client"],
                "bytes": len(body),
                "pid": os.getpid(),
            }
        ).encode()
        headers = [
            (b"content-type", b"application/json"),
            (b"content-length", str(len(answer)).encode()),
        ]
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": answer})


class _Uncounted:
    def ended(self, path: str, code: str, transport: str, seconds: float) -> None:
        """These tests read no metrics."""


class Served:
    """A port, made of the real parts, and what is behind it."""

    agents = 3

    def __init__(
        self,
        *,
        grpc_edge: GrpcEdge = "grpcio",
        limits: PortLimits | None = None,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self.service = Service()
        self.app = App()
        services = ServiceTable()
        services.add(self.service, SERVICE)
        self.port = Port(
            app=self.app,
            services=services,
            pipeline=Pipeline(
                limits=Limits(),
                identifier=Identifier(trust_forwarded=False),
                tracer=Tracer(NullRecorder()),
                metrics=_Uncounted(),
            ),
            grpc_edge=grpc_edge,
            limits=limits,
            tls=tls,
        )

    @property
    def target(self) -> str:
        return f"127.0.0.1:{self.port.port}"

    def channel(self) -> grpc.aio.Channel:
        # A channel of its own each time: grpc shares connections between equal channels.
        return grpc.aio.insecure_channel(
            self.target,
            options=[("grpc.use_local_subchannel_pool", 1), ("grpc.enable_retries", 0)],
        )

    async def open(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        return await asyncio.open_connection("127.0.0.1", self.port.port)

    def set_ready(self, ready: bool) -> None:
        self.app.ready = ready

    async def close(self) -> None:
        """Nothing here outlives the port."""


@contextlib.asynccontextmanager
async def serve(
    *,
    grpc_edge: GrpcEdge = "grpcio",
    limits: PortLimits | None = None,
    tls: ssl.SSLContext | None = None,
) -> AsyncIterator[Served]:
    served = Served(grpc_edge=grpc_edge, limits=limits, tls=tls)
    await served.port.start(bind("127.0.0.1", 0))
    try:
        yield served
    finally:
        async with asyncio.timeout(5):
            await served.port.close()


def call(channel: grpc.aio.Channel, name: str, request: Any, **options: Any) -> Any:
    """A unary call by its name; awaitable."""
    return channel.unary_unary(
        f"/{SERVICE}/{name}",
        request_serializer=Packet.SerializeToString,
        response_deserializer=Packet.FromString,
    )(request, **{"timeout": 5, **options})


async def _worker(grpc_edge: Any, failure: str) -> Served:
    if failure == "setting":
        raise StartFailed("LAKEMESH_COLOUR is not a colour", 2)
    if failure == "hang":
        await asyncio.Event().wait()
    return Served(grpc_edge=grpc_edge)


def main(what: str, host: str, port: str, *more: str) -> int:
    if what == "supervise":

        def command(host: str, port: int) -> list[str]:
            return [sys.executable, str(Path(__file__)), "worker", host, str(port), *more[1:]]

        return supervise(
            command,
            workers=int(more[0]),
            host=host,
            port=int(port),
            patience=Patience(first_wait=0.05),
        )
    options = dict(option.split("=") for option in more)
    return run_worker(
        functools.partial(
            _worker,
            options.get("edge", "grpcio"),  # type: ignore[arg-type]
            options.get("failure", ""),
        ),
        host=host,
        port=int(port),
        grace=Grace(total=float(options.get("total", "12")), notice=0.2),
    )


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
