from __future__ import annotations

import importlib
import inspect
from pathlib import Path

from tests.contract.requirements import REQUIREMENTS


def shown() -> dict[str, list[str]]:
    """Requirement id -> tests that show it."""
    found: dict[str, list[str]] = {}
    for path in sorted(Path(__file__).parent.glob("test_*.py")):
        if path.name == "test_manifest.py":
            continue
        module = importlib.import_module(f"tests.contract.{path.stem}")
        for name, test in inspect.getmembers(module, inspect.isfunction):
            if name.startswith("test_") and test.__module__ == module.__name__:
                for one in getattr(test, "requirements", ("",)):
                    found.setdefault(one, []).append(f"{path.name}::{name}")
    return found


def test_every_requirement_has_a_test() -> None:
    assert sorted(set(REQUIREMENTS) - set(shown())) == []


def test_every_contract_test_names_a_requirement_of_the_manifest() -> None:
    unknown = {key: tests for key, tests in shown().items() if key not in REQUIREMENTS}
    assert unknown == {}
