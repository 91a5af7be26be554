"""The composition root: from settings to a worker, every part made once and handed to its users."""

from __future__ import annotations

import asyncio
import contextlib
import importlib.metadata
import ssl

from lakemesh.agents.blocking import Block
from lakemesh.agents.registry import AgentRegistry, RegistryError, load_agents
from lakemesh.agents.runtime import AgentRuntime
from lakemesh.config.settings import Settings
from lakemesh.memory.errors import MemoryUnavailable
from lakemesh.memory.open import open_memory
from lakemesh.memory.store import ManagedMemory
from lakemesh.server.agent_service import SERVICE, AgentService
from lakemesh.server.facade import build_facade
from lakemesh.server.health import HealthService, ServerHealth
from lakemesh.server.identity import Identifier
from lakemesh.server.introspection import add_introspection
from lakemesh.server.lifecycle import EXIT_USAGE, StartFailed
from lakemesh.server.metrics import Registry, ServerMetrics
from lakemesh.server.pipeline import Limits, Pipeline
from lakemesh.server.port import Port
from lakemesh.server.services import ServiceTable
from lakemesh.server.tls import BadCertificate, server_context
from lakemesh.telemetry.telemetry import Telemetry, open_telemetry

HEALTH_SERVICE = "grpc.health.v1.Health"
_HEALTH_SECONDS = 1.0
_TELEMETRY_SECONDS = 2.0
"""What the last flush may take; what is not in Delta by then stays in the spool for the next."""


class Composition:
    """One worker, built and running but for its port, which the lifecycle starts."""

    def __init__(
        self,
        *,
        port: Port,
        registry: AgentRegistry,
        runtime: AgentRuntime,
        memory: ManagedMemory,
        telemetry: Telemetry,
        health: ServerHealth,
        metrics: ServerMetrics,
        warm: bool,
    ) -> None:
        self.port = port
        self._registry = registry
        self._runtime = runtime
        self._memory = memory
        self._telemetry = telemetry
        self._health = health
        self._metrics = metrics
        self._warm = warm
        self._tasks = [asyncio.create_task(self._watch_parts(), name="health-watch")]

    @property
    def agents(self) -> int:
        return len(self._registry)

    def set_ready(self, ready: bool) -> None:
        self._health.set_ready(ready)
        if ready and self._warm:
            self._warm = False
            self._tasks.append(asyncio.create_task(self._warm_memory(), name="memory-warm"))

    async def close(self) -> None:
        """Stop what was started, in the opposite order; spans of the last calls are flushed."""
        for task in self._tasks:
            task.cancel()
        await asyncio.wait(self._tasks)
        self._runtime.close()
        # Both take their time and need nothing of one another.
        await asyncio.gather(
            self._memory.close(), asyncio.to_thread(self._telemetry.close, _TELEMETRY_SECONDS)
        )

    async def _warm_memory(self) -> None:
        """Ask memory once, so that the first caller does not wait for the embedder to load."""
        with contextlib.suppress(MemoryUnavailable):  # health tells of it
            await self._memory.retrieve("ready", agent_id="", top_k=1)

    async def _watch_parts(self) -> None:
        """Carry what the parts say of themselves into health and metrics."""
        problems: dict[str, str] = {}
        while True:
            found = {
                "memory": self._memory.problem(),
                "telemetry": self._telemetry.status().detail,
            }
            for part, problem in found.items():
                if problems.get(part) != problem:
                    self._health.set_part(part, problem)
            problems = found
            self._metrics.loop_lag.observe(self._runtime.watch.lag)
            await asyncio.sleep(_HEALTH_SECONDS)


async def compose(settings: Settings) -> Composition:
    """Build one worker. Raises StartFailed with one line for whoever started it."""
    try:
        registry = load_agents(settings.agents, builtin=settings.builtin_agents)
        tls = settings.tls_cert and server_context(settings.tls_cert, settings.tls_key)
    except (RegistryError, BadCertificate) as error:
        raise StartFailed(str(error), EXIT_USAGE) from None
    if not len(registry):
        raise StartFailed("no agent to serve: name one with --agents", EXIT_USAGE)
    try:
        telemetry = open_telemetry(
            settings.data_dir,
            enabled=settings.telemetry_enabled,
            sample_rate=settings.telemetry_sample_rate,
            flush_interval=settings.zerobus_flush_interval,
            batch_size=settings.zerobus_batch_size,
            catalog=settings.catalog,
            schema=settings.schema,
        )
    except OSError as error:
        raise StartFailed(f"data directory {settings.data_dir}: {error}", EXIT_USAGE) from None
    memory: ManagedMemory | None = None
    try:
        memory = await open_memory(settings.data_dir, settings.memory_dsn)
        return _assemble(settings, registry, memory, telemetry, tls or None)
    except BaseException:
        # Half a start leaves nothing running.
        if memory is not None:
            await memory.close()
        await asyncio.to_thread(telemetry.close, _TELEMETRY_SECONDS)
        raise


def _assemble(
    settings: Settings,
    registry: AgentRegistry,
    memory: ManagedMemory,
    telemetry: Telemetry,
    tls: ssl.SSLContext | None,
) -> Composition:
    metrics = ServerMetrics(Registry())
    health = ServerHealth()
    loop = asyncio.get_running_loop()

    def blocked(block: Block) -> None:
        # Told by the watch's thread; metrics belong to the loop.
        loop.call_soon_threadsafe(metrics.blocked_loops.labels(block.agent or "none").inc)

    runtime = AgentRuntime(registry, memory, telemetry.tracer, blocked)
    pipeline = Pipeline(
        limits=Limits(concurrent_calls=settings.concurrent_calls),
        identifier=Identifier(trust_forwarded=settings.trust_forwarded),
        tracer=telemetry.tracer,
        metrics=metrics,
    )
    metrics.watch_active(lambda: pipeline.active)
    services = ServiceTable()
    services.add(AgentService(runtime), SERVICE)
    services.add(HealthService(health, lambda: services.names), HEALTH_SERVICE, exempt=True)
    add_introspection(services)
    app = build_facade(
        services=services,
        pipeline=pipeline,
        health=health,
        metrics=metrics.registry,
        places={},
        version=importlib.metadata.version("lakemesh"),
        agents=lambda: [one.name for one in registry.all()],
    )
    port = Port(
        app=app,
        services=services,
        pipeline=pipeline,
        grpc_edge="h2" if settings.grpc_edge == "h2" else "grpcio",
        tls=tls,
    )
    runtime.start()
    telemetry.start()
    return Composition(
        port=port,
        registry=registry,
        runtime=runtime,
        memory=memory,
        telemetry=telemetry,
        health=health,
        metrics=metrics,
        warm=settings.warm_embedder,
    )
