"""Opening memory: which Postgres, and what happens while it cannot be reached.

`LAKEMESH_POSTGRES_DSN` names any Postgres with pgvector; `PGHOST` (Databricks Apps set it for
Lakebase) means libpq's own variables do; with neither, the embedded one runs under the data
directory. Whatever fails, a store comes back: it says what is wrong, and works once that is mended.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lakemesh.memory.embedded_postgres import EmbeddedPostgres
from lakemesh.memory.embedder import Embedder, SentenceEncoder
from lakemesh.memory.errors import MemoryUnavailable
from lakemesh.memory.postgres import PostgresMemoryStore
from lakemesh.memory.store import ManagedMemory, Memory, NewMemory

_log = logging.getLogger(__name__)

WATCH_SECONDS = 1.0
"""How often the owner of an embedded server looks whether it still runs."""
CLOSE_SECONDS = 5.0
"""Longest that closing waits for a start under way."""
_RETRY_SECONDS = (1.0, 2.0, 4.0, 8.0, 15.0, 30.0)


def choose_dsn(environment: Mapping[str, str]) -> str | None:
    """The outside Postgres that `environment` names ("" leaves all to libpq), or None: embedded."""
    dsn = environment.get("LAKEMESH_POSTGRES_DSN")
    if dsn:
        return dsn
    return "" if environment.get("PGHOST") else None


async def open_memory(
    data_dir: Path,
    dsn: str | None = None,
    *,
    embedder: Embedder | None = None,
    collection: str = "default",
) -> ManagedMemory:
    """Memory on the Postgres at `dsn`, or on the embedded one under `data_dir` when it is None.

    Never raises for a database that is down: the store then raises MemoryUnavailable with the
    reason, `problem()` says it, and it goes on trying. The caller closes it, and the embedder when
    it brought one.
    """
    memory = _RecoveringMemory(
        EmbeddedPostgres(data_dir) if dsn is None else None,
        dsn or "",
        embedder,
        collection,
    )
    await memory.start()
    return memory


class _RecoveringMemory:
    """A store whose database may not be there yet, or not any more."""

    def __init__(
        self,
        server: EmbeddedPostgres | None,
        dsn: str,
        embedder: Embedder | None,
        collection: str,
    ) -> None:
        self._server = server
        self._dsn = dsn if server is None else server.dsn
        self._owns_embedder = embedder is None
        self._embedder = embedder or SentenceEncoder()
        self._collection = collection
        self._inner: PostgresMemoryStore | None = None
        self._reason = "starting"
        self._keeper: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Try once, then keep watch."""
        await self._try()
        self._keeper = asyncio.create_task(self._keep(), name="memory-keeper")

    async def store(
        self,
        text: str,
        metadata: Mapping[str, Any] | None = None,
        agent_id: str = "",
        *,
        request_id: str = "",
    ) -> str:
        return await self._ready().store(text, metadata, agent_id, request_id=request_id)

    async def store_many(self, memories: Sequence[NewMemory]) -> list[str]:
        return await self._ready().store_many(memories)

    async def retrieve(
        self,
        query: str,
        agent_id: str | None = None,
        top_k: int = 5,
        filter: Mapping[str, Any] | None = None,
    ) -> list[Memory]:
        return await self._ready().retrieve(query, agent_id, top_k, filter)

    async def count(self, agent_id: str | None = None) -> int:
        return await self._ready().count(agent_id)

    def problem(self) -> str:
        return self._reason if self._inner is None else self._inner.problem()

    async def close(self) -> None:
        if self._keeper is not None:
            self._keeper.cancel()
            await asyncio.wait([self._keeper])
        if self._inner is not None:
            await self._inner.close()
        if self._owns_embedder:
            await self._embedder.close()
        if self._server is not None:
            await asyncio.to_thread(self._server.stop)

    def _ready(self) -> PostgresMemoryStore:
        if self._inner is None:
            raise MemoryUnavailable(self._reason)
        return self._inner

    async def _try(self) -> None:
        try:
            await self._ensure_server()
            self._inner = await PostgresMemoryStore.open(
                self._dsn, self._embedder, collection=self._collection
            )
            self._reason = ""
        except MemoryUnavailable as error:
            if error.reason != self._reason:
                _log.warning("memory is degraded", extra={"reason": error.reason})
            self._reason = error.reason

    async def _ensure_server(self) -> None:
        if self._server is None:
            return
        starting = asyncio.create_task(asyncio.to_thread(self._server.ensure_running))
        try:
            await asyncio.shield(starting)
        except asyncio.CancelledError:
            # The thread goes on; a server must not start after `close` has stopped it.
            await asyncio.wait([starting], timeout=CLOSE_SECONDS)
            raise

    async def _keep(self) -> None:
        failures = 0
        while True:
            if self._inner is None:
                await asyncio.sleep(_RETRY_SECONDS[min(failures, len(_RETRY_SECONDS) - 1)])
                failures += 1
                await self._try()
                continue
            failures = 0
            await asyncio.sleep(WATCH_SECONDS)
            try:
                if self._server is not None and not self._server.running():
                    _log.warning("embedded Postgres is gone; starting it again")
                    await self._ensure_server()
                if self._inner.problem():
                    await self._inner.probe()
            except MemoryUnavailable as error:
                _log.warning("memory is degraded", extra={"reason": error.reason})
