"""`lakemesh sql`: SQL over the local Delta tables, the same as on Databricks SQL."""

from __future__ import annotations

import argparse
import csv
import datetime
import decimal
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any

from lakemesh.telemetry.sql import Result, SqlError, query

_MAX_COLUMN_WIDTH = 80


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Adds the command to the program's parser; it is run by `run`."""
    parser = subparsers.add_parser(
        "sql",
        help="query the local Delta tables",
        description="Runs SQL over the local Delta tables, named as on Databricks, for example: "
        "SELECT timestamp, agent_id, duration_ms, status FROM main.agents.traces "
        "ORDER BY timestamp DESC LIMIT 20",
    )
    parser.add_argument("query", metavar="SQL", help="the statement, or - to read it from stdin")
    parser.add_argument(
        "--format",
        choices=("table", "json", "csv"),
        default=os.environ.get("LAKEMESH_FORMAT", "table"),
        help="how rows are printed (default: table); json is an array of row objects",
    )
    parser.add_argument(
        "--data-dir",
        type=Path,
        default=Path(os.environ.get("LAKEMESH_DATA_DIR", ".lakemesh")),
        help="where the server keeps its data (default: .lakemesh)",
    )
    parser.add_argument(
        "--catalog",
        default=os.environ.get("LAKEMESH_CATALOG", "main"),
        help="the tables' catalog (default: main)",
    )
    parser.add_argument(
        "--schema",
        default=os.environ.get("LAKEMESH_SCHEMA", "agents"),
        help="the tables' schema (default: agents)",
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Answers the query on stdout. Gives the exit code; when not 0, stderr has a line on why."""
    if args.format not in _WRITERS:
        # argparse checks the option, but not its default from the environment.
        print(f"lakemesh sql: LAKEMESH_FORMAT cannot be {args.format!r}", file=sys.stderr)
        return 2
    sql = sys.stdin.read() if args.query == "-" else args.query
    try:
        result = query(args.data_dir, sql, catalog=args.catalog, schema=args.schema)
    except SqlError as error:
        print(f"lakemesh sql: {_first_lines(str(error))}", file=sys.stderr)
        return 1
    except ModuleNotFoundError as error:
        print(
            f"lakemesh sql: {error.name} is missing; install lakemesh[app,local]", file=sys.stderr
        )
        return 1
    try:
        _WRITERS[args.format](result, sys.stdout)
        sys.stdout.flush()
    except BrokenPipeError:
        # `lakemesh sql ... | head`: the reader has what it wanted.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0


def _first_lines(message: str) -> str:
    """DuckDB's message as one line, without its drawing of where in the query it is."""
    return " ".join(message.split("\n\nLINE ")[0].split())


def write_table(result: Result, out: IO[str]) -> None:
    """Writes aligned columns under a header, then the number of rows; numbers to the right."""
    if not result.columns:
        return
    cells = [[_cell(value) for value in row] for row in result.rows]
    widths = [
        min(_MAX_COLUMN_WIDTH, max([len(name), *(len(row[index]) for row in cells)]))
        for index, name in enumerate(result.columns)
    ]
    right = [
        bool(result.rows)
        and all(
            isinstance(row[index], int | float) and not isinstance(row[index], bool)
            for row in result.rows
            if row[index] is not None
        )
        for index in range(len(widths))
    ]
    _write_line(result.columns, widths, right, out)
    print("  ".join("-" * width for width in widths), file=out)
    for row in cells:
        _write_line(row, widths, right, out)
    print(f"({len(cells)} row{'' if len(cells) == 1 else 's'})", file=out)


def _write_line(
    cells: Sequence[str], widths: Sequence[int], right: Sequence[bool], out: IO[str]
) -> None:
    parts = []
    for cell, width, to_right in zip(cells, widths, right, strict=True):
        shown = cell if len(cell) <= width else cell[: width - 3] + "..."
        parts.append(shown.rjust(width) if to_right else shown.ljust(width))
    print("  ".join(parts).rstrip(), file=out)


def _cell(value: object) -> str:
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:.3f}" if abs(value) < 1e15 else repr(value)
    if isinstance(value, dict | list | tuple):
        return json.dumps(value, default=str, ensure_ascii=False)
    return " ".join(str(value).split()) if isinstance(value, str) else str(value)


def write_json(result: Result, out: IO[str]) -> None:
    """Writes an array of row objects, one a line; times are strings, decimals numbers."""
    rows = [
        json.dumps(
            {name: _json_value(value) for name, value in zip(result.columns, row, strict=True)},
            ensure_ascii=False,
            allow_nan=False,
            default=str,
        )
        for row in result.rows
    ]
    out.write("[" + ",\n ".join(rows) + "]\n")


def _json_value(value: Any) -> Any:
    # JSON has no infinities and no NaN.
    if isinstance(value, float) and (value != value or value in (float("inf"), float("-inf"))):
        return None
    if isinstance(value, decimal.Decimal):
        return float(value)
    if isinstance(value, bytes):
        return value.hex()
    if isinstance(value, datetime.datetime | datetime.date | datetime.time):
        return value.isoformat(sep=" ") if isinstance(value, datetime.datetime) else str(value)
    if isinstance(value, dict):
        return {str(key): _json_value(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_json_value(item) for item in value]
    return value


def write_csv(result: Result, out: IO[str]) -> None:
    """Writes RFC 4180 lines, with a header and lines ending in a newline only."""
    if not result.columns:
        return
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(result.columns)
    for row in result.rows:
        writer.writerow(
            json.dumps(value, default=str) if isinstance(value, dict | list | tuple) else value
            for value in row
        )


_WRITERS = {"table": write_table, "json": write_json, "csv": write_csv}
