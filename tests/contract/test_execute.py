from __future__ import annotations

import asyncio
import contextlib
import json
import re
from pathlib import Path

import pytest

from lakemesh.api.agent.v1 import request_response_pb2 as messages
from tests.contract.requirements import requirement
from tests.contract.transports import Failed, GrpcTransport, JsonTransport, Transport

PATIENCE = 5.0


async def until_said(path: Path, word: str) -> None:
    """Wait until an agent under test wrote the word into its file."""
    async with asyncio.timeout(PATIENCE):
        while not path.exists() or word not in path.read_text().split():
            await asyncio.sleep(0.01)


@requirement("execute.answer")
async def test_an_answer_is_complete(connect: Transport) -> None:
    answer = await connect.execute("typed", {"item": "pen", "quantity": 3})
    assert answer["success"] is True
    assert answer["agent"] == "typed"
    assert answer["result"] == {"text": "3 x pen"}
    assert answer["confidence"] == 0.5
    assert isinstance(answer["metadata"], dict)
    assert len(answer["runId"]) == 32
    assert re.fullmatch("[0-9a-f]{32}", answer["traceId"])


@requirement("execute.metadata")
async def test_metadata_reaches_the_agent(connect: Transport) -> None:
    answer = await connect.execute("your_custom", {"a": [1, None, "x"]}, {"session_id": "s-1"})
    assert answer["result"] == {"got": {"a": [1, None, "x"]}, "session": "s-1"}


@requirement("execute.unknown")
async def test_an_unknown_agent_is_not_found(connect: Transport) -> None:
    with pytest.raises(Failed) as failed:
        await connect.execute("nobody")
    assert failed.value.code == "NOT_FOUND"


@requirement("execute.no-name")
async def test_a_missing_name_is_named(connect: Transport) -> None:
    with pytest.raises(Failed) as failed:
        await connect.execute("")
    assert failed.value.code == "INVALID_ARGUMENT"
    assert failed.value.fields() == ["agent_name"]


@requirement("execute.schema")
async def test_every_field_that_fails_the_schema_is_named(connect: Transport) -> None:
    with pytest.raises(Failed) as failed:
        await connect.execute("typed", {"item": "", "quantity": 0})
    assert failed.value.code == "INVALID_ARGUMENT"
    assert failed.value.fields() == ["data.item", "data.quantity"]


@requirement("execute.refused")
async def test_an_agent_refuses_in_its_own_words(connect: Transport) -> None:
    with pytest.raises(Failed) as failed:
        await connect.execute("picky")
    assert (failed.value.code, failed.value.message) == (
        "INVALID_ARGUMENT",
        "data.colour: must be blue",
    )


@requirement("execute.raises")
async def test_an_agent_that_raises_tells_nothing_of_its_insides(connect: Transport) -> None:
    with pytest.raises(Failed) as failed:
        await connect.execute("raising")
    error = failed.value
    assert error.code == "INTERNAL"
    info = next(detail for detail in error.details if "reason" in detail)
    assert (info["reason"], info["domain"]) == ("AGENT_FAILED", "lakemesh")
    assert info["metadata"]["agent"] == "raising"
    assert len(info["metadata"]["run_id"]) == 32
    for secret in ("canary", "RuntimeError", "Traceback", ".py"):
        assert secret not in error.raw


@pytest.mark.parametrize("agent", ["exiting", "wrong_type", "not_finite"])
@requirement("execute.exits", "execute.wrong-type", "execute.not-finite")
async def test_an_agent_that_misbehaves_fails_alone(connect: Transport, agent: str) -> None:
    with pytest.raises(Failed) as failed:
        await connect.execute(agent)
    assert failed.value.code == "INTERNAL"
    assert "AGENT_FAILED" in failed.value.raw
    assert (await connect.execute("echo", {"still": "here"}))["result"] == {"still": "here"}


@requirement("execute.depth")
async def test_an_answer_too_deep_for_some_transport_is_a_failure(connect: Transport) -> None:
    assert (await connect.execute("deep", {"depth": 25}))["success"] is True
    with pytest.raises(Failed) as failed:
        await connect.execute("deep", {"depth": 31})
    assert failed.value.code == "INTERNAL"


@requirement("execute.budget")
async def test_an_agent_over_its_budget_is_cancelled(connect: Transport, tmp_path: Path) -> None:
    said = tmp_path / "said"
    with pytest.raises(Failed) as failed:
        await connect.execute("hanging", {"file": str(said)})
    assert failed.value.code == "DEADLINE_EXCEEDED"
    assert "hanging" in failed.value.message
    await until_said(said, "cancelled")


