"""The official Go interop client against both edges."""

from __future__ import annotations

import asyncio
import subprocess
from pathlib import Path

import pytest

pytestmark = [pytest.mark.go, pytest.mark.timeout(300)]

CASES = (
    "empty_unary",
    "large_unary",
    "client_streaming",
    "server_streaming",
    "ping_pong",
    "empty_stream",
    "timeout_on_sleeping_server",
    "cancel_after_begin",
    "cancel_after_first_response",
    "status_code_and_message",
    "special_status_message",
    "custom_metadata",
    "unimplemented_method",
    "unimplemented_service",
    "pick_first_unary",
    "rpc_soak",
    "channel_soak",
)


@pytest.mark.parametrize("case", CASES)
async def test_go_interop_case(programs: Path, served_port: int, case: str) -> None:
    command = [
        str(programs / "client"),
        "--server_host=127.0.0.1",
        f"--server_port={served_port}",
        f"--test_case={case}",
    ]
    # Not uvloop's subprocess: it forks with Python's and grpc's fork handlers, and a child was
    # seen to spin for ever. subprocess starts programs by vfork.

    def run() -> subprocess.CompletedProcess[str]:
        return subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)

    done = await asyncio.to_thread(run)
    assert done.returncode == 0, done.stdout + done.stderr
