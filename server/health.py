"""Is this server fit for work: one state, shown over HTTP and as grpc.health.v1."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Mapping
from typing import Any, Protocol

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

OK = "ok"

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING
_SERVICE_UNKNOWN = health_pb2.HealthCheckResponse.SERVICE_UNKNOWN


class HealthState(Protocol):
    """What the façade and the health service read."""

    @property
    def ready(self) -> bool:
        """True when calls are taken: from the end of start until the drain begins."""

    @property
    def parts(self) -> Mapping[str, str]:
        """Each part of the server: `ok`, or `degraded: ` and why."""


class ServerHealth:
    """The state of one server, and who wants to hear of changes."""

    def __init__(self) -> None:
        self._ready = False
        self._parts: dict[str, str] = {}
        self._listeners: set[Callable[[], None]] = set()

    @property
    def ready(self) -> bool:
        return self._ready

    @property
    def parts(self) -> Mapping[str, str]:
        return self._parts

    def set_ready(self, ready: bool) -> None:
        """Start or stop asking for work: `False` is the first step of a drain."""
        self._ready = ready
        self._tell()

    def set_part(self, name: str, problem: str = "") -> None:
        """A part works, or is degraded for a reason given in a few words."""
        self._parts[name] = f"degraded: {problem}" if problem else OK
        self._tell()

    def listen(self, changed: Callable[[], None]) -> Callable[[], None]:
        """Call `changed` after every change, on the event loop; returns how to stop."""
        self._listeners.add(changed)
        return lambda: self._listeners.discard(changed)

    def _tell(self) -> None:
        for changed in tuple(self._listeners):
            changed()


def degraded(state: HealthState) -> bool:
    """True when any part is not well. Degraded servers still take calls."""
    return any(part != OK for part in state.parts.values())


class HealthService(health_pb2_grpc.HealthServicer):
    """grpc.health.v1 over a ServerHealth.

    grpcio-health-checking's own servicer writes through the context, which only grpc's transport
    offers; this one yields, as every servicer of ours does.
    """

    def __init__(self, health: ServerHealth, services: Callable[[], list[str]]) -> None:
        """`services` gives the full names that may be asked for; `""` is the whole server."""
        self._health = health
        self._services = services

    def _status(self, service: str) -> int | None:
        if service and service not in self._services():
            return None
        return int(SERVING if self._health.ready else NOT_SERVING)

    async def Check(
        self, request: health_pb2.HealthCheckRequest, context: Any
    ) -> health_pb2.HealthCheckResponse:
        """The status now; NOT_FOUND for a service that is not served (health.proto)."""
        status = self._status(request.service)
        if status is None:
            await context.abort(grpc.StatusCode.NOT_FOUND, f"unknown service {request.service!r}")
        return health_pb2.HealthCheckResponse(status=status)

    async def Watch(
        self, request: health_pb2.HealthCheckRequest, context: Any
    ) -> AsyncGenerator[health_pb2.HealthCheckResponse, None]:
        """The status now and whenever it changes, until the caller leaves."""
        changed = asyncio.Event()
        stop = self._health.listen(changed.set)
        last: int | None = None
        try:
            while True:
                changed.clear()
                status = self._status(request.service)
                status = int(_SERVICE_UNKNOWN) if status is None else status
                if status != last:
                    last = status
                    yield health_pb2.HealthCheckResponse(status=status)
                await changed.wait()
        finally:
            stop()
