"""One embedded Postgres and one embedder for all tests of memory; real ones."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import pytest_asyncio

from lakemesh.memory.embedded_postgres import EmbeddedPostgres
from lakemesh.memory.embedder import SentenceEncoder
from lakemesh.memory.open import open_memory
from lakemesh.memory.store import ManagedMemory


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedPostgres]:
    """A running server; its data directory is two levels above its log."""
    postgres = EmbeddedPostgres(tmp_path_factory.mktemp("memory"))
    postgres.ensure_running()
    yield postgres
    postgres.stop()


@pytest.fixture(scope="session")
def data_dir(server: EmbeddedPostgres) -> Path:
    return server.log_file.parent.parent


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def embedder() -> AsyncIterator[SentenceEncoder]:
    encoder = SentenceEncoder()
    yield encoder
    await encoder.close()


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def memory(data_dir: Path, embedder: SentenceEncoder) -> AsyncIterator[ManagedMemory]:
    store = await open_memory(data_dir, embedder=embedder)
    assert store.problem() == ""
    yield store
    await store.close()


@pytest.fixture
def agent(request: pytest.FixtureRequest) -> str:
    """A name no other test uses."""
    return str(request.node.name)
