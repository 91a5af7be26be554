"""What a server takes besides calls: time to start, memory, memory of a connection that idles."""

from __future__ import annotations

import contextlib
import resource
import socket
import statistics
import struct
import time
from collections.abc import Iterator
from pathlib import Path

from benchmarks.payload import EXECUTE
from benchmarks.processes import ServerProcess, lakemesh
from benchmarks.report import Figure, at_most, missing
from benchmarks.rounds import say
from benchmarks.wire import frame, http2_head, http2_opening
from lakemesh.memory.embedded_postgres import EmbeddedPostgres

_SPARE_FILES = 200
_HTTP1 = b"GET /livez HTTP/1.1\r\nhost: bench\r\n\r\n"
_ECHO = bytes.fromhex("0000000006" + "0a046563686f")
"""A gRPC message: ExecuteRequest with agent_name "echo"."""


def start_and_memory(folder: Path, repeats: int) -> Iterator[Figure]:
    """Start to ready with both kinds of Postgres, and memory of the idle server."""
    data = folder / "start"
    say("starting servers to time it")
    with lakemesh(data):
        pass  # makes the database; what is timed is every start after the first
    times, memory = [], []
    for _ in range(repeats):
        with lakemesh(data) as server:
            times.append(server.started_seconds)
            time.sleep(2)
            memory.append(server.resident_bytes())
    yield at_most("start to ready, warm, embedded Postgres", statistics.median(times), 2.5, "s")
    postgres = EmbeddedPostgres(folder / "outside")
    postgres.ensure_running()
    try:
        times = []
        for number in range(repeats + 1):
            with lakemesh(data, LAKEMESH_POSTGRES_DSN=postgres.dsn) as server:
                if number:  # the first migrates
                    times.append(server.started_seconds)
    finally:
        postgres.stop()
    yield at_most("start to ready, warm, existing Postgres", statistics.median(times), 1.5, "s")
    own = statistics.median(m[0] for m in memory) / 1e6
    yield at_most("resident memory, idle, one worker", own, 150, "MB", "without Postgres")
    beside = statistics.median(m[1] for m in memory) / 1e6
    yield Figure("embedded Postgres beside it, idle (proportional size)", beside, "MB")


def idle_connections(folder: Path, wanted: int) -> Iterator[Figure]:
    """Memory of the server for each connection that has made one call and then idles."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        soft = hard
    for edge, kind, opening, files in (
        ("h2", "HTTP/1.1", _HTTP1, 1),
        ("h2", "gRPC, h2 edge", _grpc_call(), 1),
        ("grpcio", "gRPC, grpcio edge", _grpc_call(), 3),
    ):
        # The grpcio edge joins each connection to one more pair of sockets.
        count = min(wanted, (soft - _SPARE_FILES) // files)
        what = f"memory of an idle connection, {kind}"
        say(f"opening {count} idle connections, {kind}")
        with lakemesh(folder / f"idle-{edge}", "--grpc-edge", edge) as server:
            try:
                each = _bytes_each(server, opening, count)
            except OSError as error:
                yield missing(what, f"{error} while opening {count}")
                continue
        note = f"{count:,} connections" + ("" if count == wanted else ", all that ulimit -n allows")
        yield at_most(what, each / 1000, 20, "KB", note)


def _bytes_each(server: ServerProcess, opening: bytes, count: int) -> float:
    host, _, port = server.address.rpartition(":")
    with contextlib.ExitStack() as stack:
        opened: list[socket.socket] = []

        def more(number: int) -> None:
            for start in range(0, number, 200):
                fresh = []
                for _ in range(min(200, number - start)):
                    sock = stack.enter_context(socket.create_connection((host, int(port)), 10))
                    sock.sendall(opening)
                    fresh.append(sock)
                for sock in fresh:
                    _answered(sock)
                opened.extend(fresh)

        more(min(200, count))  # what the first connections load is not theirs
        time.sleep(2)
        before = server.resident_bytes()[0]
        more(count)
        time.sleep(2)
        after = server.resident_bytes()[0]
        for sock in opened[::100]:
            sock.settimeout(0)
            with contextlib.suppress(BlockingIOError):
                while data := sock.recv(65536):
                    pass
                if not data:
                    raise OSError("the server closed an idle connection")
        return (after - before) / count


def _answered(sock: socket.socket) -> None:
    """Wait for the whole answer; SETTINGS are acknowledged, as a client must."""
    seen = b""
    while True:
        data = sock.recv(65536)
        if not data:
            raise OSError("the server closed a connection")
        seen += data
        if seen.startswith(b"HTTP/1.1"):
            return
        if _stream_ended(sock, seen):
            return


def _stream_ended(sock: socket.socket, seen: bytes) -> bool:
    at, ended, settings = 0, False, 0
    while len(seen) - at >= 9:
        word, flags, stream = struct.unpack_from(">IBI", seen, at)
        length, kind = word >> 8, word & 0xFF
        if len(seen) - at < 9 + length:
            break
        settings += kind == 4 and not flags & 1
        ended |= kind in (0, 1) and stream == 1 and bool(flags & 1)
        at += 9 + length
    if ended:
        sock.sendall(frame(4, 1, 0, b"") * settings)
    return ended


def _grpc_call() -> bytes:
    head = http2_head(
        "bench",
        b"POST",
        EXECUTE,
        (b"content-type", b"application/grpc"),
        (b"te", b"trailers"),
    )
    return http2_opening() + frame(1, 4, 1, head) + frame(0, 1, 1, _ECHO)
