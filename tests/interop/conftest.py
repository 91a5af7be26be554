"""The Go programs that judge the edges, and the edges they judge."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import subprocess
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import uvloop

from lakemesh.server.h2_connection import H2Connection
from lakemesh.server.port import Port, bind
from lakemesh.server.services import ServiceTable
from tests.h2.h2_serving import HttpApp, make_pipeline
from tests.interop.testing_service import SERVICE, TestService, load_messages

HERE = Path(__file__).parent
BUILD = HERE.parents[1] / "build" / "interop"
PROGRAMS = (
    "./protos",
    "google.golang.org/grpc/interop/client",
    "github.com/summerwind/h2spec/cmd/h2spec",
)
BUILD_SECONDS = 300.0
EDGES = ("h2 alone", "port with h2", "port with grpcio")


def pytest_asyncio_loop_factories() -> Mapping[str, Callable[[], asyncio.AbstractEventLoop]]:
    return {"uvloop": uvloop.new_event_loop}


@pytest.fixture(scope="session")
def programs() -> Path:
    """The folder of the built programs; Go's own cache makes this quick the second time."""
    go = shutil.which("go")
    if go is None:
        # On a laptop without Go the rest still runs; continuous integration must have it.
        (pytest.fail if os.environ.get("CI") else pytest.skip)("Go is not installed")
    BUILD.mkdir(parents=True, exist_ok=True)
    subprocess.run(
        [go, "build", "-o", f"{BUILD}{os.sep}", *PROGRAMS],
        cwd=HERE / "go",
        check=True,
        timeout=BUILD_SECONDS,
    )
    return BUILD


@pytest.fixture(scope="session")
def messages(programs: Path) -> Iterator[Any]:
    """The message classes of grpc.testing."""
    done = subprocess.run([programs / "protos"], check=True, capture_output=True, timeout=30)
    return load_messages(done.stdout)  # type: ignore[return-value]


@pytest.fixture(params=EDGES)
async def served_port(request: pytest.FixtureRequest, messages: Any) -> AsyncIterator[int]:
    """The TestService behind each edge."""
    services = ServiceTable()
    services.add(TestService(messages), SERVICE)
    if request.param == "h2 alone":
        async with serve_alone(services) as number:
            yield number
        return
    edge = "h2" if request.param.endswith("h2") else "grpcio"
    port = Port(app=HttpApp(), services=services, pipeline=make_pipeline(), grpc_edge=edge)  # type: ignore[arg-type]
    await port.start(bind("127.0.0.1", 0))
    try:
        yield port.port
    finally:
        async with asyncio.timeout(5):
            await port.close()


@contextlib.asynccontextmanager
async def serve_alone(services: ServiceTable) -> AsyncIterator[int]:
    """The terminating edge with no port in front."""
    connections: list[H2Connection] = []
    pipeline = make_pipeline()
    app = HttpApp()

    def make() -> H2Connection:
        connection = H2Connection(app=app, services=services, pipeline=pipeline)
        connections.append(connection)
        return connection

    server = await asyncio.get_running_loop().create_server(make, "127.0.0.1", 0)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()
        for connection in connections:
            connection.abort()
        async with asyncio.timeout(5):
            await asyncio.gather(*(connection.closed for connection in connections))
