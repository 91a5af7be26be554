"""The figures of a ranking are those the field defines."""

from __future__ import annotations

import random

import pytest
from sklearn.metrics import average_precision_score

from lakemesh.jobs.ranking import rank


def test_average_precision_is_the_one_of_scikit_learn_ties_included() -> None:
    choose = random.Random(1)  # noqa: S311 - test data
    labels = [choose.random() < 0.1 for _ in range(2000)]
    scores = [round(choose.random() + 0.4 * label, 1) for label in labels]
    found = rank(labels, scores)
    assert found.average_precision == pytest.approx(average_precision_score(labels, scores))
    assert found.base_rate == pytest.approx(sum(labels) / 2000)


def test_recall_counts_the_frauds_above_one_percent_of_the_legitimate() -> None:
    # 200 legitimate: two may stand above. Three frauds lie over the third, one under it.
    labels = [True, False, True, False, True, False, True] + [False] * 197
    scores = [float(-i) for i in range(len(labels))]
    assert rank(labels, scores).recall_at_1_percent == 0.75


def test_one_kind_alone_cannot_be_ranked() -> None:
    with pytest.raises(ValueError, match="both"):
        rank([False, False], [0.1, 0.2])
