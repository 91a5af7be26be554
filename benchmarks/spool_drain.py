"""From the spool into Delta: spans a second, recorded and drained, and whether each came once."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.processes import ROOT
from benchmarks.report import Figure, at_least, missing
from benchmarks.rounds import say
from lakemesh.telemetry.span import OK, SERVER, IdGenerator, Span
from lakemesh.telemetry.telemetry import open_telemetry

_SECONDS = 300


def measure(spans: int) -> list[Figure]:
    """Figures from a process of its own, since delta-rs keeps threads."""
    say(f"draining {spans} spans into Delta")
    command = [sys.executable, "-m", "benchmarks.spool_drain", str(spans)]
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=_SECONDS
    )
    words = done.stdout.split()
    if done.returncode or len(words) != 4:
        said = (done.stderr or done.stdout).strip().splitlines()
        return [missing("spool to Delta", said[-1] if said else f"exit code {done.returncode}")]
    record_us, rate, rows, distinct = (float(word) for word in words)
    once = rows == distinct == spans
    note = "each exactly once" if once else f"{rows:.0f} rows, {distinct:.0f} of {spans} spans"
    drained = at_least("spool to Delta", rate, 20_000, "spans/s", note)
    return [Figure("recording a span durably", record_us, "us"), drained]


def main(spans: int) -> None:
    from lakemesh.telemetry.sql import query

    with tempfile.TemporaryDirectory() as folder:
        telemetry = open_telemetry(Path(folder))
        recorder, ids = telemetry.recorder, IdGenerator()
        made = [_span(ids) for _ in range(spans)]
        began = time.perf_counter()
        for span in made:
            recorder.record(span)
        recorded = time.perf_counter() - began
        began = time.perf_counter()
        telemetry.start()
        if not telemetry.flush(_SECONDS / 2):
            raise SystemExit("not drained in time")
        drained = time.perf_counter() - began
        telemetry.close(30)
        counts = "SELECT count(*), count(DISTINCT span_id) FROM main.agents.otel_spans"
        ((rows, distinct),) = query(Path(folder), counts).rows
        print(recorded / spans * 1e6, spans / drained, rows, distinct)


def _span(ids: IdGenerator) -> Span:
    """A server span as a call leaves it."""
    now = time.time_ns()
    return Span(
        trace_id=ids.trace_id(),
        span_id=ids.span_id(),
        parent_span_id="",
        name="lakemesh.api.agent.v1.AgentService/Execute",
        kind=SERVER,
        start_ns=now,
        end_ns=now + 250_000,
        status_code=OK,
        agent_id="echo",
        attributes={
            "rpc.system": "grpc",
            "rpc.service": "lakemesh.api.agent.v1.AgentService",
            "rpc.method": "Execute",
            "rpc.grpc.status_code": 0,
            "network.protocol.name": "grpc",
            "client.address": "127.0.0.1",
        },
    )


if __name__ == "__main__":
    main(int(sys.argv[1]))
