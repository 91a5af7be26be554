"""HTTP/1.1: uvicorn's protocol on a transport the port has read from, with limits of our own."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Callable
from email.utils import formatdate
from typing import TYPE_CHECKING, Any

import httptools
from uvicorn.config import Config
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol
from uvicorn.server import ServerState

from lakemesh.server.deadlines import Deadlines
from lakemesh.server.errors import Code

if TYPE_CHECKING:
    from lakemesh.server.port import PortLimits

_log = logging.getLogger(__name__)

AsgiApp = Callable[..., Any]

_SWEEP_SECONDS = 0.5
_CUT_SECONDS = 0.5
_LINGER_SECONDS = 1.0


class Http1Edge:
    """Serves HTTP/1.x connections by an ASGI app."""

    def __init__(self, app: AsgiApp, limits: PortLimits, state: dict[str, Any]) -> None:
        self.limits = limits
        self.app_state = state
        self.state = ServerState()
        self.closing = ""
        """Why requests are being cut; empty while they are not."""
        self.heads: Deadlines[Http1Connection] = Deadlines(
            limits.head_seconds, lambda connection: connection.head_too_slow()
        )
        self.bodies: set[Http1Connection] = set()
        """Connections in the middle of a request's body."""
        self.idle = asyncio.Event()
        self.config = Config(
            app=_Answered(self, app),
            http="httptools",
            ws="none",
            lifespan="off",
            loop="none",
            interface="asgi3",
            log_config=None,
            access_log=False,
            proxy_headers=False,  # whom to believe is the facade's to say
            server_header=False,
            timeout_keep_alive=limits.keep_alive_seconds,
        )
        self.config.load()
        self._loop = asyncio.get_running_loop()
        self._date: asyncio.TimerHandle | None = None
        self._sweep: asyncio.TimerHandle | None = None
        self._tick()

    def connection(
        self, started: float, on_closed: Callable[[Http1Connection], None]
    ) -> Http1Connection:
        """The protocol of a connection that was accepted at `started` on the loop's clock."""
        return Http1Connection(self, started, on_closed)

    def watch_body(self, connection: Http1Connection) -> None:
        self.bodies.add(connection)
        if self._sweep is None:
            self._sweep = self._loop.call_later(_SWEEP_SECONDS, self._sweep_bodies)

    async def drain(self, seconds: float, reason: str) -> None:
        """Close idle connections, finish the requests at work, cut those that last longer.

        A request that is cut before its answer began is answered 503 with `reason`.
        """
        for connection in tuple(self.state.connections):
            connection.shutdown()
        end = self._loop.time() + seconds
        while self.state.tasks and (left := end - self._loop.time()) > 0:
            # A pipelined request may start when another one ends, hence the loop.
            await asyncio.wait(tuple(self.state.tasks), timeout=left)
        if self.state.tasks:
            await self.cut(reason)
        await asyncio.sleep(0)

    async def cut(self, reason: str) -> None:
        """End every request at work."""
        self.closing = reason
        for task in tuple(self.state.tasks):
            task.cancel(reason)
        if self.state.tasks:
            await asyncio.wait(tuple(self.state.tasks), timeout=_CUT_SECONDS)

    def close(self) -> None:
        self.heads.close()
        for timer in (self._date, self._sweep):
            if timer is not None:
                timer.cancel()
        for connection in tuple(self.state.connections):
            if connection.transport is not None:
                connection.transport.abort()

    def _tick(self) -> None:
        # What uvicorn's own server does once a second (RFC 9110 section 6.6.1 asks for a date).
        self.state.default_headers = [(b"date", formatdate(usegmt=True).encode())]
        self._date = self._loop.call_later(1.0, self._tick)

    def _sweep_bodies(self) -> None:
        self._sweep = None
        now = self._loop.time()
        for connection in tuple(self.bodies):
            connection.check_body(now, _SWEEP_SECONDS)
        if self.bodies:
            self._sweep = self._loop.call_later(_SWEEP_SECONDS, self._sweep_bodies)


