"""Server processes under measurement: started, waited for, weighed, stopped."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import psutil

ROOT = Path(__file__).resolve().parent.parent
_READY = re.compile(r"ready on https?://(?P<host>[^\s:]+):(?P<port>\d+)")
_START_SECONDS = 90.0
_STOP_SECONDS = 20.0
_CPU_CLOCK = 2
"""CPUCLOCK_SCHED of the kernel's posix-timers.h."""


class NotReady(Exception):
    """The server ended or stayed silent; the text says what it printed."""


class ServerProcess:
    """A server that prints `ready on http://HOST:PORT`; a context manager that stops it."""

    def __init__(
        self,
        command: Sequence[str],
        *,
        folder: Path = ROOT,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        clean = {k: v for k, v in os.environ.items() if not k.startswith(_CONFIGURES)}
        self.lines: list[str] = []
        self.address = ""
        self.started_seconds = 0.0
        """From the start of the process to its ready line."""
        began = time.perf_counter()
        self.process = subprocess.Popen(
            command,
            cwd=folder,
            env=clean | dict(environment or {}),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self._told = threading.Event()
        self._reader = threading.Thread(target=self._read, args=(began,), daemon=True)
        self._reader.start()

    def __enter__(self) -> ServerProcess:
        self._told.wait(_START_SECONDS)
        if not self.address:
            self.stop()
            raise NotReady("".join(self.lines[-8:]).strip() or "it printed nothing")
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        """SIGTERM, and SIGKILL to one that does not go."""
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(_STOP_SECONDS)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        self._reader.join(5)

    def tree(self) -> list[psutil.Process]:
        """The server's processes, database servers left out."""
        return [process for process in self._all() if not _is_postgres(process)]

    def cpu_seconds(self) -> float:
        """User and system time the processes of `tree` have used so far."""
        return sum(_cpu_seconds(process) for process in self.tree())

    def resident_bytes(self) -> tuple[int, int]:
        """Resident memory of `tree`, and of the database beside it.

        The database's is the proportional size (each shared page counted once in all), because
        its processes share one large segment.
        """
        own = postgres = 0
        for process in self._all():
            try:
                if _is_postgres(process):
                    postgres += process.memory_full_info().pss
                else:
                    own += process.memory_info().rss
            except psutil.Error:
                continue
        return own, postgres

    def _all(self) -> list[psutil.Process]:
        try:
            root = psutil.Process(self.process.pid)
            return [root, *root.children(recursive=True)]
        except psutil.NoSuchProcess:
            return []

    def _read(self, began: float) -> None:
        for line in self.process.stdout or ():
            if not self.address and (found := _READY.search(line)):
                self.started_seconds = time.perf_counter() - began
                self.address = f"{found['host']}:{found['port']}"
                self._told.set()
            self.lines.append(line)
            del self.lines[:-200]
        self._told.set()


# What of the caller's environment would change the servers measured.
_CONFIGURES = (
    "LAKEMESH_",
    "PG",
    "DATABRICKS_",
    "TELEMETRY_",
    "ZEROBUS_",
    "MLFLOW_",
    "LLM_",
    "UC_",
    "OTEL_",
    "GRPC_",
)


def lakemesh(data_dir: Path, *options: str, **environment: str) -> ServerProcess:
    """`lakemesh serve` of this environment, on a port the system chooses."""
    program = Path(sys.executable).with_name("lakemesh")
    return ServerProcess(
        [
            str(program),
            *("serve", "--port", "0", "--data-dir", str(data_dir), "--log-level", "warning"),
            *options,
        ],
        environment=environment,
    )


def python_module(module: str, *arguments: str) -> ServerProcess:
    """A server that is a module of this folder, on this environment's Python."""
    return ServerProcess([sys.executable, "-m", module, *arguments])


def _is_postgres(process: psutil.Process) -> bool:
    try:
        return process.name().startswith("postgres")
    except psutil.Error:
        return False


def _cpu_seconds(process: psutil.Process) -> float:
    if sys.platform == "linux":
        # The process CPU clock of another process (clock_getcpuclockid(3)): nanoseconds, ended
        # threads included, where /proc/PID/stat has ticks of 10 ms.
        try:
            return time.clock_gettime((~process.pid << 3) | _CPU_CLOCK)
        except OSError:
            return 0.0
    try:
        times = process.cpu_times()
    except psutil.Error:
        return 0.0
    return float(times.user + times.system)