@requirement("execute.deadline")
async def test_the_callers_deadline_cancels_the_agent(connect: Transport, tmp_path: Path) -> None:
    said = tmp_path / "said"
    with pytest.raises(Failed) as failed:
        await connect.execute("waiting", {"file": str(said)}, timeout=0.3)
    assert failed.value.code == "DEADLINE_EXCEEDED"
    await until_said(said, "cancelled")


@requirement("execute.disconnect")
async def test_a_caller_that_goes_away_cancels_the_agent(
    connect: Transport, tmp_path: Path
) -> None:
    said = tmp_path / "said"
    call = asyncio.create_task(connect.execute("waiting", {"file": str(said)}))
    await until_said(said, "started")
    call.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await call
    await connect.hang_up()
    await until_said(said, "cancelled")


@requirement("execute.sync")
async def test_a_synchronous_agent_runs_and_calls_others(connect: Transport) -> None:
    answer = await connect.execute("synchronous")
    assert answer["result"] == {"inner": {"text": "2 x a"}}


@requirement("execute.loop")
async def test_agents_that_call_themselves_without_end_are_refused(connect: Transport) -> None:
    with pytest.raises(Failed) as failed:
        await connect.execute("looping")
    assert failed.value.code == "FAILED_PRECONDITION"
    assert "looping -> looping" in failed.value.message


def nested(depth: int) -> dict[str, object]:
    data: dict[str, object] = {}
    for _ in range(depth - 1):
        data = {"in": data}
    return data


@requirement("execute.too-deep")
async def test_input_too_deep_for_some_transport_is_refused(connect: Transport) -> None:
    assert (await connect.execute("echo", nested(30)))["result"] == nested(30)
    with pytest.raises(Failed) as failed:
        await connect.execute("echo", nested(31))
    assert failed.value.code == "INVALID_ARGUMENT"
    assert "30" in failed.value.message


@requirement("execute.not-a-number")
async def test_a_number_no_transport_carries_is_refused(connect: Transport) -> None:
    with pytest.raises(Failed) as failed:
        if isinstance(connect, GrpcTransport):
            message = messages.ExecuteRequest(agent_name="echo")
            message.data["amount"] = float("nan")
            await connect.send_message(message)
        else:
            await connect.raw(b'{"agent_name":"echo","data":{"amount":1e400}}')
    assert failed.value.code == "INVALID_ARGUMENT"
    assert failed.value.fields() == ["data.amount"]


@requirement("execute.too-large")
async def test_a_message_over_4_mib_is_refused(connect: Transport) -> None:
    text = "x" * (4 * 1024 * 1024 + 10)
    with pytest.raises(Failed) as failed:
        if isinstance(connect, JsonTransport):
            answer = await connect._client.post(
                "/api/execute", content=json.dumps({"agent_name": "echo", "data": {"text": text}})
            )
            assert answer.status_code == 413
            raise Failed("RESOURCE_EXHAUSTED" if answer.json()["code"] == 8 else "", "")
        await connect.execute("echo", {"text": text})
    assert failed.value.code == "RESOURCE_EXHAUSTED"


@requirement("execute.malformed")
async def test_bytes_that_are_no_message_are_the_callers_fault(connect: Transport) -> None:
    with pytest.raises(Failed) as failed:
        await connect.raw(b"\xff\xfe\x00 garbage \x80\x81")
    assert failed.value.code == "INVALID_ARGUMENT"
    for word in ("DecodeError", "google.protobuf", "Traceback", "Exception"):
        assert word not in failed.value.raw


@requirement("execute.many-metadata")
async def test_more_metadata_than_allowed_is_refused(connect: Transport) -> None:
    with pytest.raises(Failed) as failed:
        await connect.execute("echo", {}, {f"key-{n}": "v" for n in range(65)})
    assert failed.value.code == "INVALID_ARGUMENT"
    assert failed.value.fields() == ["metadata"]


@requirement("trace.continued")
async def test_an_incoming_trace_is_continued(connect: Transport) -> None:
    trace_id = "4bf92f3577b34da6a3ce929d0e0e4736"
    headers = {"traceparent": f"00-{trace_id}-00f067aa0ba902b7-01"}
    answer = await connect.execute("echo", headers=headers)
    assert answer["traceId"] == trace_id


@requirement("trace.new")
async def test_each_call_without_one_has_its_own_trace(connect: Transport) -> None:
    first, second = await connect.execute("echo"), await connect.execute("echo")
    assert first["traceId"] != second["traceId"]
    assert first["runId"] != second["runId"]


@requirement("transports.agree")
async def test_every_transport_gives_the_same_answer(connect: Transport) -> None:
    data = {"a": {"b": [1.5, True, None, "\u00e9\U0001f600", {}], "c": -0.25}, "empty": []}
    answer = await connect.execute("echo", data)
    assert answer["result"] == data
    assert set(answer) == {
        "success",
        "agent",
        "result",
        "confidence",
        "metadata",
        "runId",
        "traceId",
    }
