"""fraud_detector at work: with a memory, without one, and with one that cannot be reached."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from lakemesh.agents.context import Caller
from lakemesh.agents.fraud_detector import FraudDetectorAgent
from lakemesh.agents.registry import AgentRegistry
from lakemesh.agents.runtime import AgentRuntime, Answer
from lakemesh.memory.open import open_memory
from lakemesh.memory.store import ManagedMemory, NewMemory
from lakemesh.telemetry.recorder import NullRecorder
from lakemesh.telemetry.tracing import Tracer

pytestmark = pytest.mark.asyncio(loop_scope="module")

LARGE = {"transaction_id": "txn_1", "amount": 180, "merchant": "Electronics Store"}


def registry() -> AgentRegistry:
    agents = AgentRegistry()
    agents.add(FraudDetectorAgent)
    return agents


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def memory(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[ManagedMemory]:
    store = await open_memory(tmp_path_factory.mktemp("fraud"))
    assert store.problem() == ""
    yield store
    await store.close()


async def judge(memory: ManagedMemory, data: dict[str, Any]) -> Answer:
    runtime = AgentRuntime(registry(), memory, Tracer(NullRecorder()))
    runtime.start()
    try:
        return await runtime.execute("fraud_detector", data, {}, Caller())
    finally:
        runtime.close()


async def test_an_empty_memory_is_said_and_the_payment_is_judged_alone(
    memory: ManagedMemory,
) -> None:
    answer = await judge(memory, LARGE | {"amount": 5000})
    assert answer.result["decision"] == "fraud"
    assert answer.result["score"] > 0.9
    assert answer.confidence > 0.9
    assert answer.result["similar_cases"] == []
    assert any("no similar labelled case" in reason for reason in answer.result["reasons"])
    assert answer.metadata["memory"] == "empty"
    small = await judge(memory, {"transaction_id": "txn_2", "amount": 12.5, "merchant": "Grocery"})
    assert small.result["decision"] == "legitimate"
    assert small.result["score"] < answer.result["score"]


async def test_similar_cases_known_as_fraud_raise_the_score_and_are_shown(
    memory: ManagedMemory,
) -> None:
    before = await judge(memory, LARGE)
    text = "sizeable payment, at Electronics Store"
    metadata = {"label": "fraud", "transaction_id": "txn_0", "amount": 175.0}
    await memory.store_many([NewMemory(text, metadata, "fraud_detector") for _ in range(5)])
    # Another agent's memories are no cases of this one.
    await memory.store_many([NewMemory(text, {"label": "legitimate"}, "other")] * 5)
    after = await judge(memory, LARGE)
    assert after.result["score"] > before.result["score"]
    assert "5 of the 5 most similar known cases were fraud" in after.result["reasons"]
    assert after.metadata["memory"] == "used"
    shown = after.result["similar_cases"][0]
    assert shown["label"] == "fraud"
    assert shown["transaction_id"] == "txn_0"
    assert shown["amount"] == 175.0
    assert shown["similarity"] == pytest.approx(1.0, abs=0.01)


async def test_a_memory_without_label_is_shown_but_does_not_count(
    memory: ManagedMemory,
) -> None:
    data = {"transaction_id": "t", "amount": 30, "merchant": "a very particular bakery"}
    await memory.store("small payment, at a very particular bakery", {}, "fraud_detector")
    answer = await judge(memory, data)
    assert answer.result["similar_cases"][0]["label"] is None


async def test_without_memory_the_payment_is_still_judged(tmp_path: Path) -> None:
    nowhere = "postgresql://nobody@127.0.0.1:1/nothing"
    memory = await open_memory(tmp_path, nowhere)
    try:
        answer = await judge(memory, LARGE | {"amount": 5000})
    finally:
        await memory.close()
    assert answer.result["decision"] == "fraud"
    assert answer.metadata["memory"] == "unavailable"
    assert any("memory is unavailable" in reason for reason in answer.result["reasons"])
