"""Training and demonstration on a small simulation: the same steps, generous bounds."""

from __future__ import annotations

import asyncio
import os
import re
import sys
from pathlib import Path

import pytest

from lakemesh.agents.fraud_model import FraudModel, logistic
from lakemesh.jobs.ranking import rank
from lakemesh.jobs.train_fraud import describe_report, train
from lakemesh.jobs.transactions import (
    LabelledTransaction,
    Simulation,
    load_transactions,
    split_by_time,
    thin_frauds,
)
from tests.running import Server

pytestmark = pytest.mark.slow

SMALL = Simulation(customers=80, terminals=600, fraud_rate=0.03)


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("payments")


@pytest.fixture(scope="module")
def payments(cache: Path) -> list[LabelledTransaction]:
    return load_transactions(cache, SMALL)


def test_payments_are_kept_and_come_back_the_same(
    cache: Path, payments: list[LabelledTransaction]
) -> None:
    assert load_transactions(cache, SMALL) == payments
    assert [p.day for p in payments] == sorted(p.day for p in payments)
    frauds = sum(p.is_fraud for p in payments)
    assert frauds / len(payments) == pytest.approx(SMALL.fraud_rate, rel=0.05)
    assert len({p.data["transaction_id"] for p in payments}) == len(payments)


def test_thinning_keeps_every_legitimate_payment(payments: list[LabelledTransaction]) -> None:
    thinned = thin_frauds(payments, 0.01, seed=1)
    assert [p for p in thinned if not p.is_fraud] == [p for p in payments if not p.is_fraud]
    assert thinned == thin_frauds(payments, 0.01, seed=1)


def test_nothing_of_the_future_teaches(payments: list[LabelledTransaction]) -> None:
    split = split_by_time(payments)
    assert max(p.day for p in split.past) < 60
    assert min(p.day for p in split.future) >= 67


def test_the_shipped_scorer_ranks_payments_it_never_saw(
    payments: list[LabelledTransaction],
) -> None:
    model = FraudModel.load()
    future = split_by_time(payments).future
    scores = [logistic(model.assess(p.features()).log_odds) for p in future]
    ranking = rank([p.is_fraud for p in future], scores)
    assert ranking.average_precision > 0.5
    assert ranking.average_precision > 10 * ranking.base_rate


@pytest.mark.timeout(180)
def test_training_reaches_the_baseline(payments: list[LabelledTransaction]) -> None:
    weights, report = train(payments)
    best = max(ranking.average_precision for ranking in report.baselines.values())
    assert report.model.average_precision > 0.8 * best
    assert report.model.average_precision > 10 * report.model.base_rate
    assert "average precision" in describe_report(report)
    FraudModel(weights)


@pytest.mark.timeout(180)
async def test_the_demonstration_scores_through_a_running_server_and_shows_its_spans(
    cache: Path, tmp_path: Path
) -> None:
    with Server(tmp_path) as server:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "lakemesh.jobs.demo", "--target", server.target),
            *("--data-dir", str(tmp_path), "--customers", "40", "--remember", "400"),
            *("--score", "300"),
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            env={k: v for k, v in os.environ.items() if not k.startswith(("LAKEMESH_", "PG"))},
        )
        async with asyncio.timeout(150):
            said, _ = await process.communicate()
    text = said.decode()
    assert process.returncode == 0, text
    assert "average precision" in text
    assert "recall at 1 % FPR" in text
    assert "requests/s" in text
    assert "the most suspicious payments" in text
    assert "lakemesh sql" in text
    calls, figures = text.split("lakemesh sql")[1:]
    assert "fraud_detector" in calls
    printed = re.search(r"average precision +(\d\.\d+)", text)
    assert printed is not None
    stored = [float(number) for number in re.findall(r"\d\.\d+", figures)]
    assert any(abs(number - float(printed[1])) < 0.001 for number in stored)
    assert "found no memories" not in text
