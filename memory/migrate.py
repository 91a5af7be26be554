"""Brings the schema `lakemesh` of a database to the newest version, once, whoever starts with it.

The files under migrations/ are applied in the order of their numbers, each in a transaction with
the row that records it, all under an advisory lock of the session.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path

from psycopg import AsyncConnection
from psycopg.rows import TupleRow

from lakemesh.memory.errors import MemoryUnavailable

LOCK_KEY = 0x1A4E_3E54
"""The advisory lock's key; any number nobody else uses. Sessions wait for each other on it."""
LOCK_TIMEOUT_SECONDS = 30

_FOLDER = Path(__file__).with_name("migrations")
_NAME = re.compile(r"(\d{4})_\w+\.sql")


@dataclass(frozen=True, slots=True)
class Migration:
    version: int
    name: str
    sql: str

    @property
    def checksum(self) -> str:
        return hashlib.sha256(self.sql.encode()).hexdigest()


def load_migrations(folder: Path = _FOLDER) -> list[Migration]:
    """The migrations in `folder` by version; ValueError when a number is missing or double."""
    found = []
    for path in sorted(folder.glob("*.sql")):
        match = _NAME.fullmatch(path.name)
        if match is None:
            raise ValueError(f"{path.name} is not named NNNN_words.sql")
        found.append(Migration(int(match[1]), path.stem, path.read_text()))
    if [m.version for m in found] != list(range(1, len(found) + 1)):
        raise ValueError(f"migrations are not numbered 1..{len(found)} without gaps")
    return found


async def migrate(connection: AsyncConnection[TupleRow]) -> int:
    """Apply what is missing on `connection` (autocommit); the version reached.

    Raises MemoryUnavailable when the database was migrated by a newer Lakemesh or by other files.
    """
    migrations = load_migrations()
    await connection.execute(
        "select set_config('lock_timeout', %s, false)", [f"{LOCK_TIMEOUT_SECONDS}s"]
    )
    await connection.execute("select pg_advisory_lock(%s)", [LOCK_KEY])
    try:
        return await _apply(connection, migrations)
    finally:
        await connection.execute("select pg_advisory_unlock(%s)", [LOCK_KEY])
        await connection.execute("reset lock_timeout")


async def _apply(connection: AsyncConnection[TupleRow], migrations: list[Migration]) -> int:
    await connection.execute("create schema if not exists lakemesh")
    await connection.execute(
        "create table if not exists lakemesh.migrations (version integer primary key,"
        " name text not null, checksum text not null,"
        " apply_time timestamptz not null default now())"
    )
    cursor = await connection.execute("select version, checksum from lakemesh.migrations")
    applied: dict[int, str] = {version: checksum for version, checksum in await cursor.fetchall()}
    newest = len(migrations)
    if applied and max(applied) > newest:
        raise MemoryUnavailable(
            f"the database has schema version {max(applied)}, this Lakemesh knows {newest};"
            " use a newer Lakemesh"
        )
    for migration in migrations:
        if migration.version in applied:
            if applied[migration.version] != migration.checksum:
                raise MemoryUnavailable(
                    f"migration {migration.name} was applied with another text; restore the file"
                )
            continue
        async with connection.transaction():
            # The text is a file of this package, never outside input.
            await connection.execute(migration.sql.encode())
            await connection.execute(
                "insert into lakemesh.migrations (version, name, checksum) values (%s, %s, %s)",
                [migration.version, migration.name, migration.checksum],
            )
    return newest
