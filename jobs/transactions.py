"""Labelled card payments of the public simulator `synccfd`, in the shape fraud_detector takes.

The simulator (an evolution of the one in the Fraud Detection Handbook) knows customers, terminals,
distances and four ways of fraud, and makes far more fraud than there is: the frauds are thinned to
a realistic share, the legitimate payments are all kept. Terminals have no names there; each gets a
made-up merchant and category, which say nothing about fraud.
"""

from __future__ import annotations

import contextlib
import gzip
import io
import json
import logging
import random
import warnings
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from lakemesh.agents.fraud_features import Features, Transaction, describe, features_of

_log = logging.getLogger(__name__)

FRAUD_RATE = 0.01
SEED = 7
CATEGORIES = (
    "groceries",
    "electronics",
    "clothing",
    "restaurants",
    "fuel",
    "pharmacy",
    "travel",
    "furniture",
    "books",
    "sporting goods",
)


@dataclass(frozen=True, slots=True)
class LabelledTransaction:
    """One payment as fraud_detector takes it, and the truth about it."""

    data: dict[str, Any]
    is_fraud: bool
    scenario: int
    """0 legitimate, 1 high amount, 2 compromised terminal, 3 stolen number, 4 stolen card."""
    day: int
    """Days since the first payment of the data set."""

    def features(self) -> Features:
        return features_of(Transaction.model_validate(self.data))

    def text(self) -> str:
        transaction = Transaction.model_validate(self.data)
        return describe(transaction, features_of(transaction))

    def metadata(self) -> dict[str, Any]:
        """What is remembered beside the text of a case."""
        kept = ("transaction_id", "amount", "merchant", "customer_id", "category", "channel")
        return {key: self.data[key] for key in kept} | {
            "label": "fraud" if self.is_fraud else "legitimate"
        }


@dataclass(frozen=True, slots=True)
class Simulation:
    """What is simulated; the same values give the same payments."""

    customers: int = 500
    terminals: int = 4000
    days: int = 90
    seed: int = SEED
    fraud_rate: float = FRAUD_RATE


@dataclass(frozen=True, slots=True)
class Split:
    """Payments before and after a moment, with a pause between: labels arrive late in life too."""

    past: list[LabelledTransaction]
    future: list[LabelledTransaction]


def split_by_time(
    transactions: list[LabelledTransaction], past_days: int = 60, pause_days: int = 7
) -> Split:
    """The first `past_days`, and what comes after a pause of `pause_days`."""
    return Split(
        [t for t in transactions if t.day < past_days],
        [t for t in transactions if t.day >= past_days + pause_days],
    )


def load_transactions(
    data_dir: Path, simulation: Simulation | None = None
) -> list[LabelledTransaction]:
    """The payments of `simulation` in order of time, kept under `data_dir/cache/` once made.

    Making them takes about 25 s for the default of some 80,000.
    """
    simulation = simulation or Simulation()
    folder = data_dir / "cache"
    parts = "-".join(f"{value:g}" for value in asdict(simulation).values())
    path = folder / f"transactions-1-{parts}.jsonl.gz"
    if path.exists():
        with gzip.open(path, "rt") as file:
            return [LabelledTransaction(**json.loads(line)) for line in file]
    made = thin_frauds(_simulate(simulation), simulation.fraud_rate, simulation.seed)
    folder.mkdir(parents=True, exist_ok=True)
    # Written beside and renamed: a stopped run leaves no half of a file.
    fresh = path.with_suffix(".new")
    with gzip.open(fresh, "wt") as file:
        for transaction in made:
            file.write(json.dumps(asdict(transaction)) + "\n")
    fresh.rename(path)
    return made


def thin_frauds(
    transactions: list[LabelledTransaction], fraud_rate: float, seed: int
) -> list[LabelledTransaction]:
    """All legitimate payments and a seeded choice of frauds that makes up `fraud_rate` of all."""
    frauds = [i for i, t in enumerate(transactions) if t.is_fraud]
    legitimate = len(transactions) - len(frauds)
    wanted = min(len(frauds), round(legitimate * fraud_rate / (1 - fraud_rate)))
    kept = set(random.Random(seed).sample(frauds, wanted))  # noqa: S311 - a choice of data
    return [t for i, t in enumerate(transactions) if not t.is_fraud or i in kept]


def _simulate(simulation: Simulation) -> list[LabelledTransaction]:
    from synccfd import DatasetGenerator

    _log.info("simulating payments", extra={"customers": simulation.customers})
    # The simulator prints, draws bars of its own and uses what pandas 4 will no longer have.
    with (
        contextlib.redirect_stdout(io.StringIO()),
        contextlib.redirect_stderr(io.StringIO()),
        warnings.catch_warnings(action="ignore"),
    ):
        generator = DatasetGenerator(
            n_customers=simulation.customers,
            n_terminals=simulation.terminals,
            nb_days=simulation.days,
            start_date="2025-01-01",
            random_state=simulation.seed,
        )
        _, _, frame = generator.generate()
    frame = frame.sort_values("TX_DATETIME", kind="stable")
    return list(_rows(frame, simulation.seed))


def _rows(frame: Any, seed: int) -> Iterator[LabelledTransaction]:
    choose = random.Random(seed)  # noqa: S311 - made-up names
    kinds = [choose.choice(CATEGORIES) for _ in range(int(frame.TERMINAL_ID.max()) + 1)]
    for row in frame.itertuples():
        terminal = int(row.TERMINAL_ID)
        category = kinds[terminal]
        yield LabelledTransaction(
            data={
                "transaction_id": f"sim_{int(row.TRANSACTION_ID):07d}",
                "amount": round(float(row.TX_AMOUNT), 2),
                "merchant": f"{category.title()} {terminal}",
                "customer_id": f"customer_{int(row.CUSTOMER_ID)}",
                "category": category,
                "timestamp": row.TX_DATETIME.isoformat() + "Z",
                "channel": "card_present" if row.TX_TYPE == "CP" else "card_not_present",
                "location": _place(row.TX_TERM_LAT, row.TX_TERM_LONG),
                "billing_location": _place(row.TX_BILL_LAT, row.TX_BILL_LONG),
                "shipping_location": _place(row.TX_SHIPP_LAT, row.TX_SHIPP_LONG),
            },
            is_fraud=bool(row.TX_FRAUD),
            scenario=int(row.TX_FRAUD_SCENARIO),
            day=int(row.TX_TIME_DAYS),
        )


def _place(latitude: float, longitude: float) -> dict[str, float]:
    return {"latitude": round(float(latitude), 5), "longitude": round(float(longitude), 5)}
