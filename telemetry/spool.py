"""The durable spool: ended spans on disk, between the call that made them and the tables.

Each worker process owns one directory under `<data-dir>/spool/`, held by a lock for as long as the
process lives. Spans are appended to segment files with one `write` and no fsync: what `write` took
survives the death of the process, though not of the machine. When a worker dies its lock falls
free, and a living worker adopts the directory, ships what is left and removes it.

    <spool>/<id>/lock                   flock, exclusive, held by the owner
    <spool>/<id>/position               JSON, sink name -> last sequence that sink has for certain
    <spool>/<id>/<first sequence>.seg   frames

A segment is the 8 bytes of MAGIC, then frames. A frame is a header (length, CRC-32, sequence,
spans) and a JSON array of span rows. Sequences count frames from 1 and never repeat in a directory;
the directory's random id and the sequence name a frame for ever, which is what makes exactly-once
shipping possible. The CRC starts from the sequence, so a frame in the wrong place is no frame.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import itertools
import logging
import os
import struct
import threading
import time
import uuid
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import orjson

from lakemesh.telemetry.span import ERROR, Span, agent_of

log = logging.getLogger(__name__)

MAGIC = b"LMSPOOL1"
MAX_FRAME_BYTES = 1 << 20
"""No frame is longer: what claims to be is damage, and what would be is split or shortened."""
SEGMENT_BYTES = 8 << 20
MAX_BYTES = 1 << 30
"""Default bound of one worker's directory: about two million spans."""
MAX_VALUE_CHARACTERS = 4096
"""Attribute values of a span too large for a frame are cut to this length."""

HEADER = struct.Struct("<IIQI")
_pack = HEADER.pack
_crc32 = zlib.crc32
_dumps = orjson.dumps
_LOG_LOSS_EVERY_SECONDS = 10.0


class SpoolDirectory:
    """A spool directory and its lock; whoever holds the object may read and remove segments."""

    def __init__(self, path: Path, lock_fd: int) -> None:
        self.path = path
        self.id = path.name
        self._lock_fd = lock_fd

    @classmethod
    def create(cls, root: Path) -> SpoolDirectory:
        """Makes a new directory with a fresh id and locks it.

        It is made under a name nobody adopts and renamed once locked, so that no other worker ever
        sees it without an owner.

        Raises:
            OSError: the spool cannot be written.
        """
        root.mkdir(parents=True, exist_ok=True)
        name = uuid.uuid4().hex
        hidden = root / f".{name}"
        hidden.mkdir()
        fd = _lock(hidden / "lock")
        if fd is None:  # pragma: no cover - nobody else knows the name
            raise OSError(f"cannot lock {hidden}")
        path = root / name
        hidden.rename(path)
        return cls(path, fd)

    @classmethod
    def adopt(cls, path: Path) -> SpoolDirectory | None:
        """Takes over a directory whose owner is dead; None while it is alive or when it is gone."""
        try:
            fd = _lock(path / "lock")
        except OSError:
            return None
        if fd is None:
            return None
        # Between our open and our lock its last holder may have emptied and removed it.
        try:
            same = os.fstat(fd).st_ino == (path / "lock").stat().st_ino
        except OSError:
            same = False
        if not same:
            os.close(fd)
            return None
        return cls(path, fd)

    def segments(self) -> list[tuple[int, Path]]:
        """The segment files with their first sequences, in order."""
        found = []
        for entry in os.scandir(self.path):
            if entry.name.endswith(".seg"):
                with contextlib.suppress(ValueError):
                    found.append((int(entry.name[:-4]), Path(entry.path)))
        return sorted(found)

    def read_positions(self) -> dict[str, int]:
        """The last sequence each sink is known to have; an unreadable file counts as none."""
        try:
            stored = orjson.loads((self.path / "position").read_bytes())
            return {str(name): int(sequence) for name, sequence in stored.items()}
        except (OSError, ValueError, AttributeError, TypeError):
            return {}

    def write_positions(self, positions: Mapping[str, int]) -> None:
        """Keeps the positions. A lost update costs re-reading, never a span.

        Raises:
            OSError: the disk is full or gone.
        """
        new = self.path / "position.new"
        new.write_bytes(_dumps(dict(positions)))
        new.replace(self.path / "position")

    def remove_shipped(self, sequence: int) -> int:
        """Deletes the segments that hold nothing after `sequence`; returns the bytes freed.

        The newest segment stays: its owner may still be appending to it.
        """
        freed = 0
        segments = self.segments()
        for (_, path), (next_first, _) in itertools.pairwise(segments):
            if next_first - 1 > sequence:
                break
            with contextlib.suppress(OSError):
                size = path.stat().st_size
                path.unlink()
                freed += size
        return freed

    def remove(self) -> None:
        """Deletes the directory and gives up the lock."""
        for path in list(self.path.iterdir()):
            if path.name != "lock":
                with contextlib.suppress(OSError):
                    path.unlink()
        # The lock file goes last and still locked: a worker waiting for it finds it unlinked.
        with contextlib.suppress(OSError):
            (self.path / "lock").unlink()
            self.path.rmdir()
        self.release()

    def release(self) -> None:
        """Gives up the lock; what is left may be adopted."""
        if self._lock_fd >= 0:
            os.close(self._lock_fd)
            self._lock_fd = -1


