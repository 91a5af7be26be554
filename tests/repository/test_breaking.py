"""`buf breaking` as `make lint` runs it: what it compares with, and that it sees a break."""

from __future__ import annotations

import pytest

from tests.repository.trees import Tree

pytestmark = [pytest.mark.go, pytest.mark.timeout(120)]

MESSAGES = "proto/lakemesh/api/agent/v1/request_response.proto"


@pytest.fixture
def repository(working_copy: Tree) -> Tree:
    """A repository of its own, nothing committed yet."""
    laid = working_copy.tool("third_party_protos")
    assert laid.code == 0, laid.text
    assert working_copy.git("init", "--quiet", "--initial-branch=main").code == 0
    return working_copy


def commit(repository: Tree, message: str) -> None:
    assert repository.git("add", "--all").code == 0
    done = repository.git("commit", "--quiet", "--message", message)
    assert done.code == 0, done.text


def test_nothing_came_before_the_first_commit(repository: Tree) -> None:
    done = repository.tool("breaking")
    assert done.code == 0, done.text
    assert "nothing came before" in done.text


def test_first_commit_passes(repository: Tree) -> None:
    commit(repository, "first")
    done = repository.tool("breaking")
    assert done.code == 0, done.text


def test_renumbered_field_fails_before_and_after_its_commit(repository: Tree) -> None:
    commit(repository, "first")
    repository.edit(MESSAGES, "double confidence = 4;", "double confidence = 14;")
    uncommitted = repository.tool("breaking")
    assert uncommitted.code == 1
    assert "confidence" in uncommitted.text
    commit(repository, "second")
    committed = repository.tool("breaking")
    assert committed.code == 1
    assert MESSAGES in committed.text


def test_release_is_the_baseline_once_there_is_one(repository: Tree) -> None:
    commit(repository, "first")
    assert repository.git("tag", "v0.1.0").code == 0
    repository.edit(MESSAGES, "double confidence = 4;", "double confidence = 14;")
    commit(repository, "second")
    (repository.folder / "later").write_text("nothing about protos")
    commit(repository, "third")
    done = repository.tool("breaking")
    assert done.code == 1
    assert "against release v0.1.0" in done.text


def test_named_baseline_must_exist(repository: Tree) -> None:
    commit(repository, "first")
    done = repository.tool("breaking", "no-such-revision")
    assert done.code == 1
    assert "no-such-revision names no commit" in done.text


def test_added_field_is_no_break(repository: Tree) -> None:
    commit(repository, "first")
    repository.edit(
        MESSAGES,
        "double confidence = 4;",
        "double confidence = 4;\n  // More.\n  string more = 99;",
    )
    done = repository.tool("breaking")
    assert done.code == 0, done.text
