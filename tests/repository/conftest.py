"""Copies of the working tree, for tests that change it or need it bare."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.repository.trees import ROOT, Tree, source_files


@pytest.fixture
def tree() -> Tree:
    """The real working tree; only to be read."""
    return Tree(ROOT)


@pytest.fixture(scope="session")
def make_bare_tree() -> Callable[[Path], Tree]:
    """Copies the sources into a folder: a fresh clone with what is not yet committed."""

    def make(folder: Path) -> Tree:
        for name in source_files():
            target = folder / name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, target)
        return Tree(folder)

    return make


@pytest.fixture
def bare_tree(tmp_path: Path, make_bare_tree: Callable[[Path], Tree]) -> Tree:
    """A copy of the sources alone."""
    return make_bare_tree(tmp_path / "bare")


@pytest.fixture
def working_copy(tmp_path: Path, make_bare_tree: Callable[[Path], Tree]) -> Tree:
    """A copy of the sources with this environment and what the generators fetched so far."""
    copy = make_bare_tree(tmp_path / "copy")
    (copy.folder / ".venv").symlink_to(ROOT / ".venv")
    (copy.folder / "build").mkdir()
    for name in ("third_party", "bin"):
        if (ROOT / "build" / name).exists():
            shutil.copytree(ROOT / "build" / name, copy.folder / "build" / name)
    versions = ROOT / "build" / "third_party.versions"
    if versions.exists():
        shutil.copy(versions, copy.folder / "build")
    return copy
