"""Write the three locks: `make lock` (or `make lock UPGRADE=1` for the newest that fit).

requirements-dev.txt is resolved first, from everything; the other two are parts of it, held to
its versions. So one version of each package is installed wherever the project runs. Databricks
Apps reads requirements.txt. All carry hashes, none names an index (docs/decisions.md).
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
DEV = "requirements-dev.txt"


def compile_lock(name: str, *arguments: str) -> None:
    """Resolve pyproject.toml as `arguments` say into the file `name`; SystemExit on failure."""
    command = [
        str(ROOT / ".venv" / "bin" / "uv"), "pip", "compile", "pyproject.toml", *arguments,
        "--universal", "--python-version", "3.11", "--fork-strategy", "fewest",
        "--generate-hashes", "--custom-compile-command", "make lock", "--quiet", "-o", name,
    ]  # fmt: skip
    if subprocess.run(command, cwd=ROOT, check=False).returncode:
        raise SystemExit(f"lock: {name} could not be resolved")
    pins = sum(1 for line in (ROOT / name).read_text().splitlines() if "==" in line.split(" ")[0])
    print(f"lock: {name}: {pins} packages", flush=True)


def main() -> int:
    upgrade = ["--upgrade"] if "--upgrade" in sys.argv[1:] else []
    build = ["--group", "pyproject.toml:build"]
    everything = ["--extra", "app", "--extra", "local", "--extra", "dev", *build]
    compile_lock(DEV, *everything, *upgrade)
    held = ["--constraint", DEV]
    compile_lock("requirements-local.txt", "--extra", "app", "--extra", "local", *build, *held)
    compile_lock("requirements.txt", "--extra", "app", *held)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
