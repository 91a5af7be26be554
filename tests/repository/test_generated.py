"""gen/ says what proto/ says, and a contract that broke does not pass."""

from __future__ import annotations

import pytest

from tests.repository.trees import Tree

pytestmark = [pytest.mark.go, pytest.mark.slow, pytest.mark.timeout(180)]

MESSAGES = "proto/lakemesh/api/agent/v1/request_response.proto"


def test_committed_code_is_what_the_protos_generate(working_copy: Tree) -> None:
    done = working_copy.tool("generate", "--check", timeout=150)
    assert done.code == 0, done.text


def test_renamed_field_makes_every_client_stale(working_copy: Tree) -> None:
    working_copy.edit(MESSAGES, "double confidence = 4;", "double certainty = 4;")
    done = working_copy.tool("generate", "--check", timeout=150)
    assert done.code == 1, done.text
    for name in (
        "gen/python/lakemesh/api/agent/v1/request_response_pb2.pyi",
        "gen/betterproto/lakemesh/api/agent/v1/__init__.py",
        "gen/go/lakemesh/api/agent/v1/request_response.pb.go",
        "gen/openapi/lakemesh.json",
    ):
        assert f"check-generated: {name} differs" in done.text
    assert "run `make generate`" in done.text


def test_module_of_a_removed_proto_is_left_over(working_copy: Tree) -> None:
    stray = working_copy.folder / "gen/python/lakemesh/api/agent/v1/gone_pb2.py"
    stray.write_text("")
    done = working_copy.tool("generate", "--check", timeout=150)
    assert done.code == 1
    assert "gen/python/lakemesh/api/agent/v1/gone_pb2.py is left over" in done.text


def test_generate_brings_a_changed_contract_into_gen(working_copy: Tree) -> None:
    working_copy.edit(MESSAGES, "double confidence = 4;", "double certainty = 4;")
    done = working_copy.tool("generate", timeout=150)
    assert done.code == 0, done.text
    generated = working_copy.folder / "gen/python/lakemesh/api/agent/v1/request_response_pb2.pyi"
    assert "certainty: float" in generated.read_text()
    again = working_copy.tool("generate", "--check", timeout=150)
    assert again.code == 0, again.text


def test_generated_go_module_builds(working_copy: Tree) -> None:
    done = Tree(working_copy.folder / "gen" / "go").run(["go", "build", "./..."], timeout=150)
    assert done.code == 0, done.text
