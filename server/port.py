"""The one port: accepts, looks at the first bytes, and hands each connection to who serves it."""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import resource
import socket
import ssl
import sys
import time
from dataclasses import dataclass, field
from typing import Any, Literal

from lakemesh.server.deadlines import Deadlines
from lakemesh.server.grpcio_edge import GrpcioEdge
from lakemesh.server.h2_asgi import AsgiApp
from lakemesh.server.h2_connection import H2Connection
from lakemesh.server.h2_frames import ACK, SETTINGS, frame
from lakemesh.server.h2_limits import H2Limits
from lakemesh.server.http1 import Http1Connection, Http1Edge
from lakemesh.server.pipeline import Pipeline
from lakemesh.server.services import ServiceTable
from lakemesh.server.sniff import FAREWELL, Choice, Sniffer, greeting
from lakemesh.server.splice import Splice, connect
from lakemesh.server.tls import TlsAcceptor

_log = logging.getLogger(__name__)

GrpcEdge = Literal["grpcio", "h2"]

_BACKLOG = 4096
_COMPLAINT_SECONDS = 60.0
_CLOSE_SECONDS = 1.0
_ARRIVAL_SECONDS = 0.1
_DESCRIPTORS_PER_SPLICE = 3
_SETTINGS_ACK = frame(SETTINGS, ACK, 0)


@dataclass(frozen=True, slots=True)
class PortLimits:
    """What a peer may make the port hold, and for how long. Times are seconds, sizes bytes."""

    first_request_seconds: float = 10.0
    """From accepting a connection to the end of its first request's headers."""
    head_seconds: float = 10.0
    """From the first byte of an HTTP/1.1 head to its last."""
    header_bytes: int = 16 * 1024
    """Of one HTTP/1.1 head; beyond it 431."""
    body_seconds: float = 10.0
    """An HTTP/1.1 body's time, and one more second for every `body_bytes_per_second`."""
    body_bytes_per_second: float = 500.0
    keep_alive_seconds: int = 75
    """An idle HTTP/1.1 connection's; longer than the 60 s proxies keep theirs by default."""
    connections_per_peer: int = 1024
    """Of one address. A proxy in front is one address too."""
    connections_per_loopback_peer: int = 65536
    h2: H2Limits = field(default_factory=H2Limits)


class TakenPort(Exception):
    """The address cannot be listened on; the message says which and why, in one line."""


