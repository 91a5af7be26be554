"""Spans made for tests, and what became of them in the table."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import orjson

from lakemesh.telemetry.cursor import SpoolCursor
from lakemesh.telemetry.span import IdGenerator, Span
from lakemesh.telemetry.spool import SpoolDirectory
from lakemesh.telemetry.sql import query

_ids = IdGenerator()


def new_span(name: str = "work", *, agent: str = "echo", status: str = "OK") -> Span:
    """An ended root span."""
    now = time.time_ns()
    return Span(
        _ids.trace_id(),
        _ids.span_id(),
        "",
        name,
        "SERVER",
        now,
        now + 1_500_000,
        status,
        "",
        agent,
        {"rpc.system": "grpc", "rpc.method": "Execute", "rpc.grpc.status_code": 0},
    )


def spooled_rows(directory: SpoolDirectory, after: int = 0) -> list[list[Any]]:
    """The rows of every whole frame in a directory, in order."""
    cursor = SpoolCursor(directory, after)
    rows: list[list[Any]] = []
    while (batch := cursor.read(1000)) is not None:
        for payload in batch.payloads:
            rows += orjson.loads(payload)
    return rows


def span_ids_in_table(data_dir: Path) -> list[str]:
    """The span ids in the local table, repeated ones repeated."""
    return [row[0] for row in query(data_dir, "SELECT span_id FROM main.agents.otel_spans").rows]
