"""The terminating HTTP/2 edge: one connection, from its preface to its GOAWAY.

Frames are read and written here by hand, because the state machine of the `h2` package costs more
per call than the call (docs/decisions.md); h2spec and the gRPC interop list are the proof that
the rules of RFC 9113 hold (tests/interop). What a request means is decided per stream:
`application/grpc` goes to the pipeline (`h2_grpc`), everything else to the HTTP app (`h2_asgi`).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import TYPE_CHECKING, cast

from lakemesh.server.h2_asgi import AsgiApp, AsgiStream
from lakemesh.server.h2_frames import (
    ACK,
    CONTINUATION,
    DATA,
    DEFAULT_WINDOW,
    END_HEADERS,
    END_STREAM,
    FRAME_BYTES,
    GOAWAY,
    HEADERS,
    MAX_STREAM_ID,
    MAX_WINDOW,
    PADDED,
    PING,
    PREFACE,
    PRIORITY,
    PUSH_PROMISE,
    RST_STREAM,
    SETTINGS,
    SETTINGS_ENABLE_PUSH,
    SETTINGS_INITIAL_WINDOW_SIZE,
    SETTINGS_MAX_CONCURRENT_STREAMS,
    SETTINGS_MAX_FRAME_SIZE,
    SETTINGS_MAX_HEADER_LIST_SIZE,
    WINDOW_UPDATE,
    WITH_PRIORITY,
    ConnectionFault,
    ErrorCode,
    MalformedRequest,
    check_trailers,
    frame,
    frame_header,
    goaway,
    rst_stream,
    setting,
    settings,
    strip_headers,
    window_update,
)
from lakemesh.server.h2_grpc import GrpcHead, GrpcStream
from lakemesh.server.h2_heads import HeadReader
from lakemesh.server.h2_limits import Bucket, H2Limits
from lakemesh.server.h2_output import H2Output
from lakemesh.server.h2_stream import Stream

if TYPE_CHECKING:
    from lakemesh.server.pipeline import Pipeline
    from lakemesh.server.services import ServiceTable

_log = logging.getLogger(__name__)

_DRAIN_PING = b"lm-drain"
_REMEMBERED_RESETS = 4096
_CLOSE_SECONDS = 2.0
_LINGER_SECONDS = 0.5


class H2Connection(H2Output):
    """Serves HTTP/2 on one transport, cleartext or already decrypted.

    Whoever accepted the transport calls `transport.set_protocol(connection)`,
    `connection.connection_made(transport)` and, with the bytes it has read, `data_received(...)`.
    The bytes begin with the client's preface. `shutdown()` drains, `abort()` ends at once, and
    `closed` is a future that is done when the transport is gone and no work of it runs.
    """

    def __init__(
        self,
        *,
        app: AsgiApp,
        services: ServiceTable,
        pipeline: Pipeline,
        limits: H2Limits | None = None,
        scheme: str = "http",
        state: dict[str, object] | None = None,
        compress_answers: bool = False,
        on_closed: Callable[[H2Connection], None] | None = None,
    ) -> None:
        """`app` answers what is not gRPC; `state` is the lifespan state its scopes carry.

        `compress_answers` gzips gRPC answers for every client that accepts it; without it, only
        for one that compressed its request.
        """
        self.app = app
        self.services = services
        self.pipeline = pipeline
        limits = limits or H2Limits()
        super().__init__(limits)
        self.scheme = scheme
        self.state = state
        self.compress_answers = compress_answers
        self._on_closed = on_closed
        self.closed: asyncio.Future[None] = self.loop.create_future()
        self.client: tuple[str, int] | None = None
        self.server: tuple[str, int] | None = None
        self.peer = ""
        self.ready: list[Stream] = []
        """Streams whose work starts when the bytes at hand are read: a reset may be among them."""

        # What the peer may send.
        self.held = 0
        self._recv_window = limits.connection_window
        self._uncredited = 0

        self._streams: dict[int, Stream] = {}
        self._reset_here: dict[int, None] = {}
        self._zombies: set[Stream] = set()
        self._last_id = 0
        self._refuse_above = MAX_STREAM_ID
        self._heads = HeadReader(services, limits)
        self._buffer = b""
        self._started = False
        self._settled = False
        self._finished = False
        self._draining = False
        self._open_block: bytearray | None = None
        self._open_id = 0
        self._open_flags = 0
        self._continuations = 0

        self.ping_strikes = 0
        self._ping_at = 0.0
        self._resets = Bucket(limits.resets, limits.resets_per_second)
        self._settings_seen = Bucket(limits.settings, limits.settings_per_second)
        self._idle_frames = Bucket(limits.idle_frames, limits.idle_frames_per_second)
        self._head_timer: asyncio.TimerHandle | None = None
        self._request_timer: asyncio.TimerHandle | None = None

    # asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        transport = cast("asyncio.Transport", transport)  # uvloop's are no subclass of it
        self._transport = transport
        self.client = _address(transport.get_extra_info("peername"))
        self.server = _address(transport.get_extra_info("sockname"))
        if self.client is not None:
            host, port = self.client
            self.peer = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        limits = self.limits
        self.write(
            settings(
                {
                    SETTINGS_MAX_CONCURRENT_STREAMS: limits.concurrent_streams,
                    SETTINGS_INITIAL_WINDOW_SIZE: limits.stream_window,
                    SETTINGS_MAX_HEADER_LIST_SIZE: limits.header_list_bytes,
                }
            )
        )
        if limits.connection_window > DEFAULT_WINDOW:
            self.write(window_update(0, limits.connection_window - DEFAULT_WINDOW))
        self._head_timer = self.loop.call_later(limits.head_seconds, self._head_too_slow)
        self._request_timer = self.loop.call_later(limits.first_request_seconds, self._no_request)

    def data_received(self, data: bytes) -> None:
        if self._finished:
            return
        self._batching = True
        try:
            self._read(self._buffer + data if self._buffer else data)
            if self.ready:
                ready, self.ready = self.ready, []
                for stream in ready:
                    if stream.alive:
                        stream.start()
        except ConnectionFault as error:
            self._fail(error.code, error.why)
        finally:
            self._batching = False
            self._flush()
        self._watch_head()

    def eof_received(self) -> bool:
        # A peer that closed its half cannot answer flow control any more.
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        self._lost = self._finished = True
        self._buffer = b""
        for timer in (self._head_timer, self._request_timer, self._stall_timer):
            if timer is not None:
                timer.cancel()
        self._head_timer = self._request_timer = self._stall_timer = None
        self._abandon()
        self._maybe_closed()

    # Ending

    def shutdown(self) -> None:
        """Drain: no new streams, those open are finished, then the transport is closed.

        Done in two steps (RFC 9113 section 6.8), so that a request already on its way is served.
        """
        if self._draining or self._finished:
            return
        self._draining = True
        if not self._started:
            self._close()
            return
        self.write(goaway(MAX_STREAM_ID, ErrorCode.NO_ERROR))
        self.write(frame(PING, 0, 0, _DRAIN_PING))
        self.loop.call_later(1.0, self._last_call)

    def abort(self) -> None:
        """End what shutdown() left: its calls are cancelled, told UNAVAILABLE, the door shut."""
        if self._lost:
            return
        self._batching = True
        for stream in list(self._streams.values()):
            stream.refuse_late()
        self._batching = False
        self._flush()
        self._fail(ErrorCode.NO_ERROR, "shutting down")

    @property
    def streams(self) -> int:
        """Requests not yet answered."""
        return len(self._streams)

    def _last_call(self) -> None:
        if self._finished or self._refuse_above != MAX_STREAM_ID:
            return
        self._refuse_above = self._last_id
        self.write(goaway(self._last_id, ErrorCode.NO_ERROR))
        if not self._streams:
            self._close()

    def _fail(self, code: ErrorCode, why: str) -> None:
        """GOAWAY and close: nothing of this connection can be trusted, or wanted, any more."""
        if self._finished:
            return
        if code is not ErrorCode.NO_ERROR:
            _log.info("http2 connection refused", extra={"code": code.name, "why": why})
        self.write(goaway(self._last_id, code, why.encode()))
        self._close()
        self._abandon()

    def _close(self) -> None:
        self._finished = True
        self._flush()
        transport = self._transport
        if transport is None or self._lost:
            return
        if transport.can_write_eof():
            # Closing with input unread makes the kernel reset the connection, and the peer may
            # lose the GOAWAY: read on for a moment, and look at nothing.
            transport.write_eof()
            self.loop.call_later(_LINGER_SECONDS, transport.close)
        else:
            transport.close()
        # close() itself waits for a peer that may never read.
        self.loop.call_later(_CLOSE_SECONDS, transport.abort)

    def _abandon(self) -> None:
        for stream in list(self._streams.values()):
            self.forget(stream)
            stream.drop()

    def _maybe_closed(self) -> None:
        if self._lost and not self._zombies and not self.closed.done():
            self.closed.set_result(None)
            if self._on_closed is not None:
                self._on_closed(self)

    # Timers

    def _watch_head(self) -> None:
        """A preface or header block that began must end in time."""
        buffered = self._buffer
        waiting = (
            self._open_block is not None
            or not self._settled
            or (
                bool(buffered) and (buffered[3] != DATA if len(buffered) > 3 else not self._streams)
            )
        )
        if not waiting or self._finished:
            if self._head_timer is not None:
                self._head_timer.cancel()
                self._head_timer = None
        elif self._head_timer is None:
            self._head_timer = self.loop.call_later(self.limits.head_seconds, self._head_too_slow)

    def _head_too_slow(self) -> None:
        self._head_timer = None
        self._fail(ErrorCode.ENHANCE_YOUR_CALM, "header too slow")

    def _no_request(self) -> None:
        self._request_timer = None
        self._fail(ErrorCode.NO_ERROR, "no request")

    # What streams use

    def forget(self, stream: Stream, *, reset_here: bool = False) -> None:
        """The stream ended, well or not."""
        if self._streams.pop(stream.id, None) is None:
            return
        if stream.running:
            self._zombies.add(stream)
        if reset_here:
            self._reset_here[stream.id] = None
            if len(self._reset_here) > _REMEMBERED_RESETS:
                del self._reset_here[next(iter(self._reset_here))]
        if not self._streams and self._refuse_above != MAX_STREAM_ID and not self._finished:
            # Not here: the caller may still have words to write.
            self.loop.call_soon(self._close_if_done)

    def finished(self, stream: Stream) -> None:
        """The work of the stream ended."""
        stream.running = False
        if self._zombies:
            self._zombies.discard(stream)
            if self._lost:
                self._maybe_closed()

    def credit(self, size: int) -> None:
        """`size` bytes arrived; give the window back unless too much lies unread."""
        self._uncredited = uncredited = self._uncredited + size
        limits = self.limits
        if uncredited * 2 >= limits.connection_window and self.held <= limits.held_bytes:
            self._recv_window += uncredited
            self._uncredited = 0
            self.write(window_update(0, uncredited))

    def broken(self, stream_id: int, code: ErrorCode) -> None:
        """The peer broke a rule on one stream: RST_STREAM, and count it (CVE-2025-8671)."""
        stream = self._streams.get(stream_id)
        if stream is not None:
            stream.reset(code)
        else:
            self.write(rst_stream(stream_id, code))
        self._count_reset()

    def _count_reset(self) -> None:
        if not self._resets.take(self.loop.time()):
            raise ConnectionFault(ErrorCode.ENHANCE_YOUR_CALM, "too many resets")

    def _count_idle(self) -> None:
        if not self._idle_frames.take(self.loop.time()):
            raise ConnectionFault(ErrorCode.ENHANCE_YOUR_CALM, "too many idle frames")

    def _close_if_done(self) -> None:
        if not self._streams and not self._finished:
            self._close()

    # Reading frames

    def _read(self, data: bytes) -> None:
        at = 0
        end = len(data)
        if not self._started:
            if data[:24] != PREFACE[:end]:
                raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "no preface")
            if end < 24:
                self._buffer = data
                return
            self._started = True
            at = 24
        unpack = frame_header.unpack_from
        streams = self._streams
        while end - at >= 9:
            word, flags, stream_id = unpack(data, at)
            length = word >> 8
            if length > FRAME_BYTES:
                raise ConnectionFault(ErrorCode.FRAME_SIZE_ERROR, "frame too large")
            stop = at + 9 + length
            if stop > end:
                break
            kind = word & 0xFF
            payload = data[at + 9 : stop]
            at = stop
            stream_id &= MAX_STREAM_ID
            if self._open_block is not None and kind != CONTINUATION:
                raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "header block interrupted")
            if not self._settled and kind != SETTINGS:
                raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "no settings")
            if kind == DATA:
                stream = streams.get(stream_id)
                if stream is None or flags & PADDED or length == 0:
                    self._odd_data(stream, stream_id, flags, payload)
                else:
                    self._data(stream, flags, payload, length)
            elif kind == HEADERS:
                self._headers(stream_id, flags, payload)
            elif kind == WINDOW_UPDATE:
                self._window_update(stream_id, payload)
            else:
                self._control(kind, flags, stream_id, payload)
            if self._finished:
                return
        self._buffer = data[at:] if at < end else b""

    def _data(self, stream: Stream, flags: int, data: bytes, length: int) -> None:
        """A DATA frame of `length` bytes with its padding, `data` without."""
        self._recv_window -= length
        if self._recv_window < 0:
            raise ConnectionFault(ErrorCode.FLOW_CONTROL_ERROR, "connection window exceeded")
        self.credit(length)
        if not stream.remote_open:
            self.broken(stream.id, ErrorCode.STREAM_CLOSED)
            return
        stream.recv_window -= length
        if stream.recv_window < 0:
            self.broken(stream.id, ErrorCode.FLOW_CONTROL_ERROR)
            return
        end = bool(flags & END_STREAM)
        if stream.expected is not None:
            stream.expected -= len(data)
            if stream.expected < 0 or (end and stream.expected):
                self.broken(stream.id, ErrorCode.PROTOCOL_ERROR)
                return
        if end:
            stream.remote_open = False
        if length != len(data):
            stream.credit(length - len(data))
        self.ping_strikes = 0
        stream.receive_data(data, end)

    def _odd_data(self, stream: Stream | None, stream_id: int, flags: int, payload: bytes) -> None:
        """DATA that is padded, empty, or for a stream that is not open."""
        length = len(payload)
        if flags & PADDED:
            if not length or payload[0] >= length:
                raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "padding")
            payload = payload[1 : length - payload[0]]
        if stream is not None:
            if not payload and not flags & END_STREAM:
                self._count_idle()
            self._data(stream, flags, payload, length)
            return
        if stream_id == 0 or stream_id > self._last_id or not stream_id & 1:
            raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "data on an idle stream")
        self._recv_window -= length
        if self._recv_window < 0:
            raise ConnectionFault(ErrorCode.FLOW_CONTROL_ERROR, "connection window exceeded")
        self.credit(length)
        if stream_id in self._reset_here:
            self._count_idle() if length == 0 else None
        else:
            self.broken(stream_id, ErrorCode.STREAM_CLOSED)

    def _headers(self, stream_id: int, flags: int, payload: bytes) -> None:
        if not stream_id & 1:
            raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "stream id")
        if flags & (PADDED | WITH_PRIORITY):
            payload = strip_headers(stream_id, flags, payload)
        if flags & END_HEADERS:
            self._block(stream_id, flags, payload)
        else:
            self._open_block = bytearray(payload)
            self._open_id = stream_id
            self._open_flags = flags
            self._continuations = 0

    def _continuation(self, stream_id: int, flags: int, payload: bytes) -> None:
        block = self._open_block
        if block is None or stream_id != self._open_id:
            raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "continuation")
        self._continuations += 1
        block += payload
        limits = self.limits
        if self._continuations > limits.continuation_frames or len(block) > (
            limits.header_block_bytes
        ):
            raise ConnectionFault(ErrorCode.ENHANCE_YOUR_CALM, "header block too large")
        if flags & END_HEADERS:
            self._open_block = None
            self._block(stream_id, self._open_flags, bytes(block))

    def _block(self, stream_id: int, flags: int, block: bytes) -> None:
        """A complete header block: a request's head, or its trailers."""
        end = bool(flags & END_STREAM)
        if stream_id <= self._last_id:
            self._late_block(stream_id, block, end)
            return
        self.ping_strikes = 0
        head = self._heads.remembered.get(block)
        if head is None:
            try:
                head = self._heads.read(block)
            except MalformedRequest:
                self._last_id = stream_id
                self._reset_here[stream_id] = None
                self.broken(stream_id, ErrorCode.PROTOCOL_ERROR)
                return
        self._last_id = stream_id
        if self._request_timer is not None:
            self._request_timer.cancel()
            self._request_timer = None
        if (
            len(self._streams) + len(self._zombies) >= self.limits.concurrent_streams
            or stream_id > self._refuse_above
        ):
            self._reset_here[stream_id] = None
            self.broken(stream_id, ErrorCode.REFUSED_STREAM)
            return
        stream: Stream
        if isinstance(head, GrpcHead):
            stream = GrpcStream(self, stream_id, head)
        else:
            stream = AsgiStream(self, stream_id, head)
        if end and stream.expected:
            self._reset_here[stream_id] = None
            self.broken(stream_id, ErrorCode.PROTOCOL_ERROR)
            return
        self._streams[stream_id] = stream
        if end:
            stream.remote_open = False
            stream.receive_data(b"", True)
        else:
            stream.opened()

    def _late_block(self, stream_id: int, block: bytes, end: bool) -> None:
        """A header block on a stream that was already opened: trailers, or a mistake."""
        fields, _ = self._heads.fields(block)
        stream = self._streams.get(stream_id)
        if stream is None:
            if stream_id in self._reset_here:
                self._count_idle()
                return
            raise ConnectionFault(ErrorCode.STREAM_CLOSED, "headers on a closed stream")
        if not stream.remote_open:
            self.broken(stream_id, ErrorCode.STREAM_CLOSED)
            return
        try:
            check_trailers(fields)
        except MalformedRequest:
            end = False
        if not end or stream.expected:
            self.broken(stream_id, ErrorCode.PROTOCOL_ERROR)
            return
        stream.remote_open = False
        stream.receive_data(b"", True)

    def _window_update(self, stream_id: int, payload: bytes) -> None:
        if len(payload) != 4:
            raise ConnectionFault(ErrorCode.FRAME_SIZE_ERROR, "window update")
        increment = int.from_bytes(payload, "big") & MAX_WINDOW
        if stream_id == 0:
            if increment == 0:
                raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "window update of 0")
            self.send_window += increment
            if self.send_window > MAX_WINDOW:
                raise ConnectionFault(ErrorCode.FLOW_CONTROL_ERROR, "window too large")
            if self._blocked:
                self._pump()
            return
        stream = self._streams.get(stream_id)
        if stream is None:
            if stream_id > self._last_id:
                raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "window update, idle stream")
            return
        if increment == 0:
            self.broken(stream_id, ErrorCode.PROTOCOL_ERROR)
            return
        try:
            stream.widen(increment)
        except OverflowError:
            self.broken(stream_id, ErrorCode.FLOW_CONTROL_ERROR)

    def _control(self, kind: int, flags: int, stream_id: int, payload: bytes) -> None:
        if kind == RST_STREAM:
            self._peer_reset(stream_id, payload)
        elif kind == PING:
            self._ping(stream_id, flags, payload)
        elif kind == SETTINGS:
            self._settings(stream_id, flags, payload)
        elif kind == CONTINUATION:
            self._continuation(stream_id, flags, payload)
        elif kind == GOAWAY:
            if stream_id:
                raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "goaway on a stream")
            # The peer opens nothing more; what it has open is finished.
            self._refuse_above = min(self._refuse_above, self._last_id)
            if not self._streams:
                self._close()
        elif kind == PRIORITY:
            if stream_id == 0:
                raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "priority of the connection")
            if len(payload) != 5:
                self.broken(stream_id, ErrorCode.FRAME_SIZE_ERROR)
            elif int.from_bytes(payload[:4], "big") & MAX_STREAM_ID == stream_id:
                self.broken(stream_id, ErrorCode.PROTOCOL_ERROR)
            self._count_idle()
        elif kind == PUSH_PROMISE:
            raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "push from a client")
        else:
            self._count_idle()

    def _peer_reset(self, stream_id: int, payload: bytes) -> None:
        if len(payload) != 4:
            raise ConnectionFault(ErrorCode.FRAME_SIZE_ERROR, "rst_stream")
        if stream_id == 0 or stream_id > self._last_id:
            raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "reset of an idle stream")
        stream = self._streams.get(stream_id)
        if stream is None:
            self._count_idle()
            return
        young = self.loop.time() - stream.opened_at <= self.limits.young_seconds
        self.forget(stream)
        stream.drop()
        if young:
            self._count_reset()

    def _ping(self, stream_id: int, flags: int, payload: bytes) -> None:
        if stream_id:
            raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "ping on a stream")
        if len(payload) != 8:
            raise ConnectionFault(ErrorCode.FRAME_SIZE_ERROR, "ping")
        if flags & ACK:
            if payload == _DRAIN_PING and self._draining:
                self._last_call()
            return
        now = self.loop.time()
        forgiven = int((now - self._ping_at) / self.limits.ping_seconds)
        self.ping_strikes = max(0, self.ping_strikes - forgiven) + 1
        self._ping_at = now
        if self.ping_strikes > self.limits.pings:
            # The words grpc clients look for to ping less often.
            raise ConnectionFault(ErrorCode.ENHANCE_YOUR_CALM, "too_many_pings")
        self.write(frame(PING, ACK, 0, payload))

    def _settings(self, stream_id: int, flags: int, payload: bytes) -> None:
        if stream_id:
            raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "settings on a stream")
        if flags & ACK:
            if payload:
                raise ConnectionFault(ErrorCode.FRAME_SIZE_ERROR, "settings ack")
            self._count_idle()
            return
        if len(payload) % 6:
            raise ConnectionFault(ErrorCode.FRAME_SIZE_ERROR, "settings")
        if not self._settings_seen.take(self.loop.time()):
            raise ConnectionFault(ErrorCode.ENHANCE_YOUR_CALM, "too many settings")
        window = self.peer_window
        for key, value in setting.iter_unpack(payload):
            if key == SETTINGS_INITIAL_WINDOW_SIZE:
                if value > MAX_WINDOW:
                    raise ConnectionFault(ErrorCode.FLOW_CONTROL_ERROR, "initial window")
                window = value
            elif key == SETTINGS_MAX_FRAME_SIZE:
                if not FRAME_BYTES <= value <= 0xFFFFFF:
                    raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "max frame size")
                # Larger frames would only make one stream's turn longer.
            elif key == SETTINGS_ENABLE_PUSH and value > 1:
                raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "enable push")
        self._settled = True
        self.write(frame(SETTINGS, ACK, 0))
        if window != self.peer_window:
            change = window - self.peer_window
            self.peer_window = window
            for stream in list(self._streams.values()):
                try:
                    stream.widen(change)
                except OverflowError as error:
                    raise ConnectionFault(
                        ErrorCode.FLOW_CONTROL_ERROR, "window too large"
                    ) from error


def _address(name: object) -> tuple[str, int] | None:
    """Host and port of an internet socket's address."""
    if isinstance(name, tuple) and len(name) >= 2:
        return str(name[0]), int(name[1])
    return None
