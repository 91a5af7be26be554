"""SIGKILL at random moments: every acknowledged span is in the table, and once."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

from lakemesh.telemetry.telemetry import open_telemetry
from tests.telemetry.spans import new_span, span_ids_in_table

ROOT = Path(__file__).parents[2]


class Worker:
    """A recording child whose acknowledgements go to a file, which no kill can lose."""

    def __init__(self, data_dir: Path, acknowledged: Path) -> None:
        self.acknowledged = acknowledged
        with acknowledged.open("wb") as out:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "tests.telemetry.recording_child", str(data_dir)],
                stdout=out,
                cwd=ROOT,
            )

    def kill_after(self, seconds: float) -> None:
        """Waits for the first acknowledgement, then for the moment, and kills."""
        deadline = time.monotonic() + 10
        while not self.acknowledged.stat().st_size:
            assert time.monotonic() < deadline, "the worker never began"
            time.sleep(0.01)
        time.sleep(seconds)
        os.kill(self.process.pid, signal.SIGKILL)
        self.process.wait(5)

    def ids(self) -> list[str]:
        lines = self.acknowledged.read_bytes().split(b"\n")
        return [line.decode() for line in lines if len(line) == 16]


def ship_everything(data_dir: Path) -> None:
    """Adopts what the dead left and waits until the spool is empty."""
    telemetry = open_telemetry(data_dir, flush_interval=0.1)
    telemetry.start()
    telemetry.recorder.record(new_span("last"))
    deadline = time.monotonic() + 10
    while len(list((data_dir / "spool").iterdir())) > 1:
        assert time.monotonic() < deadline, "the dead workers' spools are still there"
        time.sleep(0.02)
    assert telemetry.close(10)


def check(data_dir: Path, workers: list[Worker]) -> int:
    ship_everything(data_dir)
    found = Counter(span_ids_in_table(data_dir))
    acknowledged = [span_id for worker in workers for span_id in worker.ids()]
    assert [span_id for span_id in acknowledged if span_id not in found] == []
    assert [span_id for span_id, times in found.items() if times > 1] == []
    return len(acknowledged)


@pytest.mark.slow
@pytest.mark.timeout(120)
def test_no_acknowledged_span_is_lost_or_doubled_by_sigkill(tmp_path: Path) -> None:
    seed = random.randrange(2**32)  # noqa: S311
    moments = random.Random(seed)  # noqa: S311
    workers = []
    for round_number in range(8):
        worker = Worker(tmp_path / "data", tmp_path / f"acknowledged-{round_number}")
        workers.append(worker)
        worker.kill_after(moments.uniform(0.0, 0.9))
    assert check(tmp_path / "data", workers) > 1000, f"seed {seed}"


@pytest.mark.slow
@pytest.mark.timeout(120)
def test_workers_that_live_adopt_the_ones_that_die(tmp_path: Path) -> None:
    workers = [Worker(tmp_path / "data", tmp_path / f"acknowledged-{n}") for n in range(3)]
    for worker, seconds in zip(workers, (0.4, 0.5, 1.0), strict=True):
        worker.kill_after(seconds)
    assert check(tmp_path / "data", workers) > 1000
