"""Has an agent of a running server judge many payments over gRPC, so many at a time."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import grpc
from google.protobuf.json_format import MessageToDict
from tqdm import tqdm

from lakemesh.agents.fraud_detector import Judgement
from lakemesh.api.agent.v1 import request_response_pb2, service_pb2_grpc
from lakemesh.jobs.transactions import LabelledTransaction

CONCURRENCY = 16
CALL_SECONDS = 30.0


@dataclass(frozen=True, slots=True)
class Scored:
    """One payment and what the agent said of it."""

    transaction: LabelledTransaction
    judgement: Judgement
    memory: str
    """Whether memory was `used`, `empty` or `unavailable`."""
    seconds: float


@dataclass(frozen=True, slots=True)
class Run:
    """All the answers, how long they took, and what failed."""

    scored: list[Scored]
    seconds: float
    failures: dict[str, int]
    """How many calls failed, by status."""

    def latency_ms(self, share: float) -> float:
        """Milliseconds within which that share of the calls was answered."""
        ordered = sorted(one.seconds for one in self.scored)
        return ordered[min(len(ordered) - 1, int(share * len(ordered)))] * 1000


async def score_all(
    target: str,
    transactions: Sequence[LabelledTransaction],
    *,
    agent: str = "fraud_detector",
    concurrency: int = CONCURRENCY,
) -> Run:
    """Score `transactions` by `agent` at `target`; failed calls are counted, not raised."""
    scored: list[Scored] = []
    failures: dict[str, int] = {}
    waiting = iter(transactions)
    async with grpc.aio.insecure_channel(target) as channel:
        execute = service_pb2_grpc.AgentServiceStub(channel).Execute

        async def work(bar: tqdm[Any]) -> None:
            for transaction in waiting:
                request = request_response_pb2.ExecuteRequest(agent_name=agent)
                request.data.update(transaction.data)
                began = time.perf_counter()
                try:
                    answer = await execute(request, timeout=CALL_SECONDS)
                except grpc.aio.AioRpcError as error:
                    name = error.code().name
                    failures[name] = failures.get(name, 0) + 1
                else:
                    took = time.perf_counter() - began
                    memory = answer.metadata.get("memory", "")
                    found = Judgement.model_validate(MessageToDict(answer.result))
                    scored.append(Scored(transaction, found, memory, took))
                bar.update()

        began = time.perf_counter()
        with tqdm(
            total=len(transactions), desc="scoring over gRPC", unit="payment", disable=None
        ) as bar:
            async with asyncio.TaskGroup() as group:
                for _ in range(concurrency):
                    group.create_task(work(bar))
        return Run(scored, time.perf_counter() - began, failures)
