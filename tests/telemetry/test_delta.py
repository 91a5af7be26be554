"""The local tables: layout, exactly once, few files, many writers."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import textwrap
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import orjson
import pytest
from deltalake import DeltaTable
from deltalake.exceptions import CommitFailedError

from lakemesh.telemetry.cursor import SpoolCursor
from lakemesh.telemetry.delta import read_snapshot, table_path
from lakemesh.telemetry.otel_spans import SpanTableSink
from lakemesh.telemetry.spool import SpoolDirectory, SpoolWriter
from lakemesh.telemetry.sql import query
from tests.telemetry.spans import new_span, span_ids_in_table

# Databricks' OpenTelemetry spans table, schema v2, in its order; VARIANT is a string here.
V2 = [
    "record_id",
    "time",
    "date",
    "service_name",
    "trace_id",
    "span_id",
    "trace_state",
    "parent_span_id",
    "flags",
    "name",
    "kind",
    "start_time_unix_nano",
    "end_time_unix_nano",
    "attributes",
    "dropped_attributes_count",
    "events",
    "dropped_events_count",
    "links",
    "dropped_links_count",
    "status",
    "resource",
    "resource_schema_url",
    "instrumentation_scope",
    "span_schema_url",
]


def new_sink(data_dir: Path) -> SpanTableSink:
    return SpanTableSink(data_dir, "main", "agents", service_name="lakemesh", version="1.2.3")


class Source:
    """A spool with a sink at its end."""

    def __init__(self, data_dir: Path) -> None:
        self.sink = new_sink(data_dir)
        self.directory = SpoolDirectory.create(data_dir / "spool")
        self.writer = SpoolWriter(self.directory)
        self.cursor = SpoolCursor(self.directory, 0)

    def ship(self, count: int) -> list[str]:
        spans = [new_span() for _ in range(count)]
        self.writer.record_all(spans)
        batch = self.cursor.read(100_000)
        assert batch is not None
        self.sink.write(batch)
        return [span.span_id for span in spans]


def test_the_table_has_the_databricks_layout_and_agent_id(tmp_path: Path) -> None:
    Source(tmp_path).ship(1)
    table = DeltaTable(table_path(tmp_path, "main", "agents", "otel_spans"))
    fields = {field.name: field for field in table.schema().fields}
    assert list(fields) == [*V2, "agent_id"]
    types = {name: orjson.loads(field.to_json())["type"] for name, field in fields.items()}
    assert types["time"] == "timestamp"
    assert types["date"] == "date"
    assert types["flags"] == "integer"
    assert types["start_time_unix_nano"] == types["end_time_unix_nano"] == "long"
    assert [field["name"] for field in types["status"]["fields"]] == ["message", "code"]
    assert types["events"]["type"] == types["links"]["type"] == "array"
    assert table.metadata().configuration["otel.schemaVersion"] == "v2"


def test_a_span_arrives_with_every_field_in_its_place(tmp_path: Path) -> None:
    source = Source(tmp_path)
    span = new_span("pkg.Service/Method", agent="", status="ERROR")
    span.parent_span_id = "b7ad6b7169203331"
    span.status_message = "it broke"
    span.attributes["gen_ai.agent.name"] = "fraud_detector"
    source.writer.record(span)
    batch = source.cursor.read(10)
    assert batch is not None
    source.sink.write(batch)
    result = query(tmp_path, "SELECT * FROM main.agents.otel_spans")
    row = dict(zip(result.columns, result.rows[0], strict=True))
    assert row["trace_id"] == span.trace_id
    assert row["span_id"] == span.span_id
    assert row["parent_span_id"] == span.parent_span_id
    assert row["name"] == "pkg.Service/Method"
    assert row["kind"] == "SPAN_KIND_SERVER"
    assert row["status"] == {"message": "it broke", "code": "STATUS_CODE_ERROR"}
    assert row["start_time_unix_nano"] == span.start_ns
    assert row["end_time_unix_nano"] == span.end_ns
    assert orjson.loads(row["attributes"]) == span.attributes
    assert row["agent_id"] == "fraud_detector"
    assert row["service_name"] == "lakemesh"
    assert orjson.loads(row["resource"]["attributes"])["service.version"] == "1.2.3"
    assert row["events"] == row["links"] == []
    assert row["date"].isoformat() == row["time"][:10]


def test_the_commit_names_the_spool_and_its_sequence(tmp_path: Path) -> None:
    source = Source(tmp_path)
    assert source.sink.committed(source.directory.id) == 0
    source.ship(5)
    source.ship(5)
    assert new_sink(tmp_path).committed(source.directory.id) == 2
    assert new_sink(tmp_path).committed("another") == 0


def test_sixty_flushes_leave_few_files_and_a_checkpoint(tmp_path: Path) -> None:
    source = Source(tmp_path)
    ids = []
    for _ in range(60):
        ids += source.ship(20)
        source.sink.maintain()
    path = table_path(tmp_path, "main", "agents", "otel_spans")
    snapshot = read_snapshot(path)
    assert snapshot is not None
    assert len(snapshot.files) <= 20
    assert (path / "_delta_log" / "_last_checkpoint").exists()
    assert sorted(span_ids_in_table(tmp_path)) == sorted(ids)
    assert new_sink(tmp_path).committed(source.directory.id) == 60


def test_writers_and_a_compaction_at_once_lose_and_double_nothing(tmp_path: Path) -> None:
    sources = [Source(tmp_path) for _ in range(4)]

    def work(source: Source) -> list[str]:
        ids = []
        for _ in range(12):
            ids += source.ship(10)
            # A conflict with another writer is put off, as the shipper does.
            with contextlib.suppress(CommitFailedError):
                source.sink.maintain()
        return ids

    with ThreadPoolExecutor(4) as threads:
        ids = [span_id for part in threads.map(work, sources) for span_id in part]
    assert sorted(span_ids_in_table(tmp_path)) == sorted(ids)


def test_a_folder_with_blanks_and_accents_will_do(tmp_path: Path) -> None:
    data_dir = tmp_path / "données de test"
    ids = Source(data_dir).ship(3)
    assert sorted(span_ids_in_table(data_dir)) == sorted(ids)


def test_importing_telemetry_imports_nothing_heavy() -> None:
    script = """
        import sys
        import lakemesh.telemetry.sql, lakemesh.telemetry.telemetry, lakemesh.cli.sql
        print([m for m in ("deltalake", "arro3", "pyarrow", "duckdb", "numpy") if m in sys.modules])
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)], capture_output=True, check=True, timeout=20
    )
    assert done.stdout.strip() == b"[]"


def test_shipping_needs_no_pyarrow(tmp_path: Path) -> None:
    script = """
        import sys
        from pathlib import Path
        from lakemesh.telemetry.telemetry import open_telemetry
        from tests.telemetry.spans import new_span
        telemetry = open_telemetry(Path(sys.argv[1]))
        telemetry.start()
        telemetry.recorder.record(new_span())
        print(telemetry.close(10), "pyarrow" in sys.modules)
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script), str(tmp_path)],
        capture_output=True,
        check=True,
        timeout=20,
        cwd=Path(__file__).parents[2],
    )
    assert done.stdout.split() == [b"True", b"False"]


@pytest.mark.parametrize("missing", ["absent", "empty"])
def test_no_table_has_no_snapshot(tmp_path: Path, missing: str) -> None:
    path = tmp_path / "table"
    if missing == "empty":
        (path / "_delta_log").mkdir(parents=True)
    assert read_snapshot(path) is None
