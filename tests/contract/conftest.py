"""The same tests over every transport: gRPC through either edge, JSON on HTTP/1.1 and HTTP/2."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import pytest_asyncio

from tests.contract.transports import Transport, open_transport
from tests.running import Server

AGENTS = Path(__file__).with_name("agents_under_test.py")
MATRIX = {
    "grpc-grpcio": ("grpcio", "grpc"),
    "grpc-h2": ("h2", "grpc"),
    "json-http1": ("grpcio", "json/1.1"),
    "json-http2": ("grpcio", "json/2"),
}


def _server(edge: str, folder: Path) -> Iterator[Server]:
    with Server(folder, "--grpc-edge", edge, "--agents", str(AGENTS)) as server:
        yield server


@pytest.fixture(scope="session")
def grpcio_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    yield from _server("grpcio", tmp_path_factory.mktemp("contract-grpcio"))


@pytest.fixture(scope="session")
def h2_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    yield from _server("h2", tmp_path_factory.mktemp("contract-h2"))


@pytest_asyncio.fixture(params=sorted(MATRIX))
async def connect(
    request: pytest.FixtureRequest, grpcio_server: Server, h2_server: Server
) -> AsyncIterator[Transport]:
    edge, name = MATRIX[request.param]
    server = grpcio_server if edge == "grpcio" else h2_server
    async with open_transport(name, server.target) as transport:
        yield transport
