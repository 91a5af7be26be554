"""Run every linter, also after one failed, and end with one line per failure.

Python: ruff (rules and layout), import-linter (who may import whom). Protos: buf lint, buf format,
buf breaking against an earlier state of the contract (breaking.py). Go: gofmt and go vet.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import breaking

ROOT = Path(__file__).resolve().parent.parent
BIN = ROOT / ".venv" / "bin"


def passes(name: str, command: Sequence[str | Path], cwd: Path = ROOT, **extra: str) -> bool:
    """Whether a linter is content; what it printed is shown only when it is not."""
    done = subprocess.run(
        [str(part) for part in command],
        cwd=cwd,
        env=os.environ | extra,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    print(f"lint: {name}: {'ok' if done.returncode == 0 else 'FAILED'}", flush=True)
    if done.returncode:
        print(done.stdout, flush=True)
    return done.returncode == 0


def go_files() -> list[str]:
    """Hand-written Go files, committed or about to be."""
    command = ["git", "ls-files", "-co", "--exclude-standard", "*.go", ":!gen/"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    return [name for name in listed.stdout.splitlines() if (ROOT / name).exists()]


def go_modules(files: Sequence[str]) -> list[Path]:
    """The modules those files belong to, and the generated client."""
    found = {ROOT / "gen" / "go"}
    for name in files:
        folder = (ROOT / name).parent
        while folder != ROOT and not (folder / "go.mod").exists():
            folder = folder.parent
        if folder != ROOT:
            found.add(folder)
    return sorted(found)


def gofmt_is_content(files: Sequence[str]) -> bool:
    if not files:
        return True
    done = subprocess.run(
        ["gofmt", "-l", *files], cwd=ROOT, capture_output=True, text=True, check=False
    )
    wrong = done.stdout.split()
    print(f"lint: gofmt: {'FAILED' if wrong or done.returncode else 'ok'}", flush=True)
    for name in wrong:
        print(f"{name}: not as gofmt lays it out (make reformat)")
    print(done.stderr, end="")
    return not wrong and done.returncode == 0


def breaking_is_content() -> bool:
    found = breaking.compare()
    state = "ok" if not found.problems else "FAILED"
    print(f"lint: buf breaking: {state} ({found.against})", flush=True)
    for line in found.problems:
        print(line)
    return not found.problems


def main() -> int:
    buf = BIN / "buf"
    go = go_files()
    content = [
        passes("ruff check", [BIN / "ruff", "check", "."]),
        passes("ruff format", [BIN / "ruff", "format", "--check", "."]),
        passes("imports", [BIN / "lint-imports", "--no-cache"], PYTHONPATH="build/types"),
        passes("buf lint", [buf, "lint"]),
        passes("buf format", [buf, "format", "--diff", "--exit-code", "proto"]),
        breaking_is_content(),
        gofmt_is_content(go),
        *(
            passes(f"go vet {folder.relative_to(ROOT)}", ["go", "vet", "./..."], cwd=folder)
            for folder in go_modules(go)
        ),
    ]
    return 0 if all(content) else 1


if __name__ == "__main__":
    sys.exit(main())
