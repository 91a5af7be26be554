"""The real server as a child process, for tests that drive the public wire."""

from __future__ import annotations

import os
import queue
import re
import signal
import subprocess
import sys
import threading
from pathlib import Path

READY = re.compile(r"lakemesh ready on https?://(?P<host>[^:]+):(?P<port>\d+) \(grpc\+http\)")
START_SECONDS = 60.0
STOP_SECONDS = 15.0


class Server:
    """`lakemesh serve` on a port of the system's choice; a context manager."""

    def __init__(self, data_dir: Path, *options: str, env: dict[str, str] | None = None) -> None:
        self.data_dir = data_dir
        self.lines: list[str] = []
        """What it printed so far, standard output and error together."""
        self.port = 0
        self._ready: queue.Queue[int | None] = queue.Queue()
        command = Path(sys.executable).with_name("lakemesh")
        clean = {k: v for k, v in os.environ.items() if not k.startswith(("LAKEMESH_", "PG"))}
        self.process = subprocess.Popen(
            [str(command), "serve", "--port", "0", "--data-dir", str(data_dir), *options],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            text=True,
            env=clean | (env or {}),
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    @property
    def target(self) -> str:
        """HOST:PORT."""
        return f"127.0.0.1:{self.port}"

    @property
    def url(self) -> str:
        return f"http://{self.target}"

    def wait_ready(self) -> Server:
        """Wait for the ready line. Raises AssertionError with the output when it does not come."""
        try:
            port = self._ready.get(timeout=START_SECONDS)
        except queue.Empty:
            port = None
        if port is None:
            self.kill()
            raise AssertionError("the server did not become ready:\n" + "".join(self.lines))
        self.port = port
        return self

    def signal(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def stop(self) -> int:
        """SIGTERM and wait for the end; gives the exit code."""
        if self.process.poll() is None:
            self.process.terminate()
        code = self.process.wait(STOP_SECONDS)
        self._reader.join(5)
        return code

    def kill(self) -> None:
        self.process.kill()
        self.process.wait(STOP_SECONDS)
        self._reader.join(5)

    def __enter__(self) -> Server:
        return self.wait_ready()

    def __exit__(self, *_: object) -> None:
        try:
            self.stop()
        except subprocess.TimeoutExpired:
            self.kill()
            raise

    def _read(self) -> None:
        assert self.process.stdout is not None
        with self.process.stdout as lines:
            for line in lines:
                self.lines.append(line)
                if (found := READY.search(line)) is not None:
                    self._ready.put(int(found["port"]))
        self._ready.put(None)
