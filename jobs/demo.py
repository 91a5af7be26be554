"""`make demo`: labelled payments into memory, later ones judged over gRPC, and what came of it.

Payments of the simulator's first 60 days are remembered with their labels; those after a pause of
7 days are judged by the agent `fraud_detector` of a running server (`--target`), or of one started
for the occasion. The payments are stored through the data directory, so a server named by
`--target` must use the same one, or both the same `LAKEMESH_POSTGRES_DSN`.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import sys
from collections.abc import Sequence
from contextlib import AsyncExitStack
from datetime import UTC, datetime
from pathlib import Path

from tqdm import tqdm

from lakemesh.jobs.own_server import ServerNotStarted, own_server, program
from lakemesh.jobs.ranking import rank
from lakemesh.jobs.scoring import CONCURRENCY, Run, score_all
from lakemesh.jobs.transactions import (
    SEED,
    LabelledTransaction,
    Simulation,
    load_transactions,
    split_by_time,
)
from lakemesh.memory.errors import MemoryUnavailable
from lakemesh.memory.open import choose_dsn, open_memory
from lakemesh.memory.store import NewMemory
from lakemesh.telemetry.span import INTERNAL, OK
from lakemesh.telemetry.telemetry import open_telemetry

AGENT = "fraud_detector"
BATCH = 500
_FIGURES = (
    "SELECT timestamp, attributes->>'average_precision' AS average_precision,"
    " attributes->>'recall_at_1_percent' AS recall_at_1_percent,"
    " attributes->>'requests_per_second' AS requests_per_second,"
    " attributes->>'p50_ms' AS p50_ms, attributes->>'p99_ms' AS p99_ms"
    " FROM main.agents.traces WHERE name = 'demo' ORDER BY timestamp DESC LIMIT 1"
)
SQL_SECONDS = 60.0
"""Longest wait for the spans to reach the table; they are shipped every few seconds."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the demonstration; 0 when every payment was judged."""
    parser = argparse.ArgumentParser(prog="python -m lakemesh.jobs.demo", description=__doc__)
    parser.add_argument(
        "--target", metavar="HOST:PORT", help="a running server; default: start one"
    )
    parser.add_argument(
        "--data-dir", type=Path, default=Path(os.environ.get("LAKEMESH_DATA_DIR", ".lakemesh"))
    )
    parser.add_argument("--remember", type=int, default=10_000, metavar="N")
    parser.add_argument("--score", type=int, default=5_000, metavar="N")
    parser.add_argument("--customers", type=int, default=500, metavar="N", help="simulated ones")
    parser.add_argument("--concurrency", type=int, default=CONCURRENCY, metavar="N")
    options = parser.parse_args(arguments)
    try:
        return asyncio.run(_demonstrate(options))
    except (ServerNotStarted, MemoryUnavailable) as error:
        tqdm.write(f"demo: {error}", file=sys.stderr)
        return 1


async def _demonstrate(options: argparse.Namespace) -> int:
    tqdm.write("loading payments (simulated once, about 30 s)")
    simulation = Simulation(customers=options.customers)
    split = split_by_time(await asyncio.to_thread(load_transactions, options.data_dir, simulation))
    choose = random.Random(SEED)  # noqa: S311 - a choice of data
    past = _sample(choose, split.past, options.remember)
    future = _sample(choose, split.future, options.score)
    tqdm.write(
        f"{len(split.past):,} labelled payments, {len(split.future):,} held out;"
        f" {len(past):,} of them are remembered, {len(future):,} judged"
    )
    async with AsyncExitStack() as stack:
        target = options.target
        if target is None:
            tqdm.write("starting a server")
            target = await stack.enter_async_context(own_server(options.data_dir))
        await remember(options.data_dir, past)
        began = datetime.now(UTC)
        run = await score_all(target, future, concurrency=options.concurrency)
        tqdm.write(report(run))
        if run.scored:
            await asyncio.to_thread(_record, options.data_dir, run)
        await _show_sql(options.data_dir, began, len(future))
    return 1 if run.failures or not run.scored else 0


async def remember(data_dir: Path, transactions: Sequence[LabelledTransaction]) -> None:
    """Store labelled payments as the agent's memories, once however often it is done.

    Raises MemoryUnavailable.
    """
    memory = await open_memory(data_dir, choose_dsn(os.environ))
    try:
        with tqdm(
            total=len(transactions), desc="storing in memory", unit="payment", disable=None
        ) as bar:
            for start in range(0, len(transactions), BATCH):
                batch = transactions[start : start + BATCH]
                await memory.store_many(
                    [
                        NewMemory(t.text(), t.metadata(), AGENT, f"demo-{t.data['transaction_id']}")
                        for t in batch
                    ]
                )
                bar.update(len(batch))
    finally:
        await memory.close()


