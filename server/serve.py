"""`lakemesh serve`: one worker in this process, or a supervisor over several."""

from __future__ import annotations

import dataclasses
import functools
import json
import logging
import os
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from lakemesh.config.settings import SettingError, Settings
from lakemesh.memory.embedded_postgres import EmbeddedPostgres
from lakemesh.memory.errors import MemoryUnavailable
from lakemesh.server.lifecycle import EXIT_USAGE, Grace, Worker, run_worker
from lakemesh.server.logs import configure_logs
from lakemesh.server.supervisor import supervise

logger = logging.getLogger(__name__)

_WORKER_SETTINGS = "LAKEMESH_WORKER_SETTINGS"
_WATCH_SECONDS = 1.0


def serve(settings: Settings) -> int:
    """Serve until told to end; gives the exit code."""
    configure_logs(settings.log_level)
    try:
        settings.data_dir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        sys.stderr.write(f"lakemesh: data directory {settings.data_dir}: {error.strerror}\n")
        return EXIT_USAGE
    if settings.workers == 1:
        return _work(settings)
    with _embedded_postgres(settings):
        return supervise(
            _worker_command,
            workers=settings.workers,
            host=settings.host,
            port=settings.port,
            scheme="http" if settings.tls_cert is None else "https",
            environment=os.environ | {_WORKER_SETTINGS: _dump(settings)},
        )


async def _build(settings: Settings) -> Worker:
    # Imported when the port is bound: a taken one is then told within half a second, not two.
    from lakemesh.server.composition import compose

    return await compose(settings)


def _work(settings: Settings) -> int:
    return run_worker(
        functools.partial(_build, settings),
        host=settings.host,
        port=settings.port,
        grace=Grace(total=settings.drain_seconds),
    )


def _worker_command(host: str, port: int) -> Sequence[str]:
    return (sys.executable, "-m", "lakemesh.server.serve", host, str(port))


def _dump(settings: Settings) -> str:
    return json.dumps(dataclasses.asdict(settings), default=str)


def _load(text: str, host: str, port: str) -> Settings:
    given: dict[str, Any] = json.loads(text)
    given |= {"host": host, "port": port, "workers": 1}
    return Settings.load(given, environ={})


@contextmanager
def _embedded_postgres(settings: Settings) -> Iterator[None]:
    """The database the workers share, owned by the supervisor: it outlives every worker's drain."""
    if settings.memory_dsn is not None:
        yield
        return
    server = EmbeddedPostgres(settings.data_dir)
    stopped = threading.Event()

    def ensure() -> None:
        try:
            server.ensure_running()
        except MemoryUnavailable as error:
            # Workers serve on without memory and say so in their health.
            logger.warning("memory is degraded", extra={"reason": error.reason})

    def keep() -> None:
        while not stopped.wait(_WATCH_SECONDS):
            if not server.running():
                ensure()

    ensure()  # before the workers, or one of them would own it
    keeper = threading.Thread(target=keep, name="postgres-keeper", daemon=True)
    keeper.start()
    try:
        yield
    finally:
        stopped.set()
        keeper.join()
        server.stop()


def main() -> int:
    """The supervised worker's program: `python -m lakemesh.server.serve HOST PORT`."""
    try:
        settings = _load(os.environ.pop(_WORKER_SETTINGS), *sys.argv[1:3])
    except (KeyError, SettingError) as error:
        sys.stderr.write(f"lakemesh: not started by its supervisor: {error}\n")
        return EXIT_USAGE
    configure_logs(settings.log_level)
    return _work(settings)


if __name__ == "__main__":
    raise SystemExit(main())
