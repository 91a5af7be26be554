"""What may stand in a file of the repository, and what may not."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

from tests.repository.trees import ROOT, source_files

# Written in parts, so that this file does not name them itself.
REGISTRIES = [
    "pypi" + ".org",
    "python" + "hosted.org",
    "proxy.golang" + ".org",
    "registry.npm" + "js.org",
    "anaconda" + ".org",
]
MACHINE_PATH = re.compile(r"(?<![\w.$}])/(?:work|root|home|Users)/\w")
ROOMS = ("server", "agents", "memory", "telemetry", "jobs", "deployment", "config", "cli")


def texts() -> list[tuple[str, str]]:
    found = []
    for name in source_files():
        try:
            found.append((name, (ROOT / name).read_text(encoding="utf-8")))
        except UnicodeDecodeError:
            continue
    return found


def test_no_file_names_a_registry() -> None:
    named = [(name, host) for name, text in texts() for host in REGISTRIES if host in text]
    assert not named


def test_no_file_names_a_path_of_somebodys_machine() -> None:
    named = [
        (name, number)
        for name, text in texts()
        if name != Path(__file__).relative_to(ROOT).as_posix()
        for number, line in enumerate(text.splitlines(), 1)
        if MACHINE_PATH.search(line)
    ]
    assert not named


def test_rooms_have_no_init_file() -> None:
    assert not [name for room in ROOMS for name in (ROOT / room).rglob("__init__.py")]


@pytest.mark.parametrize("room", ROOMS)
def test_rooms_say_that_they_are_typed(room: str) -> None:
    assert f"{room}/py.typed" in source_files()


def test_nobody_elses_proto_is_in_the_repository() -> None:
    protos = [name for name in source_files() if name.endswith(".proto")]
    assert not [name for name in protos if not name.startswith(("proto/lakemesh/", "tests/"))]


def pins(name: str) -> dict[str, str]:
    found = {}
    for line in (ROOT / name).read_text().splitlines():
        if match := re.match(r"([a-z0-9][a-z0-9._-]*)==([^ ;]+)", line):
            found[match[1]] = match[2]
    return found


def test_every_pin_has_a_hash() -> None:
    for name in ("requirements.txt", "requirements-local.txt", "requirements-dev.txt"):
        text = (ROOT / name).read_text()
        blocks = re.findall(r"^[a-z0-9][^\n]*==[^\n]*\n(?:    --hash[^\n]*\n)*", text, re.MULTILINE)
        assert len(blocks) == len(pins(name))
        assert not [block for block in blocks if "--hash=sha256:" not in block]


def test_locks_are_one_resolution() -> None:
    dev, local, app = (
        pins(name)
        for name in ("requirements-dev.txt", "requirements-local.txt", "requirements.txt")
    )
    assert app.items() <= local.items() <= dev.items()


def test_app_lock_holds_the_direct_dependencies_and_nothing_heavy() -> None:
    with (ROOT / "pyproject.toml").open("rb") as file:
        project = tomllib.load(file)["project"]
    app = pins("requirements.txt")
    direct = project["dependencies"] + project["optional-dependencies"]["app"]
    names = {re.split(r"[\[<>=]", entry)[0].lower() for entry in direct}
    assert names <= app.keys()
    assert not app.keys() & {"dspy", "dspy-ai", "litellm", "textgrad", "daft", "scikit-learn"}


def test_generator_and_runtime_agree_on_the_oldest_grpcio() -> None:
    with (ROOT / "pyproject.toml").open("rb") as file:
        project = tomllib.load(file)["project"]
    floor = next(entry for entry in project["dependencies"] if entry.startswith("grpcio>="))
    assert (
        f"grpcio-tools=={floor.removeprefix('grpcio>=')}" in project["optional-dependencies"]["dev"]
    )
