"""How well scores rank fraud above the rest: the figures reported of every scorer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Ranking:
    """Quality of one ranking of labelled cases."""

    average_precision: float
    """Mean precision at each fraud, by falling score; chance gets the base rate."""
    recall_at_1_percent: float
    """Share of frauds above the score that 1 % of legitimate cases reach."""
    base_rate: float


def rank(labels: Sequence[bool], scores: Sequence[float]) -> Ranking:
    """The ranking that `scores` make of cases with `labels`; ValueError without both kinds."""
    frauds = sum(labels)
    if not 0 < frauds < len(labels):
        raise ValueError("a ranking needs both fraudulent and legitimate cases")
    legitimate = len(labels) - frauds
    allowed = legitimate // 100
    order = sorted(range(len(labels)), key=lambda i: -scores[i])
    precision_sum = recall = 0.0
    seen = caught = 0
    start = 0
    while start < len(order):
        # Cases of one score are one step: their order among themselves must not matter.
        end = start
        while end < len(order) and scores[order[end]] == scores[order[start]]:
            end += 1
        hits = sum(labels[i] for i in order[start:end])
        seen, caught = end, caught + hits
        precision_sum += hits * caught / seen
        if seen - caught <= allowed:
            recall = caught / frauds
        start = end
    return Ranking(precision_sum / frauds, recall, frauds / len(labels))
