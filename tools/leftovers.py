"""End the processes whose environment has NAME=VALUE, and fail when there were any.

    python3 tools/leftovers.py NAME VALUE

For .ci/run: a mark in the environment finds what a test left behind even when it has moved into a
session of its own. Linux only (/proc); elsewhere nothing is found. A process that is about to end
by itself gets a moment to do so.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

PATIENCE_SECONDS = 5.0
GRACE_SECONDS = 12.0


def marked(mark: bytes) -> dict[int, str]:
    """Command lines of the living processes with the mark, by process id, without this one."""
    found: dict[int, str] = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if mark not in (folder / "environ").read_bytes().split(b"\0"):
                continue
            command = (
                (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            )
        except OSError:
            continue  # ended meanwhile, or not ours to read
        if int(folder.name) != os.getpid() and command:
            found[int(folder.name)] = command.strip()
    return found


def wait_until_gone(mark: bytes, seconds: float) -> dict[int, str]:
    """What is still there after at most `seconds`."""
    end = time.monotonic() + seconds
    while (left := marked(mark)) and time.monotonic() < end:
        time.sleep(0.1)
    return left


def main() -> int:
    name, value = sys.argv[1:]
    mark = f"{name}={value}".encode()
    left = wait_until_gone(mark, PATIENCE_SECONDS)
    if not left:
        return 0
    for pid, command in left.items():
        print(f"leftovers: process {pid} was left behind: {command[:200]}", file=sys.stderr)
    for number in (signal.SIGTERM, signal.SIGKILL):
        for pid in marked(mark):
            try:
                os.kill(pid, number)
            except ProcessLookupError:
                continue
        if not wait_until_gone(mark, GRACE_SECONDS):
            break
    return 1


if __name__ == "__main__":
    raise SystemExit(main())
