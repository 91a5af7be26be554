"""Carries spooled spans to the sinks, in the background and in batches."""

from __future__ import annotations

import logging
import random
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from lakemesh.telemetry.cursor import Batch, SpoolCursor
from lakemesh.telemetry.spool import SpoolDirectory, SpoolWriter, adoptable

log = logging.getLogger(__name__)

MAX_BATCH_SPANS = 20_000
"""The largest batch: what a commit costs by itself is nothing beside it (facts: 10-16 ms)."""
TICK_SECONDS = 0.25
FIRST_RETRY_SECONDS = 0.5
LAST_RETRY_SECONDS = 60.0
ADOPT_EVERY_SECONDS = 10.0


class Sink(Protocol):
    """Where spans go. Only the shipper's thread calls it."""

    name: str
    """Names the sink in positions and status; stays the same over versions."""
    set_aside: int
    """Frames it could not store and never will."""

    def committed(self, spool_id: str) -> int:
        """The last sequence of the spool that the sink holds for certain, 0 when it cannot tell.

        Raises:
            Exception: the sink cannot be asked now.
        """

    def write(self, batch: Batch) -> None:
        """Stores the batch; when it returns, the batch is durable in the sink.

        Raises:
            Exception: it is not, or that is not known. The shipper asks `committed` and retries.
        """

    def maintain(self) -> None:
        """Housekeeping between batches; may raise, which is logged."""


@dataclass(frozen=True, slots=True)
class SinkStatus:
    """How one sink is doing."""

    name: str
    shipped: int
    """Spans stored since start, those of adopted spools included."""
    commits: int
    set_aside: int
    pending: int
    """Spans of this process that the sink does not hold yet."""
    last_error: str
    """Why the latest attempt failed; empty when it did not."""
    retry_in_seconds: float


@dataclass(slots=True)
class _Cargo:
    """What one sink still has to take from one spool directory."""

    directory: SpoolDirectory
    cursor: SpoolCursor | None = None
    shipped_sequence: int = 0
    shipped_spans: int = 0
    done: bool = False


@dataclass(slots=True)
class _Route:
    """One sink, its place in each spool, and its luck so far."""

    sink: Sink
    own: _Cargo
    adopted: list[_Cargo] = field(default_factory=list)
    shipped: int = 0
    commits: int = 0
    failures: int = 0
    last_error: str = ""
    retry_at: float = 0.0
    last_commit_at: float = 0.0
    maintain: bool = False


