"""Memory in Postgres with pgvector: the embedded server's, Lakebase or any other.

One table holds all agents' memories; an HNSW index per collection finds by meaning, plain indexes
find by agent and metadata. Three settings make that right, measured on 100,000 rows of one large
and many small agents (recall at 5 of a mid-size agent): with pgvector's defaults 0.26, with a
generic plan of a prepared statement 0.04, with `hnsw.iterative_scan=relaxed_order` and
`plan_cache_mode=force_custom_plan` 0.96 to 1.0.
"""

from __future__ import annotations

import asyncio
import json
import logging
import secrets
import uuid
from array import array
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, TypeVar

import psycopg
import psycopg_pool
from pgvector import Vector
from pgvector.psycopg import register_vector_async
from psycopg import AsyncConnection, sql
from psycopg.rows import TupleRow
from psycopg.types.json import Jsonb

from lakemesh.memory import store as checks
from lakemesh.memory.embedder import Embedder
from lakemesh.memory.errors import InvalidMemory, MemoryUnavailable
from lakemesh.memory.migrate import migrate
from lakemesh.memory.store import Memory, NewMemory

_log = logging.getLogger(__name__)

T = TypeVar("T")
Connection = AsyncConnection[TupleRow]

CALL_SECONDS = 5.0
"""Longest a call may take in the database, waiting for a connection and trying again included."""
BATCH_SECONDS = 120.0
"""The same for a batch of stores."""
CONNECT_SECONDS = 5
FAIL_FAST_SECONDS = 6.0
"""How long calls are refused at once after one found no database, unless a probe finds it sooner:
else each of them would wait CALL_SECONDS in vain, and they would pile up."""
POOL_SIZE = 8
MAX_WAITING = 4096
"""Calls that may wait for a connection; more are refused at once rather than piled up."""
ANALYSE_AFTER = 1000
"""Rows stored in batches before the planner's statistics are made anew, or half of the table when
that is more. Without them a query of a large agent sorts all its rows: 38 ms for 9,000, not 2."""
_RETRY_SECONDS = (0.0, 0.05, 0.1, 0.2, 0.4, 0.8, 1.0, 1.0, 1.0, 1.0)

_SETTINGS = {
    "plan_cache_mode": "force_custom_plan",
    "hnsw.iterative_scan": "relaxed_order",
    # Enough of the graph for filters that keep few rows; beyond it the exact query answers.
    "hnsw.max_scan_tuples": "20000",
    "hnsw.ef_search": "64",
    # A query of a few milliseconds never earns back a compilation.
    "jit": "off",
    "statement_timeout": f"{int(CALL_SECONDS * 1000)}ms",
    "idle_in_transaction_session_timeout": "60s",
}


