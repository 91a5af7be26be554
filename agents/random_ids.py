"""Ids nobody can guess: 128 bits from the operating system, as 32 lower case hex digits."""

from __future__ import annotations

import os

_BATCH = 64


class RandomIds:
    """Draws from the operating system in batches: one system call for 64 ids."""

    __slots__ = ("_ids",)

    def __init__(self) -> None:
        self._ids: list[str] = []

    def new(self) -> str:
        """An id that was never given before."""
        try:
            return self._ids.pop()
        except IndexError:
            drawn = os.urandom(16 * _BATCH).hex()
            ids = [drawn[start : start + 32] for start in range(0, len(drawn), 32)]
            self._ids.extend(ids[1:])
            return ids[0]
