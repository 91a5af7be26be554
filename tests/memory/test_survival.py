"""Memory outlives killed connections, killed servers and killed owners; its absence is bearable."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path

import psycopg
import pytest
import pytest_asyncio

from lakemesh.memory.embedded_postgres import EmbeddedPostgres
from lakemesh.memory.embedder import SentenceEncoder
from lakemesh.memory.errors import MemoryUnavailable
from lakemesh.memory.migrate import load_migrations
from lakemesh.memory.open import choose_dsn, open_memory
from lakemesh.memory.postgres import PostgresMemoryStore
from lakemesh.memory.store import ManagedMemory

pytestmark = pytest.mark.asyncio(loop_scope="session")

PATIENCE_SECONDS = 15.0


@pytest_asyncio.fixture(loop_scope="session")
async def own_memory(tmp_path: Path, embedder: SentenceEncoder) -> AsyncIterator[ManagedMemory]:
    """A store with a server of its own, to be maltreated."""
    store = await open_memory(tmp_path, embedder=embedder)
    assert store.problem() == ""
    yield store
    await store.close()


def postmaster(data_dir: Path) -> int:
    return int((data_dir / "pg" / "data" / "postmaster.pid").read_text().split("\n", 1)[0])


async def eventually_stores(memory: ManagedMemory, text: str) -> str:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while True:
        try:
            return await memory.store(text)
        except MemoryUnavailable:
            if time.monotonic() > deadline:
                raise
            await asyncio.sleep(0.05)


async def test_a_killed_connection_costs_no_call(
    memory: ManagedMemory, server: EmbeddedPostgres, agent: str
) -> None:
    await memory.store("before", {}, agent)
    await asyncio.gather(*(memory.retrieve("before", agent) for _ in range(50)))
    with psycopg.connect(server.dsn, autocommit=True) as admin:
        killed = admin.execute(
            "select count(pg_terminate_backend(pid)) from pg_stat_activity"
            " where application_name = 'lakemesh'"
        ).fetchone()
    assert killed is not None
    assert killed[0] > 0
    found = await asyncio.gather(*(memory.retrieve("before", agent) for _ in range(50)))
    assert all(len(one) == 1 for one in found)
    await memory.store("after", {}, agent)
    assert await memory.count(agent) == 2


async def test_a_killed_server_is_started_again_and_lost_nothing(
    own_memory: ManagedMemory, tmp_path: Path
) -> None:
    ids = [await own_memory.store(f"memory {i}") for i in range(20)]
    os.kill(postmaster(tmp_path), signal.SIGKILL)
    ids.append(await eventually_stores(own_memory, "memory after the kill"))
    found = await own_memory.retrieve("memory", top_k=100)
    assert {m.id for m in found} >= set(ids)
    assert own_memory.problem() == ""


async def test_the_server_of_a_killed_owner_is_taken_over(
    tmp_path: Path, embedder: SentenceEncoder
) -> None:
    program = (
        "import sys, time, pathlib\n"
        "from lakemesh.memory.embedded_postgres import EmbeddedPostgres\n"
        "EmbeddedPostgres(pathlib.Path(sys.argv[1])).ensure_running()\n"
        "print('running', flush=True)\n"
        "time.sleep(60)\n"
    )
    owner = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", program, str(tmp_path)), stdout=asyncio.subprocess.PIPE
    )
    assert owner.stdout is not None
    async with asyncio.timeout(PATIENCE_SECONDS):
        assert await owner.stdout.readline() == b"running\n"
    other = EmbeddedPostgres(tmp_path)
    await asyncio.to_thread(other.ensure_running)
    assert not other.owned
    owner.kill()
    await owner.wait()
    before = postmaster(tmp_path)
    memory = await open_memory(tmp_path, embedder=embedder)
    assert memory.problem() == ""
    assert postmaster(tmp_path) == before
    await memory.store("still here")
    await memory.close()
    assert not other.running()


async def test_a_pid_file_whose_number_went_to_another_process_is_no_obstacle(
    tmp_path: Path,
) -> None:
    postgres = EmbeddedPostgres(tmp_path)
    await asyncio.to_thread(postgres.ensure_running)
    file = tmp_path / "pg" / "data" / "postmaster.pid"
    content = file.read_text()
    await asyncio.to_thread(postgres.stop)
    assert not postgres.running()
    file.write_text(content.replace(content.split("\n", 1)[0], str(os.getpid()), 1))
    again = EmbeddedPostgres(tmp_path)
    await asyncio.to_thread(again.ensure_running)
    assert again.owned
    assert again.running()
    await asyncio.to_thread(again.stop)


async def test_a_half_made_cluster_is_made_anew(tmp_path: Path) -> None:
    (tmp_path / "pg" / "data.new").mkdir(parents=True)
    (tmp_path / "pg" / "data.new" / "PG_VERSION").write_text("18\n")
    postgres = EmbeddedPostgres(tmp_path)
    await asyncio.to_thread(postgres.ensure_running)
    assert postgres.running()
    await asyncio.to_thread(postgres.stop)


async def test_a_database_that_is_down_degrades_memory_and_is_used_when_it_comes(
    tmp_path: Path, embedder: SentenceEncoder
) -> None:
    postgres = EmbeddedPostgres(tmp_path)
    memory = await open_memory(tmp_path / "unused", postgres.dsn, embedder=embedder)
    try:
        assert memory.problem() != ""
        with pytest.raises(MemoryUnavailable):
            await memory.retrieve("anything")
        with pytest.raises(MemoryUnavailable):
            await memory.store("anything")
        await asyncio.to_thread(postgres.ensure_running)
        await eventually_stores(memory, "at last")
        assert memory.problem() == ""
    finally:
        await memory.close()
        await asyncio.to_thread(postgres.stop)


@pytest.mark.slow
async def test_while_the_database_is_gone_only_the_first_call_waits(
    tmp_path: Path, embedder: SentenceEncoder
) -> None:
    postgres = EmbeddedPostgres(tmp_path)
    await asyncio.to_thread(postgres.ensure_running)
    memory = await open_memory(tmp_path / "unused", postgres.dsn, embedder=embedder)
    try:
        await memory.store("while it lasted")
        await asyncio.to_thread(postgres.stop)
        with pytest.raises(MemoryUnavailable):
            await memory.retrieve("while it lasted")
        began = time.monotonic()
        for _ in range(100):
            with pytest.raises(MemoryUnavailable):
                await memory.retrieve("while it lasted")
        assert time.monotonic() - began < 1
        assert memory.problem() != ""
        await asyncio.to_thread(postgres.ensure_running)
        await eventually_stores(memory, "back again")
        assert len(await memory.retrieve("while it lasted")) == 2
        assert memory.problem() == ""
    finally:
        await memory.close()
        await asyncio.to_thread(postgres.stop)


async def test_an_embedded_server_that_cannot_start_degrades_memory(
    tmp_path: Path, embedder: SentenceEncoder
) -> None:
    (tmp_path / "pg").write_text("in the way")
    memory = await open_memory(tmp_path, embedder=embedder)
    assert "embedded Postgres did not start" in memory.problem()
    with pytest.raises(MemoryUnavailable, match="did not start"):
        await memory.store("anything")
    await memory.close()


async def test_no_password_in_what_is_told(embedder: SentenceEncoder, tmp_path: Path) -> None:
    dsn = "postgresql://someone:hunter2@127.0.0.1:1/nothing"
    memory = await open_memory(tmp_path, dsn, embedder=embedder)
    assert memory.problem() != ""
    assert "hunter2" not in memory.problem()
    await memory.close()


async def test_several_starting_at_once_migrate_once(
    server: EmbeddedPostgres, embedder: SentenceEncoder
) -> None:
    with psycopg.connect(server.dsn, autocommit=True) as admin:
        admin.execute("drop database if exists together")
        admin.execute("create database together")
    dsn = server.dsn.replace("/postgres?", "/together?")
    stores = await asyncio.gather(*(PostgresMemoryStore.open(dsn, embedder) for _ in range(6)))
    await asyncio.gather(*(store.store("hello") for store in stores))
    assert await stores[0].count() == 6
    await asyncio.gather(*(store.close() for store in stores))
    with psycopg.connect(dsn) as check:
        rows = check.execute("select version from lakemesh.migrations order by version").fetchall()
        collections = check.execute("select count(*) from lakemesh.collections").fetchone()
    assert [version for (version,) in rows] == [m.version for m in load_migrations()]
    assert collections == (1,)


async def test_vectors_of_another_model_are_not_mixed_in(
    server: EmbeddedPostgres, memory: ManagedMemory
) -> None:
    class OtherEncoder(SentenceEncoder):
        model = "another-model"

    other = OtherEncoder()
    with pytest.raises(MemoryUnavailable, match="holds vectors of universal-sentence-encoder"):
        await PostgresMemoryStore.open(server.dsn, other)
    await other.close()


@pytest.mark.parametrize(
    ("environment", "dsn"),
    [
        ({}, None),
        ({"LAKEMESH_POSTGRES_DSN": "postgresql://x/y"}, "postgresql://x/y"),
        ({"PGHOST": "lakebase.example"}, ""),
        ({"LAKEMESH_POSTGRES_DSN": "", "PGHOST": ""}, None),
    ],
)
async def test_an_outside_database_is_chosen_by_its_own_variable(
    environment: dict[str, str], dsn: str | None
) -> None:
    assert choose_dsn(environment) == dsn
