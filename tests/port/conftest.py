"""The port runs on uvloop here, as it does in the server."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping

import pytest
import uvloop

from tests.port.port_serving import Served, serve


def pytest_asyncio_loop_factories() -> Mapping[str, Callable[[], asyncio.AbstractEventLoop]]:
    return {"uvloop": uvloop.new_event_loop}


@pytest.fixture(params=["grpcio", "h2"])
async def served(request: pytest.FixtureRequest) -> AsyncIterator[Served]:
    """A port, once for each gRPC edge."""
    async with serve(grpc_edge=request.param) as served:
        yield served
