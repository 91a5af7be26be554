"""Compare the contract with what callers already rely on: `buf breaking`, rules FILE.

    .venv/bin/python tools/breaking.py [REVISION]

The baseline is, in this order: the revision named (or LAKEMESH_PROTO_BASELINE), the last release
tag, where this branch left origin/main, the commit before this one. The last one is what remains
on main itself before the first release; a first commit has nothing before it and passes.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


@dataclass(frozen=True, slots=True)
class Comparison:
    """What was compared with, in words, and a line for each break found."""

    against: str
    problems: tuple[str, ...]


def git(*arguments: str) -> bytes | None:
    """What git answers; None when it fails (no such revision, no repository)."""
    done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, check=False)
    return done.stdout if done.returncode == 0 else None


def commit_of(revision: str) -> str | None:
    """The commit a revision names, if it has a contract to compare with."""
    answer = git("rev-parse", "--verify", "--quiet", f"{revision}^{{commit}}")
    if answer is None:
        return None
    commit = answer.decode().strip()
    return commit if git("ls-tree", commit, "proto/", "buf.yaml") else None


def baseline() -> tuple[str, str] | None:
    """Words for the baseline and its commit; None when nothing came before."""
    head = commit_of("HEAD")
    tag = git("describe", "--tags", "--abbrev=0", "--match", "v[0-9]*")
    if tag and (commit := commit_of(tag.decode().strip())):
        return f"release {tag.decode().strip()}", commit
    fork = git("merge-base", "HEAD", "origin/main")
    if fork and (commit := commit_of(fork.decode().strip())) and commit != head:
        return "where this branch left main", commit
    if commit := commit_of("HEAD^"):
        return "the commit before this one", commit
    return ("the last commit", head) if head else None


def compare(revision: str | None = None) -> Comparison:
    """Run buf on the working tree against the baseline.

    Raises SystemExit when a revision was named that has no contract.
    """
    named = revision or os.environ.get("LAKEMESH_PROTO_BASELINE")
    if named:
        commit = commit_of(named)
        if commit is None:
            raise SystemExit(f"breaking: {named} names no commit with a contract")
        found: tuple[str, str] | None = (named, commit)
    else:
        found = baseline()
    if found is None:
        return Comparison("nothing came before", ())
    words, commit = found
    archive = git("archive", "--format=tar", commit, "proto", "buf.yaml")
    if archive is None:
        raise SystemExit(f"breaking: git archive {commit} failed")
    with tempfile.TemporaryDirectory(dir=ROOT / "build") as folder:
        with tarfile.open(fileobj=BytesIO(archive)) as tar:
            tar.extractall(folder, filter="data")
        # buf compares module with module, so the earlier state needs the second one too.
        shutil.copytree(ROOT / "build" / "third_party", Path(folder, "build", "third_party"))
        buf = ROOT / ".venv" / "bin" / "buf"
        done = subprocess.run(
            [str(buf), "breaking", "--against", folder],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=False,
        )
    problems = (done.stdout + done.stderr).splitlines() if done.returncode else []
    return Comparison(f"against {words}, {commit[:12]}", tuple(problems))


if __name__ == "__main__":
    result = compare(sys.argv[1] if len(sys.argv) > 1 else None)
    print("\n".join([f"buf breaking {result.against}", *result.problems]))
    sys.exit(1 if result.problems else 0)
