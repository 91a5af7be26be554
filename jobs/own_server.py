"""A Lakemesh server of one's own, for a job that was given no address of a running one."""

from __future__ import annotations

import asyncio
import re
import shutil
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

START_SECONDS = 60.0
"""Longest wait for the ready line; the first start of a data directory makes a database."""
STOP_SECONDS = 20.0
"""Longest wait after SIGTERM; the server promises 15."""
_READY = re.compile(r"lakemesh ready on https?://(\S+)")


class ServerNotStarted(Exception):
    """The server ended, or did not say that it is ready in time; the text says what it said."""


def program() -> str:
    """The `lakemesh` command of this Python's environment."""
    found = shutil.which("lakemesh", path=str(Path(sys.executable).parent))
    return found or shutil.which("lakemesh") or "lakemesh"


@asynccontextmanager
async def own_server(data_dir: Path) -> AsyncIterator[str]:
    """Start a server on a port the system chooses; gives HOST:PORT and stops it in the end."""
    process = await asyncio.create_subprocess_exec(
        program(),
        *("serve", "--port", "0", "--data-dir", str(data_dir), "--log-level", "warning"),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        # Ctrl-C is ours to handle: we stop the server once our calls have ended.
        start_new_session=True,
    )
    try:
        target = await _ready(process)
        draining = asyncio.create_task(_drain(process))
        try:
            yield target
        finally:
            draining.cancel()
    finally:
        if process.returncode is None:
            process.terminate()
            try:
                async with asyncio.timeout(STOP_SECONDS):
                    await process.wait()
            except TimeoutError:
                process.kill()
                await process.wait()


async def _ready(process: asyncio.subprocess.Process) -> str:
    assert process.stdout is not None  # noqa: S101 - it was asked for as a pipe
    said = ""
    try:
        async with asyncio.timeout(START_SECONDS):
            while line := await process.stdout.readline():
                said = line.decode(errors="replace").strip()
                if match := _READY.search(said):
                    return match[1]
            await process.wait()
    except TimeoutError:
        raise ServerNotStarted(f"not ready within {START_SECONDS:g} s: {said}") from None
    raise ServerNotStarted(f"the server ended with code {process.returncode}: {said}")


async def _drain(process: asyncio.subprocess.Process) -> None:
    """Read on, so that a server that says more never waits for us."""
    assert process.stdout is not None  # noqa: S101 - as above
    while await process.stdout.readline():
        pass
