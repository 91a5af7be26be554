"""What Databricks Apps starts (app.yaml): `lakemesh serve`, whatever way the project got here.

Installed (a wheel, or the editable install of the checkout), the command is simply run. In a bare
copy of the source, which is what a synchronised app folder is, the folders are first linked under
one import root outside of it (tools/type_tree.py) and the command is started from there.
"""

from __future__ import annotations

import os
import sys
import tempfile
import tomllib
from importlib import metadata
from pathlib import Path

ROOT = Path(__file__).resolve().parent
START = "import sys; from lakemesh.cli.main import main; sys.exit(main())"


def import_root() -> Path:
    """A folder from which the source imports as `lakemesh`, with the metadata a wheel has."""
    sys.path.insert(0, str(ROOT / "tools"))
    import type_tree

    folder = Path(tempfile.mkdtemp(prefix="lakemesh-"))
    type_tree.build(folder)
    with (ROOT / "pyproject.toml").open("rb") as file:
        version = tomllib.load(file)["project"]["version"]
    described = folder / f"lakemesh-{version}.dist-info"
    described.mkdir()
    described.joinpath("METADATA").write_text(
        f"Metadata-Version: 2.4\nName: lakemesh\nVersion: {version}\n"
    )
    return folder


def main() -> None:
    """Become the server; the process keeps its id, so signals reach it."""
    environment = dict(os.environ)
    try:
        metadata.version("lakemesh")
    except metadata.PackageNotFoundError:
        paths = [str(import_root()), os.environ.get("PYTHONPATH", "")]
        environment["PYTHONPATH"] = os.pathsep.join(path for path in paths if path)
    arguments = [sys.executable, "-c", START, "serve", *sys.argv[1:]]
    os.execve(sys.executable, arguments, environment)  # noqa: S606 - no shell wanted


if __name__ == "__main__":
    main()