def _lock(path: Path) -> int | None:
    """Opens and locks the file; None when another process holds it."""
    fd = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(fd)
        return None
    return fd


def adoptable(root: Path, own: str) -> Iterator[SpoolDirectory]:
    """The directories of dead workers, each locked as it is yielded."""
    try:
        names = sorted(entry.name for entry in os.scandir(root) if entry.is_dir())
    except OSError:
        return
    for name in names:
        path = root / name
        if name == own:
            continue
        if name.startswith("."):
            # Made by a process that died before its first span: nothing in it but the lock.
            with contextlib.suppress(OSError):
                if time.time() - path.stat().st_mtime > 60:
                    (path / "lock").unlink(missing_ok=True)
                    path.rmdir()
            continue
        directory = SpoolDirectory.adopt(path)
        if directory is not None:
            yield directory


class SpoolWriter:
    """The recorder that appends to this worker's own spool directory.

    `record` and `record_all` never raise. A span that cannot be kept (disk full, or the directory
    has reached max_bytes because nothing ships) is dropped, counted in `lost` and logged.
    """

    def __init__(
        self,
        directory: SpoolDirectory,
        *,
        max_bytes: int = MAX_BYTES,
        segment_bytes: int = SEGMENT_BYTES,
    ) -> None:
        self.directory = directory
        self.sequence = 0
        """Sequence of the last frame that is durable."""
        self.recorded = 0
        """Spans kept since start."""
        self.lost = 0
        """Spans dropped since start."""
        self.bytes_used = 0
        self.last_loss: float | None = None
        """Monotonic time of the latest drop."""
        self._max_bytes = max_bytes
        self._segment_bytes = segment_bytes
        self._fd = -1
        self._segment_used = 0
        self._closed = False
        self._lock = threading.Lock()
        self._logged_at = -_LOG_LOSS_EVERY_SECONDS
        self._logged_lost = 0

    def record(self, span: Span) -> None:
        """Appends one span; it survives SIGKILL when this returns."""
        attributes = span.attributes
        try:
            payload = _dumps(
                (
                    (
                        span.trace_id,
                        span.span_id,
                        span.parent_span_id,
                        span.name,
                        span.kind,
                        span.start_ns,
                        span.end_ns,
                        span.status_code,
                        span.status_message,
                        span.agent_id or agent_of(span),
                        # A string inside the row: it is stored as one, and parsing it back into
                        # objects only to write it again costs more than the escaping.
                        _dumps(attributes).decode() if attributes else "{}",
                    ),
                )
            )
        except Exception:  # whatever a caller put into a span must not fail its call
            payload = b""
        if payload and len(payload) <= MAX_FRAME_BYTES:
            self._append(payload, 1)
        else:
            self._record_odd(span)

    def record_all(self, spans: Sequence[Span]) -> None:
        """Appends the spans of one trace as one frame: all survive SIGKILL, or none does."""
        if not spans:
            return
        try:
            payload = _dumps(
                [
                    (
                        span.trace_id,
                        span.span_id,
                        span.parent_span_id,
                        span.name,
                        span.kind,
                        span.start_ns,
                        span.end_ns,
                        span.status_code,
                        span.status_message,
                        span.agent_id or agent_of(span),
                        _dumps(span.attributes).decode() if span.attributes else "{}",
                    )
                    for span in spans
                ]
            )
        except Exception:  # as in record
            payload = b""
        if payload and len(payload) <= MAX_FRAME_BYTES:
            self._append(payload, len(spans))
        else:
            for span in spans:
                self.record(span)

    def _record_odd(self, span: Span) -> None:
        """Appends a span that JSON does not take as it is, or that is too long, in a plain form."""
        try:
            payload = _dumps((_plain_row(span),))
        except Exception as error:
            payload = b""
            log.warning("a span cannot be stored", extra={"error": type(error).__name__})
        if payload and len(payload) <= MAX_FRAME_BYTES:
            self._append(payload, 1)
        else:
            self._count_loss(1, "it does not fit a frame")

    def _append(self, payload: bytes, spans: int) -> None:
        with self._lock:
            sequence = self.sequence + 1
            frame = (
                _pack(len(payload), _crc32(payload, sequence & 0xFFFFFFFF), sequence, spans)
                + payload
            )
            size = len(frame)
            if self._fd < 0 or self._segment_used + size > self._segment_bytes:
                reason = self._next_segment(sequence, size)
                if reason:
                    self._count_loss(spans, reason)
                    return
            try:
                written = os.write(self._fd, frame)
                reason = "" if written == size else "the disk is full"
            except OSError as error:
                reason = error.strerror or "the disk fails"
            if reason:
                self._cut_back()
                self._count_loss(spans, reason)
                return
            self._segment_used += size
            self.bytes_used += size
            self.recorded += spans
            # Last: the shipper reads up to here without taking the lock.
            self.sequence = sequence

    def _next_segment(self, sequence: int, size: int) -> str:
        """Opens the segment that begins with `sequence`; returns why not, or an empty string.

        The bound on the directory is checked here and not on each append: a segment is small
        beside it.
        """
        if self._closed:
            return "the spool is closed"
        if self.bytes_used + max(size, self._segment_bytes) > self._max_bytes:
            return "the spool has reached its bound"
        path = self.directory.path / f"{sequence:020d}.seg"
        try:
            fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND, 0o600)
            try:
                if os.write(fd, MAGIC) != len(MAGIC):
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            except OSError:
                os.close(fd)
                path.unlink(missing_ok=True)
                raise
        except OSError as error:
            return error.strerror or "the disk fails"
        if self._fd >= 0:
            os.close(self._fd)
        self._fd = fd
        self._segment_used = len(MAGIC)
        self.bytes_used += len(MAGIC)
        return ""

    def _cut_back(self) -> None:
        """Removes what a failed append left; begins a new segment when even that fails."""
        try:
            os.ftruncate(self._fd, self._segment_used)
        except OSError:
            with contextlib.suppress(OSError):
                os.close(self._fd)
            self._fd = -1

    def _count_loss(self, spans: int, reason: str) -> None:
        self.lost += spans
        now = time.monotonic()
        self.last_loss = now
        if now - self._logged_at >= _LOG_LOSS_EVERY_SECONDS:
            log.error(
                "spans lost: %s",
                reason,
                extra={"lost": self.lost - self._logged_lost, "lost_total": self.lost},
            )
            self._logged_at = now
            self._logged_lost = self.lost

    def freed(self, size: int) -> None:
        """Tells the writer that shipped segments of this many bytes are gone."""
        with self._lock:
            self.bytes_used -= size

    def close(self) -> None:
        """Ends appending; later spans are counted as lost. The directory's lock stays held."""
        with self._lock:
            self._closed = True
            if self._fd >= 0:
                os.close(self._fd)
                self._fd = -1


def _plain_row(span: Span) -> tuple[object, ...]:
    """The row of a span with every field forced into what JSON and the table's columns take."""
    attributes = {
        _plain_text(key): value
        if isinstance(value, bool | float) or (isinstance(value, int) and -(2**63) <= value < 2**63)
        else _plain_text(value)
        for key, value in list(span.attributes.items())[:128]
    }
    return (
        _plain_text(span.trace_id),
        _plain_text(span.span_id),
        _plain_text(span.parent_span_id),
        _plain_text(span.name),
        _plain_text(span.kind),
        int(span.start_ns),
        int(span.end_ns),
        span.status_code if span.status_code in ("OK", ERROR) else "UNSET",
        _plain_text(span.status_message),
        _plain_text(agent_of(span)),
        _dumps(attributes).decode(),
    )


def _plain_text(value: object) -> str:
    text = value if isinstance(value, str) else repr(value)
    return text[:MAX_VALUE_CHARACTERS].encode("utf-8", "replace").decode()
