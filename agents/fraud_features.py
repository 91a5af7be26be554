"""What a transaction says about itself: numbers for the scorer, words for memory and for people."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

EARTH_DIAMETER_KM = 12742.0
NEAR_KM = 0.5
"""Two addresses nearer than this are taken for the same."""

Name = Annotated[str, StringConstraints(max_length=256)]


class Place(BaseModel):
    """Somewhere on earth; only with both coordinates can a distance be told."""

    model_config = ConfigDict(extra="allow")

    latitude: float | None = Field(default=None, ge=-90, le=90, description="degrees north")
    longitude: float | None = Field(default=None, ge=-180, le=180, description="degrees east")
    city: Name | None = None
    country: Name | None = None


class Transaction(BaseModel):
    """One card payment. The more of it is known, the better it is judged."""

    model_config = ConfigDict(extra="allow")

    transaction_id: Annotated[str, StringConstraints(strict=True, min_length=1, max_length=256)]
    amount: float = Field(strict=True, ge=0, allow_inf_nan=False, description="in main units")
    merchant: Name | None = None
    customer_id: Name | None = None
    category: Name | None = Field(default=None, description="what the merchant sells")
    timestamp: datetime | None = Field(default=None, description="when, in the merchant's time")
    channel: Literal["card_present", "card_not_present"] | None = None
    location: Place | Name | None = Field(default=None, description="where the merchant is")
    billing_location: Place | Name | None = Field(default=None, description="the customer's home")
    shipping_location: Place | Name | None = Field(default=None, description="where goods go")


@dataclass(frozen=True, slots=True)
class Features:
    """The numbers of one transaction; None is what could not be known."""

    amount: float
    card_present: bool | None
    merchant_km: float | None
    """From the billing address to the merchant."""
    shipping_km: float | None
    """From the billing address to where the goods go."""
    hour: float | None
    """Of the day, 0 to 24."""

    @property
    def situation(self) -> str:
        """Which of the scorer's cards judges it: by what is known, and how the payment was made."""
        if self.card_present is False and self.shipping_km is not None:
            return "shipped_elsewhere" if self.shipping_km > NEAR_KM else "shipped_home"
        if self.card_present is True and self.merchant_km is not None:
            return "card_present"
        return "amount_alone"


def features_of(transaction: Transaction) -> Features:
    """The numbers of `transaction`."""
    channel, when = transaction.channel, transaction.timestamp
    return Features(
        amount=transaction.amount,
        card_present=None if channel is None else channel == "card_present",
        merchant_km=_distance(transaction.billing_location, transaction.location),
        shipping_km=_distance(transaction.billing_location, transaction.shipping_location),
        hour=None if when is None else when.hour + when.minute / 60,
    )


def describe(transaction: Transaction, features: Features) -> str:
    """The transaction in words, as it is remembered and looked for.

    Amounts, distances and hours are told in bands: a sentence encoder knows what `very large` means
    but not that 4,990 lies near 5,000. What identifies one payment (its id, the customer, the exact
    amount) belongs in a memory's metadata.
    """
    words = [_band(features.amount, _AMOUNTS) + " payment"]
    if transaction.category:
        words.append(f"for {transaction.category}")
    elif transaction.merchant:
        words.append(f"at {transaction.merchant}")
    if features.card_present is not None:
        words.append("card present" if features.card_present else "card not present")
    if features.shipping_km is not None and not features.card_present:
        words.append("goods shipped " + _band(features.shipping_km, _SHIPPED))
    if features.merchant_km is not None and features.card_present is not False:
        words.append("merchant " + _band(features.merchant_km, _AWAY))
    if features.hour is not None:
        words.append(_band(features.hour, _HOURS))
    return ", ".join(words)


Bands = tuple[tuple[float, str], ...]
"""(below this, words), in rising order, the last one without end."""

_AMOUNTS: Bands = (
    (10, "tiny"),
    (50, "small"),
    (100, "moderate"),
    (200, "sizeable"),
    (500, "large"),
    (2000, "very large"),
    (math.inf, "extremely large"),
)
_SHIPPED: Bands = (
    (NEAR_KM, "to the home address"),
    (5, "to the neighbourhood"),
    (10.1, "within the town"),
    (50, "outside the town"),
    (math.inf, "to a distant place"),
)
_AWAY: Bands = (
    (5, "in the neighbourhood"),
    (10.1, "within the town"),
    (50, "outside the town"),
    (math.inf, "in a distant place"),
)
_HOURS: Bands = (
    (6, "at night"),
    (12, "in the morning"),
    (18, "in the afternoon"),
    (math.inf, "in the evening"),
)


def _band(value: float, bands: Bands) -> str:
    return next(words for below, words in bands if value < below)


def _distance(one: Place | str | None, other: Place | str | None) -> float | None:
    """Kilometres between two places by the haversine formula, where both have coordinates."""
    if not isinstance(one, Place) or not isinstance(other, Place):
        return None
    if one.latitude is None or one.longitude is None:
        return None
    if other.latitude is None or other.longitude is None:
        return None
    radians: Callable[[float], float] = math.radians
    north, north2 = radians(one.latitude), radians(other.latitude)
    east = radians(other.longitude - one.longitude)
    half = (
        math.sin((north2 - north) / 2) ** 2
        + math.cos(north) * math.cos(north2) * math.sin(east / 2) ** 2
    )
    return EARTH_DIAMETER_KM * math.asin(min(1.0, math.sqrt(half)))
