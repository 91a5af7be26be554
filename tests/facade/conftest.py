"""A façade over a real pipeline and a servicer of the tests' own, behind uvicorn's protocol."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import httpx
import pytest
import pytest_asyncio
from fastapi import FastAPI
from google.api import httpbody_pb2
from uvicorn.config import Config
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.server import ServerState

from lakemesh.server.call import Call
from lakemesh.server.errors import Code, StatusError, invalid_argument, overloaded
from lakemesh.server.facade import Facade, build_facade
from lakemesh.server.health import HealthService, ServerHealth
from lakemesh.server.identity import Identifier
from lakemesh.server.metrics import Registry, ServerMetrics
from lakemesh.server.openapi import comments_of
from lakemesh.server.pipeline import Limits, Pipeline
from lakemesh.server.services import ServiceTable
from lakemesh.telemetry.recorder import NullRecorder
from lakemesh.telemetry.tracing import Tracer
from tests.facade.probe_contract import SERVICE, files, kind


class ProbeServicer:
    """Answers what it was asked; remembers what a test must wait for."""

    def __init__(self) -> None:
        self.hanging = asyncio.Event()
        self.cancelled = asyncio.Event()
        self.calls: list[Call] = []

    async def Echo(self, request: Any, context: Call) -> Any:
        self.calls.append(context)
        return request

    async def GetOrder(self, request: Any, context: Call) -> Any:
        return request

    async def UpdateOrder(self, request: Any, context: Call) -> Any:
        return request

    async def Break(self, request: Any, context: Call) -> Any:
        raise self._failure(request)

    async def Ticks(self, request: Any, context: Call) -> AsyncGenerator[Any, None]:
        await context.send_initial_metadata((("x-stream", "yes"),))
        for number in range(1, request.after + 1):
            yield kind("Tick")(sequence=number, word=f"word {number}")
        if request.code:
            raise self._failure(request)

    async def Inners(self, request: Any, context: Call) -> AsyncGenerator[Any, None]:
        yield kind("Tick")(inner=kind("Inner")(label="a"))
        yield kind("Tick")(word="no inner")

    async def Collect(self, requests: AsyncIterator[Any], context: Call) -> Any:
        names = [request.name async for request in requests]
        return kind("Order")(tags=names, count=len(names))

    async def Picture(self, request: Any, context: Call) -> Any:
        return httpbody_pb2.HttpBody(content_type="image/png", data=b"\x89PNG")

    async def Hang(self, request: Any, context: Call) -> Any:
        await self._hang()

    async def HangStream(self, request: Any, context: Call) -> AsyncGenerator[Any, None]:
        yield kind("Tick")(sequence=1)
        await self._hang()

    async def Headers(self, request: Any, context: Call) -> Any:
        await context.send_initial_metadata((("x-answer", "42"), ("x-evil", "a\r\nset-cookie: b")))
        labels: dict[str, str] = {}
        for key, value in context.invocation_metadata():
            text = value if isinstance(value, str) else value.hex()
            labels[key] = f"{labels[key]}|{text}" if key in labels else text
        remaining = context.time_remaining()
        note = "" if remaining is None else f"{remaining:.0f}"
        return kind("Order")(labels=labels, name=context.peer(), note=note)

    async def Unbound(self, request: Any, context: Call) -> Any:
        return request

    async def _hang(self) -> None:
        self.hanging.set()
        try:
            await asyncio.Event().wait()
        finally:
            self.cancelled.set()

    def _failure(self, request: Any) -> Exception:
        if request.code < 0:
            return RuntimeError("secret of the server's insides")
        if request.retry_seconds:
            return overloaded(request.message, request.retry_seconds)
        if request.code == Code.INVALID_ARGUMENT:
            return invalid_argument(request.message, ("count", "is too small"))
        return StatusError(Code(request.code), request.message)


@dataclass
class Running:
    """A served façade."""

    url: str
    port: int
    facade: Facade
    probe: ProbeServicer
    health: ServerHealth
    registry: Registry
    pipeline: Pipeline
    client: httpx.AsyncClient
    state: ServerState = field(default_factory=ServerState)

    async def get(self, path: str, **options: Any) -> httpx.Response:
        return await self.client.get(path, **options)

    async def post(self, path: str, **options: Any) -> httpx.Response:
        return await self.client.post(path, **options)

    async def raw(self, request: bytes) -> bytes:
        """What comes back for some bytes, up to the end of the connection."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        try:
            writer.write(request)
            return await asyncio.wait_for(reader.read(), 5)
        finally:
            writer.close()


Serve = Callable[..., Any]


@asynccontextmanager
async def serving(
    *,
    limits: Limits | None = None,
    configure: Callable[[FastAPI], None] | None = None,
    trust_forwarded: bool = True,
) -> AsyncGenerator[Running, None]:
    comments = comments_of(files())
    registry = Registry()
    metrics = ServerMetrics(registry)
    pipeline = Pipeline(
        limits=limits or Limits(),
        identifier=Identifier(trust_forwarded=trust_forwarded),
        tracer=Tracer(NullRecorder()),
        metrics=metrics,
    )
    metrics.watch_active(lambda: pipeline.active)
    probe, health, services = ProbeServicer(), ServerHealth(), ServiceTable()
    services.add(probe, SERVICE)
    services.add(
        HealthService(health, lambda: services.names), "grpc.health.v1.Health", exempt=True
    )
    health.set_ready(True)
    facade = build_facade(
        pipeline=pipeline,
        services=services,
        health=health,
        metrics=registry,
        agents=lambda: ["echo"],
        places={"mcp_server": "/mcp"},
        version="1.2.3",
        comments=comments,
        configure=configure,
    )
    config = Config(
        facade,  # type: ignore[arg-type]
        http="httptools",
        lifespan="off",
        log_config=None,
        access_log=False,
        proxy_headers=False,
    )
    config.load()
    state = ServerState()
    server = await asyncio.get_running_loop().create_server(
        lambda: HttpToolsProtocol(config, state, {}), "127.0.0.1", 0
    )
    port = server.sockets[0].getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    async with httpx.AsyncClient(base_url=url, timeout=5, trust_env=False) as client:
        yield Running(url, port, facade, probe, health, registry, pipeline, client, state)
    server.close()
    for connection in tuple(state.connections):
        connection.transport.abort()
    if state.tasks:
        await asyncio.wait(tuple(state.tasks), timeout=5)


@pytest_asyncio.fixture
async def running() -> AsyncGenerator[Running, None]:
    async with serving() as found:
        yield found


@pytest.fixture
def serve() -> Serve:
    return serving
