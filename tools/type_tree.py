"""The tree in which type checker and import linter see the project as users import it.

The folders of the checkout are links under build/types/lakemesh (build/types/lakemesh/server ->
server), and gen/python's lakemesh/api beside them: an editable install's import hook is something
neither tool follows. pyproject.toml is the only place that says which folder is which package.
"""

from __future__ import annotations

import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def links() -> dict[str, Path]:
    """Folder of each package right below a linked one's parent, by the link's relative path."""
    with (ROOT / "pyproject.toml").open("rb") as file:
        mapping: dict[str, str] = tomllib.load(file)["tool"]["setuptools"]["package-dir"]
    folders = {name.replace(".", "/"): ROOT / folder for name, folder in mapping.items()}
    # lakemesh.api.agent.v1 lies inside lakemesh.api: one link serves both.
    return {
        name: folder
        for name, folder in folders.items()
        if not any(name.startswith(f"{other}/") for other in folders)
    }


def build(tree: Path) -> None:
    """Make `tree`, or bring it up to date; nothing is touched when it is right."""
    wanted = links()
    (tree / "lakemesh").mkdir(parents=True, exist_ok=True)
    for path in (tree / "lakemesh").iterdir():
        if path.is_symlink() and path.relative_to(tree).as_posix() not in wanted:
            path.unlink()
    for name, folder in wanted.items():
        link = tree / name
        if link.is_symlink() and link.readlink() == folder:
            continue
        link.unlink(missing_ok=True)
        link.symlink_to(folder, target_is_directory=True)


if __name__ == "__main__":
    build(ROOT / "build" / "types")
    sys.exit(0)
