"""SQL over the local Delta tables, by the names they have on Databricks.

DuckDB runs the queries over the Parquet files that each table's current version lists. Its delta
extension has no offline build for DuckDB 2.0, and a pyarrow dataset costs 110 MB and seconds to
import. duckdb is imported by the first query.

Three traps of DuckDB 2.0 are met here: `main` cannot be a database's name, so the catalog in a
query is renamed to one of ours before it runs; reading a TIMESTAMP WITH TIME ZONE into Python wants
pytz, so such columns leave as text; and an unknown function would make it fetch an extension from
the network, which is switched off.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lakemesh.telemetry.delta import TableSnapshot, read_snapshot

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

_CATALOG = "lakemesh_tables"
"""What the catalog is called inside DuckDB."""


class SqlError(Exception):
    """The query cannot be answered; the message says why, for whoever wrote it."""


@dataclass(frozen=True, slots=True)
class Result:
    """The rows of a query."""

    columns: tuple[str, ...]
    rows: tuple[tuple[Any, ...], ...]
    """Values as Python has them; times with a zone are text, `2026-11-23 21:00:00.123456+00`."""


_ATTRIBUTES = "dropped_attributes_count INTEGER"
_OTEL_HEAD = 'record_id VARCHAR, "time" TIMESTAMPTZ, "date" DATE, service_name VARCHAR'
_OTEL_TAIL = f"""
    resource STRUCT(attributes VARCHAR, {_ATTRIBUTES}), resource_schema_url VARCHAR,
    instrumentation_scope STRUCT("name" VARCHAR, "version" VARCHAR, attributes VARCHAR,
                                 {_ATTRIBUTES})"""

# The tables a user may ask about before anything was written to them, as DuckDB declares them.
# Points of metrics are JSON here until something writes them.
EMPTY_TABLES = {
    "otel_spans": f"""{_OTEL_HEAD}, trace_id VARCHAR, span_id VARCHAR, trace_state VARCHAR,
        parent_span_id VARCHAR, flags INTEGER, "name" VARCHAR, kind VARCHAR,
        start_time_unix_nano BIGINT, end_time_unix_nano BIGINT, attributes VARCHAR,
        {_ATTRIBUTES},
        events STRUCT(time_unix_nano BIGINT, "name" VARCHAR, attributes VARCHAR,
                      {_ATTRIBUTES})[], dropped_events_count INTEGER,
        links STRUCT(trace_id VARCHAR, span_id VARCHAR, trace_state VARCHAR, attributes VARCHAR,
                     {_ATTRIBUTES}, flags INTEGER)[], dropped_links_count INTEGER,
        status STRUCT(message VARCHAR, code VARCHAR), {_OTEL_TAIL}, span_schema_url VARCHAR,
        agent_id VARCHAR""",
    "metrics": f"""{_OTEL_HEAD}, "name" VARCHAR, description VARCHAR, unit VARCHAR,
        metric_type VARCHAR, start_time_unix_nano BIGINT, time_unix_nano BIGINT, value DOUBLE,
        "count" BIGINT, "sum" DOUBLE, attributes VARCHAR, {_OTEL_TAIL}""",
    "logs": f"""{_OTEL_HEAD}, event_name VARCHAR, trace_id VARCHAR, span_id VARCHAR,
        time_unix_nano BIGINT, observed_time_unix_nano BIGINT, severity_number VARCHAR,
        severity_text VARCHAR, body VARCHAR, attributes VARCHAR, flags INTEGER, {_OTEL_TAIL}""",
    "memory": """id VARCHAR, agent_id VARCHAR, "text" VARCHAR, metadata VARCHAR,
        create_time TIMESTAMPTZ""",
    "training_examples": """transaction_data VARCHAR, expert_decision VARCHAR, agent_id VARCHAR,
        "timestamp" TIMESTAMPTZ""",
    "holdout_examples": """transaction_data VARCHAR, expert_decision VARCHAR, agent_id VARCHAR,
        "timestamp" TIMESTAMPTZ""",
    "experiment_exposures": """experiment VARCHAR, prompt_name VARCHAR, prompt_version VARCHAR,
        variant VARCHAR, agent_id VARCHAR, run_id VARCHAR, trace_id VARCHAR,
        "timestamp" TIMESTAMPTZ""",
}

# Rows that others wrote may lack agent_id; their attributes are asked in the order of
# span.AGENT_ATTRIBUTES, as at recording.
_TRACES = """
SELECT
  "time" AS "timestamp",
  coalesce(
    agent_id,
    json_extract_string(attributes, '$.agent_id'),
    json_extract_string(attributes, '$."agent.id"'),
    json_extract_string(attributes, '$."gen_ai.agent.name"')
  ) AS agent_id,
  (end_time_unix_nano - start_time_unix_nano) / 1e6 AS duration_ms,
  coalesce(replace(status.code, 'STATUS_CODE_', ''), 'UNSET') AS status,
  "name",
  trace_id,
  span_id,
  parent_span_id,
  attributes
