"""What an ASGI request brings besides its head: the body, within bounds, and its end."""

from __future__ import annotations

import asyncio
import contextlib
from types import TracebackType
from typing import Any

from lakemesh.server.http_errors import HttpError

PATIENCE_SECONDS = 0.02
"""How long a call runs before somebody watches its connection.

At least that long, at most twice. Most calls have ended by then and are spared a second task; a
caller who leaves is noticed that much later.
"""

DISCARDED = 4
"""Of a body that is refused, this many times the limit is read and thrown away at most."""
DISCARD_SECONDS = 2.0


class CallerGone(Exception):
    """The connection closed before the request was whole: there is nobody to answer."""


async def read_body(scope: Any, receive: Any, limit: int) -> bytes:
    """The whole body. Raises CallerGone, or HttpError 413 once it is known to exceed `limit` bytes.

    A body that is too long is refused from its Content-Length if it has one, and else after
    `limit` bytes; what follows is never kept.
    """
    for name, value in scope["headers"]:
        if name == b"content-length" and value.isdigit() and int(value) > limit:
            if int(value) <= DISCARDED * limit and not _waits_for_continue(scope):
                await _discard(receive, DISCARDED * limit)
            raise _too_large(limit)
    message = await receive()
    if message["type"] != "http.request":
        raise CallerGone
    body: bytes = message.get("body", b"")
    if not message.get("more_body"):
        if len(body) > limit:
            raise _too_large(limit)
        return body
    chunks = [body]
    size = len(body)
    while message.get("more_body"):
        if size > limit:
            chunks.clear()
            await _discard(receive, DISCARDED * limit)
            raise _too_large(limit)
        message = await receive()
        if message["type"] != "http.request":
            raise CallerGone
        body = message.get("body", b"")
        size += len(body)
        chunks.append(body)
    if size > limit:
        raise _too_large(limit)
    return b"".join(chunks)


async def _discard(receive: Any, most: int) -> None:
    """Read on and keep nothing, so that a client in the middle of sending gets to read its answer.

    Without this, one that does not expect an answer before its last byte (httpx on HTTP/2, most on
    HTTP/1.1 when the connection closes under them) reports a broken connection.
    """
    size = 0
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(DISCARD_SECONDS):
            while size <= most:
                message = await receive()
                size += len(message.get("body", b""))
                if message["type"] != "http.request" or not message.get("more_body"):
                    return


def _waits_for_continue(scope: Any) -> bool:
    return any(name == b"expect" for name, _ in scope["headers"])


def _too_large(limit: int) -> HttpError:
    return HttpError(413, f"the body is larger than {limit} bytes")


class Watches:
    """Looks every PATIENCE_SECONDS for calls that have become old enough to be watched.

    One timer for all calls, and none while there are none.
    """

    __slots__ = ("_armed", "new", "old")

    def __init__(self) -> None:
        self.new: set[Watch] = set()
        """Entered since the last look."""
        self.old: set[Watch] = set()
        """There at the last look, and not watched yet."""
        self._armed = False

    def add(self, watch: Watch) -> None:
        self.new.add(watch)
        if not self._armed:
            self._armed = True
            asyncio.get_running_loop().call_later(PATIENCE_SECONDS, self._look)

    def _look(self) -> None:
        grown, self.old, self.new = self.old, self.new, set()
        for watch in grown:
            watch.start()
        self._armed = bool(self.old)
        if self._armed:
            asyncio.get_running_loop().call_later(PATIENCE_SECONDS, self._look)


class Watch:
    """Cancels the task it was entered in when the caller's connection closes.

    Leaving swallows that cancellation, and no other.
    """

    __slots__ = ("_gone", "_receive", "_task", "_watcher", "_watches")

    def __init__(self, receive: Any, watches: Watches, *, at_once: bool = False) -> None:
        self._receive = receive
        self._watches = watches
        self._gone = False
        self._watcher: asyncio.Task[None] | None = None
        self._task = asyncio.current_task()
        if at_once:
            self.start()
        else:
            watches.add(self)

    def start(self) -> None:
        """Begin to wait for the connection's end."""
        self._watcher = asyncio.get_running_loop().create_task(self._run())

    async def _run(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass
        self._gone = True
        if self._task is not None:
            self._task.cancel("the caller closed the connection")

    def __enter__(self) -> Watch:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> bool:
        self._watches.new.discard(self)
        self._watches.old.discard(self)
        if self._watcher is None:
            return False
        self._watcher.cancel()
        if self._gone and isinstance(error, asyncio.CancelledError):
            return self._task is None or self._task.uncancel() == 0
        return False