def bind(host: str, port: int, *, shared: bool = False) -> socket.socket:
    """A socket bound to the address, not listening yet; port 0 lets the system choose.

    With `shared`, more processes of the same user may bind it and the kernel spreads connections
    over those that listen (SO_REUSEPORT, socket(7)). Raises TakenPort.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except OSError as error:
        raise TakenPort(f"cannot listen on {host}:{port}: {error.strerror or error}") from None
    sock = socket.socket(family, kind, protocol)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if shared:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        sock.bind(address)
    except (OSError, OverflowError) as error:
        sock.close()
        why = (getattr(error, "strerror", None) or str(error)).lower()
        raise TakenPort(f"cannot listen on {host}:{port}: {why}") from None
    return sock


class Port:
    """Serves gRPC and HTTP on one listening socket."""

    def __init__(
        self,
        *,
        app: AsgiApp,
        services: ServiceTable,
        pipeline: Pipeline,
        grpc_edge: GrpcEdge = "grpcio",
        tls: ssl.SSLContext | None = None,
        limits: PortLimits | None = None,
        state: dict[str, Any] | None = None,
    ) -> None:
        """`app` answers everything that is not gRPC; `state` is what its scopes carry.

        With `tls`, connections that begin with a TLS handshake are decrypted; cleartext ones are
        still served. To be made on the running loop.
        """
        self.app = app
        self.services = services
        self.pipeline = pipeline
        self.limits = limits = limits or PortLimits()
        self.state = state if state is not None else {}
        self.tls = tls
        self.terminates_grpc = grpc_edge == "h2"
        self.http1 = Http1Edge(app, limits, self.state)
        self.grpcio = None if self.terminates_grpc else GrpcioEdge(services, pipeline)
        self.greeting = greeting(limits.h2.concurrent_streams, limits.h2.header_list_bytes)
        self.arrivals: Deadlines[_Arrival] = Deadlines(
            limits.first_request_seconds, lambda arrival: arrival.too_slow()
        )
        self.h2: set[H2Connection] = set()
        self.splices: set[Splice] = set()
        self.host = ""
        self.port = 0
        self.accepted = 0
        """Connections taken since the start."""
        self.turned_away = 0
        """Connections closed because their peer had too many."""
        self._peers: dict[str, int] = {}
        self._loop = asyncio.get_running_loop()
        self._server: asyncio.Server | None = None
        self._acceptor: TlsAcceptor | None = None
        self._joining: set[asyncio.Task[None]] = set()
        self._complained_at = -_COMPLAINT_SECONDS
        self._draining = False
        descriptors, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        self._most_splices = (
            sys.maxsize
            if descriptors == resource.RLIM_INFINITY
            else descriptors // (2 * _DESCRIPTORS_PER_SPLICE)
        )

    @property
    def scheme(self) -> str:
        return "https" if self.tls is not None else "http"

    @property
    def connections(self) -> int:
        """Open ones, as far as a peer's are counted."""
        return sum(self._peers.values())

    @property
    def may_splice(self) -> bool:
        """Whether one more gRPC connection may go to grpc.aio.

        A spliced one takes three descriptors. Beyond half of what the process may open, further
        ones are terminated here, which takes one and is the same to the caller.
        """
        return not self.terminates_grpc and len(self.splices) < self._most_splices

    async def start(self, sock: socket.socket) -> None:
        """Serve on a bound socket (`bind`), which is the port's from now on.

        Raises TakenPort when another process, bound like this one, listens already.
        """
        if self.grpcio is not None:
            await self.grpcio.start()
        self.host, self.port = sock.getsockname()[:2]
        try:
            sock.listen(_BACKLOG)
        except OSError as error:
            sock.close()
            why = (error.strerror or str(error)).lower()
            raise TakenPort(f"cannot listen on {self.host}:{self.port}: {why}") from None
        if self.tls is None:
            self._server = await self._loop.create_server(
                lambda: _Arrival(self), sock=sock, backlog=_BACKLOG
            )
        else:
            self._acceptor = TlsAcceptor(
                sock,
                self.tls,
                lambda: _Arrival(self),
                admit=self.admit,
                release=self.release,
                seconds=self.limits.first_request_seconds,
            )

    async def drain(self, seconds: float) -> None:
        """Stop accepting, say goodbye, finish the calls at work.

        What is still at work after `seconds` is cut, and its callers are told why. Returns within
        about two seconds more, with every connection closed.
        """
        started = time.monotonic()
        self._stop_accepting()
        self._draining = True
        if len(self.arrivals):
            # Whose first request is on its way gets it served.
            await asyncio.sleep(min(_ARRIVAL_SECONDS, seconds))
        for arrival in self.arrivals.items():
            arrival.close()
        if self._joining:
            # They have a request in their opening bytes: it is served.
            await asyncio.wait(tuple(self._joining), timeout=seconds)
        reason = f"the server is shutting down and the call took more than the {seconds:g} s left"
        left = max(0.0, seconds - (time.monotonic() - started))
        drains = [self.http1.drain(left, reason), self._drain_h2(left)]
        if self.grpcio is not None:
            drains.append(self.grpcio.drain(left, reason))
        await asyncio.gather(*drains)
        for splice in tuple(self.splices):
            splice.close()
        await self.close()

    async def close(self) -> None:
        """End at once: every connection is cut."""
        self._stop_accepting()
        for arrival in self.arrivals.items():
            arrival.close()
        self.arrivals.close()
        for task in tuple(self._joining):
            task.cancel()
        for connection in tuple(self.h2):
            connection.abort()
        if self.grpcio is not None:
            await self.grpcio.close()
        if self.h2:
            await asyncio.wait([c.closed for c in self.h2], timeout=_CLOSE_SECONDS)
        for splice in tuple(self.splices):
            splice.abort()
        self.http1.close()
        # Transports close on the loop's next turn.
        await asyncio.sleep(0)

    def admit(self, host: str) -> bool:
        """Count a connection of the peer, unless it has too many."""
        count = self._peers.get(host, 0)
        limits = self.limits
        if count >= limits.connections_per_peer and (
            not _is_loopback(host) or count >= limits.connections_per_loopback_peer
        ):
            self.turned_away += 1
            now = self._loop.time()
            if now - self._complained_at >= _COMPLAINT_SECONDS:
                self._complained_at = now
                _log.warning("too many connections of one peer", extra={"peer": host})
            return False
        self._peers[host] = count + 1
        self.accepted += 1
        return True

    def release(self, host: str) -> None:
        """A counted connection is gone."""
        count = self._peers[host] - 1
        if count:
            self._peers[host] = count
        else:
            del self._peers[host]

    def to_http1(
        self, transport: asyncio.Transport, opening: bytes, host: str, began: float
    ) -> None:
        """HTTP/1.x: the same transport, in process."""

        def closed(_: Http1Connection) -> None:
            self.release(host)

        connection = self.http1.connection(began, closed)
        transport.set_protocol(connection)
        connection.connection_made(transport)
        connection.data_received(opening)

    def to_h2(
        self, transport: asyncio.Transport, opening: bytes, host: str, *, greeted: bool
    ) -> None:
        """HTTP/2, terminated here and dispatched stream by stream."""

        def closed(connection: H2Connection) -> None:
            self.h2.discard(connection)
            self.release(host)

        kind = _GreetedH2Connection if greeted else H2Connection
        connection = kind(
            app=self.app,
            services=self.services,
            pipeline=self.pipeline,
            limits=self.limits.h2,
            scheme="http" if transport.get_extra_info("sslcontext") is None else "https",
            state=self.state,
            on_closed=closed,
        )
        self.h2.add(connection)
        transport.set_protocol(connection)
        connection.connection_made(transport)
        connection.data_received(opening)
        if self._draining:
            connection.shutdown()

    def to_grpcio(self, arrival: _Arrival, opening: bytes, *, greeted: bool) -> None:
        """gRPC straight from its client: joined to the grpc.aio server."""
        task = self._loop.create_task(self._join(arrival, opening, greeted))
        self._joining.add(task)
        task.add_done_callback(self._joining.discard)

    async def _join(self, arrival: _Arrival, opening: bytes, greeted: bool) -> None:
        grpcio, client, host = self.grpcio, arrival.transport, arrival.host
        assert grpcio is not None  # noqa: S101
        try:
            server, waiting, key = await connect(grpcio.path, grpcio.names, arrival.address)
        except OSError as error:
            _log.error("grpc.aio takes no connection", extra={"why": str(error)})
            client.abort()
            return
        if client.is_closing() or server.is_closing():
            # Gone in the meantime; the client's protocol is still the arrival, which releases it.
            server.abort()
            client.abort()
            grpcio.names.forget(key)
            return

        def ended(splice: Splice) -> None:
            self.splices.discard(splice)
            grpcio.names.forget(key)
            self.release(host)

        arrival.handed_over = True
        splice = Splice(client, ended)
        self.splices.add(splice)
        splice.join(server, waiting, opening, greeted=greeted)

    async def _drain_h2(self, seconds: float) -> None:
        for connection in tuple(self.h2):
            connection.shutdown()
        if self.h2:
            await asyncio.wait([c.closed for c in self.h2], timeout=seconds)
        for connection in tuple(self.h2):
            connection.abort()

    def _stop_accepting(self) -> None:
        if self._server is not None:
            self._server.close()
            self._server = None
        if self._acceptor is not None:
            self._acceptor.close()
            self._acceptor = None