class _Answered:
    """The app, with an answer for a request that the drain cancels."""

    def __init__(self, edge: Http1Edge, app: AsgiApp) -> None:
        self._edge = edge
        self._app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        try:
            await self._app(scope, receive, send)
        except asyncio.CancelledError:
            reason = self._edge.closing
            if not reason:
                raise
            body = _body(Code.UNAVAILABLE, reason)
            try:
                await send(
                    {
                        "type": "http.response.start",
                        "status": 503,
                        "headers": [
                            (b"content-type", b"application/json"),
                            (b"content-length", str(len(body)).encode()),
                            (b"connection", b"close"),
                        ],
                    }
                )
                await send({"type": "http.response.body", "body": body})
            except RuntimeError:
                # The answer had begun. It ends without its last chunk, so that it is seen to be
                # incomplete (RFC 9112 section 8).
                _log.info("answer cut off", extra={"path": scope["path"], "why": reason})


class _HeadWithBody:
    """A transport that sends an answer's head together with what follows it.

    uvicorn writes the two one after the other: two system calls and two packets for each answer.
    Both together were 18 % of a server's samples under small calls (py-spy).
    A head that nothing follows in the same turn of the loop goes alone at the turn's end.
    """

    __slots__ = (
        "_head",
        "_loop",
        "_transport",
        "abort",
        "is_closing",
        "pause_reading",
        "resume_reading",
    )

    def __init__(self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop) -> None:
        self._transport = transport
        self._loop = loop
        self._head = b""
        self.is_closing = transport.is_closing
        self.pause_reading = transport.pause_reading
        self.resume_reading = transport.resume_reading
        self.abort = transport.abort

    def write(self, data: bytes) -> None:
        if self._head:
            data = self._head + data
            self._head = b""
        elif data.startswith(b"HTTP/1.1 "):
            self._head = data
            self._loop.call_soon(self._flush)
            return
        self._transport.write(data)

    def close(self) -> None:
        self._flush()
        self._transport.close()

    def write_eof(self) -> None:
        self._flush()
        self._transport.write_eof()

    def _flush(self) -> None:
        if self._head:
            head, self._head = self._head, b""
            self._transport.write(head)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)


