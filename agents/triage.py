"""An agent that works through others: ranks transactions by what fraud_detector says of them."""

from __future__ import annotations

import asyncio
from typing import Any

from pydantic import BaseModel, Field

from lakemesh.agents.base import CriticalPathAgent
from lakemesh.agents.schemas import AgentInput, AgentOutput


class Batch(BaseModel):
    """Transactions to be looked at, each as fraud_detector takes it."""

    transactions: list[dict[str, Any]] = Field(min_length=1, max_length=100)
    case_id: str = ""


class Ranked(BaseModel):
    """One transaction and what was found."""

    transaction_id: str
    decision: str
    score: float
    reasons: list[str]


class Report(BaseModel):
    """The transactions, most suspicious first, and the case they were filed under."""

    case: dict[str, Any]
    ranked: list[Ranked]


class TriageAgent(CriticalPathAgent):
    """Has fraud_detector judge each transaction of a case and ranks them, worst first."""

    tags = ("fraud",)

    async def process(self, request: AgentInput[Batch]) -> AgentOutput[Report]:
        context, batch = request.context, request.data
        await context.status(f"judging {len(batch.transactions)} transactions")
        async with asyncio.TaskGroup() as group:
            judging = [
                group.create_task(context.call_agent("fraud_detector", transaction))
                for transaction in batch.transactions
            ]
        ranked = [
            Ranked(
                transaction_id=str(transaction["transaction_id"]),
                decision=found["decision"],
                score=found["score"],
                reasons=found["reasons"],
            )
            for transaction, task in zip(batch.transactions, judging, strict=True)
            for found in [task.result()]
        ]
        ranked.sort(key=lambda one: one.score, reverse=True)
        worst = ranked[0]
        case = await context.call_agent(
            "echo",
            {"case_id": batch.case_id, "worst": worst.transaction_id, "count": len(ranked)},
        )
        return AgentOutput(result=Report(case=case, ranked=ranked), confidence=1.0)