class _GreetedH2Connection(H2Connection):
    """Whose peer's first SETTINGS the port has acknowledged already."""

    _acknowledged = True

    def write(self, data: bytes) -> None:
        if self._acknowledged and data == _SETTINGS_ACK:
            self._acknowledged = False
            return
        super().write(data)


class _Arrival(asyncio.Protocol):
    """A connection nobody serves yet."""

    __slots__ = ("_began", "_port", "_sniffer", "address", "handed_over", "host", "transport")

    transport: asyncio.Transport

    def __init__(self, port: Port) -> None:
        self._port = port
        self._sniffer: Sniffer | None = None
        self._began = 0.0
        self.host = ""
        self.address = ""
        self.handed_over = False
        """Somebody else hears of the connection's end."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport  # type: ignore[assignment]
        port = self._port
        name = transport.get_extra_info("peername")
        if not name:
            # It was gone before it was looked at.
            self.handed_over = True
            self.transport.abort()
            return
        self.host = host = str(name[0])
        if not port.admit(host):
            self.handed_over = True
            self.transport.abort()
            return
        self.address = f"[{host}]:{name[1]}" if ":" in host else f"{host}:{name[1]}"
        self._began = asyncio.get_running_loop().time()
        port.arrivals.add(self)

    def data_received(self, data: bytes) -> None:
        if self.handed_over:
            return
        sniffer = self._sniffer
        if sniffer is None:
            sniffer = self._sniffer = Sniffer()
        choice = sniffer.feed(data)
        port = self._port
        if choice is None:
            if sniffer.has_preface and port.terminates_grpc:
                choice = Choice.H2
            elif sniffer.wants_greeting:
                sniffer.greeted = True
                self.transport.write(port.greeting)
                return
            else:
                return
        port.arrivals.discard(self)
        self._sniffer = None
        opening = bytes(sniffer.held)
        if choice is Choice.GRPC and port.may_splice:
            self.transport.pause_reading()
            port.to_grpcio(self, opening, greeted=sniffer.greeted)
            return
        self.handed_over = True
        if choice is Choice.HTTP1:
            port.to_http1(self.transport, opening, self.host, self._began)
        else:
            port.to_h2(self.transport, opening, self.host, greeted=sniffer.greeted)

    def connection_lost(self, exc: Exception | None) -> None:
        self._port.arrivals.discard(self)
        if not self.handed_over:
            self.handed_over = True
            self._port.release(self.host)

    def too_slow(self) -> None:
        """The first request did not come in time."""
        self.close()

    def close(self) -> None:
        if self._sniffer is not None and self._sniffer.greeted:
            self.transport.write(FAREWELL)
        self.transport.close()


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host.partition("%")[0]).is_loopback
    except ValueError:
        return False
