from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.contract.requirements import requirement
from tests.contract.test_execute import until_said
from tests.contract.transports import Failed, Transport

KINDS = ("status", "token", "toolCall", "toolResult", "output")


def kind(event: dict[str, Any]) -> str:
    return next(name for name in KINDS if event.get(name) is not None)


async def events_of(connect: Transport, agent: str, **data: Any) -> list[dict[str, Any]]:
    return [event async for event in connect.stream({"agent_name": agent, "data": data})]


@requirement("stream.order")
async def test_events_are_numbered_and_end_with_the_output(connect: Transport) -> None:
    events = await events_of(connect, "talking")
    assert [int(event["sequence"]) for event in events] == list(range(1, len(events) + 1))
    assert len({event["runId"] for event in events}) == 1
    last = events[-1]
    assert kind(last) == "output"
    assert last["output"]["result"]["said"] == "one two three"
    assert last["output"]["runId"] == last["runId"]


@requirement("stream.kinds")
async def test_every_kind_of_event_arrives_as_it_happens(connect: Transport) -> None:
    events = await events_of(connect, "talking")
    assert [kind(event) for event in events] == [
        "status",
        "status",
        "token",
        "token",
        "token",
        "toolCall",
        "toolResult",
        "status",
        "output",
    ]
    states = [event["status"]["state"] for event in events if kind(event) == "status"]
    assert states == ["STATE_STARTED", "STATE_WORKING", "STATE_COMPLETED"]
    assert "".join(e["token"]["text"] for e in events if kind(e) == "token") == "one two three"
    called = next(event["toolCall"] for event in events if kind(event) == "toolCall")
    answered = next(event["toolResult"] for event in events if kind(event) == "toolResult")
    assert called["tool"] == answered["tool"] == "typed"
    assert called["callId"] == answered["callId"]
    assert called["arguments"] == {"item": "pen", "quantity": 3}
    assert answered["result"] == {"text": "3 x pen"}


@requirement("stream.error")
async def test_an_agent_that_fails_ends_the_stream_with_its_error(connect: Transport) -> None:
    seen: list[str] = []
    with pytest.raises(Failed) as failed:
        async for event in connect.stream({"agent_name": "talking", "data": {"fail": True}}):
            seen.append(kind(event))
    assert "token" in seen
    assert "output" not in seen
    assert failed.value.code == "INTERNAL"
    assert "AGENT_FAILED" in failed.value.raw


@requirement("stream.unknown")
async def test_streaming_an_unknown_agent_is_not_found(connect: Transport) -> None:
    with pytest.raises(Failed) as failed:
        await events_of(connect, "nobody")
    assert failed.value.code == "NOT_FOUND"


@requirement("stream.disconnect")
async def test_a_reader_that_goes_away_cancels_the_agent(
    connect: Transport, tmp_path: Path
) -> None:
    said = tmp_path / "said"
    events = connect.stream({"agent_name": "waiting", "data": {"file": str(said)}})
    first = await anext(events)
    assert kind(first) == "status"
    await until_said(said, "started")
    await events.aclose()
    await connect.hang_up()
    await until_said(said, "cancelled")