FROM {spans}
"""


def query(data_dir: Path, sql: str, *, catalog: str = "main", schema: str = "agents") -> Result:
    """Runs one or more statements over the tables under data_dir; the last one's rows count.

    Tables are named `catalog.schema.table`, `schema.table` or `table`. A table of
    EMPTY_TABLES that does not exist yet is empty. Nothing a statement does changes the tables.

    Raises:
        SqlError: DuckDB refuses the query, or a table cannot be read.
    """
    import duckdb

    connection = duckdb.connect(":memory:")
    try:
        try:
            _open_catalog(connection, data_dir, catalog, schema)
            return _run(connection, rename_catalog(sql, catalog, _CATALOG))
        except duckdb.Error as error:
            raise SqlError(str(error).replace(_CATALOG, catalog)) from error
        except Exception as error:
            raise SqlError(f"{type(error).__name__}: {error}") from error
    finally:
        connection.close()


def _open_catalog(
    connection: DuckDBPyConnection, data_dir: Path, catalog: str, schema: str
) -> None:
    connection.execute("SET autoinstall_known_extensions = false")
    # Not as an option of connect, which looks for the icu extension although it is built in.
    connection.execute("SET TimeZone = 'UTC'")
    connection.execute(f"ATTACH ':memory:' AS {_CATALOG}")
    root = data_dir / "delta" / catalog
    schemas = {entry.name for entry in root.iterdir() if entry.is_dir()} if root.is_dir() else set()
    for each in sorted(schemas | {schema}):
        connection.execute(f"CREATE SCHEMA {_CATALOG}.{_quoted(each)}")
        tables = {path.parent.name for path in (root / each).glob("*/_delta_log")}
        for table in sorted(tables | (set(EMPTY_TABLES) if each == schema else set())):
            _create_table(connection, root / each / table, f"{_CATALOG}.{_quoted(each)}", table)
    spans = f"{_CATALOG}.{_quoted(schema)}.otel_spans"
    connection.execute(
        f"CREATE VIEW {_CATALOG}.{_quoted(schema)}.traces AS {_TRACES.format(spans=spans)}"
    )
    connection.execute(f"USE {_CATALOG}.{_quoted(schema)}")


def _create_table(connection: DuckDBPyConnection, path: Path, schema: str, table: str) -> None:
    snapshot = read_snapshot(path)
    name = f"{schema}.{_quoted(table)}"
    if snapshot is None:
        if table in EMPTY_TABLES:
            connection.execute(f"CREATE TABLE {name} ({EMPTY_TABLES[table]})")
    elif not snapshot.files:
        columns = ", ".join(
            f"{_quoted(key)} {_duckdb_type(kind)}" for key, kind in snapshot.columns
        )
        connection.execute(f"CREATE TABLE {name} ({columns})")
    else:
        connection.execute(f"CREATE VIEW {name} AS {_scan(snapshot)}")


def _scan(snapshot: TableSnapshot) -> str:
    files = ", ".join(_literal(file) for file in snapshot.files)
    columns = ", ".join(_quoted(name) for name, _ in snapshot.columns)
    options = "union_by_name = true"
    if snapshot.partition_columns:
        types = dict(snapshot.columns)
        kinds = ", ".join(
            f"{_literal(name)}: {_literal(_duckdb_type(types[name]))}"
            for name in snapshot.partition_columns
        )
        options += f", hive_partitioning = true, hive_types = {{{kinds}}}"
    return f"SELECT {columns} FROM read_parquet([{files}], {options})"  # noqa: S608


_DUCKDB_TYPES = {
    "string": "VARCHAR",
    "long": "BIGINT",
    "integer": "INTEGER",
    "short": "SMALLINT",
    "byte": "TINYINT",
    "float": "FLOAT",
    "double": "DOUBLE",
    "boolean": "BOOLEAN",
    "binary": "BLOB",
    "date": "DATE",
    "timestamp": "TIMESTAMPTZ",
    "timestamp_ntz": "TIMESTAMP",
}


def _duckdb_type(kind: Any) -> str:
    """A type of the Delta protocol's schema JSON, as DuckDB writes it."""
    if isinstance(kind, str):
        return _DUCKDB_TYPES.get(kind, kind.upper())  # decimal(p,s) is the same in both
    if kind["type"] == "array":
        return f"{_duckdb_type(kind['elementType'])}[]"
    if kind["type"] == "map":
        return f"MAP({_duckdb_type(kind['keyType'])}, {_duckdb_type(kind['valueType'])})"
    fields = ", ".join(
        f"{_quoted(field['name'])} {_duckdb_type(field['type'])}" for field in kind["fields"]
    )
    return f"STRUCT({fields})"


