"""Trains fraud_detector's scorer and says how good it is: `python -m lakemesh.jobs.train_fraud`.

Payments of the first 60 days teach, those after a pause of 7 days judge. The features hold no
customer and no terminal, so that who appears on both sides teaches nothing. How much the nearest
cases count, and the thresholds, come from the last 15 of the 60 days. A gradient boosting baseline
gets the same rows and the same raw inputs, distances included.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from lakemesh.agents.fraud_detector import NEIGHBOURS
from lakemesh.agents.fraud_features import Features
from lakemesh.agents.fraud_model import (
    FORMAT,
    WEIGHTS_FILE,
    FraudModel,
    logistic,
    neighbour_evidence,
)
from lakemesh.jobs.ranking import Ranking, rank
from lakemesh.jobs.transactions import (
    SEED,
    LabelledTransaction,
    Simulation,
    load_transactions,
    split_by_time,
)
from lakemesh.memory.embedder import SentenceEncoder

VALIDATION_DAY = 45
REMEMBERED = 10_000
"""Past cases that stand in memory while the weight of neighbours is found."""
PRIOR_CASES = 5.0
MEMORY_COST = 0.01
"""Share of the average precision on simulated cases given up so that remembered cases count."""
REVIEW_FALSE_POSITIVES = 0.01
"""Share of legitimate payments that may be held for review or called fraud."""
FRAUD_PRECISION = 0.9
"""Share of payments called fraud that must be."""

_AMOUNT_KNOTS = (0, 25, 50, 75, 100, 125, 150, 175, 200, 219, 222, 260, 320, 400, 600)
_SITUATIONS: dict[str, dict[str, tuple[float, ...]]] = {
    "shipped_home": {"amount": _AMOUNT_KNOTS, "hour": (0, 6, 12, 18, 24)},
    "shipped_elsewhere": {
        "amount": _AMOUNT_KNOTS,
        "shipping_km": (0.5, 3, 5, 7, 9, 9.9, 10.3, 11, 14, 20, 100),
        "hour": (0, 6, 12, 18, 24),
    },
    "card_present": {
        "amount": _AMOUNT_KNOTS,
        "merchant_km": (0, 3, 5, 7, 9, 9.9, 10.3, 11, 14, 20, 100),
        "hour": (0, 6, 12, 18, 24),
    },
    "amount_alone": {"amount": _AMOUNT_KNOTS, "hour": (0, 6, 12, 18, 24)},
}


@dataclass(frozen=True, slots=True)
class Report:
    """What the training ended with, all on the holdout."""

    model: Ranking
    model_alone: Ranking
    """The same without memory."""
    amount_alone: Ranking
    """The same for payments of which only the amount and the hour are told, without memory."""
    baselines: dict[str, Ranking]
    past: int
    holdout: int


class Cases:
    """Payments with their features and the vectors of their texts, for brute-force neighbours."""

    def __init__(self, transactions: Sequence[LabelledTransaction]) -> None:
        self.features = [t.features() for t in transactions]
        self.labels = np.array([t.is_fraud for t in transactions])
        self.texts = [t.text() for t in transactions]


def train(
    transactions: list[LabelledTransaction], seed: int = SEED, *, baselines: bool = True
) -> tuple[dict[str, Any], Report]:
    """The weights file's content and the figures on the holdout."""
    split = split_by_time(transactions)
    past, future = split.past, split.future
    first = [t for t in past if t.day < VALIDATION_DAY]
    last = [t for t in past if t.day >= VALIDATION_DAY]
    vectors = _embed({t.text() for t in transactions})

    weights = _fit_cards(Cases(first))
    alone, evidence = _judge(weights, Cases(first), Cases(last), vectors, seed)
    labels = np.array([t.is_fraud for t in last])
    weight = _neighbour_weight(alone, evidence, labels)
    thresholds = _thresholds(alone + weight * evidence, labels)

    weights = _fit_cards(Cases(past))
    weights["neighbours"]["weight"] = weight
    weights["thresholds"] = thresholds
    held = Cases(future)
    alone, evidence = _judge(weights, Cases(past), held, vectors, seed)
    truth = [bool(x) for x in held.labels]
    model = FraudModel(weights)
    bare = [
        model.assess(replace(f, card_present=None, merchant_km=None, shipping_km=None)).log_odds
        for f in held.features
    ]
    report = Report(
        model=rank(truth, list(alone + weight * evidence)),
        model_alone=rank(truth, list(alone)),
        amount_alone=rank(truth, bare),
        baselines=_baselines(past, future) if baselines else {},
        past=len(past),
        holdout=len(future),
    )
    return weights, report


