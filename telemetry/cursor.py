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

_READ_BYTES = 4 << 20
_FRAMES_AT_A_STRETCH = 500
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
        if up_to is not None and self.sequence >= up_to:
            return None
        payloads: list[bytes] = []
        spans = 0
        size = 0
        for sequence, count, payload in self._frames(up_to):
            payloads.append(payload)
            spans += count
            size += len(payload)
            last = sequence
            if spans >= max_spans or size >= _READ_BYTES * 4:
                break
            if len(payloads) % _FRAMES_AT_A_STRETCH == 0:
                give_way()
        if not payloads:
            return None
        self.sequence = last
        return Batch(self.directory.id, tuple(payloads), spans, last)

    def back_to(self, sequence: int) -> None:
        """Forgets the place, so that reading goes on after `sequence` (a batch that failed)."""
        self.sequence = sequence
        self._first = -1

    def _frames(self, up_to: int | None) -> Iterator[tuple[int, int, bytes]]:
        segments = self.directory.segments()
        for index, (first, path) in enumerate(segments):
            following = segments[index + 1][0] if index + 1 < len(segments) else None
            if following is not None and following <= self.sequence + 1:
                continue
            if up_to is not None and first > up_to:
                return
            if first != self._first:
                self._first, self._offset = first, 0
            try:
                yield from self._segment(path, up_to, last=following is None)
            except FileNotFoundError:
                continue

    def _segment(
        self, path: Path, up_to: int | None, *, last: bool
    ) -> Iterator[tuple[int, int, bytes]]:
        with path.open("rb") as file:
            if self._offset == 0:
                if file.read(len(MAGIC)) != MAGIC:
                    self._report_damage(path, 0)
                    return
                self._offset = len(MAGIC)
            while True:
                file.seek(self._offset)
                data = file.read(_READ_BYTES)
                start = self._offset
                used = 0
                for end, sequence, count, payload in _whole_frames(data):
                    used = end
                    if up_to is not None and sequence > up_to:
                        return
                    self._offset = start + end
                    if sequence > self.sequence:
                        yield sequence, count, payload
                if used:
                    continue
                # Nothing whole here: the end, a torn tail, or damage.
                skip = _skippable(data)
                if skip:
                    self._report_damage(path, self._offset)
                    self._offset += skip
                    continue
                if data and not last:
                    self._report_damage(path, self._offset)
                return

    def _report_damage(self, path: Path, offset: int) -> None:
        self.damaged += 1
        log.warning("the spool is damaged", extra={"segment": str(path), "offset": offset})


def _whole_frames(data: bytes) -> Iterator[tuple[int, int, int, bytes]]:
    """The leading frames of data that are whole: (end offset, sequence, spans, payload)."""
    size = len(data)
    header = HEADER.size
    unpack = HEADER.unpack_from
    offset = 0
    while offset + header <= size:
        length, crc, sequence, count = unpack(data, offset)
        end = offset + header + length
        if length == 0 or length > MAX_FRAME_BYTES or end > size:
            return
        payload = data[offset + header : end]
        if zlib.crc32(payload, sequence & 0xFFFFFFFF) != crc:
            return
        yield end, sequence, count, payload
        offset = end


def _skippable(data: bytes) -> int:
    """How far to skip over one damaged frame: to the next whole one, if its length holds."""
    if len(data) < HEADER.size:
        return 0
    length = HEADER.unpack_from(data)[0]
    end = HEADER.size + length
    if length == 0 or length > MAX_FRAME_BYTES or end >= len(data):
        return 0
    return end if next(_whole_frames(data[end:]), None) is not None else 0
