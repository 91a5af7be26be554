"""The embedded embedder: near in meaning is near by cosine, and the event loop stays free."""

from __future__ import annotations

import asyncio
import time
from array import array

import pytest

from lakemesh.memory.embedder import EMBEDDED_CHARACTERS, SentenceEncoder
from lakemesh.memory.errors import MemoryUnavailable

pytestmark = pytest.mark.asyncio(loop_scope="session")


def cosine(one: array[float], other: array[float]) -> float:
    return sum(a * b for a, b in zip(one, other, strict=True))


async def test_near_in_meaning_is_near_by_cosine_across_languages(
    embedder: SentenceEncoder,
) -> None:
    query, same, other = await embedder.embed(
        ["the weather is lovely today", "il fait beau aujourd'hui", "the database was restarted"]
    )
    assert len(query) == embedder.dimension
    assert cosine(query, query) == pytest.approx(1.0, abs=1e-4)
    assert cosine(query, same) > cosine(query, other) + 0.2


async def test_a_batch_gives_what_single_texts_give(embedder: SentenceEncoder) -> None:
    texts = [f"text number {i} of a batch, {'long ' * (i % 7)}" for i in range(60)]
    together = await embedder.embed(texts)
    fresh = SentenceEncoder()
    try:
        alone = [(await fresh.embed([text]))[0] for text in texts[::20]]
    finally:
        await fresh.close()
    for one, other in zip(together[::20], alone, strict=True):
        assert cosine(one, other) == pytest.approx(1.0, abs=1e-3)


async def test_a_query_does_not_wait_behind_a_load(embedder: SentenceEncoder) -> None:
    load = asyncio.create_task(embedder.embed([f"load {i} " + "word " * 40 for i in range(600)]))
    await asyncio.sleep(0)
    await embedder.embed(["a short query in between"])
    assert not load.done()
    assert len(await load) == 600


async def test_a_very_long_text_takes_no_longer_than_its_beginning(
    embedder: SentenceEncoder,
) -> None:
    began = time.perf_counter()
    (vector,) = await embedder.embed(["word " * 1_000_000])
    assert time.perf_counter() - began < 5  # 1 MB took 56 s without the limit
    (beginning,) = await embedder.embed([("word " * 1_000_000)[:EMBEDDED_CHARACTERS]])
    assert vector == beginning


async def test_a_closed_embedder_says_so() -> None:
    encoder = SentenceEncoder()
    await encoder.close()
    with pytest.raises(MemoryUnavailable, match="closed"):
        await encoder.embed(["anything"])
