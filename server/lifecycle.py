"""One worker's life: bind, build, serve, drain, end, with an exit code that tells the truth."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import os
import resource
import signal
import socket
import sys
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from types import FrameType
from typing import NoReturn, Protocol

import uvloop

from lakemesh.server.port import Port, TakenPort, bind

_log = logging.getLogger(__name__)

READY_FD = "LAKEMESH_SUPERVISOR_FD"
"""Environment variable of a supervised worker: the descriptor of its line to the supervisor."""

EXIT_DONE, EXIT_FAILED, EXIT_USAGE = 0, 1, 2

_CLOSE_SECONDS = 1.5
_FORCED_SECONDS = 2.0
_DESCRIPTORS = 262_144
_SIGNALS = (signal.SIGTERM, signal.SIGINT)


class StartFailed(Exception):
    """The server cannot start; the message says why in one line.

    `exit_code` is EXIT_USAGE for a bad setting, EXIT_FAILED for anything else.
    """

    def __init__(self, message: str, exit_code: int = EXIT_FAILED) -> None:
        super().__init__(message)
        self.exit_code = exit_code


class Worker(Protocol):
    """What the composition root builds."""

    @property
    def port(self) -> Port:
        """Not started yet."""

    @property
    def agents(self) -> int:
        """How many are served."""

    def set_ready(self, ready: bool) -> None:
        """Let health, `/readyz` and their watchers know."""

    async def close(self) -> None:
        """End everything the port does not own. Called once, also after a failed start."""


Build = Callable[[], Awaitable[Worker]]


@dataclass(frozen=True, slots=True)
class Grace:
    """How the time from SIGTERM to the end is spent, in seconds.

    Databricks Apps sends SIGKILL 15 s after SIGTERM, so `total` stays well below.
    """

    total: float = 12.0
    notice: float = 0.5
    """Between readiness falling and the door closing, for those who watch it."""


def run_worker(
    build: Build,
    *,
    host: str,
    port: int,
    grace: Grace | None = None,
    announce: Callable[[str], None] | None = None,
) -> int:
    """Serve until SIGTERM or SIGINT and return the process's exit code.

    The address is bound before anything is built, so a taken port ends the start at once. Prints
    the ready line to stdout, or tells the supervisor. The first signal drains; a second one ends
    the process by that signal, within two seconds. To be called in the main thread.
    """
    _raise_descriptor_limit()
    line = _supervisor_line()
    try:
        sock = bind(host, port, shared=line is not None)
    except TakenPort as error:
        return _fail(str(error))
    life = _Life(build, sock, grace or Grace(), line, announce or _print)
    with life.signals():
        try:
            with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
                code = runner.run(life.run())
        except KeyboardInterrupt:
            code = EXIT_FAILED
        finally:
            sock.close()
    if life.forced_by is not None:
        _die_by(life.forced_by)
    return code


class _Life:
    def __init__(
        self,
        build: Build,
        sock: socket.socket,
        grace: Grace,
        line: socket.socket | None,
        announce: Callable[[str], None],
    ) -> None:
        self._build = build
        self._sock = sock
        self._grace = grace
        self._line = line
        self._announce = announce
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stop = asyncio.Event()
        self._force = asyncio.Event()
        self._signals = 0
        self._stop_at = 0.0
        self.forced_by: int | None = None

    @contextlib.contextmanager
    def signals(self):  # type: ignore[no-untyped-def]
        """Ours while the worker lives.

        `signal.signal` and not the loop's handlers: an agent that blocks the loop must not keep a
        second signal from ending the process.
        """
        before = {number: signal.signal(number, self._on_signal) for number in _SIGNALS}
        before[signal.SIGALRM] = signal.signal(signal.SIGALRM, self._on_alarm)
        try:
            yield
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            for number, handler in before.items():
                signal.signal(number, handler)

    async def run(self) -> int:
        self._loop = asyncio.get_running_loop()
        if self._signals:
            self._stop.set()
        if self._line is not None:
            self._loop.add_reader(self._line, self._on_supervisor)
        try:
            return await self._run()
        finally:
            if self._line is not None:
                self._loop.remove_reader(self._line)

    async def _run(self) -> int:
        building = asyncio.ensure_future(self._build())
        stopping = asyncio.ensure_future(self._stop.wait())
        try:
            await asyncio.wait((building, stopping), return_when=asyncio.FIRST_COMPLETED)
            if not building.done():
                building.cancel("stopped while starting")
                await asyncio.wait((building,), timeout=_CLOSE_SECONDS)
                if building.done() and not building.cancelled() and not building.exception():
                    await self._close(building.result())
                return EXIT_DONE
            try:
                worker = building.result()
            except StartFailed as error:
                return _fail(str(error), error.exit_code)
            except Exception as error:
                _log.error("start failed", exc_info=error)
                return _fail(f"cannot start: {type(error).__name__}: {error}")
            return await self._serve(worker)
        finally:
            stopping.cancel()

    async def _serve(self, worker: Worker) -> int:
        port = worker.port
        try:
            await port.start(self._sock)
        except Exception as error:
            await port.close()
            await self._close(worker)
            if not isinstance(error, TakenPort):
                _log.error("start failed", exc_info=error)
            return _fail(str(error))
        worker.set_ready(True)
        self._ready(port, worker.agents)
        # What the start made stays: the collector need not walk it again and again.
        gc.collect()
        gc.freeze()
        await self._stop.wait()
        return await self._end(worker)

    def _ready(self, port: Port, agents: int) -> None:
        if self._line is not None:
            self._line.send(f"{agents}\n".encode())
            return
        host = f"[{port.host}]" if ":" in port.host else port.host
        self._announce(ready_line(port.scheme, host, port.port, agents))

    async def _end(self, worker: Worker) -> int:
        worker.set_ready(False)
        forced = asyncio.ensure_future(self._force.wait())
        draining = asyncio.ensure_future(self._drain(worker.port))
        code = EXIT_DONE
        try:
            await asyncio.wait((draining, forced), return_when=asyncio.FIRST_COMPLETED)
            if not draining.done():
                draining.cancel()
                await asyncio.wait((draining,), timeout=_FORCED_SECONDS / 4)
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(worker.port.close(), _FORCED_SECONDS / 4)
            else:
                draining.result()
        except Exception as error:
            _log.error("drain failed", exc_info=error)
            code = EXIT_FAILED
        finally:
            forced.cancel()
        return code if await self._close(worker) else EXIT_FAILED

    async def _drain(self, port: Port) -> None:
        # Whoever routes by readiness shall have read it before the door closes.
        await asyncio.sleep(self._grace.notice)
        spent = time.monotonic() - self._stop_at
        # Less what cutting and closing may take, so that the total holds.
        await port.drain(max(0.0, self._grace.total - spent - _CLOSE_SECONDS))

    async def _close(self, worker: Worker) -> bool:
        """Whether everything ended in order and in time."""
        left = _FORCED_SECONDS / 2
        if not self._force.is_set():
            spent = time.monotonic() - self._stop_at if self._stop_at else 0.0
            left = max(_CLOSE_SECONDS, self._grace.total - spent)
        try:
            await asyncio.wait_for(worker.close(), left)
        except TimeoutError:
            _log.error("closing took too long", extra={"seconds": left})
            return False
        except Exception as error:
            _log.error("closing failed", exc_info=error)
            return False
        return True

    def _on_signal(self, number: int, _: FrameType | None) -> None:
        self._signals += 1
        if self._signals == 1:
            self._stop_at = time.monotonic()
            # If the loop is blocked, or an ending hangs, the process still ends before SIGKILL.
            signal.setitimer(signal.ITIMER_REAL, self._grace.total + _CLOSE_SECONDS)
            self._wake(self._stop)
        elif self._signals == 2:
            self.forced_by = number
            signal.setitimer(signal.ITIMER_REAL, _FORCED_SECONDS)
            self._wake(self._force)
        else:
            _die_by(number)

    def _on_alarm(self, _: int, __: FrameType | None) -> None:
        if self.forced_by is not None:
            _die_by(self.forced_by)
        _write_error("did not drain in time, ending without")
        os._exit(EXIT_FAILED)

    def _on_supervisor(self) -> None:
        """The supervisor never sends: its line is readable when it is gone."""
        assert self._line is not None and self._loop is not None  # noqa: S101, PT018
        self._loop.remove_reader(self._line)
        if not self._signals:
            _log.warning("the supervisor is gone; draining")
            self._on_signal(signal.SIGTERM, None)

    def _wake(self, event: asyncio.Event) -> None:
        loop = self._loop
        if loop is not None and not loop.is_closed():
            loop.call_soon_threadsafe(event.set)


def ready_line(scheme: str, host: str, port: int, agents: int) -> str:
    """The one line that says the server is ready; users and tests look for it."""
    return f"lakemesh ready on {scheme}://{host}:{port} (grpc+http), {agents} agents"


def _supervisor_line() -> socket.socket | None:
    number = os.environ.pop(READY_FD, "")
    if not number:
        return None
    line = socket.socket(fileno=int(number))
    line.set_inheritable(False)
    line.setblocking(False)
    return line


def _raise_descriptor_limit() -> None:
    """A joined gRPC connection takes three descriptors; the usual soft limit is 1024."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _DESCRIPTORS if hard == resource.RLIM_INFINITY else min(hard, _DESCRIPTORS)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def _print(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def _write_error(message: str) -> None:
    sys.stderr.write(f"lakemesh: {message}\n")
    sys.stderr.flush()


def _fail(message: str, code: int = EXIT_FAILED) -> int:
    _write_error(" ".join(message.split()))
    return code


def _die_by(number: int) -> NoReturn:
    """End by the signal itself, as its sender expects to see."""
    signal.signal(number, signal.SIG_DFL)
    os.kill(os.getpid(), number)
    os._exit(128 + number)