def _fit_cards(cases: Cases) -> dict[str, Any]:
    cards: dict[str, Any] = {}
    for situation, curves in _SITUATIONS.items():
        rows = [
            (f, y)
            for f, y in zip(cases.features, cases.labels, strict=True)
            # What little is known of a payment is known of every payment.
            if situation in ("amount_alone", f.situation)
        ]
        cards[situation] = _fit_card(curves, [f for f, _ in rows], np.array([y for _, y in rows]))
    return {
        "format": FORMAT,
        "version": "",
        "about": "Score cards of fraud_detector; made by python -m lakemesh.jobs.train_fraud.",
        "base_rate": round(float(cases.labels.mean()), 5),
        "thresholds": {"review": 0.5, "fraud": 0.9},
        "neighbours": {"weight": 0.0, "prior_cases": PRIOR_CASES},
        "cards": cards,
    }


def _fit_card(
    curves: dict[str, tuple[float, ...]], features: list[Features], labels: Any
) -> dict[str, Any]:
    """Logistic regression on ramps: each weight is the rise of a curve between two knots."""
    from sklearn.linear_model import LogisticRegression

    blocks = []
    for name, knots in curves.items():
        values = np.array([getattr(f, name) for f in features], dtype=float)
        left, right = np.array(knots[:-1]), np.array(knots[1:])
        blocks.append(np.clip((values[:, None] - left) / (right - left), 0.0, 1.0))
    design = np.hstack(blocks)
    fitted = LogisticRegression(C=3.0, max_iter=2000).fit(design, labels)
    rises, intercept = fitted.coef_[0], float(fitted.intercept_[0])
    card: dict[str, Any] = {"intercept": 0.0, "curves": {}}
    start = 0
    for (name, knots), block in zip(curves.items(), blocks, strict=True):
        rise = rises[start : start + len(knots) - 1]
        start += len(knots) - 1
        # Centred on the average payment, so that a contribution means better or worse than that.
        centre = float((block @ rise).mean())
        intercept += centre
        values = np.array([getattr(f, name) for f in features], dtype=float)
        points = np.concatenate([[0.0], np.cumsum(rise)]) - centre
        card["curves"][name] = {
            "knots": list(knots),
            "points": [round(float(p), 3) for p in points],
            "usual": round(float(np.percentile(values[~labels], 95)), 2),
        }
    card["intercept"] = round(intercept, 3)
    return card


def _judge(
    weights: dict[str, Any],
    known: Cases,
    asked: Cases,
    vectors: dict[str, Any],
    seed: int,
) -> tuple[Any, Any]:
    """Log-odds of `asked` by the cards, and the evidence of neighbours among `known`."""
    model = FraudModel(weights)
    alone = np.array([model.assess(f).log_odds for f in asked.features])
    chosen = np.random.default_rng(seed).permutation(len(known.texts))[:REMEMBERED]
    by_text: dict[str, list[bool]] = {}
    for i in chosen:
        by_text.setdefault(known.texts[i], []).append(bool(known.labels[i]))
    texts = list(by_text)
    matrix = np.stack([vectors[text] for text in texts])
    evidence_of: dict[str, float] = {}
    for text in set(asked.texts):
        nearness = matrix @ vectors[text]
        cases: list[tuple[bool, float]] = []
        for j in np.argsort(-nearness)[:NEIGHBOURS]:
            cases += [(label, float(nearness[j])) for label in by_text[texts[j]]]
            if len(cases) >= NEIGHBOURS:
                break
        evidence_of[text] = neighbour_evidence(
            cases[:NEIGHBOURS], model.base_rate, model.neighbours.prior_cases
        )
    return alone, np.array([evidence_of[text] for text in asked.texts])


def _embed(texts: set[str]) -> dict[str, Any]:
    async def all_of() -> dict[str, Any]:
        embedder = SentenceEncoder()
        ordered, vectors = sorted(texts), {}
        try:
            for start in tqdm(
                range(0, len(ordered), 256), desc="embedding texts", unit="batch", disable=None
            ):
                part = ordered[start : start + 256]
                for text, vector in zip(part, await embedder.embed(part), strict=True):
                    vectors[text] = np.array(vector, dtype=np.float32)
        finally:
            await embedder.close()
        return vectors

    return asyncio.run(all_of())


def _neighbour_weight(alone: Any, evidence: Any, labels: Any) -> float:
    """The largest weight in 0..1 that costs at most MEMORY_COST of the average precision.

    Simulated cases repeat what the cards have learned already, so the weight that is best for them
    is next to nothing. Cases that people label later hold what no training saw; they must count.
    """
    truth = [bool(y) for y in labels]

    def precision(weight: float) -> float:
        return rank(truth, list(alone + weight * evidence)).average_precision

    found = {round(w, 2): precision(w) for w in np.arange(0.0, 1.01, 0.05)}
    return float(max(w for w, ap in found.items() if ap >= (1 - MEMORY_COST) * max(found.values())))


