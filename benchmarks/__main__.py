"""Measure Lakemesh beside its peers and print one table; docs/performance.md explains it.

.venv/bin/python -m benchmarks [--quick] [--rows grpcio,h2,json] [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterable
from pathlib import Path

from benchmarks import agents_curve, memory_retrieve, resources, spool_drain
from benchmarks.peer_environments import PEERS, PeerUnavailable, python_of
from benchmarks.report import Figure, as_json, call_table, comparisons, figure_table, missing
from benchmarks.rounds import Measured, measure, say
from benchmarks.rows import ROWS

PARTS = ("start", "idle", "agents", "spool", "memory")
"""What `--rows` knows besides the rows of calls."""


def main() -> int:
    options = _options()
    if options.setup:
        return _setup()
    chosen = set(options.rows.split(",")) if options.rows else {*PARTS, *(r.key for r in ROWS)}
    unknown = chosen - {*PARTS, *(row.key for row in ROWS)}
    if unknown:
        print(f"benchmarks: no such row: {', '.join(sorted(unknown))}", file=sys.stderr)
        return 2
    rows = [row for row in ROWS if row.key in chosen]
    about = _machine()
    rounds = options.rounds or (3 if options.quick else 7)
    count = 2000 if options.quick else 6000
    requests = {1: count // 3, 16: count, 256: count}
    measured = Measured()
    figures: list[Figure] = []
    with tempfile.TemporaryDirectory(prefix="lakemesh-bench-") as name:
        folder = Path(name)
        if rows:
            measured = measure(rows, folder, rounds=rounds, requests=requests)
            figures += comparisons(measured, 16)
        parts: dict[str, Callable[[], Iterable[Figure]]] = {
            "start": lambda: resources.start_and_memory(folder, 3 if options.quick else 5),
            "idle": lambda: resources.idle_connections(folder, 2000 if options.quick else 10_000),
            "agents": lambda: agents_curve.measure(folder, (0, 100, 1000), count),
            "spool": lambda: spool_drain.measure(20_000 if options.quick else 200_000),
            "memory": lambda: memory_retrieve.measure(_sizes(options)),
        }
        for part, figures_of in parts.items():
            if part in chosen:
                figures += _guarded(part, figures_of)
    about["load average at the end"] = f"{os.getloadavg()[0]:.1f}"
    lines = [f"{name}: {value}" for name, value in about.items()]
    lines += call_table(rows, measured) + (figure_table(figures) if figures else [])
    print("\n".join(lines))
    if options.json:
        content = as_json(rows, measured, figures, about)
        options.json.write_text(json.dumps(content, indent=2) + "\n")
    return 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="benchmarks", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="fewer and shorter rounds")
    parser.add_argument("--full", action="store_true", help="100,000 memories too (minutes)")
    known = ",".join([*(row.key for row in ROWS), *PARTS])
    parser.add_argument("--rows", metavar="A,B", help=f"only these of {known}")
    parser.add_argument("--rounds", type=int, help="default 7, with --quick 3")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures there too")
    parser.add_argument("--setup", action="store_true", help="only make the peers' environments")
    return parser.parse_args()


def _setup() -> int:
    for peer in sorted(path.name for path in PEERS.iterdir() if path.is_dir()):
        try:
            print(python_of(peer))
        except PeerUnavailable as error:
            print(f"benchmarks: {peer}: {error}", file=sys.stderr)
            return 1
    return 0


def _sizes(options: argparse.Namespace) -> tuple[int, ...]:
    if options.quick:
        return (2000,)
    return (1000, 10_000, 100_000) if options.full else (1000, 10_000)


def _guarded(part: str, figures_of: Callable[[], Iterable[Figure]]) -> list[Figure]:
    """The part's figures up to where it failed: one broken part never takes the others along."""
    figures: list[Figure] = []
    try:
        figures.extend(figures_of())
    except Exception as error:
        traceback.print_exc()
        figures.append(missing(part, f"{type(error).__name__}: {error}"[:200]))
    return figures


def _machine() -> dict[str, str]:
    say("this takes minutes; progress comes here, the table to standard output")
    return {
        "when": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
        "machine": f"{os.cpu_count()} processors, {platform.system()} {platform.release()}, "
        f"Python {platform.python_version()}",
        "load average at the start": f"{os.getloadavg()[0]:.1f}",
    }


if __name__ == "__main__":
    raise SystemExit(main())