class Shipper:
    """One thread that moves spans from the spool to the sinks.

    A batch leaves when its oldest span has waited flush_interval seconds, or when batch_size spans
    have come together; under load the second rule holds back for a quarter of the interval (at
    least a second, if the interval is that long), so that batches are big and commits few. A sink
    that fails is retried with exponential backoff and jitter and holds up no other sink. Nothing
    here is ever waited for by a call.
    """

    def __init__(
        self,
        writer: SpoolWriter,
        sinks: Sequence[Sink],
        *,
        flush_interval: float,
        batch_size: int,
    ) -> None:
        self._writer = writer
        self._root: Path = writer.directory.path.parent
        self._interval = flush_interval
        self._batch_size = batch_size
        self._gap = max(min(1.0, flush_interval), flush_interval / 4)
        self._routes = [_Route(sink, _Cargo(writer.directory)) for sink in sinks]
        self._adopted: dict[str, SpoolDirectory] = {}
        # Not in the first moment: the server is starting, and shipping imports deltalake.
        self._adopt_at = time.monotonic() + min(1.0, flush_interval)
        self._waiting_since: float | None = None
        self._wake = threading.Event()
        self._stop = False
        self._flush_to = 0
        self._progress = threading.Condition()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Starts the thread, which soon adopts what dead workers left."""
        self._thread = threading.Thread(target=self._run, name="lakemesh-shipper", daemon=True)
        self._thread.start()

    def flush(self, timeout: float) -> bool:
        """Waits until every sink holds every span recorded before the call.

        Returns False when that has not happened within timeout seconds. The spans stay in the
        spool then. Blocks the calling thread.
        """
        target = self._writer.sequence
        self._flush_to = max(self._flush_to, target)
        for route in self._routes:
            # Whoever waits gets an attempt now, also at a sink that is being left in peace.
            route.retry_at = 0.0
        self._wake.set()
        with self._progress:
            self._progress.wait_for(lambda: self._stop or self._shipped_to() >= target, timeout)
            return self._shipped_to() >= target

    def stop(self, timeout: float) -> None:
        """Ends the thread after the batch it is at; waits for that at most timeout seconds."""
        self._stop = True
        self._wake.set()
        with self._progress:
            self._progress.notify_all()
        thread = self._thread
        if thread is not None:
            thread.join(timeout)

    @property
    def stopped(self) -> bool:
        """Whether no thread is at work, so that the spool is nobody else's any more."""
        return self._thread is None or not self._thread.is_alive()

    @property
    def drained(self) -> bool:
        """Whether every sink holds all of this process's spans."""
        return self._shipped_to() >= self._writer.sequence

    def adopted_ids(self) -> list[str]:
        """The dead workers' spools being shipped now."""
        return list(self._adopted)

    def status(self) -> list[SinkStatus]:
        """How each sink is doing. Cheap, from any thread."""
        now = time.monotonic()
        return [
            SinkStatus(
                name=route.sink.name,
                shipped=route.shipped,
                commits=route.commits,
                set_aside=route.sink.set_aside,
                pending=max(0, self._writer.recorded - route.own.shipped_spans),
                last_error=route.last_error,
                retry_in_seconds=max(0.0, route.retry_at - now) if route.last_error else 0.0,
            )
            for route in self._routes
        ]

    def _shipped_to(self) -> int:
        return min(
            (route.own.shipped_sequence for route in self._routes), default=self._writer.sequence
        )

    def _run(self) -> None:
        while not self._stop:
            try:
                self._round()
            except Exception:
                # Nothing in a round is expected to raise; if it does, spans wait in the spool.
                log.exception("the span shipper failed and goes on")
                self._wake.wait(FIRST_RETRY_SECONDS)
            self._wake.wait(min(TICK_SECONDS, self._interval))
            self._wake.clear()
        for directory in self._adopted.values():
            directory.release()

    def _round(self) -> None:
        now = time.monotonic()
        if now >= self._adopt_at:
            self._adopt_at = now + min(ADOPT_EVERY_SECONDS, self._interval)
            self._adopt()
        for route in self._routes:
            if now < route.retry_at:
                continue
            try:
                for cargo in list(route.adopted):
                    self._ship_all(route, cargo, None)
                if self._is_due(route, now):
                    recorded = self._writer.recorded
                    self._ship_all(route, route.own, self._writer.sequence)
                    # Also right when a commit's answer was lost and its spans were never counted.
                    route.own.shipped_spans = max(route.own.shipped_spans, recorded)
            except Exception as error:
                self._failed(route, error)
                continue
            if route.maintain and self._flush_to <= route.own.shipped_sequence and not self._stop:
                route.maintain = False
                try:
                    route.sink.maintain()
                except Exception as error:
                    # Another process compacted at the same time: the next round will do.
                    log.info("table maintenance put off", extra={"error": str(error)})
        self._clear_adopted()

    def _is_due(self, route: _Route, now: float) -> bool:
        pending = self._writer.recorded - route.own.shipped_spans
        if self._writer.sequence <= route.own.shipped_sequence:
            self._waiting_since = None
            return False
        if self._waiting_since is None:
            self._waiting_since = now
        since_commit = now - route.last_commit_at
        return (
            self._flush_to > route.own.shipped_sequence
            or pending >= MAX_BATCH_SPANS
            # A tick early rather than late: the interval is a promise about freshness.
            or now - max(self._waiting_since, route.last_commit_at) >= self._interval - TICK_SECONDS
            or (pending >= self._batch_size and since_commit >= self._gap)
        )

    def _ship_all(self, route: _Route, cargo: _Cargo, up_to: int | None) -> None:
        """Moves everything the cargo holds now, batch by batch."""
        sink = route.sink
        cursor = cargo.cursor
        if cursor is None:
            position = max(
                sink.committed(cargo.directory.id),
                cargo.directory.read_positions().get(sink.name, 0),
            )
            cargo.shipped_sequence = max(cargo.shipped_sequence, position)
            cursor = cargo.cursor = SpoolCursor(cargo.directory, cargo.shipped_sequence)
        while not self._stop:
            batch = cursor.read(MAX_BATCH_SPANS, up_to)
            if batch is None:
                cargo.done = True
                return
            try:
                sink.write(batch)
            except BaseException:
                # Whether the batch is in is asked again before the next attempt.
                cargo.cursor = None
                raise
            now = time.monotonic()
            cargo.shipped_sequence = batch.last_sequence
            cargo.shipped_spans += batch.spans
            route.shipped += batch.spans
            route.commits += 1
            route.last_commit_at = now
            route.failures = 0
            route.last_error = ""
            route.maintain = True
            self._clear_shipped(cargo.directory)
            with self._progress:
                self._progress.notify_all()

    def _clear_shipped(self, directory: SpoolDirectory) -> None:
        """Keeps the positions and deletes the segments that every sink has."""
        positions = {}
        for route in self._routes:
            for cargo in (route.own, *route.adopted):
                if cargo.directory is directory:
                    positions[route.sink.name] = cargo.shipped_sequence
        try:
            directory.write_positions(positions)
            freed = directory.remove_shipped(min(positions.values()))
        except OSError as error:
            log.warning("the spool's positions cannot be kept", extra={"error": str(error)})
            return
        if directory is self._writer.directory:
            self._writer.freed(freed)

    def _adopt(self) -> None:
        for directory in adoptable(self._root, self._writer.directory.id):
            if directory.id in self._adopted:  # pragma: no cover - its lock is ours already
                directory.release()
                continue
            log.info("a dead worker's spool is adopted", extra={"spool": directory.id})
            self._adopted[directory.id] = directory
            for route in self._routes:
                route.adopted.append(_Cargo(directory))

    def _clear_adopted(self) -> None:
        """Removes the adopted directories that every sink has taken."""
        for spool_id, directory in list(self._adopted.items()):
            cargoes = [
                cargo
                for route in self._routes
                for cargo in route.adopted
                if cargo.directory is directory
            ]
            if all(cargo.done for cargo in cargoes):
                directory.remove()
                del self._adopted[spool_id]
                for route in self._routes:
                    route.adopted = [c for c in route.adopted if c.directory is not directory]

    def _failed(self, route: _Route, error: Exception) -> None:
        route.failures += 1
        delay = min(LAST_RETRY_SECONDS, FIRST_RETRY_SECONDS * 2 ** min(route.failures - 1, 16))
        delay *= 0.5 + random.random()  # noqa: S311 - jitter, not a secret
        route.retry_at = time.monotonic() + delay
        route.last_error = f"{type(error).__name__}: {error}"[:500]
        log.warning(
            "spans cannot be shipped to %s, retrying",
            route.sink.name,
            extra={"error": route.last_error, "retry_seconds": round(delay, 1)},
        )
