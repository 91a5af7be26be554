"""Local Delta tables. The one module that imports deltalake.

deltalake costs 25 MB and up to 0.3 s to import, so it is imported by the first call that needs it
and never by the import of this module. pyarrow is not used: deltalake takes arro3's arrays, which
saves another 40 MB of a server's memory. delta-rs releases the GIL while it writes.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

import orjson

if TYPE_CHECKING:
    from arro3.core import RecordBatch, Schema
    from deltalake import DeltaTable

log = logging.getLogger(__name__)

COMPACT_AFTER_FILES = 16
"""Compaction runs when this many files were added since the last one."""
COMPACT_TARGET_BYTES = 16 << 20
"""Files of this size are left alone, so no span is rewritten more than a few times."""
VACUUM_EVERY_COMPACTIONS = 8

_CONFIGURATION = {
    "delta.checkpointInterval": "20",
    "delta.logRetentionDuration": "interval 7 days",
    # Compaction leaves the files it replaced for readers that have begun.
    "delta.deletedFileRetentionDuration": "interval 1 days",
    # Each spool directory leaves one application transaction; without this they pile up for ever.
    "delta.setTransactionRetentionDuration": "interval 30 days",
}


def table_path(data_dir: Path, catalog: str, schema: str, table: str) -> Path:
    """Where the local table `catalog.schema.table` lies."""
    return data_dir / "delta" / catalog / schema / table


class LocalTable:
    """A Delta table on this machine that this process appends to. Not thread safe.

    Other processes may append, compact and read at the same time.
    """

    def __init__(
        self,
        path: Path,
        schema: Schema,
        *,
        configuration: Mapping[str, str] | None = None,
        plain_columns: Sequence[str] = (),
    ) -> None:
        """plain_columns are those without repeated values, which a dictionary would only slow."""
        self.path = path
        self._lock_path = path.parent / f".{path.name}.lock"
        self._schema = schema
        self._configuration = {**_CONFIGURATION, **(configuration or {})}
        self._plain_columns = tuple(plain_columns)
        self._table: DeltaTable | None = None
        self._appended = COMPACT_AFTER_FILES  # so that the first look at an old table counts
        self._compactions = 0

    def committed(self, application: str) -> int:
        """The version last committed for the application, 0 when it never committed.

        Raises:
            Exception: the table cannot be read.
        """
        table = self._opened()
        table.update_incremental()
        return table.transaction_version(application) or 0

    def append(self, batches: Sequence[RecordBatch], application: str, version: int) -> None:
        """Appends the batches in one commit that also records (application, version).

        Raises:
            Exception: the commit failed or its outcome is unknown; `committed` tells which.
        """
        from arro3.core import Table
        from deltalake import CommitProperties, Transaction, write_deltalake

        table = self._opened()
        try:
            write_deltalake(
                table,
                Table.from_batches(batches, schema=self._schema),
                mode="append",
                writer_properties=self._writer_properties(),
                commit_properties=CommitProperties(
                    app_transactions=[Transaction(application, version)]
                ),
            )
        except BaseException:
            # The handle may hold a version that never was.
            self._table = None
            raise
        self._appended += 1

    def maintain(self) -> None:
        """Compacts when enough small files have come together, and now and then vacuums.

        One process at a time does it; for the others it is a no-op.

        Raises:
            Exception: another writer got in the way, or the disk failed. Nothing is broken by it.
        """
        if self._appended < COMPACT_AFTER_FILES or not self.path.exists():
            return
        with _exclusive(self._lock_path) as mine:
            self._appended = 0
            if not mine:
                return
            table = self._opened()
            table.update_incremental()
            if len(table.file_uris()) < COMPACT_AFTER_FILES:
                return
            table.optimize.compact(
                target_size=COMPACT_TARGET_BYTES,
                max_concurrent_tasks=1,
                writer_properties=self._writer_properties(),
            )
            self._compactions += 1
            if self._compactions % VACUUM_EVERY_COMPACTIONS == 0:
                table.vacuum(dry_run=False)

    def _writer_properties(self) -> Any:
        from deltalake import ColumnProperties, WriterProperties

        return WriterProperties(
            compression="ZSTD",
            compression_level=1,
            column_properties={
                name: ColumnProperties(dictionary_enabled=False) for name in self._plain_columns
            }
            or None,
        )

    def _opened(self) -> DeltaTable:
        if self._table is None:
            from deltalake import DeltaTable

            if not _exists(self.path):
                self.path.mkdir(parents=True, exist_ok=True)
                # delta-rs' "ignore" looks first and commits then: two workers that start together
                # would both commit the table's metadata and upset each other's first appends.
                with _exclusive(self._lock_path, wait=True):
                    if not _exists(self.path):
                        DeltaTable.create(
                            str(self.path),
                            schema=self._schema,
                            mode="ignore",
                            configuration=self._configuration,
                            raise_if_key_not_exists=False,
                        )
            self._table = DeltaTable(str(self.path))
        return self._table


def _exists(path: Path) -> bool:
    return any((path / "_delta_log").glob("[0-9]*"))


@contextlib.contextmanager
def _exclusive(path: Path, *, wait: bool = False) -> Iterator[bool]:
    """Holds a lock file for the block; False when another process holds it and we do not wait."""
    fd = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except OSError:
            yield False
        else:
            yield True
    finally:
        os.close(fd)


@dataclass(frozen=True, slots=True)
class TableSnapshot:
    """What a reader needs of a local table's current version."""

    files: tuple[str, ...]
    """Paths of its Parquet files."""
    columns: tuple[tuple[str, Any], ...]
    """Names and types, a type as the Delta protocol's schema JSON has it."""
    partition_columns: tuple[str, ...]
    """Columns whose values are in the files' paths (column=value) and not in the files."""


def read_snapshot(path: Path) -> TableSnapshot | None:
    """The current version of the table at path; None when there is no table yet.

    Raises:
        ValueError: the table uses a feature plain Parquet readers cannot honour.
        Exception: its log cannot be read.
    """
    if not _exists(path):
        return None
    from arro3.core import Table
    from deltalake import DeltaTable

    table = DeltaTable(str(path))
    metadata = table.metadata()
    if metadata.configuration.get("delta.columnMapping.mode", "none") != "none":
        raise ValueError(f"table {path.name} uses column mapping")
    if "deletionVectors" in (table.protocol().reader_features or ()) and (
        Table.from_arrow(table.deletion_vectors()).num_rows
    ):
        raise ValueError(f"table {path.name} has deletion vectors")
    schema = orjson.loads(table.schema().to_json())
    return TableSnapshot(
        # delta-rs gives a path with unusual characters percent-encoded.
        tuple(uri if Path(uri).exists() else unquote(uri) for uri in table.file_uris()),
        tuple((column["name"], column["type"]) for column in schema["fields"]),
        tuple(metadata.partition_columns),
    )