class PostgresMemoryStore:
    """Memories of one collection in one database; made by `PostgresMemoryStore.open`."""

    def __init__(
        self,
        pool: psycopg_pool.AsyncConnectionPool[Connection],
        embedder: Embedder,
        collection_id: int,
    ) -> None:
        self._pool = pool
        self._embedder = embedder
        self._problem = ""
        self._refuse_until = 0.0
        self._insert = _insert_statement(collection_id)
        self._nearest = {
            (by_agent, filtered, exact): _nearest_statement(
                collection_id, embedder.dimension, by_agent, filtered, exact
            )
            for by_agent in (False, True)
            for filtered in (False, True)
            for exact in (False, True)
        }
        self._collection_id = collection_id
        self._unanalysed = 0
        self._analyse_at = ANALYSE_AFTER

    @classmethod
    async def open(
        cls,
        dsn: str,
        embedder: Embedder,
        *,
        collection: str = "default",
        pool_size: int = POOL_SIZE,
    ) -> PostgresMemoryStore:
        """Migrate the database at `dsn` and connect to it.

        Raises MemoryUnavailable with the reason when it cannot be reached or used.
        """
        try:
            async with asyncio.timeout(60):
                collection_id = await _prepare(dsn, embedder, collection)
                pool = psycopg_pool.AsyncConnectionPool(
                    dsn,
                    kwargs={
                        "autocommit": True,  # else every query pays two more round trips
                        "connect_timeout": CONNECT_SECONDS,
                        "application_name": "lakemesh",
                        "prepare_threshold": 2,
                    },
                    min_size=1,
                    max_size=pool_size,
                    max_waiting=MAX_WAITING,
                    timeout=CALL_SECONDS,
                    max_lifetime=1800,
                    reconnect_timeout=5,
                    configure=_configure,
                    open=False,
                    name="memory",
                )
                try:
                    await pool.open(wait=True, timeout=CONNECT_SECONDS * 2)
                except BaseException:
                    await pool.close(timeout=1)
                    raise
        except (psycopg.Error, psycopg_pool.PoolTimeout, TimeoutError) as error:
            raise MemoryUnavailable(_reason(error)) from error
        return cls(pool, embedder, collection_id)

    async def store(
        self,
        text: str,
        metadata: Mapping[str, Any] | None = None,
        agent_id: str = "",
        *,
        request_id: str = "",
    ) -> str:
        """Keep `text`; committed to disk when the id is answered."""
        memory = checks.check_new(
            NewMemory(text, {} if metadata is None else metadata, agent_id, request_id)
        )
        (embedding,) = await self._embedder.embed([memory.text])
        row = _row(memory, embedding)

        async def insert(connection: Connection) -> str:
            cursor = await connection.execute(self._insert, row)
            return _id(await cursor.fetchone()) or await _stored_before(connection, row)

        return await self._run(insert, CALL_SECONDS)

    async def store_many(self, memories: Sequence[NewMemory]) -> list[str]:
        """Keep all of `memories` or none, in one transaction; their ids in order."""
        if len(memories) > checks.MAX_BATCH:
            raise InvalidMemory(
                "memories", f"has {len(memories)}, at most {checks.MAX_BATCH} at a time; split it"
            )
        checked = [checks.check_new(m, f"memories[{i}].") for i, m in enumerate(memories)]
        if not checked:
            return []
        embeddings = await self._embedder.embed([m.text for m in checked])
        rows = [_row(m, e) for m, e in zip(checked, embeddings, strict=True)]

        async def insert(connection: Connection) -> list[str]:
            ids = []
            async with connection.transaction(), connection.cursor() as cursor:
                await cursor.executemany(self._insert, rows, returning=True)
                while True:
                    ids.append(_id(await cursor.fetchone()))
                    if not cursor.nextset():
                        break
                return [
                    found or await _stored_before(connection, row)
                    for found, row in zip(ids, rows, strict=True)
                ]

        ids = await self._run(insert, BATCH_SECONDS)
        self._unanalysed += len(ids)
        if self._unanalysed >= self._analyse_at:
            await self._analyse()
        return ids

    async def retrieve(
        self,
        query: str,
        agent_id: str | None = None,
        top_k: int = 5,
        filter: Mapping[str, Any] | None = None,
    ) -> list[Memory]:
        """The nearest memories; one round trip, and a second one only when the index found less."""
        checks.check_text("query", query)
        top_k = checks.check_top_k(top_k)
        conditions = checks.check_filter(filter)
        arguments: dict[str, Any] = {"limit": top_k}
        if agent_id is not None:
            arguments["agent_id"] = checks.check_agent_id(agent_id)
        if conditions:
            arguments["filter"] = Jsonb(conditions)
        (embedding,) = await self._embedder.embed([query])
        arguments["query"] = Vector(list(embedding))
        key = (agent_id is not None, bool(conditions))

        async def search(connection: Connection) -> list[TupleRow]:
            cursor = await connection.execute(self._nearest[(*key, False)], arguments)
            rows = await cursor.fetchall()
            if len(rows) < top_k:
                # Fewer than asked for: all there are, or all the index reached before it gave up.
                # Few rows pass the conditions then, so looking at each of them is cheap.
                cursor = await connection.execute(self._nearest[(*key, True)], arguments)
                rows = await cursor.fetchall()
            return rows

        rows = await self._run(search, CALL_SECONDS)
        # relaxed_order may hand rows over slightly out of order.
        found = [Memory(str(r[0]), r[1], r[2], r[3], r[4], r[5]) for r in rows]
        found.sort(key=lambda memory: -memory.score)
        return found

    async def count(self, agent_id: str | None = None) -> int:
        """How many memories the collection has, or one agent's part of it."""

        async def query(connection: Connection) -> int:
            cursor = await connection.execute(
                "select count(*) from lakemesh.memories where collection_id = %s"
                " and (%s::text is null or agent_id = %s::text)",
                [self._collection_id, agent_id, agent_id],
            )
            row = await cursor.fetchone()
            return int(row[0]) if row else 0

        return await self._run(query, CALL_SECONDS)

    def problem(self) -> str:
        """Why the last call failed, or "" when it did not."""
        return self._problem

    async def probe(self) -> None:
        """Ask the database for an answer; MemoryUnavailable when none comes."""

        async def ask(connection: Connection) -> None:
            await connection.execute("select 1")

        self._refuse_until = 0.0
        await self._run(ask, CALL_SECONDS)

    async def close(self) -> None:
        """Close the connections; calls under way get a few seconds. The embedder is its maker's."""
        await self._pool.close(timeout=5)

    async def _analyse(self) -> None:
        """Make the planner's statistics anew; what was stored stays stored if that fails."""

        async def analyse(connection: Connection) -> None:
            await connection.execute("analyze lakemesh.memories")
            cursor = await connection.execute(
                "select reltuples from pg_class where oid = 'lakemesh.memories'::regclass"
            )
            row = await cursor.fetchone()
            self._analyse_at = max(ANALYSE_AFTER, int(row[0]) // 2 if row else 0)

        self._unanalysed = 0
        try:
            await self._run(analyse, CALL_SECONDS)
        except MemoryUnavailable as error:
            _log.warning("memory: statistics were not made", extra={"reason": error.reason})

    async def _run(self, work: Callable[[Connection], Awaitable[T]], seconds: float) -> T:
        """Run `work` on a connection, again on a fresh one when the connection was dead.

        Trying again is safe: a query changes nothing, and an insert carries an id made here.
        """
        clock = asyncio.get_running_loop().time
        if clock() < self._refuse_until:
            raise MemoryUnavailable(self._problem)
        try:
            async with asyncio.timeout(seconds):
                for pause in _RETRY_SECONDS:
                    await asyncio.sleep(pause)
                    try:
                        async with self._pool.connection() as connection:
                            result = await work(connection)
                        self._problem, self._refuse_until = "", 0.0
                        return result
                    except (
                        psycopg.errors.QueryCanceled,
                        psycopg_pool.TooManyRequests,
                        psycopg_pool.PoolClosed,
                    ):
                        raise
                    except (psycopg.OperationalError, psycopg.InterfaceError) as error:
                        failure = error
                    # Others in the pool have likely died of the same cause: drop them now.
                    await self._pool.check()
                raise failure
        except psycopg_pool.TooManyRequests:
            raise MemoryUnavailable("too many calls are waiting for the database") from None
        except psycopg.errors.QueryCanceled as error:
            # The database is there, only this statement was too slow.
            raise MemoryUnavailable(_reason(error)) from error
        except (psycopg.OperationalError, psycopg.InterfaceError, TimeoutError) as error:
            self._problem = _reason(error)
            self._refuse_until = clock() + FAIL_FAST_SECONDS
            raise MemoryUnavailable(self._problem) from error
        except psycopg.DataError as error:
            raise InvalidMemory("memory", _reason(error)) from error
        except psycopg.Error as error:
            self._problem = _reason(error)
            _log.error("memory: the database refused a statement", extra={"error": self._problem})
            raise MemoryUnavailable("the database refused the request") from error


async def _prepare(dsn: str, embedder: Embedder, collection: str) -> int:
    """Bring the schema up to date and answer the id of the collection, made when it is new."""
    async with await psycopg.AsyncConnection.connect(
        dsn, autocommit=True, connect_timeout=CONNECT_SECONDS, application_name="lakemesh"
    ) as connection:
        await migrate(connection)
        # One transaction under a lock: two servers starting together make one collection.
        async with connection.transaction():
            await connection.execute("lock table lakemesh.collections in exclusive mode")
            cursor = await connection.execute(
                "select id, model, dimension from lakemesh.collections where name = %s",
                [collection],
            )
            row = await cursor.fetchone()
            if row is None:
                cursor = await connection.execute(
                    "insert into lakemesh.collections (name, model, dimension)"
                    " values (%s, %s, %s) returning id, model, dimension",
                    [collection, embedder.model, embedder.dimension],
                )
                row = await cursor.fetchone()
                assert row is not None  # noqa: S101 - an insert that did not raise returns its row
                await connection.execute(_index_statement(row[0], embedder.dimension))
        if (row[1], row[2]) != (embedder.model, embedder.dimension):
            raise MemoryUnavailable(
                f'collection "{collection}" holds vectors of {row[1]} ({row[2]} numbers),'
                f" this server makes those of {embedder.model} ({embedder.dimension});"
                " use that model or another collection"
            )
        return int(row[0])


async def _configure(connection: Connection) -> None:
    # The library is loaded first: its settings are checked, not taken on trust.
    await connection.execute("select null::vector")
    await connection.execute(
        "select set_config(name, value, false) from json_each_text(%s::json) as s(name, value)",
        [json.dumps(_SETTINGS)],
    )
    await register_vector_async(connection)


def _index_statement(collection_id: int, dimension: int) -> sql.Composed:
    return sql.SQL(
        "create index {} on lakemesh.memories"
        " using hnsw ((embedding::vector({})) vector_cosine_ops) where collection_id = {}"
    ).format(
        sql.Identifier(f"memories_nearest_{collection_id}"),
        sql.Literal(dimension),
        sql.Literal(collection_id),
    )


def _insert_statement(collection_id: int) -> sql.Composed:
    return sql.SQL(
        "insert into lakemesh.memories"
        " (id, collection_id, agent_id, request_id, text, metadata, embedding)"
        " values (%(id)s, {}, %(agent_id)s, %(request_id)s, %(text)s, %(metadata)s, %(embedding)s)"
        " on conflict do nothing returning id"
    ).format(sql.Literal(collection_id))


def _nearest_statement(
    collection_id: int, dimension: int, by_agent: bool, filtered: bool, exact: bool
) -> sql.Composed:
    conditions: list[sql.Composable] = [
        sql.SQL("collection_id = {}").format(sql.Literal(collection_id))
    ]
    if by_agent:
        conditions.append(sql.SQL("agent_id = %(agent_id)s"))
    if filtered:
        conditions.append(sql.SQL("metadata @> %(filter)s"))
    distance = sql.SQL("(embedding::vector({0}) <=> %(query)s::vector({0}))").format(
        sql.Literal(dimension)
    )
    source = sql.SQL("lakemesh.memories where ") + sql.SQL(" and ").join(conditions)
    if exact:
        source = sql.SQL("(select * from {} offset 0) as candidates").format(source)
    return sql.SQL(
        "select id, text, 1 - {distance}, metadata, agent_id, create_time from {source}"
        " order by {distance} limit %(limit)s"
    ).format(distance=distance, source=source)


def _row(memory: NewMemory, embedding: array[float]) -> dict[str, Any]:
    return {
        "id": uuid.UUID(bytes=secrets.token_bytes(16)),
        "agent_id": memory.agent_id,
        "request_id": memory.request_id or None,
        "text": memory.text,
        "metadata": Jsonb(memory.metadata),
        "embedding": Vector(list(embedding)),
    }


def _id(row: TupleRow | None) -> str:
    return str(row[0]) if row is not None else ""


async def _stored_before(connection: Connection, row: dict[str, Any]) -> str:
    """The id of the memory that an insert ran into: an earlier try of it, or of its request_id."""
    cursor = await connection.execute(
        "select id from lakemesh.memories where id = %(id)s"
        " or (agent_id = %(agent_id)s and request_id = %(request_id)s)",
        row,
    )
    found = _id(await cursor.fetchone())
    if not found:  # It was deleted in between.
        raise psycopg.OperationalError("the memory was deleted while it was stored again")
    return found


def _reason(error: BaseException) -> str:
    """One line about `error`, without the connection string (which may hold a password)."""
    if isinstance(error, TimeoutError):
        return "the database did not answer in time"
    if isinstance(error, psycopg_pool.PoolTimeout):
        return "no connection to the database could be had in time"
    return str(error).strip().split("\n", 1)[0] or type(error).__name__
