"""Make `.venv` what a make target needs, quickly when it already is.

    python3 tools/environment.py {local,dev}

`local` is the server with its embedded parts (requirements-local.txt), `dev` adds what tests,
linters and generators need (requirements-dev.txt, a superset with the same pins). Runs on a bare
Python 3.11 or later. A stamp in `.venv` records what was installed, so nothing is done when
nothing changed; a lock file in build/ makes two `make` runs wait for each other.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
PYTHON = VENV / "bin" / "python"
# The larger kind first: it satisfies the smaller.
KINDS = ("dev", "local")
OLDEST = (3, 11)


def lock_file(kind: str) -> Path:
    return ROOT / f"requirements-{kind}.txt"


def wanted(kind: str) -> str:
    """Digest of all that decides what the environment holds."""
    digest = hashlib.sha256(f"{ROOT}\n{kind}\n".encode())
    for path in (lock_file(kind), ROOT / "pyproject.toml"):
        digest.update(path.read_bytes())
    return digest.hexdigest()


def stamp(kind: str) -> Path:
    return VENV / f".lakemesh-{kind}"


def fresh(kind: str) -> bool:
    """Whether `.venv` was filled for `kind`, or for a larger kind, from the files as they are."""
    if not PYTHON.exists():
        return False
    enough = KINDS[: KINDS.index(kind) + 1]
    return any(stamp(k).exists() and stamp(k).read_text() == wanted(k) for k in enough)


def works() -> bool:
    """Whether the environment's interpreter starts, is new enough and lives here.

    It does not when the folder was moved or the Python it was made from was removed.
    """
    if not PYTHON.exists():
        return False
    code = f"import sys; print(sys.prefix); raise SystemExit(sys.version_info < {OLDEST})"
    answer = subprocess.run([str(PYTHON), "-c", code], capture_output=True, text=True, check=False)
    return answer.returncode == 0 and Path(answer.stdout.strip()).resolve() == VENV.resolve()


def run(*command: str | Path, **environment: str) -> bool:
    done = subprocess.run(
        [str(part) for part in command], cwd=ROOT, env=os.environ | environment, check=False
    )
    return done.returncode == 0


def uv_requirement() -> str:
    """The pin of uv with its hashes, as the dev lock has it."""
    lines = lock_file("dev").read_text().splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith("uv=="))
    end = next(i for i in range(start, len(lines)) if not lines[i].endswith("\\"))
    return "\n".join(lines[start : end + 1]) + "\n"


def uv() -> Path | None:
    """uv inside the environment, installed from the lock when missing; None when it will not."""
    path = VENV / "bin" / "uv"
    if not path.exists():
        with tempfile.NamedTemporaryFile("w", suffix=".txt") as file:
            file.write(uv_requirement())
            file.flush()
            pip = (PYTHON, "-m", "pip", "install", "--quiet", "--disable-pip-version-check")
            if not run(*pip, "--no-deps", "--require-hashes", "-r", file.name):
                return None
    return path


def index_settings() -> dict[str, str]:
    """pip's configured index, for uv, which reads no pip configuration."""
    if "UV_DEFAULT_INDEX" in os.environ or "UV_INDEX_URL" in os.environ:
        return {}
    command = [str(PYTHON), "-m", "pip", "config", "get", "global.index-url"]
    answer = subprocess.run(command, capture_output=True, text=True, check=False)
    index = os.environ.get("PIP_INDEX_URL") or answer.stdout.strip()
    return {"UV_DEFAULT_INDEX": index} if index else {}


def install(kind: str) -> None:
    """Fill the environment from the lock of `kind`, then add the project itself, editable."""
    requirements = lock_file(kind)
    program = uv()
    if program is not None:
        settings = index_settings()
        into = ("--quiet", "--python", PYTHON)
        if run(
            program, "pip", "install", *into, "--require-hashes", "-r", requirements, **settings
        ) and run(
            program, "pip", "install", *into, "--no-deps", "--no-build-isolation", "-e", ".",
            **settings,
        ):  # fmt: skip
            return
        print("environment: uv failed, going on with pip", file=sys.stderr)
    pip = (PYTHON, "-m", "pip", "install", "--quiet", "--disable-pip-version-check")
    if not (
        run(*pip, "--require-hashes", "-r", requirements)
        and run(*pip, "--no-deps", "--no-build-isolation", "-e", ".")
    ):
        raise SystemExit(f"environment: could not install {requirements.name} into .venv")


def ensure(kind: str) -> None:
    """Make `.venv` hold what `kind` needs. Raises SystemExit with one line when it cannot."""
    if fresh(kind):
        return
    (ROOT / "build").mkdir(exist_ok=True)
    with (ROOT / "build" / "environment.lock").open("w") as guard:
        fcntl.flock(guard, fcntl.LOCK_EX)
        if fresh(kind):
            return
        started = time.monotonic()
        if not works():
            if VENV.exists():
                shutil.rmtree(VENV)
            print("environment: making .venv", flush=True)
            if not run(sys.executable, "-m", "venv", VENV):
                raise SystemExit("environment: python -m venv failed")
        for name in KINDS:
            stamp(name).unlink(missing_ok=True)
        print(f"environment: installing {lock_file(kind).name}", flush=True)
        install(kind)
        stamp(kind).write_text(wanted(kind))
        print(f"environment: ready after {time.monotonic() - started:.0f} s", flush=True)


def main() -> int:
    if sys.version_info < OLDEST:
        print("environment: Python 3.11 or later is needed (make PYTHON=...)", file=sys.stderr)
        return 2
    if len(sys.argv) != 2 or sys.argv[1] not in KINDS:
        print(__doc__, file=sys.stderr)
        return 2
    ensure(sys.argv[1])
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
