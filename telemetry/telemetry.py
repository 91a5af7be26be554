"""Telemetry of one worker process, put together: tracer, spool, shipper and sinks."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from lakemesh.telemetry.otel_spans import SpanTableSink
from lakemesh.telemetry.recorder import NullRecorder, SpanRecorder
from lakemesh.telemetry.shipper import Shipper, Sink, SinkStatus
from lakemesh.telemetry.spool import MAX_BYTES, SpoolDirectory, SpoolWriter
from lakemesh.telemetry.tracing import Tracer

LOSS_IS_RECENT_SECONDS = 60.0


@dataclass(frozen=True, slots=True)
class TelemetryStatus:
    """What health and metrics say about telemetry."""

    enabled: bool
    healthy: bool
    """No span lost within the last minute and no sink failing."""
    detail: str
    """Why not healthy, in one line; empty when healthy."""
    recorded: int
    """Spans kept in the spool since start."""
    lost: int
    """Spans dropped since start because the spool was full or could not be written."""
    spool_bytes: int
    adopted: int
    """Dead workers' spools being shipped now."""
    sinks: tuple[SinkStatus, ...]


class Telemetry:
    """Owns the recording and shipping of this process's spans.

    start, flush and close belong to the composition root; tracer and recorder are handed out. flush
    and close block: from a coroutine, call them through asyncio.to_thread.
    """

    def __init__(
        self,
        recorder: SpanRecorder,
        tracer: Tracer,
        spool: SpoolWriter | None,
        ship: Shipper | None,
    ) -> None:
        self.recorder = recorder
        self.tracer = tracer
        self._spool = spool
        self._shipper = ship
        self._started = False

    def start(self) -> None:
        """Starts shipping. Spans recorded before are not lost, only later."""
        if self._shipper is not None and not self._started:
            self._started = True
            self._shipper.start()

    def flush(self, timeout: float) -> bool:
        """Waits until all spans recorded so far can be queried; False after timeout seconds."""
        if self._shipper is None:
            return True
        return self._started and self._shipper.flush(timeout)

    def close(self, timeout: float) -> bool:
        """Flushes, stops and gives up the spool, within about timeout seconds.

        Spans recorded afterwards are counted as lost, so close comes last in a drain. What could
        not be shipped in time stays in the spool for the next process; False says so.
        """
        spool, shipper = self._spool, self._shipper
        if spool is None or shipper is None:
            return True
        deadline = time.monotonic() + timeout
        if self._started:
            shipper.flush(max(0.0, timeout - min(1.0, timeout / 4)))
        spool.close()
        shipper.stop(max(0.1, deadline - time.monotonic()))
        if not shipper.stopped:
            # A sink hangs. The lock goes with the process, and the spool to its successor.
            return False
        self._spool = self._shipper = None
        if shipper.drained:
            spool.directory.remove()
            return True
        spool.directory.release()
        return False

    def status(self) -> TelemetryStatus:
        """How recording and shipping are doing. Cheap enough for a health check."""
        spool, shipper = self._spool, self._shipper
        if spool is None or shipper is None:
            return TelemetryStatus(
                not isinstance(self.recorder, NullRecorder), True, "", 0, 0, 0, 0, ()
            )
        sinks = tuple(shipper.status())
        reasons = []
        if (
            spool.last_loss is not None
            and time.monotonic() - spool.last_loss < LOSS_IS_RECENT_SECONDS
        ):
            reasons.append(f"{spool.lost} spans lost")
        reasons += [f"{sink.name}: {sink.last_error}" for sink in sinks if sink.last_error]
        return TelemetryStatus(
            enabled=True,
            healthy=not reasons,
            detail="; ".join(reasons),
            recorded=spool.recorded,
            lost=spool.lost,
            spool_bytes=spool.bytes_used,
            adopted=len(shipper.adopted_ids()),
            sinks=sinks,
        )


def open_telemetry(
    data_dir: Path,
    *,
    enabled: bool = True,
    sample_rate: float = 1.0,
    flush_interval: float = 10.0,
    batch_size: int = 1000,
    catalog: str = "main",
    schema: str = "agents",
    service_name: str = "lakemesh",
    spool_max_bytes: int = MAX_BYTES,
    sinks: Sequence[Sink] | None = None,
) -> Telemetry:
    """Opens the spool of this process and wires the sinks to it; `start` begins shipping.

    flush_interval is in seconds (ZEROBUS_FLUSH_INTERVAL), batch_size in spans (ZEROBUS_BATCH_SIZE).
    Without sinks, spans go to the local table `catalog.schema.otel_spans` under data_dir.

    Raises:
        ValueError: a value is out of its range.
        OSError: the spool directory cannot be made.
    """
    if not flush_interval > 0:
        raise ValueError(f"flush interval must be above 0 seconds, not {flush_interval}")
    if not 0.0 <= sample_rate <= 1.0:
        raise ValueError(f"sample rate must be between 0 and 1, not {sample_rate}")
    if batch_size < 1:
        raise ValueError(f"batch size must be at least 1, not {batch_size}")
    if not enabled:
        recorder = NullRecorder()
        return Telemetry(recorder, Tracer(recorder, sample_rate), None, None)
    spool = SpoolWriter(SpoolDirectory.create(data_dir / "spool"), max_bytes=spool_max_bytes)
    if sinks is None:
        sinks = [
            SpanTableSink(
                data_dir,
                catalog,
                schema,
                service_name=service_name,
                version=metadata.version("lakemesh"),
            )
        ]
    shipper = Shipper(spool, sinks, flush_interval=flush_interval, batch_size=batch_size)
    return Telemetry(spool, Tracer(spool, sample_rate), spool, shipper)
