"""The agent that judges card payments: features, the nearest labelled cases, a trained scorer."""

from __future__ import annotations

import asyncio
from enum import StrEnum
from typing import Any

from pydantic import BaseModel, Field

from lakemesh.agents.base import CriticalPathAgent
from lakemesh.agents.fraud_features import Transaction, describe, features_of
from lakemesh.agents.fraud_model import Assessment, Contribution, FraudModel, logistic
from lakemesh.agents.schemas import AgentInput, AgentOutput
from lakemesh.memory.errors import InvalidMemory, MemoryUnavailable
from lakemesh.memory.store import Memory

NEIGHBOURS = 10
"""Cases asked for; the first few of them are shown."""
SHOWN_CASES = 5
MEMORY_SECONDS = 3.0
"""Longest wait for memory, and at most half of the time left: a judgement without it is worth more
than none. The first call of a process loads the embedder, 1.4 s."""


class Decision(StrEnum):
    """What to do with the payment."""

    FRAUD = "fraud"
    LEGITIMATE = "legitimate"
    REVIEW = "review"


class SimilarCase(BaseModel):
    """A labelled payment that memory holds."""

    id: str
    text: str
    label: Decision | None = Field(description="what it turned out to be")
    similarity: float = Field(description="-1 to 1, higher is nearer")
    transaction_id: str = ""
    amount: float | None = None


class Judgement(BaseModel):
    """The agent's answer."""

    decision: Decision
    score: float = Field(ge=0, le=1, description="how likely the payment is fraud")
    reasons: list[str] = Field(description="the strongest first, in plain words")
    similar_cases: list[SimilarCase]


class FraudDetectorAgent(CriticalPathAgent):
    """Judges a card payment: decision, score, reasons and the most similar known cases."""

    name = "fraud_detector"
    version = "1.0.0"
    tags = ("fraud", "payments")
    time_budget_seconds = 10.0

    def __init__(self) -> None:
        self._model = FraudModel.load()

    async def process(self, request: AgentInput[Transaction]) -> AgentOutput[Judgement]:
        transaction = request.data
        features = features_of(transaction)
        assessment = self._model.assess(features)
        cases, memory_state = await self._similar(request, describe(transaction, features))
        labelled = [(case, label) for case in cases if (label := _label(case)) is not None]
        from_cases = self._model.neighbour_log_odds(
            (label is Decision.FRAUD, case.score) for case, label in labelled
        )
        score = logistic(assessment.log_odds + from_cases)
        decision = Decision(self._model.decide(score))
        frauds = sum(label is Decision.FRAUD for _, label in labelled)
        judgement = Judgement(
            decision=decision,
            score=round(score, 6),
            reasons=_reasons(assessment, len(labelled), frauds, memory_state),
            similar_cases=[_shown(case) for case in cases[:SHOWN_CASES]],
        )
        return AgentOutput(
            result=judgement,
            # How likely the side taken is the right one.
            confidence=round(max(score, 1 - score), 6),
            metadata={
                "model_version": self._model.version,
                "judged_by": assessment.situation,
                "memory": memory_state,
                "similar_cases": str(len(labelled)),
            },
        )

    async def _similar(
        self, request: AgentInput[Transaction], text: str
    ) -> tuple[list[Memory], str]:
        """The nearest cases and whether memory was `used`, `empty` or `unavailable`."""
        seconds = min(MEMORY_SECONDS, request.context.remaining() / 2)
        try:
            async with asyncio.timeout(seconds):
                cases = await request.context.memory.retrieve(query=text, top_k=NEIGHBOURS)
        except (MemoryUnavailable, InvalidMemory, TimeoutError):
            return [], "unavailable"
        return cases, "used" if cases else "empty"


def _label(case: Memory) -> Decision | None:
    label = case.metadata.get("label")
    if label in (Decision.FRAUD, True, 1):
        return Decision.FRAUD
    if label in (Decision.LEGITIMATE, False, 0):
        return Decision.LEGITIMATE
    return None


def _shown(case: Memory) -> SimilarCase:
    amount: Any = case.metadata.get("amount")
    return SimilarCase(
        id=case.id,
        text=case.text,
        label=_label(case),
        similarity=round(case.score, 4),
        transaction_id=str(case.metadata.get("transaction_id", "")),
        amount=amount if isinstance(amount, int | float) else None,
    )


def _reasons(assessment: Assessment, labelled: int, frauds: int, memory_state: str) -> list[str]:
    reasons = [_explain(one) for one in assessment.contributions if abs(one.log_odds) > 0.1]
    if labelled:
        if frauds:
            reasons.insert(1, f"{frauds} of the {labelled} most similar known cases were fraud")
        else:
            reasons.append(f"none of the {labelled} most similar known cases was fraud")
    elif memory_state == "unavailable":
        reasons.append("memory is unavailable, so known cases were not looked at")
    else:
        reasons.append("no similar labelled case is known yet, so only the payment itself counts")
    if assessment.situation == "amount_alone":
        reasons.append(
            "channel and addresses are not all known, so it is judged by amount and hour alone"
        )
    return reasons


def _explain(one: Contribution) -> str:
    if one.feature == "amount":
        shown, usual = f"{one.value:,.2f}", f"{one.usual:,.2f}"
        if one.value > one.usual:
            return f"the amount {shown} is above 95 % of legitimate payments of its kind ({usual})"
        side = "and more often seen in fraud" if one.log_odds > 0 else "which is common"
        return f"the amount is {shown}, {side}"
    if one.feature == "shipping_km":
        if one.value > one.usual:
            return f"the goods go to a place {one.value:,.0f} km from the billing address"
        return f"the goods go {one.value:,.1f} km from the billing address, as often before"
    if one.feature == "merchant_km":
        if one.value > one.usual:
            return f"the card was used {one.value:,.0f} km from the billing address"
        return f"the card was used {one.value:,.1f} km from home, as usual"
    side = "speaks for" if one.log_odds > 0 else "speaks against"
    return f"the time of day, about {one.value:.0f} o'clock, {side} fraud"
