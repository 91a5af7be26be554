"""HTTP on an HTTP/2 stream: one ASGI scope for each request that is not gRPC.

Source: ASGI 3.0, HTTP spec 2.4 (a send after the peer left raises OSError).
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Awaitable, Callable, MutableMapping
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

from lakemesh.server.h2_frames import BAD_VALUE, NAME, ErrorCode, RequestHead
from lakemesh.server.h2_hpack import Field, encode_field, encode_status
from lakemesh.server.h2_stream import Stream, StreamReset

if TYPE_CHECKING:
    from lakemesh.server.h2_connection import H2Connection

Message = MutableMapping[str, Any]
Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
AsgiApp = Callable[[Scope, Receive, Send], Awaitable[None]]

_log = logging.getLogger(__name__)

_EMPTY = encode_field(b"content-length", b"0")
_NOT_SENT = frozenset(
    {b"connection", b"proxy-connection", b"keep-alive", b"transfer-encoding", b"upgrade"}
)


class AsgiStream(Stream):
    """One HTTP request and its answer."""

    __slots__ = (
        "_arrived",
        "_body",
        "_body_ended",
        "_body_told",
        "_complete",
        "_entered",
        "_gone",
        "_head",
        "_started",
        "_task",
    )

    def __init__(self, connection: H2Connection, stream_id: int, head: RequestHead) -> None:
        super().__init__(connection, stream_id, head.content_length)
        self._head = head
        self._body: deque[bytes] = deque()
        self._body_ended = False
        self._body_told = False
        """The app has the last part of the body."""
        self._started = False
        """The answer's head was sent."""
        self._complete = False
        """The answer's last part was sent."""
        self._gone = False
        self._entered = False
        self._arrived: asyncio.Future[None] | None = None
        self._task: asyncio.Task[None] | None = None

    # What the connection calls.

    def opened(self) -> None:
        self.connection.ready.append(self)

    def receive_data(self, data: bytes, end: bool) -> None:
        if data:
            self._body.append(data)
            self.hold(len(data))
        if end:
            self._body_ended = True
            if self._task is None:
                self.connection.ready.append(self)
        self._notify()

    def start(self) -> None:
        if self._task is not None or not self.local_open:
            return
        if self._head.size > self.connection.limits.header_list_bytes:
            self._answer_bare(431)
        elif self._head.method == b"CONNECT":
            self._answer_bare(501)
        else:
            self.running = True
            self._task = self.connection.loop.create_task(self._run())

    def aborted(self) -> None:
        self._gone = True
        self._notify()
        # The app learns it from http.disconnect, as ASGI has it; what never began is not begun.
        if self._task is not None and not self._entered and not self._task.done():
            self._task.cancel()
            self.connection.finished(self)

    def refuse_late(self) -> None:
        if not self._started:
            self._answer_bare(503)
        else:
            self.reset(ErrorCode.CANCEL)
        if self._task is not None:
            self._task.cancel()
            if not self._entered:
                self.connection.finished(self)

    # The app.

    async def _run(self) -> None:
        self._entered = True
        try:
            await self.connection.app(self._scope(), self._receive, self._send)
            if not self._complete and not self._gone:
                _log.error("the app did not complete its answer to %r", self._head.path)
        except asyncio.CancelledError:
            _log.info("answer to %r cancelled", self._head.path)
        except StreamReset:
            _log.debug("the peer left before the answer to %r", self._head.path)
        except Exception:
            if not self._gone:
                _log.exception("the app failed on %r", self._head.path)
        finally:
            self._fail(500)
            self.connection.finished(self)

    def _scope(self) -> Scope:
        connection = self.connection
        head = self._head
        raw_path, _, query = head.path.partition(b"?")
        scope: Scope = {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.4"},
            "http_version": "2",
            "method": head.method.decode("latin-1"),
            "scheme": connection.scheme,
            "path": unquote(raw_path.decode("latin-1")),
            "raw_path": raw_path,
            "query_string": query,
            "root_path": "",
            "headers": _request_headers(head),
            "client": connection.client,
            "server": connection.server,
        }
        if connection.state is not None:
            scope["state"] = connection.state.copy()
        return scope

    async def _receive(self) -> Message:
        while not self._gone and not self._complete:
            if self._body:
                data = self._body.popleft()
                self.release(len(data))
                self._body_told = self._body_ended and not self._body
                return {"type": "http.request", "body": data, "more_body": not self._body_told}
            if not self._body_ended:
                if not await self._wait(self.connection.limits.body_seconds):
                    self._fail(408)
            elif not self._body_told:
                self._body_told = True
                return {"type": "http.request", "body": b"", "more_body": False}
            else:
                await self._wait(None)
        return {"type": "http.disconnect"}

    async def _wait(self, seconds: float | None) -> bool:
        """Wait for more body or for the end; False when neither came in time."""
        self._arrived = arrived = self.connection.loop.create_future()
        if seconds is None:
            await arrived
        else:
            await asyncio.wait((arrived,), timeout=seconds)
        return arrived.done()

    def _notify(self) -> None:
        arrived = self._arrived
        if arrived is not None and not arrived.done():
            arrived.set_result(None)

    async def _send(self, message: Message) -> None:
        if self._gone:
            raise StreamReset("the peer left")
        if self._complete:
            return
        kind = message["type"]
        if kind == "http.response.start":
            self._started = True
            self.send_headers(_response_block(message))
        elif kind == "http.response.body":
            if not self._started:
                raise RuntimeError("http.response.body before http.response.start")
            more = bool(message.get("more_body", False))
            body = b"" if self._head.method == b"HEAD" else bytes(message.get("body", b""))
            if body or not more:
                self.send_data(body, end_stream=not more)
                if self.blocked:
                    await self.writable()
            if not more:
                self._complete = True
                self._notify()

    def _fail(self, status: int) -> None:
        """The app will not complete the answer: say so, or cut what was begun."""
        if self._complete or not self.local_open:
            return
        if self._started:
            self.reset(ErrorCode.INTERNAL_ERROR)
        else:
            self._answer_bare(status)
            self._gone = True

    def _answer_bare(self, status: int) -> None:
        self._started = self._complete = True
        self.send_headers(encode_status(status) + _EMPTY, end_stream=True)


def _request_headers(head: RequestHead) -> list[Field]:
    """The fields as HTTP/1.1 would have brought them: a host, and one cookie (RFC 9113 8.2.3)."""
    headers: list[Field] = []
    cookies: list[bytes] = []
    if head.authority:
        headers.append((b"host", head.authority))
    for field in head.fields:
        name = field[0]
        if name == b"cookie":
            cookies.append(field[1])
        elif name != b"host" or not head.authority:
            headers.append(field)
    if cookies:
        headers.append((b"cookie", b"; ".join(cookies)))
    return headers


def _response_block(message: Message) -> bytes:
    block = encode_status(message["status"])
    for name, value in message.get("headers", ()):
        lower = bytes(name).lower()
        if lower in _NOT_SENT:
            continue
        if not NAME.fullmatch(lower) or BAD_VALUE.search(value):
            raise ValueError(f"header {lower!r} cannot be sent")
        block += encode_field(lower, bytes(value))
    return block
