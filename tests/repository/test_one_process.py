"""Everything of the project, and the packages it stands beside, imports in one process."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tests.repository.trees import PACKAGES, ROOT, Tree, source_files

NEIGHBOURS = (
    "google.api.annotations_pb2",
    "google.rpc.error_details_pb2",
    "grpc_channelz.v1.channelz_pb2",
    "grpc_health.v1.health_pb2",
    "grpc_reflection.v1alpha.reflection_pb2",
    "protovalidate",
)


def modules() -> list[str]:
    found = []
    for name in source_files():
        for package, folder in PACKAGES.items():
            if name.startswith(f"{folder}/") and name.endswith(".py"):
                parts = Path(name).relative_to(folder).with_suffix("").parts
                parts = parts[:-1] if parts[-1] == "__init__" else parts
                found.append(".".join((package, *parts)))
    return found


@pytest.mark.slow
@pytest.mark.timeout(120)
def test_all_modules_import_together_and_quietly(tree: Tree) -> None:
    names = [*NEIGHBOURS, *modules(), *reversed(NEIGHBOURS)]
    code = "import importlib, sys\nfor name in sys.argv[1:]:\n    importlib.import_module(name)"
    done = tree.run([sys.executable, "-W", "error", "-c", code, *names], timeout=100)
    assert done.code == 0, done.text
    assert done.text == ""


def test_betterproto_and_protobuf_write_the_same_bytes(tree: Tree) -> None:
    code = """
import lakemesh.betterproto.lakemesh.api.agent.v1 as light
from lakemesh.api.agent.v1 import request_response_pb2 as full
values = {"agent_name": "echo", "metadata": {"session_id": "s"}}
wire = full.ExecuteRequest(**values).SerializeToString(deterministic=True)
assert bytes(light.ExecuteRequest(**values)) == wire
assert light.ExecuteRequest.parse(wire).metadata == {"session_id": "s"}
assert {light.AgentServiceStub.__name__, light.AgentServiceSyncStub.__name__}
"""
    done = tree.run([sys.executable, "-W", "error", "-c", code])
    assert done.code == 0, done.text


def test_folder_agents_of_the_checkout_is_no_package(tree: Tree) -> None:
    # openai-agents installs `agents`; python -m in the checkout must find that, not our folder.
    code = "import agents; print(agents.__file__)"
    done = tree.run([sys.executable, "-c", code])
    assert done.code == 0, done.text
    assert done.text.strip() == "None", f"a module of its own: {ROOT / 'agents'}"
