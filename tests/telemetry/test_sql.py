"""`lakemesh sql`: the seed's queries, names as on Databricks, formats and exit codes."""

from __future__ import annotations

import csv
import datetime
import io
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from arro3.core import Array, DataType, Field, Schema, Table
from deltalake import DeltaTable, write_deltalake

from lakemesh.telemetry.delta import table_path
from lakemesh.telemetry.sql import EMPTY_TABLES, SqlError, query, rename_catalog
from lakemesh.telemetry.telemetry import open_telemetry
from tests.telemetry.spans import new_span

RECENT = """
    SELECT timestamp, agent_id, duration_ms, status FROM main.agents.traces
    ORDER BY timestamp DESC LIMIT 20
"""
ERROR_RATE = """
    SELECT agent_id, COUNT(*) as total, SUM(CASE WHEN status = 'ERROR' THEN 1 ELSE 0 END) as errors,
           (errors * 100.0 / total) as error_rate_pct
    FROM main.agents.traces WHERE timestamp >= CURRENT_TIMESTAMP - INTERVAL 1 DAY GROUP BY agent_id
"""

Lakemesh = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Thirty spans of two agents, every third of them failed, and one two days old."""
    data_dir = tmp_path_factory.mktemp("data")
    telemetry = open_telemetry(data_dir)
    telemetry.start()
    for n in range(30):
        telemetry.recorder.record(
            new_span(agent="ab"[n % 2], status="ERROR" if n % 3 == 0 else "OK")
        )
    old = new_span(agent="a", status="UNSET")
    old.start_ns -= 2 * 86_400 * 10**9
    old.end_ns -= 2 * 86_400 * 10**9
    telemetry.recorder.record(old)
    assert telemetry.close(10)
    return data_dir


@pytest.fixture
def lakemesh(data_dir: Path) -> Lakemesh:
    """Runs `lakemesh sql` as a user would."""

    def run(
        *arguments: str, stdin: str = "", **environment: str
    ) -> subprocess.CompletedProcess[str]:
        command = Path(sys.executable).with_name("lakemesh")
        clean = {k: v for k, v in os.environ.items() if not k.startswith("LAKEMESH_")}
        return subprocess.run(
            [str(command), "sql", *arguments],
            input=stdin,
            capture_output=True,
            text=True,
            timeout=30,
            env=clean | {"LAKEMESH_DATA_DIR": str(data_dir)} | environment,
        )

    return run


def test_the_seeds_recent_executions_run_unchanged(data_dir: Path) -> None:
    result = query(data_dir, RECENT)
    assert result.columns == ("timestamp", "agent_id", "duration_ms", "status")
    assert len(result.rows) == 20
    times = [row[0] for row in result.rows]
    assert times == sorted(times, reverse=True)
    moment = datetime.datetime.fromisoformat(times[0])
    assert moment.utcoffset() == datetime.timedelta(0)
    assert abs(moment - datetime.datetime.now(datetime.UTC)) < datetime.timedelta(minutes=5)
    assert {row[1] for row in result.rows} == {"a", "b"}
    assert {row[2] for row in result.rows} == {1.5}
    assert {row[3] for row in result.rows} == {"OK", "ERROR"}


def test_the_seeds_error_rate_runs_unchanged(data_dir: Path) -> None:
    result = query(data_dir, ERROR_RATE)
    assert result.columns == ("agent_id", "total", "errors", "error_rate_pct")
    assert sorted(result.rows) == [
        ("a", 15, 5, pytest.approx(100 / 3)),
        ("b", 15, 5, pytest.approx(100 / 3)),
    ]


@pytest.mark.parametrize(
    "table", ["main.agents.traces", "agents.traces", "traces", "`main`.`agents`.`traces`",
              '"main"."agents"."traces"', "MAIN . agents\n. traces"],
)  # fmt: skip
def test_a_table_answers_to_each_form_of_its_name(data_dir: Path, table: str) -> None:
    assert query(data_dir, f"FROM {table} SELECT count(*)").rows == ((31,),)


def test_a_column_may_be_named_in_full(data_dir: Path) -> None:
    sql = "SELECT DISTINCT main.agents.traces.status FROM main.agents.traces"
    assert {row[0] for row in query(data_dir, sql).rows} == {"OK", "ERROR", "UNSET"}


def test_a_query_may_repeat_a_column_and_hold_times_within(data_dir: Path) -> None:
    sql = "SELECT timestamp, timestamp, [timestamp] AS times FROM main.agents.traces LIMIT 1"
    result = query(data_dir, sql)
    assert result.columns[0] == "timestamp"
    assert result.rows[0][0] == result.rows[0][1] == result.rows[0][2][0]


@pytest.mark.parametrize("table", sorted(EMPTY_TABLES))
def test_a_table_nobody_has_written_yet_is_empty(tmp_path: Path, table: str) -> None:
    assert query(tmp_path, f"FROM main.agents.{table}").rows == ()


def test_the_seeds_queries_answer_before_the_first_span(tmp_path: Path) -> None:
    assert query(tmp_path, RECENT).rows == ()
    assert query(tmp_path, ERROR_RATE).rows == ()


def test_catalog_and_schema_are_configurable(tmp_path: Path) -> None:
    telemetry = open_telemetry(tmp_path, catalog="prod", schema="mesh")
    telemetry.start()
    telemetry.recorder.record(new_span())
    assert telemetry.close(10)
    result = query(tmp_path, "SELECT agent_id FROM prod.mesh.traces", catalog="prod", schema="mesh")
    assert result.rows == (("echo",),)


def test_rows_of_other_writers_find_their_agent_in_the_attributes(tmp_path: Path) -> None:
    telemetry = open_telemetry(tmp_path)
    telemetry.start()
    telemetry.recorder.record(new_span())
    assert telemetry.close(10)
    path = table_path(tmp_path, "main", "agents", "otel_spans")
    foreign = query(tmp_path, "SELECT span_id FROM main.agents.otel_spans")
    assert len(foreign.rows) == 1
    names = ["time", "trace_id", "span_id", "name", "attributes",
             "start_time_unix_nano", "end_time_unix_nano"]  # fmt: skip
    string, int64 = DataType.string(), DataType.int64()
    types = [DataType.timestamp("us", tz="UTC"), string, string, string, string, int64, int64]
    attributes = '{"gen_ai.agent.name":"third","agent.id":"second"}'
    values = [0, "0" * 31 + "1", "0" * 15 + "1", "theirs", attributes, 0, 2_000_000]
    arrays = [Array([0], int64).cast(types[0])]
    arrays += [Array([v], t) for v, t in zip(values[1:], types[1:], strict=True)]
    schema = Schema([Field(n, t) for n, t in zip(names, types, strict=True)])
    write_deltalake(
        DeltaTable(path),
        Table.from_arrays(arrays, schema=schema),
        mode="append",
        schema_mode="merge",
    )
    sql = "SELECT agent_id, status, duration_ms FROM traces WHERE name = 'theirs'"
    assert query(tmp_path, sql).rows == (("second", "UNSET", 2.0),)


def test_a_partitioned_table_and_an_emptied_one_are_read(tmp_path: Path) -> None:
    string, int64 = DataType.string(), DataType.int64()
    schema = Schema([Field("n", int64), Field("day", string)])
    data = Table.from_arrays([Array([1, 2], int64), Array(["007", "008"], string)], schema=schema)
    for name in ("kept", "emptied"):
        path = table_path(tmp_path, "main", "agents", name)
        write_deltalake(path, data, partition_by=["day"])
        if name == "emptied":
            DeltaTable(path).delete()
    assert query(tmp_path, "SELECT n, day FROM main.agents.kept ORDER BY n").rows == (
        (1, "007"),
        (2, "008"),
    )
    result = query(tmp_path, "SELECT * FROM main.agents.emptied")
    assert (result.columns, result.rows) == (("n", "day"), ())


@pytest.mark.parametrize(
    ("sql", "renamed"),
    [
        ("SELECT * FROM main.agents.t", "SELECT * FROM X.agents.t"),
        ("SELECT 'main.agents.t', \"main.agents.t\"", "SELECT 'main.agents.t', \"main.agents.t\""),
        ("SELECT 1 -- main.agents.t\n", "SELECT 1 -- main.agents.t\n"),
        ("SELECT 1 /* main.agents.t */", "SELECT 1 /* main.agents.t */"),
        ("SELECT $$main.agents.t$$", "SELECT $$main.agents.t$$"),
        ("SELECT a.main.agents.t", "SELECT a.main.agents.t"),
        ("SELECT main.agents FROM x AS main", "SELECT main.agents FROM x AS main"),
        ("SELECT 'it''s' FROM Main . agents . t", "SELECT 'it''s' FROM X . agents . t"),
        ("SELECT 'unfinished main.agents.t", "SELECT 'unfinished X.agents.t"),
    ],
)
def test_only_a_catalog_is_renamed(sql: str, renamed: str) -> None:
    assert rename_catalog(sql, "main", "X") == renamed


def test_what_is_wrong_is_said_with_the_users_names(tmp_path: Path) -> None:
    with pytest.raises(SqlError, match=r"nowhere") as caught:
        query(tmp_path, "SELECT * FROM main.agents.nowhere")
    assert "lakemesh_tables" not in str(caught.value)


def test_json_is_an_array_of_row_objects(lakemesh: Lakemesh) -> None:
    done = lakemesh("--format", "json", ERROR_RATE)
    assert (done.returncode, done.stderr) == (0, "")
    rows = json.loads(done.stdout)
    assert {row["agent_id"]: (row["total"], row["errors"]) for row in rows} == {
        "a": (15, 5),
        "b": (15, 5),
    }
    assert rows[0]["error_rate_pct"] == pytest.approx(100 / 3)
    rows = json.loads(lakemesh("--format", "json", RECENT).stdout)
    assert datetime.datetime.fromisoformat(rows[0]["timestamp"]).tzinfo is not None


def test_json_holds_what_json_can_hold(lakemesh: Lakemesh) -> None:
    done = lakemesh(
        "--format=json",
        "SELECT 'nan'::DOUBLE AS n, 1.50 AS d, DATE '2026-01-02' AS t, {'a': [NULL, 'é']} AS s,"
        " '\\xAA'::BLOB AS b, NULL AS z, INTERVAL 1 DAY AS i",
    )
    assert json.loads(done.stdout) == [
        {"n": None, "d": 1.5, "t": "2026-01-02", "s": {"a": [None, "é"]}, "b": "aa", "z": None,
         "i": "1 day, 0:00:00"}
    ]  # fmt: skip
    assert json.loads(lakemesh("--format=json", "SELECT 1 WHERE false").stdout) == []


def test_a_table_is_aligned_and_counted(lakemesh: Lakemesh) -> None:
    done = lakemesh("SELECT agent_id, count(*) AS n FROM main.agents.traces GROUP BY 1 ORDER BY 1")
    assert done.stdout.splitlines() == [
        "agent_id   n",
        "--------  --",
        "a         16",
        "b         15",
        "(2 rows)",
    ]


def test_csv_is_quoted_where_it_must_be(lakemesh: Lakemesh) -> None:
    done = lakemesh("--format", "csv", "SELECT 'a,\"b\"' AS text, 1 AS n, NULL AS nothing")
    assert list(csv.reader(io.StringIO(done.stdout))) == [
        ["text", "n", "nothing"],
        ['a,"b"', "1", ""],
    ]


def test_a_query_may_come_from_standard_input(lakemesh: Lakemesh) -> None:
    assert lakemesh("-", "--format", "csv", stdin="SELECT 1 AS one;\n").stdout == "one\n1\n"


@pytest.mark.parametrize("sql", ["SELEC 1", "SELECT * FROM main.agents.nowhere", ""])
def test_a_failing_query_exits_with_1_and_one_line(lakemesh: Lakemesh, sql: str) -> None:
    done = lakemesh(sql)
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr.startswith("lakemesh sql: ")
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("arguments", [(), ("--format", "xml", "SELECT 1"), ("a", "b")])
def test_bad_usage_exits_with_2(lakemesh: Lakemesh, arguments: tuple[str, ...]) -> None:
    assert lakemesh(*arguments).returncode == 2


def test_a_bad_format_in_the_environment_is_bad_usage(lakemesh: Lakemesh) -> None:
    done = lakemesh("SELECT 1", LAKEMESH_FORMAT="xml")
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)


def test_a_query_changes_no_table(lakemesh: Lakemesh, data_dir: Path) -> None:
    assert lakemesh("DELETE FROM main.agents.traces").returncode == 1
    assert lakemesh("DROP VIEW main.agents.otel_spans").returncode in (0, 1)
    assert query(data_dir, "SELECT count(*) FROM main.agents.traces").rows == ((31,),)
