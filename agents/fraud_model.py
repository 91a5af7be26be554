"""The trained scorer of fraud_detector: score cards, read from a file, added up in plain Python.

Each situation (how much is known, how the payment was made) has its card; a card gives each feature
a curve of log-odds through a few knots; the score is the logistic of their sum. The nearest
labelled cases add their own log-odds. `python -m lakemesh.jobs.train_fraud` makes the file.
"""

from __future__ import annotations

import json
import math
from bisect import bisect_right
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lakemesh.agents.fraud_features import Features

WEIGHTS_FILE = Path(__file__).with_name("fraud_weights.json")
FORMAT = 1


@dataclass(frozen=True, slots=True)
class Curve:
    """Log-odds of one feature: straight lines between knots, level outside them."""

    knots: tuple[float, ...]
    points: tuple[float, ...]
    usual: float
    """The feature's value at the 95th percentile of legitimate payments, to explain with."""

    def __call__(self, value: float) -> float:
        knots, points = self.knots, self.points
        if value <= knots[0]:
            return points[0]
        if value >= knots[-1]:
            return points[-1]
        i = bisect_right(knots, value)
        left = knots[i - 1]
        share = (value - left) / (knots[i] - left)
        return points[i - 1] + share * (points[i] - points[i - 1])


@dataclass(frozen=True, slots=True)
class Card:
    """The curves of one situation; they are centred, so the intercept is the average payment's."""

    intercept: float
    curves: Mapping[str, Curve]


@dataclass(frozen=True, slots=True)
class Contribution:
    """What one feature added to the log-odds."""

    feature: str
    value: float
    log_odds: float
    usual: float


@dataclass(frozen=True, slots=True)
class Assessment:
    """A transaction's log-odds of fraud and where they come from, the strongest first."""

    log_odds: float
    contributions: tuple[Contribution, ...]
    situation: str


@dataclass(frozen=True, slots=True)
class NeighbourWeights:
    """How much the nearest labelled cases count."""

    weight: float
    prior_cases: float
    """Imaginary cases at the base rate added to the real ones, so that few cases say little."""


class FraudModel:
    """The score cards and thresholds of one weights file."""

    def __init__(self, weights: Mapping[str, Any]) -> None:
        if weights.get("format") != FORMAT:
            raise ValueError(f"fraud weights have format {weights.get('format')}, not {FORMAT}")
        self.version: str = weights["version"]
        self.base_rate: float = weights["base_rate"]
        self.review_at: float = weights["thresholds"]["review"]
        self.fraud_at: float = weights["thresholds"]["fraud"]
        self.neighbours = NeighbourWeights(**weights["neighbours"])
        self.cards = {
            situation: Card(
                card["intercept"],
                {
                    name: Curve(tuple(curve["knots"]), tuple(curve["points"]), curve["usual"])
                    for name, curve in card["curves"].items()
                },
            )
            for situation, card in weights["cards"].items()
        }

    @classmethod
    def load(cls, path: Path = WEIGHTS_FILE) -> FraudModel:
        """The model in `path`; ValueError or KeyError when it is not one."""
        return cls(json.loads(path.read_text()))

    def assess(self, features: Features) -> Assessment:
        """Judge a transaction by itself; takes a few microseconds."""
        situation = features.situation
        card = self.cards[situation]
        found = []
        total = card.intercept
        for name, curve in card.curves.items():
            value = getattr(features, name)
            if value is None:
                continue
            log_odds = curve(value)
            total += log_odds
            found.append(Contribution(name, value, log_odds, curve.usual))
        found.sort(key=lambda one: -abs(one.log_odds))
        return Assessment(total, tuple(found), situation)

    def neighbour_log_odds(self, cases: Iterable[tuple[bool, float]]) -> float:
        """What (is fraud, similarity) of the nearest cases add to the log-odds; 0 for none."""
        return neighbour_evidence(cases, self.base_rate, self.neighbours.prior_cases) * (
            self.neighbours.weight
        )

    def decide(self, score: float) -> str:
        """`fraud`, `review` or `legitimate`."""
        if score >= self.fraud_at:
            return "fraud"
        return "review" if score >= self.review_at else "legitimate"


def neighbour_evidence(
    cases: Iterable[tuple[bool, float]], base_rate: float, prior_cases: float
) -> float:
    """Log-odds of fraud among `cases` above those of the base rate, weighed by similarity."""
    fraud = everything = 0.0
    for is_fraud, similarity in cases:
        weight = max(similarity, 0.0) ** 4  # a case only vaguely alike says next to nothing
        everything += weight
        if is_fraud:
            fraud += weight
    if everything == 0.0:
        return 0.0
    share = (fraud + base_rate * prior_cases) / (everything + prior_cases)
    return logit(share) - logit(base_rate)


def logistic(log_odds: float) -> float:
    """The probability with these log-odds."""
    if log_odds >= 0:
        return 1 / (1 + math.exp(-min(log_odds, 700.0)))
    odds = math.exp(max(log_odds, -700.0))
    return odds / (1 + odds)


def logit(probability: float) -> float:
    """The log-odds of a probability strictly between 0 and 1."""
    return math.log(probability / (1 - probability))
