"""Environments of the peers: build/peers/<name>, from the pins beside each peer's server."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from pathlib import Path

from benchmarks.processes import ROOT

PEERS = Path(__file__).resolve().parent / "peers"
_INSTALL_SECONDS = 900


class PeerUnavailable(Exception):
    """The peer's environment cannot be made; the text is the reason's last line."""


def python_of(name: str) -> Path:
    """The Python that serves the peer, its environment made first when missing or stale."""
    requirements = PEERS / name / "requirements.txt"
    folder = ROOT / "build" / "peers" / name
    python = folder / "bin" / "python"
    stamp = folder / ".installed"
    wanted = hashlib.sha256(requirements.read_bytes()).hexdigest()
    if python.exists() and stamp.exists() and stamp.read_text() == wanted:
        return python
    print(f"installing {name} into {folder} (once)", file=sys.stderr, flush=True)
    for command in (
        [sys.executable, "-m", "venv", str(folder)],
        [str(python), "-m", "pip", "install", "--quiet", "--requirement", str(requirements)],
    ):
        try:
            done = subprocess.run(
                command, capture_output=True, text=True, check=False, timeout=_INSTALL_SECONDS
            )
        except subprocess.TimeoutExpired:
            raise PeerUnavailable(f"installing took more than {_INSTALL_SECONDS} s") from None
        if done.returncode:
            said = (done.stderr or done.stdout).strip().splitlines()
            raise PeerUnavailable(said[-1] if said else f"exit code {done.returncode}")
    stamp.write_text(wanted)
    return python
