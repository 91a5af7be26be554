from __future__ import annotations

import pytest

from tests.contract.requirements import requirement
from tests.contract.transports import Failed, Transport

SHIPPED = ["echo", "fraud_detector", "triage"]


@requirement("agents.list", "agents.names")
async def test_agents_are_listed_in_order_with_their_schemas(connect: Transport) -> None:
    answer = await connect.call("ListAgents", {})
    names = [agent["name"] for agent in answer["agents"]]
    assert names == sorted(names)
    assert {*SHIPPED, "typed", "your_custom"} <= set(names)
    assert answer["count"] == len(names)
    assert answer["nextPageToken"] == ""
    typed = next(agent for agent in answer["agents"] if agent["name"] == "typed")
    assert typed["description"] == "Takes and gives pydantic models."
    assert set(typed["inputSchema"]["properties"]) == {"item", "quantity"}
    assert set(typed["outputSchema"]["properties"]) == {"text"}


@requirement("agents.list.pages")
async def test_pages_join_without_gap_or_repeat(connect: Transport) -> None:
    everyone = [agent["name"] for agent in (await connect.call("ListAgents", {}))["agents"]]
    found: list[str] = []
    token = ""
    for _ in range(len(everyone)):
        page = await connect.call("ListAgents", {"page_size": 4, "page_token": token})
        assert len(page["agents"]) <= 4
        found += [agent["name"] for agent in page["agents"]]
        token = page["nextPageToken"]
        if not token:
            break
    assert found == everyone


@requirement("agents.list.bad-token")
async def test_a_foreign_page_token_is_refused(connect: Transport) -> None:
    with pytest.raises(Failed) as failed:
        await connect.call("ListAgents", {"page_token": "%%%"})
    assert failed.value.code == "INVALID_ARGUMENT"
    assert failed.value.fields() == ["page_token"]


@requirement("agents.get")
async def test_one_agent_is_described(connect: Transport) -> None:
    agent = await connect.call("GetAgent", {"name": "fraud_detector"})
    assert agent["name"] == "fraud_detector"
    assert set(agent["inputSchema"]["required"]) == {"transaction_id", "amount"}


@requirement("agents.get.unknown")
async def test_an_unknown_agent_is_not_found(connect: Transport) -> None:
    with pytest.raises(Failed) as failed:
        await connect.call("GetAgent", {"name": "nobody"})
    assert failed.value.code == "NOT_FOUND"
    assert "nobody" in failed.value.message


@requirement("method.unknown")
async def test_what_does_not_exist_is_refused(connect: Transport) -> None:
    with pytest.raises(Failed) as failed:
        await connect.unknown_method()
    expected = "UNIMPLEMENTED" if connect.name == "grpc" else "NOT_FOUND"
    assert failed.value.code == expected
