"""Notices an agent that blocks the event loop, while it does, and says which one and where."""

from __future__ import annotations

import asyncio
import logging
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from types import CodeType, FrameType

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Block:
    """The loop stood still."""

    agent: str
    """Empty when it was none of the agents."""
    seconds: float
    """How long when it was noticed; it may have lasted longer."""
    where: str
    """`file:line in function` of the innermost frame."""


class LoopWatch:
    """Watches one event loop from a thread.

    A beat is scheduled on the loop every `interval` seconds; a beat that is `threshold` late means
    that something holds the loop, and the thread reads the loop's stack to see who. The path of a
    call pays nothing for it.
    """

    def __init__(
        self,
        agent_of: Callable[[CodeType], str | None],
        on_block: Callable[[Block], None],
        *,
        interval: float = 0.05,
        threshold: float = 0.2,
    ) -> None:
        self._agent_of = agent_of
        self._on_block = on_block
        self._interval = interval
        self._threshold = threshold
        self._beat_at = 0.0
        self._lag = 0.0
        self._stopped = threading.Event()
        self._thread: threading.Thread | None = None
        self._handle: asyncio.TimerHandle | None = None

    @property
    def lag(self) -> float:
        """Seconds by which the newest beat was late."""
        return self._lag

    def start(self, loop: asyncio.AbstractEventLoop) -> None:
        """Watch the loop of the calling thread."""
        self._beat_at = time.monotonic()
        self._beat(loop)
        self._thread = threading.Thread(
            target=self._watch, args=(threading.get_ident(),), name="loop-watch", daemon=True
        )
        self._thread.start()

    def stop(self) -> None:
        self._stopped.set()
        if self._handle is not None:
            self._handle.cancel()
        if self._thread is not None:
            self._thread.join(timeout=1)

    def _beat(self, loop: asyncio.AbstractEventLoop) -> None:
        now = time.monotonic()
        self._lag = max(0.0, now - self._beat_at - self._interval)
        self._beat_at = now
        self._handle = loop.call_later(self._interval, self._beat, loop)

    def _watch(self, loop_thread: int) -> None:
        reported = 0.0
        while not self._stopped.wait(self._interval):
            beat = self._beat_at
            late = time.monotonic() - beat - self._interval
            if late < self._threshold or beat == reported:
                continue
            reported = beat
            frame = sys._current_frames().get(loop_thread)
            if frame is not None:
                self._on_block(self._describe(frame, late))

    def _describe(self, frame: FrameType, seconds: float) -> Block:
        code = frame.f_code
        where = f"{code.co_filename}:{frame.f_lineno} in {code.co_name}"
        outer: FrameType | None = frame
        while outer is not None:
            agent = self._agent_of(outer.f_code)
            if agent is not None:
                return Block(agent, seconds, where)
            outer = outer.f_back
        return Block("", seconds, where)
