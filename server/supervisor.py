"""`--workers N`: N worker processes on one address, started anew when they die."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from lakemesh.server.lifecycle import EXIT_DONE, EXIT_FAILED, READY_FD, ready_line
from lakemesh.server.port import TakenPort, bind

Command = Callable[[str, int], Sequence[str]]
"""The argument vector of a worker for a host and a port; the program that calls `run_worker`."""


@dataclass(frozen=True, slots=True)
class Patience:
    """Times of the supervisor, in seconds."""

    first_wait: float = 0.25
    """Before a dead worker is replaced; doubled for each death that follows soon."""
    longest_wait: float = 30.0
    well_after: float = 60.0
    """A worker that lived so long after being ready is one in good health."""
    drain: float = 14.0
    """From SIGTERM to SIGKILL, for workers that do not end."""


@dataclass(slots=True)
class _Member:
    number: int
    process: asyncio.subprocess.Process | None = None
    ready: bool = False
    ready_at: float = 0.0
    agents: int = 0
    waited: float = 0.0
    code: int | None = None
    line: socket.socket | None = field(default=None, repr=False)


def supervise(
    command: Command,
    *,
    workers: int,
    host: str,
    port: int,
    scheme: str = "http",
    environment: Mapping[str, str] | None = None,
    patience: Patience | None = None,
) -> int:
    """Run `workers` of them until SIGTERM or SIGINT and return the process's exit code.

    Workers are programs of their own, never forks: neither grpc nor delta-rs survives one. Each
    listens on the address with SO_REUSEPORT. One that dies after it was ready is replaced; one
    that cannot even start ends all, with its exit code. 0 means every worker drained in order.
    """
    try:
        # Without SO_REUSEPORT first: another server that shares the port with us is a mistake.
        with bind(host, port) as probe:
            port = probe.getsockname()[1]
        reserved = bind(host, port, shared=True)
    except TakenPort as error:
        return _complain(str(error), EXIT_FAILED)
    # Bound but not listening, it gets no connection and keeps the port ours.
    with reserved:
        team = _Team(
            command,
            reserved.getsockname()[:2],
            scheme,
            {**(os.environ if environment is None else environment)},
            patience or Patience(),
        )
        return asyncio.run(team.run(workers))


class _Team:
    def __init__(
        self,
        command: Command,
        address: tuple[str, int],
        scheme: str,
        environment: dict[str, str],
        patience: Patience,
    ) -> None:
        self._command = command
        self._host, self._port = address
        self._scheme = scheme
        self._environment = environment
        self._patience = patience
        self._members: list[_Member] = []
        self._stopping = asyncio.Event()
        self._signals = 0
        self._announced = False
        self._failed: int | None = None

    async def run(self, workers: int) -> int:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._on_signal)
        self._members = [_Member(number) for number in range(workers)]
        keeping = [asyncio.create_task(self._keep(member)) for member in self._members]
        await self._stopping.wait()
        _, slow = await asyncio.wait(keeping, timeout=self._patience.drain)
        for member in self._members:
            if member.process is not None and member.process.returncode is None:
                _complain(f"worker {member.number} did not drain in time; killed", EXIT_FAILED)
                member.process.kill()
        if slow:
            await asyncio.wait(slow)
        for task in keeping:
            task.result()
        if self._failed is not None:
            return self._failed
        return EXIT_DONE if all(m.code == 0 for m in self._members) else EXIT_FAILED

    async def _keep(self, member: _Member) -> None:
        """Start the worker, and again when it dies, until the end."""
        while not self._stopping.is_set():
            code = await self._live(member)
            if self._stopping.is_set():
                member.code = code
                return
            if not self._announced:
                # It printed why. Starting it again would print it again.
                self._failed = code if code > 0 else EXIT_FAILED
                self._stop(signal.SIGTERM)
                return
            patience = self._patience
            lived = time.monotonic() - member.ready_at if member.ready else 0.0
            if lived >= patience.well_after:
                member.waited = 0.0
            member.waited = min(
                patience.longest_wait, member.waited * 2 if member.waited else patience.first_wait
            )
            how = f"by signal {-code}" if code < 0 else f"with exit code {code}"
            _complain(
                f"worker {member.number} ended {how}; starting another in {member.waited:g} s", 0
            )
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._stopping.wait(), member.waited)
        # Told to stop while there was no process: nothing of it is left undone.
        member.code = EXIT_DONE

    async def _live(self, member: _Member) -> int:
        """One process from its start to its end; its exit code, negative for a signal."""
        ours, theirs = socket.socketpair()
        with ours:
            with theirs:
                member.process = process = await asyncio.create_subprocess_exec(
                    *self._command(self._host, self._port),
                    env={**self._environment, READY_FD: str(theirs.fileno())},
                    pass_fds=(theirs.fileno(),),
                    # A terminal's Ctrl-C is for the supervisor, who passes it on once.
                    start_new_session=True,
                )
            if self._stopping.is_set():
                # Asked to stop while the process was being made: it has had no signal yet.
                process.send_signal(signal.SIGTERM)
            member.ready = False
            listening = asyncio.create_task(self._hear(member, ours))
            try:
                return await process.wait()
            finally:
                listening.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await listening

    async def _hear(self, member: _Member, line: socket.socket) -> None:
        line.setblocking(False)
        said = await asyncio.get_running_loop().sock_recv(line, 64)
        if not said:
            return
        member.ready = True
        member.ready_at = time.monotonic()
        member.agents = int(said)
        if not self._announced and all(m.ready for m in self._members):
            self._announced = True
            host = f"[{self._host}]" if ":" in self._host else self._host
            line_ = ready_line(self._scheme, host, self._port, member.agents)
            sys.stdout.write(line_ + "\n")
            sys.stdout.flush()

    def _on_signal(self) -> None:
        self._signals += 1
        self._stop(signal.SIGTERM)

    def _stop(self, number: signal.Signals) -> None:
        """Pass the signal on: the first drains the workers, a second one forces them."""
        self._stopping.set()
        for member in self._members:
            if member.process is not None and member.process.returncode is None:
                member.process.send_signal(number)


def _complain(message: str, code: int) -> int:
    sys.stderr.write(f"lakemesh: {message}\n")
    sys.stderr.flush()
    return code
