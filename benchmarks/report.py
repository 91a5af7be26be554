"""The table: what was measured, its ratio to the bare rows of the same run, and the goal."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from benchmarks.rounds import Measured
from benchmarks.rows import COMPARISONS, MLFLOW_TIMES, TWO_WORKERS, Row


@dataclass(frozen=True, slots=True)
class Figure:
    """One measured figure beside its goal."""

    what: str
    value: float | None
    """None when it could not be measured; `note` says why."""
    unit: str = ""
    goal: str = ""
    met: bool | None = None
    """None where there is no goal."""
    note: str = ""


def at_most(what: str, value: float, goal: float, unit: str = "", note: str = "") -> Figure:
    met = value <= goal
    return Figure(what, value, unit, f"at most {goal:g}{_spaced(unit)}", met, note)


def at_least(what: str, value: float, goal: float, unit: str = "", note: str = "") -> Figure:
    met = value >= goal
    return Figure(what, value, unit, f"at least {goal:g}{_spaced(unit)}", met, note)


def missing(what: str, why: str) -> Figure:
    return Figure(what, None, note=why)


def call_table(rows: Sequence[Row], measured: Measured) -> list[str]:
    """Lines of the table of calls, one block for each concurrency."""
    lines: list[str] = []
    for concurrency in sorted({c for cells in measured.cells.values() for c in cells}):
        table = [
            ("row", "CPU us", "later us", "against bare", "goal", "", "req/s", "p50 ms", "p99 ms")
        ]
        for row in rows:
            cell = measured.cells.get(row.key, {}).get(concurrency)
            if cell is None:
                continue
            summary = cell.summary()
            ratio = cpu_ratio(measured, row.key, row.against, concurrency)
            met = ""
            if row.goal is not None and ratio is not None:
                met = _met(ratio <= row.goal)
            later = measured.later_us.get(row.server)
            table.append(
                (
                    row.title + (f" ({cell.failed} failed)" if cell.failed else ""),
                    f"{summary['cpu_us']:.0f}",
                    "" if later is None else f"{later:.0f}",
                    "" if ratio is None else f"{ratio:.2f} x",
                    "" if row.goal is None else f"{row.goal:g} x",
                    met,
                    f"{summary['requests_per_second']:.0f}",
                    f"{summary['p50_ms']:.2f}",
                    f"{summary['p99_ms']:.2f}",
                )
            )
        lines += ["", f"calls, concurrency {concurrency}", *aligned(table)]
    titles = {row.key: row.title for row in rows}
    lines += [f"left out: {titles[key]}: {why}" for key, why in measured.left_out.items()]
    return lines


def comparisons(measured: Measured, concurrency: int) -> Iterable[Figure]:
    """Ratios between rows that are not to the bare ones."""
    for what, row, other, goal in COMPARISONS:
        ratio = cpu_ratio(measured, row, other, concurrency)
        if ratio is not None:
            yield at_most(what, ratio, goal, "x")
    ratio = cpu_ratio(measured, "mlflow", "json", concurrency)
    if ratio is not None:
        yield at_least(
            "MLflow AgentServer / Lakemesh JSON, CPU while it answers", ratio, MLFLOW_TIMES, "x"
        )
        cells = measured.cells
        later = measured.later_us.get("mlflow"), measured.later_us.get("h2")
        if later[0] is not None and later[1] is not None:
            whole = (cells["mlflow"][concurrency].summary()["cpu_us"] + later[0]) / (
                cells["json"][concurrency].summary()["cpu_us"] + later[1]
            )
            yield at_least(
                "the same with the work both put off (storing traces)", whole, MLFLOW_TIMES, "x"
            )
    two, one = (measured.cells.get(key, {}).get(concurrency) for key in ("two", "json"))
    if two is not None and one is not None:
        client = two.summary()["client_cpu_us"]
        yield at_least(
            "two workers / one, requests/s",
            two.summary()["requests_per_second"] / one.summary()["requests_per_second"],
            TWO_WORKERS,
            "x",
            f"the load client takes {client:.0f} us a request of the same processors",
        )
        yield Figure(
            "two workers / one, CPU a request",
            two.summary()["cpu_us"] / one.summary()["cpu_us"],
            "x",
            note="1 means that the second worker costs the first nothing",
        )


def figure_table(figures: Sequence[Figure]) -> list[str]:
    """Lines of the table of single figures."""
    table = [("figure", "measured", "goal", "", "note")]
    for figure in figures:
        value = "-" if figure.value is None else f"{_number(figure.value)}{_spaced(figure.unit)}"
        met = "" if figure.met is None else _met(figure.met)
        table.append((figure.what, value, figure.goal, met, figure.note))
    return ["", *aligned(table)]


def as_json(
    rows: Sequence[Row], measured: Measured, figures: Sequence[Figure], about: dict[str, Any]
) -> dict[str, Any]:
    calls = []
    for row in rows:
        for concurrency, cell in measured.cells.get(row.key, {}).items():
            calls.append(
                {
                    "row": row.key,
                    "title": row.title,
                    "concurrency": concurrency,
                    **cell.summary(),
                    "later_us": measured.later_us.get(row.server),
                    "against": row.against,
                    "ratio": cpu_ratio(measured, row.key, row.against, concurrency),
                    "goal": row.goal,
                }
            )
    return {
        "machine": about,
        "calls": calls,
        "left_out": measured.left_out,
        "figures": [asdict(figure) for figure in figures],
    }


def cpu_ratio(measured: Measured, row: str, against: str, concurrency: int) -> float | None:
    """CPU a request of one row in units of another's, from the medians of the rounds."""
    upper = measured.cells.get(row, {}).get(concurrency)
    lower = measured.cells.get(against, {}).get(concurrency)
    if upper is None or lower is None:
        return None
    return float(upper.summary()["cpu_us"]) / float(lower.summary()["cpu_us"])


def aligned(table: Sequence[Sequence[str]]) -> list[str]:
    """Columns padded to their widest cell; figures to the right, words to the left."""
    widths = [max(len(row[i]) for row in table) for i in range(len(table[0]))]
    lines = []
    for row in table:
        cells = [
            cell.rjust(width) if cell[:1].isdigit() or cell == "-" else cell.ljust(width)
            for cell, width in zip(row, widths, strict=True)
        ]
        lines.append("  ".join(cells).rstrip())
    return [lines[0], "-" * max(len(line) for line in lines), *lines[1:]]


def _number(value: float) -> str:
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.2f}"


def _met(met: bool) -> str:
    return "met" if met else "not met"


def _spaced(unit: str) -> str:
    return f" {unit}" if unit else ""
