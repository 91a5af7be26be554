"""The wheel: what is in it, and that it lives with its neighbours in a fresh environment."""

from __future__ import annotations

import sys
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.repository.trees import PACKAGES, ROOT, Tree, source_files

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]

CONSUMER = """
from lakemesh.agents.base import CriticalPathAgent
from lakemesh.agents.schemas import AgentInput, AgentOutput
from lakemesh.api.agent.v1 import request_response_pb2


class Mine(CriticalPathAgent):
    async def process(self, request: AgentInput) -> AgentOutput:
        return AgentOutput(result={}, confidence=1.0)


reveal_type(request_response_pb2.ExecuteResponse().confidence)
reveal_type(AgentOutput(result={}).confidence)
request_response_pb2.ExecuteResponse(confidence="much")
"""


@dataclass(frozen=True, slots=True)
class Installed:
    """An environment into which the wheel was installed beside its neighbours."""

    python: Path
    work: Tree


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory, make_bare_tree: Callable[[Path], Tree]) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    bare = make_bare_tree(folder / "source")
    out = folder / "dist"
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation"]
    done = bare.run([*command, "--outdir", str(out)], timeout=120)
    assert done.code == 0, done.text
    (path,) = out.iterdir()
    return path


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Installed:
    work = Tree(tmp_path_factory.mktemp("consumer"))
    uv = ROOT / ".venv" / "bin" / "uv"
    done = work.run([uv, "venv", "--quiet", "--python", sys.executable, "venv"])
    assert done.code == 0, done.text
    python = work.folder / "venv" / "bin" / "python"
    wanted = [f"{wheel}[app]", "openai-agents", "a2a-sdk"]
    held = ["--constraint", str(ROOT / "requirements.txt")]
    into = ["pip", "install", "--quiet", "--python", str(python)]
    done = work.run([uv, *into, *held, *wanted], timeout=300)
    assert done.code == 0, done.text
    return Installed(python, work)


def names(wheel: Path) -> set[str]:
    with zipfile.ZipFile(wheel) as archive:
        return set(archive.namelist())


def test_only_top_level_name_is_lakemesh(wheel: Path) -> None:
    tops = {name.split("/")[0] for name in names(wheel)}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"lakemesh"}


def test_wheel_holds_every_module_and_the_files_beside_them(wheel: Path) -> None:
    packed = names(wheel)
    suffixes = {".py", ".pyi", ".sql", ".json", ".yaml", ".html", ".typed"}
    missing = []
    for name in source_files():
        for package, folder in PACKAGES.items():
            if name.startswith(f"{folder}/") and Path(name).suffix in suffixes:
                inside = Path(package.replace(".", "/"), Path(name).relative_to(folder)).as_posix()
                if inside not in packed:
                    missing.append(name)
    assert not missing


def test_wheel_carries_its_license_and_command(wheel: Path) -> None:
    packed = names(wheel)
    assert [name for name in packed if name.endswith("licenses/LICENSE")]
    (entry_points,) = [name for name in packed if name.endswith("entry_points.txt")]
    with zipfile.ZipFile(wheel) as archive:
        assert "lakemesh = lakemesh.cli.main:main" in archive.read(entry_points).decode()


def test_wheel_lives_beside_openai_agents_and_a2a(installed: Installed) -> None:
    code = """
import a2a.types.a2a_pb2
import agents
import lakemesh.agents.base
import lakemesh.server.pipeline
import lakemesh.api.agent.v1.service_pb2_grpc
assert hasattr(agents, "Runner"), agents
print(lakemesh.agents.base.__file__)
"""
    done = installed.work.run([installed.python, "-c", code])
    assert done.code == 0, done.text
    assert "site-packages/lakemesh/agents/base.py" in done.text
    command = installed.python.parent / "lakemesh"
    assert installed.work.run([command, "--version"]).text.startswith("lakemesh ")


def test_type_checker_of_a_consumer_sees_the_types(installed: Installed) -> None:
    consumer = installed.work.folder / "consumer.py"
    consumer.write_text(CONSUMER)
    checked = ["--strict", "--python-executable", str(installed.python), consumer.name]
    done = installed.work.run([sys.executable, "-m", "mypy", *checked], timeout=180)
    assert 'Revealed type is "float"' in done.text, done.text
    assert done.text.count("Revealed type") == 2
    # The wrong argument, and nothing else.
    assert "Found 1 error in 1 file" in done.text, done.text
    assert '"ExecuteResponse" has incompatible type "str"' in done.text