class Http1Connection(HttpToolsProtocol):
    """uvicorn's connection with bounds: on a head's size and time, and on a body's pace.

    A head begins with its first byte; the first one of a connection with the connection.
    """

    def __init__(
        self, edge: Http1Edge, started: float, on_closed: Callable[[Http1Connection], None]
    ) -> None:
        super().__init__(edge.config, edge.state, edge.app_state)
        self._edge = edge
        self._on_closed = on_closed
        self._first_by = started + edge.limits.head_seconds
        self._first_timer: asyncio.TimerHandle | None = None
        self._in_head = False
        self._in_body = False
        self._begun = 0
        """Heads that began in the chunk at hand."""
        self._fed = 0
        """Bytes since the head began; in its last chunk also what follows it there."""
        self._refused = False
        self._body_seconds = 0.0
        self._body_bytes = 0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(_HeadWithBody(transport, self.loop))  # type: ignore[arg-type]

    def connection_lost(self, exc: Exception | None) -> None:
        self._unwatch()
        super().connection_lost(exc)
        self._on_closed(self)

    def data_received(self, data: bytes) -> None:
        if self._refused:
            return
        self._unset_keepalive_if_required()
        idle = not self._in_head and not self._in_body
        self._begun = 0
        self._fed += len(data)
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            pass  # an Upgrade is answered as if it were not asked for
        except httptools.HttpParserError:
            self.refuse(400, Code.INVALID_ARGUMENT, "not a valid HTTP request")
            return
        if self._in_head:
            if self._begun > 1 or (self._begun and not idle):
                self._fed = self._head_bytes()
            if self._fed > self._edge.limits.header_bytes:
                self._refuse_head()
            elif self._first_by:
                if self._first_timer is None:
                    self._first_timer = self.loop.call_at(self._first_by, self.head_too_slow)
            elif self not in self._edge.heads:
                self._edge.heads.add(self)
        else:
            self._fed = 0
            if self._in_body:
                self._body_bytes += len(data)
                if self not in self._edge.bodies:
                    self._edge.watch_body(self)

    def on_message_begin(self) -> None:
        self._begun += 1
        self._in_head = True
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        # The chunk may have had more in it than this head, so the sum is only made when needed.
        limit = self._edge.limits.header_bytes
        if self._refused or (self._fed > limit and self._head_bytes() > limit):
            self._refuse_head()
            return
        self._in_head = False
        self._in_body = True
        self._body_seconds = 0.0
        self._body_bytes = 0
        self._first_by = 0.0
        self._unwatch()
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        if not self._refused:
            super().on_body(body)

    def on_message_complete(self) -> None:
        self._in_body = False
        self._edge.bodies.discard(self)
        if not self._refused:
            super().on_message_complete()

    def head_too_slow(self) -> None:
        self.refuse(408, Code.DEADLINE_EXCEEDED, "the request's headers took too long")

    def check_body(self, now: float, elapsed: float) -> None:
        """Cut a peer whose body keeps coming too slowly.

        As Apache's mod_reqtimeout: some seconds at first, and one more for so many bytes. While
        the app has not asked for more the peer cannot send, and that time does not count.
        """
        if self.flow.read_paused:
            return
        self._body_seconds += elapsed
        limits = self._edge.limits
        allowed = limits.body_seconds + self._body_bytes / limits.body_bytes_per_second
        if self._body_seconds > allowed:
            self.refuse(408, Code.DEADLINE_EXCEEDED, "the request's body took too long")

    def refuse(self, status: int, code: Code, message: str) -> None:
        """Answer with a google.rpc.Status, unless another answer is due first, and close."""
        if self._refused or self.transport.is_closing():
            return
        self._refused = True
        self._unwatch()
        answering = self.cycle is not None and not self.cycle.response_complete
        due = answering and (
            self.cycle.response_started or bool(self.pipeline) or not self._in_body
        )
        if answering:
            self.cycle.disconnected = True
            self.cycle.message_event.set()
        if not due:
            body = _body(code, message)
            head = [STATUS_LINE[status]]
            for name, value in self.server_state.default_headers:
                head += [name, b": ", value, b"\r\n"]
            head.append(
                b"content-type: application/json\r\ncontent-length: %d\r\nconnection: close\r\n\r\n"
                % len(body)
            )
            self.transport.write(b"".join(head) + body)
        if due or not self.transport.can_write_eof():
            self.transport.close()
            return
        # Closing with unread bytes makes the kernel send a reset, which can take the answer away
        # from a peer that is still sending (RFC 9112 section 9.6): read on for a moment.
        self.flow.resume_reading()
        self.transport.write_eof()
        self.loop.call_later(_LINGER_SECONDS, self.transport.close)

    def _refuse_head(self) -> None:
        self.refuse(431, Code.RESOURCE_EXHAUSTED, "the request's headers are too large")

    def _head_bytes(self) -> int:
        """Of the head at hand, as far as it was read."""
        return len(self.url) + sum(len(name) + len(value) + 4 for name, value in self.headers)

    def _unwatch(self) -> None:
        self._edge.heads.discard(self)
        self._edge.bodies.discard(self)
        if self._first_timer is not None:
            self._first_timer.cancel()
            self._first_timer = None


def _body(code: Code, message: str) -> bytes:
    """The status as the gateway writes it."""
    return json.dumps(
        {"code": int(code), "message": message, "details": []}, separators=(",", ":")
    ).encode()
