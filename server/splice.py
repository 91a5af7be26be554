"""Joins a client's connection to the grpc.aio server behind it, byte for byte.

grpc.aio takes no accepted socket (facts: its extension exports nothing for it), so a connection it
is to serve is joined to one of its own on a unix socket. Once joined, a chunk costs a read and a
write and no Python frame: each side's protocol has the other transport's `write` as its
`data_received`.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import os
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from lakemesh.server.sniff import AckFilter

if TYPE_CHECKING:
    from collections.abc import MutableMapping

_log = logging.getLogger(__name__)

_CONNECT_SECONDS = 5.0
_RETRY_SECONDS = 0.01


class _Pipe(asyncio.Protocol):
    """One side's protocol: what arrives goes to the other side."""

    __slots__ = ("_filter", "_from", "_splice", "_to", "data_received")

    def __init__(
        self,
        splice: Splice,
        source: asyncio.Transport,
        target: asyncio.Transport,
        strip: AckFilter | None,
    ) -> None:
        self._splice = splice
        self._from = source
        self._to = target
        self._filter = strip
        # uvloop calls what `data_received` is when the protocol is set.
        self.data_received = (  # type: ignore[method-assign]
            target.write if strip is None else self._through_filter
        )

    def _through_filter(self, data: bytes) -> None:
        strip = self._filter
        if strip is None:
            self._to.write(data)
            return
        passed = strip.feed(data)
        if passed:
            self._to.write(passed)
        if strip.done:
            self._filter = None
            self.data_received = self._to.write  # type: ignore[method-assign]
            self._from.set_protocol(self)

    def pause_writing(self) -> None:
        """Called when the peer of this side reads too slowly: the other side stops reading."""
        if not self._to.is_closing():
            self._to.pause_reading()

    def resume_writing(self) -> None:
        if not self._to.is_closing():
            self._to.resume_reading()

    def eof_received(self) -> bool:
        """Half-close: the other side may still have something to say."""
        if self._splice.ended or not self._to.can_write_eof():
            return False
        self._splice.ended = True
        if not self._to.is_closing():
            self._to.write_eof()
        return True

    def connection_lost(self, exc: Exception | None) -> None:
        # An error is passed on at once; an orderly end lets what was written arrive.
        if exc is None:
            self._to.close()
        else:
            self._to.abort()
        self._splice.lost()


class Splice:
    """Two transports that are one connection."""

    __slots__ = ("_client", "_left", "_on_end", "_server", "ended")

    def __init__(self, client: asyncio.Transport, on_end: Callable[[Splice], None]) -> None:
        self._client = client
        self._server: asyncio.Transport | None = None
        self._on_end = on_end
        self._left = 2
        self.ended = False
        """One direction is over."""

    def join(
        self, server: asyncio.Transport, waiting: Waiting, opening: bytes, *, greeted: bool
    ) -> None:
        """Begin: `opening` is what the client sent so far; its reading is paused until here.

        With `greeted`, the SETTINGS both sides exchange were already acknowledged to the client
        and to the listener, so one acknowledgement is left out in each direction.
        """
        self._server = server
        from_client, from_server = (AckFilter(), AckFilter()) if greeted else (None, None)
        if from_client is not None:
            preface = opening[:24]
            opening = preface + from_client.feed(opening[24:])
            if from_client.done:
                from_client = None
        self._client.set_protocol(_Pipe(self, self._client, server, from_client))
        answers = _Pipe(self, server, self._client, from_server)
        server.set_protocol(answers)
        server.write(opening)
        if waiting.held:
            answers.data_received(waiting.held)
        self._client.resume_reading()

    def lost(self) -> None:
        """One of the two transports is gone."""
        self._left -= 1
        if not self._left:
            self._on_end(self)

    def close(self) -> None:
        """Say goodbye to both: what was written is sent first."""
        self._client.close()
        if self._server is not None:
            self._server.close()

    def abort(self) -> None:
        self._client.abort()
        if self._server is not None:
            self._server.abort()


class PeerNames:
    """Whose connection stands behind a unix socket's peer name in `context.peer()`.

    The listener's end of each unix connection is bound to a name of its own, so grpc.aio, which
    only sees that end, still tells who calls. On Linux the kernel makes the name (autobind,
    unix(7)); elsewhere it is a file in the server's private folder.
    """

    __slots__ = ("_folder", "_numbers", "addresses")

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._numbers = itertools.count(1)
        self.addresses: MutableMapping[str, str] = {}
        """`context.peer()` -> the caller's "host:port"."""

    def bind(self, sock: socket.socket, address: str) -> str:
        """Name `sock`; the key under which `addresses` has `address` from now on."""
        if sys.platform == "linux":
            sock.bind("")
            name: bytes = sock.getsockname()
            key = "unix-abstract:" + name[1:].decode("ascii")
        else:
            path = self._folder / f"{next(self._numbers):x}"
            sock.bind(os.fspath(path))
            key = f"unix:{path}"
        self.addresses[key] = address
        return key

    def forget(self, key: str) -> None:
        self.addresses.pop(key, None)
        if key.startswith("unix:"):
            Path(key[5:]).unlink(missing_ok=True)


class Waiting(asyncio.Protocol):
    """Holds the unix connection for the moment between its making and the join.

    grpc sends its SETTINGS as soon as it accepts: they are kept for the client. (Pausing the
    transport in `connection_made` does not keep uvloop from reading.)
    """

    __slots__ = ("held",)

    def __init__(self) -> None:
        self.held = b""

    def data_received(self, data: bytes) -> None:
        self.held += data


async def connect(
    path: Path, names: PeerNames, address: str
) -> tuple[asyncio.Transport, Waiting, str]:
    """A connection to the grpc.aio server at `path`, what holds it, and the key of its name.

    Raises OSError when that server does not take it within five seconds.
    """
    loop = asyncio.get_running_loop()
    give_up = loop.time() + _CONNECT_SECONDS
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    key = ""
    try:
        sock.setblocking(False)
        key = names.bind(sock, address)
        while True:
            try:
                # On a unix socket this is done at once, or the other's backlog is full.
                sock.connect(os.fspath(path))
                break
            except BlockingIOError:
                if loop.time() > give_up:
                    raise
            await asyncio.sleep(_RETRY_SECONDS)
        transport, waiting = await loop.create_unix_connection(Waiting, sock=sock)
    except BaseException:
        sock.close()
        names.forget(key)
        raise
    return transport, waiting, key
