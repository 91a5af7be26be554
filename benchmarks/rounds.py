"""Interleaved rounds: every row once, then every row again; what counts is the median."""

from __future__ import annotations

import contextlib
import json
import queue
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, cast

from benchmarks.peer_environments import PeerUnavailable
from benchmarks.processes import ROOT, NotReady, ServerProcess
from benchmarks.rows import SERVERS, Row

_ANSWER_SECONDS = 150.0
_SETTLE_SECONDS = (12.0, 120.0)
"""Longer than the interval at which spans are shipped; and the longest wait for quiet servers."""
_QUIET = 0.05
"""Share of one processor below which the servers together count as quiet."""


class LoadFailed(Exception):
    """The load client ended or answered nothing usable."""


class LoadClient:
    """The process that sends requests for one row."""

    def __init__(self, row: Row, address: str) -> None:
        self._process = subprocess.Popen(
            [
                sys.executable,
                *("-m", "benchmarks.load_client"),
                *(row.protocol, address, row.path, str(row.connections)),
            ],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self._orders = cast(IO[str], self._process.stdin)
        self._lines: queue.Queue[str] = queue.Queue()
        threading.Thread(target=self._read, daemon=True).start()
        self._line()

    def batch(self, concurrency: int, requests: int) -> dict[str, Any]:
        """One bounded batch. Raises LoadFailed."""
        try:
            order = {"concurrency": concurrency, "requests": requests}
            self._orders.write(json.dumps(order) + "\n")
            self._orders.flush()
        except OSError as error:
            raise LoadFailed(f"the load client is gone: {error}") from None
        answer: dict[str, Any] = json.loads(self._line())
        if "error" in answer:
            raise LoadFailed(answer["error"])
        if not answer["answered"]:
            raise LoadFailed(f"no request was answered: {answer['failure']}")
        return answer

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._orders.close()
        try:
            self._process.wait(5)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def _read(self) -> None:
        for line in self._process.stdout or ():
            self._lines.put(line)
        self._lines.put("")

    def _line(self) -> str:
        try:
            line = self._lines.get(timeout=_ANSWER_SECONDS)
        except queue.Empty:
            line = ""
        if not line:
            raise LoadFailed("the load client ended or hangs")
        return line


@dataclass(slots=True)
class Cell:
    """One row at one concurrency, over all rounds."""

    cpu_us: list[float] = field(default_factory=list)
    """Server CPU per request, microseconds, one value a round."""
    rate: list[float] = field(default_factory=list)
    p50_ms: list[float] = field(default_factory=list)
    p99_ms: list[float] = field(default_factory=list)
    client_us: list[float] = field(default_factory=list)
    failed: int = 0
    failure: str = ""

    def summary(self) -> dict[str, Any]:
        return {
            "cpu_us": statistics.median(self.cpu_us),
            "cpu_us_rounds": [round(value, 1) for value in self.cpu_us],
            "requests_per_second": statistics.median(self.rate),
            "p50_ms": statistics.median(self.p50_ms),
            "p99_ms": statistics.median(self.p99_ms),
            "client_cpu_us": statistics.median(self.client_us),
            "failed": self.failed,
            "failure": self.failure,
        }


@dataclass(slots=True)
class Measured:
    """What the rounds gave."""

    cells: dict[str, dict[int, Cell]] = field(default_factory=dict)
    """By row and concurrency."""
    left_out: dict[str, str] = field(default_factory=dict)
    """Rows that could not be measured, and why."""
    later_us: dict[str, float] = field(default_factory=dict)
    """By server: CPU used between its rounds, per request of them, microseconds."""


class _Bench:
    def __init__(self, stack: contextlib.ExitStack, folder: Path) -> None:
        self.servers: dict[str, ServerProcess] = {}
        self.clients: dict[str, LoadClient] = {}
        self.measured = Measured()
        self.inside: dict[str, float] = {}
        self.requests: dict[str, int] = {}
        self.first_cpu: dict[str, float] = {}
        self._stack = stack
        self._folder = folder

    def prepare(self, row: Row) -> None:
        """Start the row's server and client; on failure the row is left out."""
        try:
            if row.server not in self.servers:
                say(f"starting {row.server}")
                folder = self._folder / row.server
                folder.mkdir(parents=True, exist_ok=True)
                server = SERVERS[row.server](folder)
                self._stack.callback(server.stop)
                self.servers[row.server] = server.__enter__()
            client = LoadClient(row, self.servers[row.server].address)
            self._stack.callback(client.close)
            client.batch(16, max(200, int(1000 * row.share)))
            self.clients[row.key] = client
        except (NotReady, PeerUnavailable, LoadFailed, OSError) as error:
            self.leave_out(row, error)

    def leave_out(self, row: Row, error: Exception) -> None:
        self.clients.pop(row.key, None)
        self.measured.left_out[row.key] = str(error)[-500:]
        say(f"left out: {row.title}: {error}")

    def settle(self) -> None:
        """Wait until the servers have done what they put off."""
        say("waiting for the servers to finish what they put off")
        least, most = _SETTLE_SECONDS
        began = time.monotonic()
        used = self._cpu()
        while (waited := time.monotonic() - began) < most:
            time.sleep(1)
            before, used = used, self._cpu()
            if waited >= least and used - before < _QUIET:
                return

    def _cpu(self) -> float:
        return sum(server.cpu_seconds() for server in self.servers.values())

    def round(self, row: Row, concurrency: int, requests: int) -> None:
        server, client = self.servers[row.server], self.clients[row.key]
        before = server.cpu_seconds()
        try:
            result = client.batch(concurrency, requests)
        except LoadFailed as error:
            self.leave_out(row, error)
            return
        used = server.cpu_seconds() - before
        self.inside[row.server] = self.inside.get(row.server, 0.0) + used
        answered = result["answered"]
        self.requests[row.server] = self.requests.get(row.server, 0) + answered
        cell = self.measured.cells.setdefault(row.key, {}).setdefault(concurrency, Cell())
        cell.cpu_us.append(used / answered * 1e6)
        cell.rate.append(answered / result["seconds"])
        cell.p50_ms.append(result["p50_ms"])
        cell.p99_ms.append(result["p99_ms"])
        cell.client_us.append(result["client_cpu_seconds"] / answered * 1e6)
        cell.failed += result["failed"]
        cell.failure = cell.failure or result["failure"]


def measure(
    rows: Sequence[Row],
    folder: Path,
    *,
    rounds: int,
    requests: dict[int, int],
) -> Measured:
    """Measure the rows; `requests` a round by concurrency. The servers run all the while."""
    with contextlib.ExitStack() as stack:
        bench = _Bench(stack, folder)
        for row in rows:
            bench.prepare(row)
        bench.settle()  # what warming up left to be shipped
        for name, server in bench.servers.items():
            bench.first_cpu[name] = server.cpu_seconds()
        for number in range(rounds):
            for concurrency, count in requests.items():
                say(f"round {number + 1} of {rounds}, concurrency {concurrency}")
                for row in _measurable(rows, bench):
                    bench.round(row, concurrency, max(concurrency, 50, int(count * row.share)))
        bench.settle()
        for name, server in bench.servers.items():
            if bench.requests.get(name):
                outside = server.cpu_seconds() - bench.first_cpu[name] - bench.inside[name]
                bench.measured.later_us[name] = outside / bench.requests[name] * 1e6
        return bench.measured


def _measurable(rows: Sequence[Row], bench: _Bench) -> Iterable[Row]:
    return [row for row in rows if row.key in bench.clients]


def say(text: str) -> None:
    """Progress, to standard error."""
    print(f"{time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)
