"""The sending half of an HTTP/2 connection: one write per turn, and peers that do not read."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from lakemesh.server.h2_frames import DEFAULT_WINDOW, FRAME_BYTES, ErrorCode
from lakemesh.server.h2_hpack import NO_DYNAMIC_TABLE

if TYPE_CHECKING:
    from lakemesh.server.h2_limits import H2Limits
    from lakemesh.server.h2_stream import Stream

_BATCH_BYTES = 65536
_STALL_CHECKS = 4


class H2Output(asyncio.Protocol):
    """Puts frames on the wire; holds streams back while the transport or a window is full."""

    def __init__(self, limits: H2Limits) -> None:
        self.limits = limits
        self.loop = asyncio.get_running_loop()
        self.peer_window = DEFAULT_WINDOW
        """What the peer takes on a new stream."""
        self.peer_frame_bytes = FRAME_BYTES
        self.send_window = DEFAULT_WINDOW
        """What the peer still takes on the connection."""
        self.write_paused = False
        self._transport: asyncio.Transport | None = None
        self._lost = False
        self._blocked: dict[int, Stream] = {}
        self._first_block = True
        self._out: list[bytes] = []
        self._out_bytes = 0
        self._batching = False
        self._backlog = 0
        self._read_paused = False
        self._stall_timer: asyncio.TimerHandle | None = None
        self._write_paused_at = 0.0

    def pause_writing(self) -> None:
        self.write_paused = True
        self._backlog = 0
        self._write_paused_at = self.loop.time()
        self._watch_stalls()

    def resume_writing(self) -> None:
        self.write_paused = False
        if self._read_paused and self._transport is not None:
            self._read_paused = False
            self._transport.resume_reading()
        self._pump()

    def write(self, data: bytes) -> None:
        """Put frames on the wire, in order, merged with what the same turn writes."""
        if self._batching:
            self._out.append(data)
            self._out_bytes += len(data)
            if self._out_bytes >= _BATCH_BYTES:
                self._flush()
        elif self._transport is not None and not self._lost:
            self._count_backlog(len(data))
            self._transport.write(data)

    def first_block(self, block: bytes) -> bytes:
        """The block as the connection needs it: the first says that no table is used."""
        if self._first_block:
            self._first_block = False
            return NO_DYNAMIC_TABLE + block
        return block

    @property
    def plain_blocks(self) -> bool:
        """Whether a constant header block may be sent as it is."""
        return not self._first_block

    def block(self, stream: Stream) -> None:
        """The stream has data waiting."""
        self._blocked[stream.id] = stream
        self._watch_stalls()

    def unblock(self, stream: Stream) -> None:
        self._blocked.pop(stream.id, None)

    def _count_backlog(self, size: int) -> None:
        if self.write_paused:
            self._backlog += size
            if (
                self._backlog > self.limits.write_backlog_bytes
                and not self._read_paused
                and self._transport is not None
            ):
                self._read_paused = True
                self._transport.pause_reading()

    def _flush(self) -> None:
        out = self._out
        if out:
            data = b"".join(out) if len(out) > 1 else out[0]
            out.clear()
            self._out_bytes = 0
            if self._transport is not None and not self._lost:
                self._count_backlog(len(data))
                self._transport.write(data)

    def _pump(self) -> None:
        """Let waiting streams send in turns while there is room."""
        progress = True
        while progress and self._blocked and not self.write_paused:
            progress = False
            for stream in list(self._blocked.values()):
                progress |= stream.pump()

    def _watch_stalls(self) -> None:
        if self._stall_timer is None and not self._lost:
            self._stall_timer = self.loop.call_later(
                self.limits.write_stall_seconds / _STALL_CHECKS, self._cut_stalled
            )

    def _cut_stalled(self) -> None:
        self._stall_timer = None
        oldest = self.loop.time() - self.limits.write_stall_seconds
        if self.write_paused and self._write_paused_at < oldest and self._transport is not None:
            self._transport.abort()
            return
        for stream in list(self._blocked.values()):
            if stream.moved_at < oldest:
                stream.reset(ErrorCode.CANCEL)
        if self._blocked or self.write_paused:
            self._watch_stalls()
