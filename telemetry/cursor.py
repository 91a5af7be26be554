"""Reading a spool directory: whole frames in order, past torn tails and damage."""

from __future__ import annotations

import logging
import time
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from lakemesh.telemetry.spool import HEADER, MAGIC, MAX_FRAME_BYTES, SpoolDirectory

log = logging.getLogger(__name__)

_READ_BYTES = 256 << 10
"""Read at once: some hundreds of usual frames, which take about half a millisecond."""
_BATCH_BYTES = 16 << 20
_GIVE_WAY_SECONDS = 0.0002


def give_way() -> None:
    """Lets the event loop's thread have the GIL; to be called after about half a millisecond.

    Every system call of the loop gives the GIL away, and a thread that computes then keeps it for
    the interpreter's 5 ms switch interval: a call that makes ten system calls would wait ten times.
    A sleep of zero would take the GIL back before the waiting thread has woken.
    """
    time.sleep(_GIVE_WAY_SECONDS)


@dataclass(frozen=True, slots=True)
class Batch:
    """Frames read from one spool directory, in order."""

    spool_id: str
    payloads: tuple[bytes, ...]
    """JSON arrays of span rows, one a frame."""
    spans: int
    last_sequence: int


class SpoolCursor:
    """Reads the frames of one directory after a sequence, remembering where it got to."""

    def __init__(self, directory: SpoolDirectory, after: int) -> None:
        self.directory = directory
        self.sequence = after
        """Sequence of the last frame read."""
        self.damaged = 0
        """Places where bytes had to be skipped."""
        self._first = -1
        self._offset = 0

    def read(self, max_spans: int, up_to: int | None = None) -> Batch | None:
        """The next frames, at least one and about max_spans spans; None when there are no more.

        up_to is the last sequence known to be whole when the owner is still writing; without it the
        directory is a dead worker's, whose last frame may be torn and was then never acknowledged.
        """
        last = (1 << 64) - 1 if up_to is None else up_to
        taken = _Taken(self.sequence, last, max_spans)
        if self.sequence < last:
            for first, path, is_newest in self._unread_segments():
                if first > last:
                    break
                if first != self._first:
                    self._first, self._offset = first, 0
                try:
                    self._read_segment(path, taken, is_newest)
                except FileNotFoundError:
                    continue
                if taken.full:
                    break
        if not taken.payloads:
            return None
        self.sequence = taken.sequence
        return Batch(self.directory.id, tuple(taken.payloads), taken.spans, taken.sequence)

    def _unread_segments(self) -> Iterator[tuple[int, Path, bool]]:
        segments = self.directory.segments()
        for index, (first, path) in enumerate(segments):
            is_newest = index + 1 == len(segments)
            if is_newest or segments[index + 1][0] > self.sequence + 1:
                yield first, path, is_newest

    def _read_segment(self, path: Path, taken: _Taken, is_newest: bool) -> None:
        with path.open("rb") as file:
            if self._offset == 0:
                if file.read(len(MAGIC)) != MAGIC:
                    self._report_damage(path)
                    return
                self._offset = len(MAGIC)
            while not taken.full:
                file.seek(self._offset)
                data = file.read(_READ_BYTES)
                used = taken.take(data)
                if not used and len(data) == _READ_BYTES:
                    # One long frame, or damage: enough for the longest and a look behind it.
                    data += file.read(2 * MAX_FRAME_BYTES)
                    used = taken.take(data)
                self._offset += used
                give_way()
                if used or taken.full:
                    continue
                # Nothing whole here: the end, a torn tail, or damage.
                skip = _skippable(data)
                if not skip:
                    if data and not is_newest:
                        self._report_damage(path)
                    return
                self._report_damage(path)
                self._offset += skip

    def _report_damage(self, path: Path) -> None:
        self.damaged += 1
        log.warning("the spool is damaged", extra={"segment": str(path), "offset": self._offset})


class _Taken:
    """The frames collected for one batch. One flat loop: it runs once for every span."""

    __slots__ = ("_last", "_max_spans", "_size", "full", "payloads", "sequence", "spans")

    def __init__(self, after: int, last: int, max_spans: int) -> None:
        self.payloads: list[bytes] = []
        self.spans = 0
        self.sequence = after
        self.full = False
        self._last = last
        self._max_spans = max_spans
        self._size = 0

    def take(self, data: bytes) -> int:
        """Takes the leading whole frames of data; returns where they end."""
        size = len(data)
        header = HEADER.size
        unpack, crc32 = HEADER.unpack_from, zlib.crc32
        offset = 0
        while offset + header <= size:
            length, crc, sequence, spans = unpack(data, offset)
            end = offset + header + length
            if length == 0 or length > MAX_FRAME_BYTES or end > size:
                break
            payload = data[offset + header : end]
            if crc32(payload, sequence & 0xFFFFFFFF) != crc:
                break
            if sequence > self._last:
                self.full = True
                break
            offset = end
            if sequence <= self.sequence:
                continue
            self.payloads.append(payload)
            self.sequence = sequence
            self.spans += spans
            self._size += length
            if self.spans >= self._max_spans or self._size >= _BATCH_BYTES:
                self.full = True
                break
        return offset


def _skippable(data: bytes) -> int:
    """How far to skip over one damaged frame: to the next whole one, if its length holds."""
    if len(data) < HEADER.size:
        return 0
    length = HEADER.unpack_from(data)[0]
    end = HEADER.size + length
    if length == 0 or length > MAX_FRAME_BYTES or end >= len(data):
        return 0
    following = _Taken(-1, (1 << 64) - 1, 1)
    return end if following.take(data[end:]) else 0
