"""Many deadlines of the same length, kept by one timer."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

Item = TypeVar("Item", bound=Hashable)


class Deadlines(Generic[Item]):
    """Calls `expired(item)` once for each item that is not discarded in time.

    All items have `seconds`, so the order of adding is the order of expiring: adding and
    discarding are a dict's, and ten thousand silent connections cost one timer.
    """

    __slots__ = ("_expired", "_items", "_loop", "_timer", "seconds")

    def __init__(self, seconds: float, expired: Callable[[Item], None]) -> None:
        self.seconds = seconds
        self._expired = expired
        self._items: dict[Item, float] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._loop = asyncio.get_running_loop()

    def add(self, item: Item) -> None:
        when = self._loop.time() + self.seconds
        self._items[item] = when
        if self._timer is None:
            self._timer = self._loop.call_at(when, self._fire)

    def discard(self, item: Item) -> None:
        self._items.pop(item, None)

    def __contains__(self, item: object) -> bool:
        return item in self._items

    def __len__(self) -> int:
        return len(self._items)

    def items(self) -> list[Item]:
        return list(self._items)

    def close(self) -> None:
        """Forget all items."""
        self._items.clear()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _fire(self) -> None:
        self._timer = None
        now = self._loop.time()
        late: list[Item] = []
        for item, when in self._items.items():
            if when > now:
                self._timer = self._loop.call_at(when, self._fire)
                break
            late.append(item)
        for item in late:
            del self._items[item]
        for item in late:
            self._expired(item)
