"""Working trees: the real one, and copies a test may change."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
# Where each package of the wheel lies in the tree.
PACKAGES = {
    "lakemesh.api": "gen/python/lakemesh/api",
    "lakemesh.betterproto": "gen/betterproto",
} | {
    f"lakemesh.{room}": room
    for room in ("server", "agents", "memory", "telemetry", "jobs", "deployment", "config", "cli")
}


@dataclass(frozen=True, slots=True)
class Finished:
    """How a program ended, its output and errors together."""

    code: int
    text: str


@dataclass(frozen=True, slots=True)
class Tree:
    """A working tree, the real one or a copy."""

    folder: Path

    def run(
        self, command: Sequence[str | Path], *, timeout: float = 60.0, **environment: str
    ) -> Finished:
        """Run a program in the folder to its end."""
        done = subprocess.run(
            [str(part) for part in command],
            cwd=self.folder,
            env=os.environ | environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=timeout,
            check=False,
        )
        return Finished(done.returncode, done.stdout)

    def tool(self, name: str, *arguments: str, timeout: float = 60.0) -> Finished:
        """Run one of tools/ with the environment make uses."""
        python = self.folder / ".venv" / "bin" / "python"
        return self.run([python, f"tools/{name}.py", *arguments], timeout=timeout)

    def git(self, *arguments: str) -> Finished:
        identity = ["-c", "user.name=Test", "-c", "user.email=test@invalid", "-c", "gc.auto=0"]
        return self.run(["git", *identity, *arguments])

    def edit(self, name: str, old: str, new: str) -> None:
        """Replace the only occurrence of `old` in a file."""
        path = self.folder / name
        text = path.read_text()
        assert text.count(old) == 1, f"{old!r} is not once in {name}"
        path.write_text(text.replace(old, new))


def source_files() -> list[str]:
    """The files that are committed or would be, relative to the root."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    return [name for name in sorted(set(listed.stdout.splitlines())) if (ROOT / name).is_file()]
