"""memory.retrieve: time, recall and whether the rows are as many as asked, as the store grows."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import tempfile
import time
from array import array
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.load_client import percentile
from benchmarks.processes import ROOT
from benchmarks.report import Figure, at_least, at_most, missing
from benchmarks.rounds import say
from lakemesh.memory.open import open_memory
from lakemesh.memory.store import NewMemory

_SECONDS = 1800
_DIMENSION = 384
_AGENTS = 8
"""Agent k has about half as many memories as agent k - 1, so sizes differ a hundredfold."""
_QUERIES = 100
_TOP = 5


def measure(sizes: Sequence[int]) -> list[Figure]:
    """Figures for each size, each in a process and a database of its own."""
    figures = []
    for size in sizes:
        say(f"memory.retrieve over {size} memories")
        command = [sys.executable, "-m", "benchmarks.memory_retrieve", str(size)]
        done = subprocess.run(
            command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=_SECONDS
        )
        what = f"memory.retrieve p50, {size:,} x {_DIMENSION}, agent filter"
        if done.returncode:
            said = (done.stderr or done.stdout).strip().splitlines()
            figures.append(missing(what, said[-1] if said else f"exit code {done.returncode}"))
            continue
        got = json.loads(done.stdout.splitlines()[-1])
        note = f"p99 {got['p99_ms']:.1f} ms; {got['short']} of {got['queries']} answers too short"
        figures.append(at_most(what, got["p50_ms"], 6, "ms", note))
        worst = f"recall at {_TOP}, {size:,}, worst of {_AGENTS} agents"
        figures.append(at_least(worst, got["recall"], 0.95))
    return figures


class _Vectors:
    """An embedder that looks vectors up, so that what is measured is the store."""

    model = "bench"
    dimension = _DIMENSION

    def __init__(self, vectors: np.ndarray[Any, Any], queries: np.ndarray[Any, Any]) -> None:
        self._tables = {"m": vectors, "q": queries}

    async def embed(self, texts: Sequence[str]) -> list[array[float]]:
        found = []
        for text in texts:
            kind, number = text.split()
            found.append(array("f", self._tables[kind][int(number)].tobytes()))
        return found

    async def close(self) -> None:
        pass


async def main(size: int) -> None:
    random = np.random.default_rng(7)
    vectors, queries = _clustered(random, size), _clustered(random, _QUERIES * _AGENTS)
    shares = 0.5 ** np.arange(_AGENTS)
    owners = random.choice(_AGENTS, size, p=shares / shares.sum())
    with tempfile.TemporaryDirectory() as folder:
        memory = await open_memory(Path(folder), embedder=_Vectors(vectors, queries))
        try:
            for start in range(0, size, 2000):
                await memory.store_many(
                    [
                        NewMemory(f"m {i}", {"number": i}, f"agent{owners[i]}")
                        for i in range(start, min(start + 2000, size))
                    ]
                )
            print(json.dumps(await _ask(memory, vectors, queries, owners)))
        finally:
            await memory.close()


async def _ask(
    memory: Any,
    vectors: np.ndarray[Any, Any],
    queries: np.ndarray[Any, Any],
    owners: np.ndarray[Any, Any],
) -> dict[str, Any]:
    times: list[float] = []
    recalls, short = [], 0
    for agent in range(_AGENTS):
        own = np.flatnonzero(owners == agent)
        wanted = min(_TOP, len(own))
        hits = total = 0
        for number in range(agent * _QUERIES, (agent + 1) * _QUERIES):
            began = time.perf_counter()
            found = await memory.retrieve(f"q {number}", f"agent{agent}", _TOP)
            times.append(time.perf_counter() - began)
            nearest = own[np.argsort(-(vectors[own] @ queries[number]))[:wanted]]
            got = {int(item.text.split()[1]) for item in found}
            short += len(found) < wanted
            hits += len(got & set(nearest.tolist()))
            total += wanted
        recalls.append(hits / total if total else 1.0)
    times.sort()
    return {
        "p50_ms": percentile(times, 0.5) * 1e3,
        "p99_ms": percentile(times, 0.99) * 1e3,
        "recall": min(recalls),
        "short": short,
        "queries": len(times),
    }


def _clustered(random: np.random.Generator, count: int) -> np.ndarray[Any, Any]:
    """Unit vectors around 200 centres, as embeddings of texts lie; the centres are always alike."""
    centres = np.random.default_rng(1).standard_normal((200, _DIMENSION))
    points = centres[random.integers(0, 200, count)]
    points = points + 0.8 * random.standard_normal((count, _DIMENSION))
    points /= np.linalg.norm(points, axis=1, keepdims=True)
    return points.astype(np.float32)


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1])))