def _run(connection: DuckDBPyConnection, sql: str) -> Result:
    statements = connection.extract_statements(sql)
    if not statements:
        raise SqlError("no SQL statement given")
    for statement in statements[:-1]:
        connection.execute(statement)
    relation = connection.sql(statements[-1].query)
    if relation is None:
        return Result((), ())
    names = tuple(relation.columns)
    types = [str(kind) for kind in relation.types]
    if any("TIME ZONE" in kind for kind in types):
        # By position and under names of our own: a query may repeat a column's name.
        aliases = [f"c{index}" for index in range(len(names))]
        chosen = ", ".join(
            f"CAST({alias} AS {_text_type(kind)})" if "TIME ZONE" in kind else alias
            for alias, kind in zip(aliases, types, strict=True)
        )
        answer = relation.query(
            "answer",
            f"SELECT {chosen} FROM answer AS answer({', '.join(aliases)})",  # noqa: S608
        )
        return Result(names, tuple(answer.fetchall() if answer is not None else ()))
    return Result(names, tuple(relation.fetchall()))


def _text_type(kind: str) -> str:
    """The type with every time with a zone in it turned into text."""
    return re.sub(r"TIME(STAMP)? WITH TIME ZONE", "VARCHAR", kind)


# What a dot-separated name can stand in and must not be looked for in: strings, comments,
# dollar-quoted text. Anything else is passed one token at a time.
_TOKENS = re.compile(
    r"""(?P<skip>'(?:[^']|'')*' | --[^\n]* | /\*.*?\*/ | \$(?P<tag>\w*)\$.*?\$(?P=tag)\$)
      | (?P<name>"(?:[^"]|"")*" | `[^`]*` | [^\W\d]\w*)
      | (?P<space>\s+)
      | (?P<other>.)""",
    re.VERBOSE | re.DOTALL,
)


def rename_catalog(sql: str, catalog: str, new: str) -> str:
    """The query with `catalog` replaced by `new` wherever it begins a name of three parts or more.

    Backquoted names, which Databricks writes and DuckDB does not, become double-quoted.
    """
    tokens: list[tuple[str, str]] = []
    for match in _TOKENS.finditer(sql):
        kind, text = match.lastgroup or "other", match.group()
        if kind == "tag":
            kind = "skip"
        if kind == "name" and text.startswith("`"):
            text = '"' + text[1:-1].replace('"', '""') + '"'
        tokens.append((kind, text))
    meaningful = [
        i
        for i, (kind, text) in enumerate(tokens)
        if kind not in ("skip", "space") or text.startswith("'")
    ]
    for place, index in enumerate(meaningful):
        kind, text = tokens[index]
        if kind != "name" or _unquoted(text) != catalog.lower():
            continue
        before = tokens[meaningful[place - 1]][1] if place else ""
        after = [tokens[i] for i in meaningful[place + 1 : place + 5]]
        shape = [("." if text == "." else kind) for kind, text in after]
        if before != "." and shape == [".", "name", ".", "name"]:
            tokens[index] = (kind, new)
    return "".join(text for _, text in tokens)


def _unquoted(name: str) -> str:
    return (name[1:-1].replace('""', '"') if name.startswith('"') else name).lower()


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def _literal(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"