def _thresholds(log_odds: Any, labels: Any) -> dict[str, float]:
    review = float(np.quantile(log_odds[~labels], 1 - REVIEW_FALSE_POSITIVES))
    order = np.argsort(-log_odds)
    precision = np.cumsum(labels[order]) / np.arange(1, len(order) + 1)
    enough = np.flatnonzero(precision >= FRAUD_PRECISION)
    fraud = float(log_odds[order[enough[-1]]]) if len(enough) else float(log_odds.max())
    # Whatever the data allow, what is called fraud is more likely fraud than not.
    review_at, fraud_at = logistic(review), max(logistic(fraud), 0.5)
    return {"review": round(min(review_at, fraud_at), 4), "fraud": round(fraud_at, 4)}


def _baselines(
    past: list[LabelledTransaction], future: list[LabelledTransaction]
) -> dict[str, Ranking]:
    from sklearn.ensemble import (
        GradientBoostingClassifier,
        HistGradientBoostingClassifier,
    )

    inputs, labels = _raw(past), np.array([t.is_fraud for t in past])
    asked, truth = _raw(future), [t.is_fraud for t in future]
    found = {}
    for kind in (HistGradientBoostingClassifier, GradientBoostingClassifier):
        fitted = kind(random_state=0).fit(inputs, labels)
        found[kind.__name__] = rank(truth, list(fitted.predict_proba(asked)[:, 1]))
    return found


def _raw(transactions: list[LabelledTransaction]) -> Any:
    rows = []
    for t in transactions:
        f = t.features()
        places = [t.data[p] for p in ("location", "billing_location", "shipping_location")]
        coordinates = [place[axis] for place in places for axis in ("latitude", "longitude")]
        category = sum(map(ord, t.data["category"]))
        known = (f.amount, f.card_present, f.merchant_km, f.shipping_km, f.hour)
        rows.append([*known, t.day % 7, category, *coordinates])
    return np.array(rows, dtype=float)


def describe_report(report: Report) -> str:
    """The figures as a table for people."""
    rows = {
        "fraud_detector, 10,000 cases in memory": report.model,
        "fraud_detector, memory empty": report.model_alone,
        "fraud_detector, amount and hour alone": report.amount_alone,
        **{f"{name} (scikit-learn)": ranking for name, ranking in report.baselines.items()},
    }
    lines = [
        f"{report.past:,} payments taught, {report.holdout:,} later ones judge;"
        f" {report.model.base_rate:.2%} of these are fraud (what chance gets as precision)",
        f"{'':44}{'average precision':>18}{'recall at 1 % FPR':>19}",
    ]
    for name, ranking in rows.items():
        lines.append(
            f"{name:44}{ranking.average_precision:>18.3f}{ranking.recall_at_1_percent:>19.3f}"
        )
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    """Train, print the figures, write the weights; 1 when the model is not good enough to ship."""
    parser = argparse.ArgumentParser(
        prog="python -m lakemesh.jobs.train_fraud", description=__doc__
    )
    parser.add_argument(
        "--data-dir", type=Path, default=Path(os.environ.get("LAKEMESH_DATA_DIR", ".lakemesh"))
    )
    parser.add_argument("--output", type=Path, default=WEIGHTS_FILE)
    parser.add_argument("--seed", type=int, default=SEED)
    options = parser.parse_args(arguments)
    tqdm.write("loading payments (simulated once, about 30 s)")
    simulation = Simulation(seed=options.seed)
    weights, report = train(load_transactions(options.data_dir, simulation), options.seed)
    weights["version"] = f"cards-{FORMAT}.{report.past}"
    weights["trained_on"] = {
        "simulator": "synccfd 0.1.0",
        "seed": options.seed,
        "payments": report.past,
        "holdout_average_precision": round(report.model.average_precision, 4),
        "holdout_recall_at_1_percent": round(report.model.recall_at_1_percent, 4),
    }
    tqdm.write(describe_report(report))
    best = max(r.average_precision for r in report.baselines.values())
    if report.model.average_precision < 0.9 * best:
        tqdm.write("not written: more than 10 % below the better baseline")
        return 1
    options.output.write_text(json.dumps(weights, indent=1) + "\n")
    tqdm.write(f"wrote {options.output} ({options.output.stat().st_size:,} bytes)")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