def figures(run: Run) -> dict[str, float]:
    """Of a run with answers: how well it ranked (when both kinds occur) and how fast it was."""
    found = {
        "requests_per_second": len(run.scored) / run.seconds,
        "p50_ms": run.latency_ms(0.5),
        "p99_ms": run.latency_ms(0.99),
    }
    labels = [one.transaction.is_fraud for one in run.scored]
    if 0 < sum(labels) < len(labels):
        ranking = rank(labels, [one.judgement.score for one in run.scored])
        found["average_precision"] = ranking.average_precision
        found["base_rate"] = ranking.base_rate
        found["recall_at_1_percent"] = ranking.recall_at_1_percent
    return found


def _record(data_dir: Path, run: Run) -> None:
    """Leave the figures as a span, so that SQL finds them beside the spans of the calls."""
    telemetry = open_telemetry(data_dir, service_name="lakemesh-demo")
    telemetry.start()
    with telemetry.tracer.root("demo", INTERNAL, attributes=figures(run)) as span:
        span.start_ns -= int(run.seconds * 1e9)
        span.status_code = OK
    telemetry.close(10.0)


def report(run: Run) -> str:
    """What a run found, for people."""
    lines = [""]
    if run.failures:
        lines.append(f"failed calls: {run.failures}")
    if not run.scored:
        return "\n".join([*lines, "no payment was judged"])
    found = figures(run)
    if "average_precision" in found:
        lines += [
            f"average precision       {found['average_precision']:.3f}"
            f"   (chance: {found['base_rate']:.3f})",
            f"recall at 1 % FPR       {found['recall_at_1_percent']:.3f}",
        ]
    lines += [
        f"requests/s              {found['requests_per_second']:,.0f}",
        f"p50, p99 of a call      {found['p50_ms']:.1f} ms, {found['p99_ms']:.1f} ms",
    ]
    without = sum(one.memory != "used" for one in run.scored)
    if without:
        lines.append(
            f"{without:,} calls found no memories: does the server use the same data directory?"
        )
    lines += ["", "the most suspicious payments"]
    for one in sorted(run.scored, key=lambda one: -one.judgement.score)[:10]:
        data, said = one.transaction.data, one.judgement
        truth = "fraud" if one.transaction.is_fraud else "legitimate"
        lines.append(
            f"  {data['transaction_id']}  {data['amount']:>9,.2f}  {data['merchant']:<22}"
            f" score {said.score:.4f}  {said.decision:<10}  in truth {truth:<10}  {said.reasons[0]}"
        )
    return "\n".join(lines)


async def _show_sql(data_dir: Path, began: datetime, calls: int) -> None:
    since = (
        f"FROM main.agents.traces WHERE agent_id = '{AGENT}' AND name LIKE '%/Execute'"
        f" AND timestamp >= TIMESTAMP '{began:%Y-%m-%d %H:%M:%S}'"
    )
    try:
        async with asyncio.timeout(SQL_SECONDS):
            while True:
                found = await _sql(data_dir, "json", f"SELECT COUNT(*) AS calls {since}")
                if found and json.loads(found)[0]["calls"] >= calls:
                    break
                await asyncio.sleep(1)
    except TimeoutError:
        tqdm.write(f"the spans are not in main.agents.traces after {SQL_SECONDS:g} s")
        return
    query = (
        "SELECT agent_id, COUNT(*) AS calls,"
        " SUM(CASE WHEN status = 'ERROR' THEN 1 ELSE 0 END) AS errors,"
        " PERCENTILE_CONT(0.5) WITHIN GROUP (ORDER BY duration_ms) AS p50_ms,"
        f" PERCENTILE_CONT(0.99) WITHIN GROUP (ORDER BY duration_ms) AS p99_ms {since}"
        " GROUP BY agent_id"
    )
    for text in (query, _FIGURES):
        tqdm.write(f'\nlakemesh sql "{text}"')
        tqdm.write(await _sql(data_dir, "table", text))


async def _sql(data_dir: Path, form: str, query: str) -> str:
    """What `lakemesh sql` prints, or "" when it fails: the table may not be there yet."""
    process = await asyncio.create_subprocess_exec(
        *(program(), "sql", "--data-dir", str(data_dir), "--format", form, query),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
    )
    try:
        said, _ = await process.communicate()
    except asyncio.CancelledError:
        process.kill()
        await process.wait()
        raise
    return said.decode(errors="replace").rstrip() if process.returncode == 0 else ""


def _sample(
    choose: random.Random, transactions: list[LabelledTransaction], count: int
) -> list[LabelledTransaction]:
    if count >= len(transactions):
        return transactions
    kept = sorted(choose.sample(range(len(transactions)), count))
    return [transactions[i] for i in kept]


if __name__ == "__main__":
    raise SystemExit(main())
