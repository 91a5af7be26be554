"""TLS on the same port: told from cleartext by its first byte; ALPN offers h2 and http/1.1."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import ssl
from collections.abc import Callable
from pathlib import Path

from lakemesh.server.deadlines import Deadlines

_log = logging.getLogger(__name__)

_HANDSHAKE = b"\x16"
"""ContentType of a ClientHello's record (RFC 8446 section 5.1)."""
_ACCEPTS_PER_TURN = 64
_BREATHER_SECONDS = 0.1


class BadCertificate(Exception):
    """The certificate or its key cannot be used; the message says why, in one line."""


def server_context(certificate: Path, key: Path | None) -> ssl.SSLContext:
    """TLS 1.2 or newer, offering h2 and http/1.1.

    `certificate` is a PEM chain, `key` its key if not in the same file. Raises BadCertificate.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2  # the floor of HTTP/2: RFC 9113 section 9.2
    context.options |= ssl.OP_NO_RENEGOTIATION
    try:
        context.load_cert_chain(certificate, key)
    except ssl.SSLError as error:
        raise BadCertificate(
            f"cannot use the certificate {certificate}: {error.reason or error}"
        ) from None
    except OSError as error:
        raise BadCertificate(
            f"cannot read the certificate {certificate} or its key: {error.strerror}"
        ) from None
    context.set_alpn_protocols(["h2", "http/1.1"])
    return context


class TlsAcceptor:
    """Accepts on a listening socket and looks at each connection's first byte without taking it.

    The event loop can only start TLS on a socket nobody has read from, hence the look before the
    transport exists. `protocol()` makes the protocol for either kind of transport.
    """

    def __init__(
        self,
        listener: socket.socket,
        context: ssl.SSLContext,
        protocol: Callable[[], asyncio.Protocol],
        *,
        admit: Callable[[str], bool],
        release: Callable[[str], None],
        seconds: float,
    ) -> None:
        """`admit(host)` counts a connection until `release(host)`, called when its transport is
        about to exist (which is then counted by its protocol) or it is gone. `seconds` bound the
        wait for the first byte, and then the handshake.
        """
        self._listener = listener
        self._context = context
        self._protocol = protocol
        self._admit = admit
        self._release = release
        self._seconds = seconds
        self._loop = asyncio.get_running_loop()
        self._silent: Deadlines[socket.socket] = Deadlines(seconds, self._drop)
        self._hosts: dict[socket.socket, str] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._open = True
        listener.setblocking(False)
        self._loop.add_reader(listener, self._accept)

    def close(self) -> None:
        """Stop accepting; connections that said nothing yet are closed."""
        if not self._open:
            return
        self._open = False
        self._loop.remove_reader(self._listener)
        self._listener.close()
        for sock in self._silent.items():
            self._drop(sock)
        self._silent.close()
        for task in tuple(self._tasks):
            task.cancel()

    def _accept(self) -> None:
        for _ in range(_ACCEPTS_PER_TURN):
            try:
                sock, address = self._listener.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return
            except OSError as error:
                # Out of descriptors or memory: the connection waits in the kernel's queue.
                _log.warning("cannot accept", extra={"why": error.strerror})
                self._loop.remove_reader(self._listener)
                self._loop.call_later(_BREATHER_SECONDS, self._listen_again)
                return
            host = str(address[0])
            if not self._admit(host):
                sock.close()
                continue
            sock.setblocking(False)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._hosts[sock] = host
            self._silent.add(sock)
            self._loop.add_reader(sock, self._look, sock)

    def _listen_again(self) -> None:
        if self._open:
            self._loop.add_reader(self._listener, self._accept)

    def _look(self, sock: socket.socket) -> None:
        try:
            first = sock.recv(1, socket.MSG_PEEK)
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            first = b""
        self._silent.discard(sock)
        if not first:
            self._drop(sock)
            return
        self._loop.remove_reader(sock)
        task = self._loop.create_task(self._hand_over(sock, first == _HANDSHAKE))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _hand_over(self, sock: socket.socket, tls: bool) -> None:
        host = self._hosts.pop(sock)
        released = False

        def protocol() -> asyncio.Protocol:
            nonlocal released
            released = True
            self._release(host)
            return self._protocol()

        try:
            if tls:
                await self._loop.connect_accepted_socket(
                    protocol,
                    sock,
                    ssl=self._context,
                    ssl_handshake_timeout=self._seconds,
                )
            else:
                await self._loop.connect_accepted_socket(protocol, sock)
        except (OSError, asyncio.CancelledError) as error:
            # ssl.SSLError is an OSError: a peer without a common version, or none of TLS at all.
            _log.debug("no handshake", extra={"peer": host, "why": str(error)})
            with contextlib.suppress(OSError):
                sock.close()
        finally:
            if not released:
                self._release(host)

    def _drop(self, sock: socket.socket) -> None:
        self._loop.remove_reader(sock)
        sock.close()
        host = self._hosts.pop(sock, None)
        if host is not None:
            self._release(host)
