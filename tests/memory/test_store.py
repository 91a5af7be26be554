"""What is stored is found: by meaning, by metadata, for its agent, whatever its characters."""

from __future__ import annotations

import asyncio
import math
from typing import Any

import pytest

from lakemesh.memory.errors import InvalidMemory
from lakemesh.memory.store import BoundMemory, ManagedMemory, NewMemory

pytestmark = pytest.mark.asyncio(loop_scope="session")


async def test_the_memory_nearest_in_meaning_comes_first(memory: ManagedMemory, agent: str) -> None:
    cat = await memory.store("a cat sleeps on the sofa", {"kind": "animal"}, agent)
    await memory.store("interest rates rose by half a percent", {"kind": "money"}, agent)
    found = await memory.retrieve("kitten dozing on a couch", agent_id=agent, top_k=2)
    assert found[0].id == cat
    assert found[0].score > found[1].score
    assert found[0].metadata == {"kind": "animal"}
    assert found[0].agent_id == agent
    assert found[0].create_time is not None


async def test_a_filter_keeps_memories_with_exactly_these_values(
    memory: ManagedMemory, agent: str
) -> None:
    for number in range(20):
        await memory.store(
            f"case {number}", {"n": number, "odd": number % 2 == 1, "tag": f"t{number % 3}"}, agent
        )
    found = await memory.retrieve("case", agent, 20, {"odd": True, "tag": "t0"})
    assert sorted(m.metadata["n"] for m in found) == [3, 9, 15]
    assert await memory.retrieve("case", agent, 20, {"n": 7.0}) != []
    assert await memory.retrieve("case", agent, 20, {"n": "7"}) == []
    assert await memory.retrieve("case", agent, 20, {"missing": None}) == []


async def test_a_filter_is_never_sql(memory: ManagedMemory, agent: str) -> None:
    await memory.store("harmless", {"a": "b"}, agent)
    hostile = {"a' or '1'='1": "x'; drop table lakemesh.memories; --"}
    assert await memory.retrieve("harmless", agent, 5, hostile) == []
    assert await memory.count(agent) == 1


async def test_one_agent_finds_nothing_of_anothers(memory: ManagedMemory, agent: str) -> None:
    await memory.store("the safe opens with 1234", {}, agent + "_a")
    assert await memory.retrieve("the safe opens with 1234", agent + "_b") == []
    bound = BoundMemory(memory, agent + "_b")
    assert await bound.retrieve("the safe opens with 1234") == []
    with pytest.raises(InvalidMemory, match="agent_id"):
        await bound.retrieve("the safe", agent_id=agent + "_a")


async def test_never_fewer_than_there_are(memory: ManagedMemory, agent: str) -> None:
    # Many of another agent lie nearer than the few of this one.
    await memory.store_many(
        [NewMemory(f"payment number {i}", {}, agent + "_crowd") for i in range(500)]
    )
    await memory.store_many([NewMemory(f"a poem about rain {i}", {}, agent) for i in range(7)])
    assert len(await memory.retrieve("payment number 3", agent, 5)) == 5
    assert len(await memory.retrieve("payment number 3", agent, 50)) == 7
    assert len(await memory.retrieve("rain", agent + "_crowd", 100)) == 100


@pytest.mark.parametrize(
    "text",
    [
        'it\'s "quoted" \\ and %s {} $1 ; drop table lakemesh.memories; --',
        "emoji \U0001f680\U0001f469\U0001f3fd‍\U0001f4bb",
        "مرحبا بالعالم ‮ שלום",
        "line\nbreak\ttab\x01control\x7f",
        "e\u0301 and \u00e9, \ufeff byte order mark, \uffff",
        "x" * 1_048_576,
        " leading and trailing ",
    ],
    ids=["sql", "emoji", "right-to-left", "control", "unicode", "one-mebibyte", "spaces"],
)
async def test_a_text_comes_back_as_it_was(memory: ManagedMemory, agent: str, text: str) -> None:
    metadata = {text[:40]: text[:1000], "nested": {"list": [1, 2.5, None, True, text[:10]]}}
    id = await memory.store(text, metadata, agent)
    (found,) = await memory.retrieve(text[:200], agent_id=agent)
    assert (found.id, found.text, found.metadata) == (id, text, metadata)


