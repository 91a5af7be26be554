"""The table otel_spans: from spooled rows to columns, and the sink that appends them exactly once.

The layout is Databricks' OpenTelemetry spans table, schema v2 (Zerobus Ingest's OTLP table
reference), plus agent_id. delta-rs writes no VARIANT, so those columns are JSON strings here.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import orjson

from lakemesh.telemetry.cursor import Batch, give_way
from lakemesh.telemetry.delta import LocalTable, table_path
from lakemesh.telemetry.span import SCHEMA_URL

if TYPE_CHECKING:
    from arro3.core import Array, RecordBatch, Schema

log = logging.getLogger(__name__)

TABLE = "otel_spans"

_CHUNK_ROWS = 256
"""Rows converted at a stretch: about half a millisecond during which the loop may have to wait."""
_NANOSECONDS_PER_DAY = 86_400_000_000_000
# The names in the OTLP enums, which is what the table holds.
_KINDS = {
    kind: f"SPAN_KIND_{kind}" for kind in ("INTERNAL", "SERVER", "CLIENT", "PRODUCER", "CONSUMER")
}
_STATUS_CODES = {code: f"STATUS_CODE_{code}" for code in ("UNSET", "OK", "ERROR")}


def span_schema() -> Schema:
    """The columns of otel_spans, in order."""
    from arro3.core import DataType, Field, Schema

    string, int32, int64 = DataType.string(), DataType.int32(), DataType.int64()

    def struct(**fields: DataType) -> DataType:
        return DataType.struct([Field(name, kind) for name, kind in fields.items()])

    event = struct(
        time_unix_nano=int64, name=string, attributes=string, dropped_attributes_count=int32
    )
    link = struct(
        trace_id=string,
        span_id=string,
        trace_state=string,
        attributes=string,
        dropped_attributes_count=int32,
        flags=int32,
    )
    columns: dict[str, DataType] = {
        "record_id": string,
        "time": DataType.timestamp("us", tz="UTC"),
        "date": DataType.date32(),
        "service_name": string,
        "trace_id": string,
        "span_id": string,
        "trace_state": string,
        "parent_span_id": string,
        "flags": int32,
        "name": string,
        "kind": string,
        "start_time_unix_nano": int64,
        "end_time_unix_nano": int64,
        "attributes": string,
        "dropped_attributes_count": int32,
        "events": DataType.list(Field("element", event)),
        "dropped_events_count": int32,
        "links": DataType.list(Field("element", link)),
        "dropped_links_count": int32,
        "status": struct(message=string, code=string),
        "resource": struct(attributes=string, dropped_attributes_count=int32),
        "resource_schema_url": string,
        "instrumentation_scope": struct(
            name=string, version=string, attributes=string, dropped_attributes_count=int32
        ),
        "span_schema_url": string,
        "agent_id": string,
    }
    return Schema([Field(name, kind) for name, kind in columns.items()])


class SpanColumns:
    """Turns spooled rows into record batches of otel_spans.

    Columns that are the same in every row are built once, for a whole chunk, and sliced.
    """

    def __init__(self, service_name: str, version: str) -> None:
        from arro3.core import Array, DataType, list_array, struct_array

        self.schema = span_schema()
        self._array = Array
        self._struct = struct_array
        self._string, self._int32 = DataType.string(), DataType.int32()
        self._int64 = DataType.int64()
        self._status_fields = list(self.schema.field("status").type.fields)

        rows = _CHUNK_ROWS

        def same(value: object, kind: DataType) -> Array:
            return Array([value] * rows, kind)

        def empty_lists(column: str) -> Array:
            kind = self.schema.field(column).type
            assert kind.value_type is not None  # noqa: S101 - it is a list, by span_schema
            fields = list(kind.value_type.fields)
            values = struct_array([Array([], field.type) for field in fields], fields=fields)
            return list_array(Array([0] * (rows + 1), self._int32), values, type=kind)

        def same_struct(column: str, *values: object) -> Array:
            fields = list(self.schema.field(column).type.fields)
            return struct_array(
                [same(value, field.type) for value, field in zip(values, fields, strict=True)],
                fields=fields,
            )

        resource = orjson.dumps({"service.name": service_name, "service.version": version})
        zero = same(0, self._int32)
        self._constant: dict[str, Array] = {
            "service_name": same(service_name, self._string),
            "trace_state": same(None, self._string),
            "flags": same(None, self._int32),
            "dropped_attributes_count": zero,
            "events": empty_lists("events"),
            "dropped_events_count": zero,
            "links": empty_lists("links"),
            "dropped_links_count": zero,
            "resource": same_struct("resource", resource.decode(), 0),
            "resource_schema_url": same(None, self._string),
            "instrumentation_scope": same_struct(
                "instrumentation_scope", "lakemesh", version, None, 0
            ),
            "span_schema_url": same(SCHEMA_URL, self._string),
        }

    def batches(self, payloads: Sequence[bytes]) -> tuple[list[RecordBatch], int]:
        """Record batches of the rows in the payloads, and how many payloads were set aside."""
        made: list[RecordBatch] = []
        refused = 0
        for start in range(0, len(payloads), _CHUNK_ROWS):
            chunk = payloads[start : start + _CHUNK_ROWS]
            try:
                made += self._converted(chunk)
            except Exception:  # one bad row must not hold up the rest for ever
                for payload in chunk:
                    try:
                        made += self._converted([payload])
                    except Exception as error:
                        refused += 1
                        log.error("a spooled frame is set aside", extra={"error": repr(error)})
        return made, refused

    def _converted(self, payloads: Sequence[bytes]) -> list[RecordBatch]:
        # Each payload is a JSON array of rows; joined inside their brackets they are one.
        rows: list[Any] = orjson.loads(
            b"[" + b",".join([payload[1:-1] for payload in payloads]) + b"]"
        )
        batches = []
        for first in range(0, len(rows), _CHUNK_ROWS):
            batches.append(self._batch(rows[first : first + _CHUNK_ROWS]))
            give_way()
        return batches

    def _batch(self, rows: Sequence[Sequence[Any]]) -> RecordBatch:
        from arro3.core import RecordBatch

        array, string, int64 = self._array, self._string, self._int64
        count = len(rows)
        (
            trace_ids,
            span_ids,
            parents,
            names,
            kinds,
            starts,
            ends,
            codes,
            messages,
            agents,
            attributes,
        ) = zip(*rows, strict=True)
        columns = {
            name: value if count == _CHUNK_ROWS else value.slice(0, count)
            for name, value in self._constant.items()
        }
        field = self.schema.field
        # Sorts by time, never repeats, and is the same however often the span is shipped.
        columns["record_id"] = array(
            [f"{start:016x}{span_id}" for start, span_id in zip(starts, span_ids, strict=True)],
            string,
        )
        columns["time"] = array([start // 1000 for start in starts], int64).cast(field("time").type)
        columns["date"] = array(
            [start // _NANOSECONDS_PER_DAY for start in starts], self._int32
        ).cast(field("date").type)
        columns["trace_id"] = array(trace_ids, string)
        columns["span_id"] = array(span_ids, string)
        columns["parent_span_id"] = array([parent or None for parent in parents], string)
        columns["name"] = array(names, string)
        columns["kind"] = array([_KINDS.get(kind, kind) for kind in kinds], string)
        columns["start_time_unix_nano"] = array(starts, int64)
        columns["end_time_unix_nano"] = array(ends, int64)
        columns["attributes"] = array(attributes, string)
        columns["status"] = self._struct(
            [
                array([message or None for message in messages], string),
                array([_STATUS_CODES.get(code, "STATUS_CODE_UNSET") for code in codes], string),
            ],
            fields=self._status_fields,
        )
        columns["agent_id"] = array([agent or None for agent in agents], string)
        return RecordBatch.from_arrays(
            [columns[name] for name in self.schema.names], schema=self.schema
        )


class SpanTableSink:
    """Appends spooled spans to the local table otel_spans, each exactly once.

    Every commit names the spool directory and the last sequence it holds, in the same Delta
    transaction as the rows. Only the holder of the directory's lock ships from it, so what
    `committed` answers stays true until that holder writes again.
    """

    name = "delta"

    def __init__(
        self,
        data_dir: Path,
        catalog: str,
        schema: str,
        *,
        service_name: str,
        version: str,
        properties: Mapping[str, str] | None = None,
    ) -> None:
        self._path = table_path(data_dir, catalog, schema, TABLE)
        self._service_name = service_name
        self._version = version
        self._properties = {
            "otel.schemaVersion": "v2",
            # Statistics only where queries filter: the others cost more than they save.
            "delta.dataSkippingStatsColumns": "time,date,trace_id,agent_id,start_time_unix_nano",
            **(properties or {}),
        }
        self._columns: SpanColumns | None = None
        self._table: LocalTable | None = None
        self.set_aside = 0
        """Frames that could not be turned into rows, since start."""

    def committed(self, spool_id: str) -> int:
        """The last sequence of the spool that the table holds, 0 for none."""
        return self._open()[1].committed(spool_id)

    def write(self, batch: Batch) -> None:
        """Commits the batch."""
        columns, table = self._open()
        batches, refused = columns.batches(batch.payloads)
        self.set_aside += refused
        table.append(batches, batch.spool_id, batch.last_sequence)

    def maintain(self) -> None:
        """Compacts and vacuums the table when it is due."""
        if self._table is not None:
            self._table.maintain()

    def _open(self) -> tuple[SpanColumns, LocalTable]:
        if self._columns is None or self._table is None:
            self._columns = SpanColumns(self._service_name, self._version)
            self._table = LocalTable(
                self._path,
                self._columns.schema,
                configuration=self._properties,
                plain_columns=("record_id", "trace_id", "span_id"),
            )
        return self._columns, self._table
