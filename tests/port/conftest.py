"""The port runs on uvloop here, as it does in the server."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping

import pytest
import uvloop

from tests.port.port_serving import Served, serve


def pytest_asyncio_loop_factories(
    item: pytest.Item,
) -> Mapping[str, Callable[[], asyncio.AbstractEventLoop]]:
    if item.path.name == "test_lifecycle.py":
        # It starts programs, and uvloop does so by a fork, which may hang where grpc has threads.
        return {"asyncio": asyncio.new_event_loop}
    return {"uvloop": uvloop.new_event_loop}


@pytest.fixture(params=["grpcio", "h2"])
async def served(request: pytest.FixtureRequest) -> AsyncIterator[Served]:
    """A port, once for each gRPC edge."""
    async with serve(grpc_edge=request.param) as served:
        yield served