@pytest.mark.parametrize(
    ("arguments", "field"),
    [
        ({"text": "nul \x00 inside"}, "text"),
        ({"text": "half a pair \ud800"}, "text"),
        ({"text": ""}, "text"),
        ({"text": "x" * (2 * 1024 * 1024 + 1)}, "text"),
        ({"text": 5}, "text"),
        ({"text": "x", "metadata": {"a": math.nan}}, "metadata.a"),
        ({"text": "x", "metadata": {"a": {"b": ["\x00"]}}}, r"metadata.a.b\[0\]"),
        ({"text": "x", "metadata": {"a": object()}}, "metadata.a"),
        ({"text": "x", "metadata": {1: "a"}}, "metadata"),
        ({"text": "x", "metadata": {"a": 2**70}}, "metadata.a"),
        ({"text": "x", "metadata": [1]}, "metadata"),
        ({"text": "x", "metadata": {"a": "x" * 300_000}}, "metadata"),
        ({"text": "x", "agent_id": "a\x00b"}, "agent_id"),
        ({"text": "x", "agent_id": "a" * 300}, "agent_id"),
    ],
)
async def test_what_cannot_be_stored_is_refused_by_name(
    memory: ManagedMemory, arguments: dict[str, Any], field: str
) -> None:
    with pytest.raises(InvalidMemory, match=f"^{field}: "):
        await memory.store(**arguments)


@pytest.mark.parametrize(
    ("arguments", "field"),
    [
        ({"query": ""}, "query"),
        ({"query": "x", "top_k": 0}, "top_k"),
        ({"query": "x", "top_k": 1001}, "top_k"),
        ({"query": "x", "top_k": 2.0}, "top_k"),
        ({"query": "x", "filter": {"a": [1]}}, "filter.a"),
        ({"query": "x", "filter": {"a": math.inf}}, "filter.a"),
        ({"query": "x", "filter": "label = 1"}, "filter"),
    ],
)
async def test_a_query_that_makes_no_sense_is_refused_by_name(
    memory: ManagedMemory, arguments: dict[str, Any], field: str
) -> None:
    with pytest.raises(InvalidMemory, match=f"^{field}: "):
        await memory.retrieve(**arguments)


async def test_a_request_id_stores_once(memory: ManagedMemory, agent: str) -> None:
    batch = [NewMemory("the same", {}, agent, "request-1")]
    ids = await asyncio.gather(*(memory.store_many(batch) for _ in range(20)))
    assert len({one for (one,) in ids}) == 1
    assert await memory.count(agent) == 1
    (other,) = await memory.store_many([NewMemory("the same", {}, agent + "_b", "request-1")])
    assert other != ids[0][0]


async def test_a_batch_is_stored_whole_or_not_at_all(memory: ManagedMemory, agent: str) -> None:
    with pytest.raises(InvalidMemory, match=r"^memories\[1\]\.text: "):
        await memory.store_many([NewMemory("good", {}, agent), NewMemory("\x00", {}, agent)])
    assert await memory.count(agent) == 0
    ids = await memory.store_many([NewMemory(f"good {i}", {"i": i}, agent) for i in range(50)])
    assert len(set(ids)) == 50
    (found,) = await memory.retrieve("good 7", agent, 1, {"i": 7})
    assert found.id == ids[7]


async def test_many_calls_at_once_are_all_answered(memory: ManagedMemory, agent: str) -> None:
    await memory.store("only one", {}, agent)
    found = await asyncio.gather(*(memory.retrieve("only one", agent) for _ in range(500)))
    assert all(len(one) == 1 for one in found)
