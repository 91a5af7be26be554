"""One HTTP/2 stream: its two windows, its two halves, and what waits to be sent on it."""

from __future__ import annotations

import asyncio
from collections import deque
from typing import TYPE_CHECKING

from lakemesh.server.h2_frames import (
    DATA,
    END_STREAM,
    MAX_WINDOW,
    ErrorCode,
    frame_header,
    headers_frames,
    rst_stream,
    window_update,
)

if TYPE_CHECKING:
    from lakemesh.server.h2_connection import H2Connection

_QUANTUM = 65536
"""Bytes one stream may send before the next one has its turn."""


class StreamReset(ConnectionError):
    """The peer, or the connection, no longer wants what this stream would send."""


class Stream:
    """Flow control and framing of one request; a subclass gives the request its meaning.

    A subclass implements `receive_data`, `start` and `aborted`. What is sent and does not fit the
    windows waits here: a producer sends one message, then awaits `writable()`, so that a peer that
    does not read costs one window (the transport's) and one message.
    """

    __slots__ = (
        "_ending",
        "_queue",
        "_trailers",
        "_uncredited",
        "_waiter",
        "alive",
        "connection",
        "expected",
        "held",
        "id",
        "local_open",
        "moved_at",
        "opened_at",
        "recv_window",
        "remote_open",
        "running",
        "send_window",
    )

    def __init__(self, connection: H2Connection, stream_id: int, expected: int | None) -> None:
        self.connection = connection
        self.id = stream_id
        self.expected = expected
        """Bytes of body still to come, when the peer stated a length."""
        self.send_window = connection.peer_window
        self.recv_window = connection.limits.stream_window
        self.remote_open = True
        self.local_open = True
        self.alive = True
        """False once the stream was reset or its connection lost."""
        self.running = False
        """True while the work it asked for runs, which may be longer than the stream lives."""
        self.held = 0
        """Bytes received that nobody read yet."""
        self.opened_at = connection.loop.time()
        self.moved_at = 0.0
        self._uncredited = 0
        self._queue: deque[memoryview] | None = None
        self._trailers: bytes | None = None
        self._ending = False
        self._waiter: asyncio.Future[None] | None = None

    # What a subclass does.

    def opened(self) -> None:
        """A head came, and a body is to follow."""

    def receive_data(self, data: bytes, end: bool) -> None:
        """Part of the body, in order; `end` is True once, with the last part (maybe empty)."""
        raise TypeError("a stream has a meaning")

    def start(self) -> None:
        """Begin the work; for a stream in `connection.ready`, after all input at hand was read."""
        raise TypeError("a stream has a meaning")

    def aborted(self) -> None:
        """The stream is gone: stop the work. Called at most once, and not after a good end."""
        raise TypeError("a stream has a meaning")

    def refuse_late(self) -> None:
        """The server is closing and this work was not done in time."""
        self.reset(ErrorCode.CANCEL)

    # Receiving.

    def hold(self, size: int) -> None:
        """`size` bytes of body wait to be read: their window stays taken."""
        self.held += size
        self.connection.held += size

    def release(self, size: int) -> None:
        """`size` held bytes were read."""
        self.held -= size
        self.connection.held -= size
        self.credit(size)
        self.connection.credit(0)

    def credit(self, size: int) -> None:
        """Give the peer `size` bytes of this stream's window back, some time soon."""
        self._uncredited += size
        if self.remote_open and self._uncredited * 2 >= self.connection.limits.stream_window:
            self.recv_window += self._uncredited
            self.connection.write(window_update(self.id, self._uncredited))
            self._uncredited = 0

    # Sending.

    @property
    def blocked(self) -> bool:
        """Whether something sent still waits for a window or for the transport."""
        return self._queue is not None

    def send_headers(self, block: bytes, *, end_stream: bool = False) -> None:
        """Send a header block; with data still waiting, only the final one (trailers) may come."""
        if not self.local_open:
            return
        if self._queue is not None:
            self._trailers = block
            self._ending = end_stream
            return
        connection = self.connection
        connection.write(
            headers_frames(
                self.id,
                connection.first_block(block),
                end_stream=end_stream,
                frame_bytes=connection.peer_frame_bytes,
            )
        )
        if end_stream:
            self._ended()

    def send_data(self, data: bytes, *, end_stream: bool = False) -> None:
        """Send part of a body, now or as the windows allow."""
        if not self.local_open:
            return
        connection = self.connection
        size = len(data)
        if (
            self._queue is None
            and size <= connection.peer_frame_bytes
            and size <= self.send_window
            and size <= connection.send_window
            and not connection.write_paused
        ):
            self.send_window -= size
            connection.send_window -= size
            connection.ping_strikes = 0
            head = frame_header.pack(size << 8 | DATA, END_STREAM if end_stream else 0, self.id)
            connection.write(head + data)
            if end_stream:
                self._ended()
            return
        if self._queue is None:
            self._queue = deque()
            self.moved_at = connection.loop.time()
            connection.block(self)
        self._queue.append(memoryview(data))
        self._ending = end_stream
        while self.pump():
            pass

    async def writable(self) -> None:
        """Wait until nothing sent is waiting. Raises StreamReset when it never will be sent."""
        while self._queue is not None and self.alive:
            self._waiter = self.connection.loop.create_future()
            await self._waiter
        if not self.alive:
            raise StreamReset

    def pump(self) -> bool:
        """Send what the windows allow, at most one turn's worth; whether anything was sent."""
        queue = self._queue
        if queue is None:
            return False
        connection = self.connection
        sent = 0
        while queue and sent < _QUANTUM and not connection.write_paused:
            chunk = queue[0]
            room = min(self.send_window, connection.send_window, connection.peer_frame_bytes)
            if room <= 0 and chunk:
                break
            part = chunk[:room]
            size = len(part)
            if size == len(chunk):
                queue.popleft()
            else:
                queue[0] = chunk[room:]
            last = self._ending and not queue and self._trailers is None
            self.send_window -= size
            connection.send_window -= size
            connection.write(
                frame_header.pack(size << 8 | DATA, END_STREAM if last else 0, self.id) + part
            )
            sent += size or 1
        if sent:
            self.moved_at = connection.loop.time()
            connection.ping_strikes = 0
        if not queue and not connection.write_paused:
            self._queue = None
            connection.unblock(self)
            self._wake()
            if self._trailers is not None:
                block, self._trailers = self._trailers, None
                self.send_headers(block, end_stream=True)
            elif self._ending:
                self._ended()
        return sent > 0

    def widen(self, increment: int) -> None:
        """The peer's WINDOW_UPDATE. Raises OverflowError beyond 2^31-1."""
        self.send_window += increment
        if self.send_window > MAX_WINDOW:
            raise OverflowError
        while self.pump():
            pass

    def reset(self, code: int) -> None:
        """Send RST_STREAM and drop what waits. The stream is gone afterwards."""
        if self.alive and (self.local_open or self.remote_open):
            self.connection.write(rst_stream(self.id, code))
            self.connection.forget(self, reset_here=True)
            self.drop()

    def drop(self) -> None:
        """The stream is gone (reset by either side, or its connection lost)."""
        if not self.alive:
            return
        self.alive = False
        self.local_open = self.remote_open = False
        if self._queue is not None:
            self._queue = None
            self.connection.unblock(self)
        self._trailers = None
        self.unhold()
        self._wake()
        self.aborted()

    def unhold(self) -> None:
        """Nobody will read what is held."""
        self.connection.held -= self.held
        self.held = 0

    def ended(self) -> None:
        """The answer is complete, sent in one go by a subclass."""
        self._ended()

    def _ended(self) -> None:
        self.local_open = False
        connection = self.connection
        early = self.remote_open
        if early:
            # The answer did not need the rest of the request (RFC 9113 section 8.1).
            self.remote_open = False
            connection.write(rst_stream(self.id, ErrorCode.NO_ERROR))
            self.unhold()
        connection.forget(self, reset_here=early)

    def _wake(self) -> None:
        waiter = self._waiter
        if waiter is not None and not waiter.done():
            waiter.set_result(None)
        self._waiter = None
