"""The scorer by itself: what it reads from a payment, how it adds up, what the words say."""

from __future__ import annotations

import json
from typing import Any

import pytest
from pydantic import ValidationError

from lakemesh.agents.fraud_features import Features, Transaction, describe, features_of
from lakemesh.agents.fraud_model import (
    WEIGHTS_FILE,
    Curve,
    FraudModel,
    logistic,
    logit,
    neighbour_evidence,
)

HOME = {"latitude": -23.55, "longitude": -46.63}
FAR = {"latitude": -3.73, "longitude": -38.52}


@pytest.fixture(scope="module")
def model() -> FraudModel:
    return FraudModel.load()


def score(model: FraudModel, **data: Any) -> float:
    transaction = Transaction.model_validate({"transaction_id": "t", **data})
    return logistic(model.assess(features_of(transaction)).log_odds)


def test_a_curve_is_straight_between_knots_and_level_outside() -> None:
    curve = Curve((0.0, 10.0, 20.0), (1.0, 3.0, -1.0), usual=5.0)
    assert [curve(x) for x in (-5, 0, 5, 10, 15, 20, 1e9)] == [1, 1, 2, 3, 1, -1, -1]


def test_logistic_and_logit_undo_each_other_and_never_overflow() -> None:
    assert logit(logistic(1.5)) == pytest.approx(1.5)
    assert logistic(-1e6) == pytest.approx(0.0)
    assert logistic(1e6) == 1.0


def test_a_large_amount_with_nothing_else_known_is_more_suspicious(model: FraudModel) -> None:
    large = score(model, amount=5000, merchant="Electronics Store")
    small = score(model, amount=12.5, merchant="Corner Grocery")
    assert large > 0.9
    assert small < model.base_rate


def test_goods_shipped_far_away_are_more_suspicious(model: FraudModel) -> None:
    common = {"amount": 90, "channel": "card_not_present", "billing_location": HOME}
    assert score(model, **common, shipping_location=FAR) > 0.9
    assert score(model, **common, shipping_location=HOME) < model.base_rate


def test_a_card_used_far_from_home_is_more_suspicious(model: FraudModel) -> None:
    common = {"amount": 90, "channel": "card_present", "billing_location": HOME}
    assert score(model, **common, location=FAR) > 0.5
    assert score(model, **common, location=HOME) < model.base_rate * 2


def test_a_higher_amount_is_never_much_less_suspicious(model: FraudModel) -> None:
    scores = [score(model, amount=amount) for amount in (60, 150, 230, 400, 1000, 1e12)]
    assert scores == sorted(scores)


@pytest.mark.parametrize(
    "place",
    [{"city": "Lisbon"}, {"latitude": 1.0}, "Lisbon", {}],
    ids=["city", "half", "text", "empty"],
)
def test_a_place_without_coordinates_gives_no_distance(place: Any) -> None:
    transaction = Transaction.model_validate(
        {"transaction_id": "t", "amount": 1, "location": place, "billing_location": HOME}
    )
    assert features_of(transaction).merchant_km is None


def test_distance_is_along_the_great_circle() -> None:
    transaction = Transaction.model_validate(
        {"transaction_id": "t", "amount": 1, "location": FAR, "billing_location": HOME}
    )
    # 2368 km between Sao Paulo and Fortaleza, by any atlas.
    assert features_of(transaction).merchant_km == pytest.approx(2368, rel=0.01)


def test_no_cases_say_nothing_and_many_say_more_than_few() -> None:
    assert neighbour_evidence([], 0.01, 5) == 0
    assert neighbour_evidence([(True, -0.5)], 0.01, 5) == 0
    one = neighbour_evidence([(True, 1.0)], 0.01, 5)
    ten = neighbour_evidence([(True, 1.0)] * 10, 0.01, 5)
    vague = neighbour_evidence([(True, 0.3)] * 10, 0.01, 5)
    assert 0 < vague < one < ten
    assert neighbour_evidence([(False, 1.0)] * 10, 0.01, 5) < 0


def test_words_tell_bands_and_not_what_identifies_a_payment() -> None:
    data = {
        "transaction_id": "txn_12345",
        "amount": 4990.0,
        "merchant": "Electronics Store",
        "customer_id": "customer_9",
        "timestamp": "2025-01-01T03:00:00Z",
        "channel": "card_not_present",
        "billing_location": HOME,
        "shipping_location": FAR,
    }
    transaction = Transaction.model_validate(data)
    assert describe(transaction, features_of(transaction)) == (
        "extremely large payment, at Electronics Store, card not present,"
        " goods shipped to a distant place, at night"
    )


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"amount": "5000"}, "amount"),
        ({"amount": True}, "amount"),
        ({"amount": -1}, "amount"),
        ({"amount": float("nan")}, "amount"),
        ({"amount": float("inf")}, "amount"),
        ({"transaction_id": 5}, "transaction_id"),
        ({"transaction_id": ""}, "transaction_id"),
        ({"timestamp": "yesterday"}, "timestamp"),
        ({"channel": "by mail"}, "channel"),
        ({"billing_location": {"latitude": 91}}, "billing_location"),
    ],
)
def test_wrong_input_is_refused_by_name(change: dict[str, Any], field: str) -> None:
    with pytest.raises(ValidationError) as refused:
        Transaction.model_validate({"transaction_id": "t", "amount": 1.0, **change})
    assert refused.value.errors()[0]["loc"][0] == field


def test_unknown_fields_are_allowed() -> None:
    Transaction.model_validate({"transaction_id": "t", "amount": 1.0, "device": {"os": "x"}})


def test_the_weights_are_small_and_say_where_they_come_from() -> None:
    assert WEIGHTS_FILE.stat().st_size < 200_000
    weights = json.loads(WEIGHTS_FILE.read_text())
    assert weights["trained_on"]["holdout_average_precision"] > 0.6
    assert weights["thresholds"]["fraud"] >= 0.5 >= weights["thresholds"]["review"]
    for card in weights["cards"].values():
        for curve in card["curves"].values():
            assert len(curve["knots"]) == len(curve["points"])
            assert curve["knots"] == sorted(curve["knots"])


def test_weights_of_another_format_are_refused() -> None:
    with pytest.raises(ValueError, match="format"):
        FraudModel({"format": 99})


def test_every_situation_has_its_card(model: FraudModel) -> None:
    for card_present in (None, True, False):
        for km in (None, 0.0, 3.0, 900.0):
            for hour in (None, 0.0, 23.9):
                features = Features(10.0, card_present, km, km, hour)
                assert model.assess(features).contributions
