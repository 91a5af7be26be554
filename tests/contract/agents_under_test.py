"""Agents that do what the contract tests need: answer, fail, hang, block, stream."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import Any

from pydantic import BaseModel, Field

from lakemesh.agents.base import CriticalPathAgent
from lakemesh.agents.errors import InvalidInput
from lakemesh.agents.schemas import AgentInput, AgentOutput


class Order(BaseModel):
    item: str = Field(min_length=1)
    quantity: int = Field(ge=1)


class Receipt(BaseModel):
    text: str


class TypedAgent(CriticalPathAgent):
    """Takes and gives pydantic models."""

    async def process(self, request: AgentInput[Order]) -> AgentOutput[Receipt]:
        order = request.data
        return AgentOutput(Receipt(text=f"{order.quantity} x {order.item}"), confidence=0.5)


class YourCustomAgent(CriticalPathAgent):
    async def process(self, request: AgentInput) -> AgentOutput:
        return AgentOutput(
            result={"got": request.data, "session": request.metadata.get("session_id")}
        )


class RaisingAgent(CriticalPathAgent):
    async def process(self, request: AgentInput) -> AgentOutput:
        raise RuntimeError("the secret ingredient is canary-7731")


class ExitingAgent(CriticalPathAgent):
    async def process(self, request: AgentInput) -> AgentOutput:
        raise SystemExit(3)


class PickyAgent(CriticalPathAgent):
    async def process(self, request: AgentInput) -> AgentOutput:
        raise InvalidInput("data.colour: must be blue")


class WrongTypeAgent(CriticalPathAgent):
    async def process(self, request: AgentInput) -> AgentOutput:
        return {"result": "not an AgentOutput"}  # type: ignore[return-value]


class NotFiniteAgent(CriticalPathAgent):
    async def process(self, request: AgentInput) -> AgentOutput:
        return AgentOutput(result={"number": float("nan")})


class WaitingAgent(CriticalPathAgent):
    """Waits for ever; writes `started` and then `cancelled` into the file it is given."""

    async def process(self, request: AgentInput) -> AgentOutput:
        path = request.data.get("file")
        _say(path, "started")
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            _say(path, "cancelled")
            raise
        return AgentOutput(result={})


class HangingAgent(WaitingAgent):
    """The same with little patience."""

    time_budget_seconds = 1.0


class SlowAgent(CriticalPathAgent):
    async def process(self, request: AgentInput) -> AgentOutput:
        _say(request.data.get("file"), "started")
        await asyncio.sleep(request.data.get("seconds", 0.5))
        return AgentOutput(result={"slept": True})


class BlockingAgent(CriticalPathAgent):
    async def process(self, request: AgentInput) -> AgentOutput:
        time.sleep(request.data.get("seconds", 1.0))  # noqa: ASYNC251 - that is the point
        return AgentOutput(result={"blocked": True})


class SynchronousAgent(CriticalPathAgent):
    def process(self, request: AgentInput) -> AgentOutput:  # type: ignore[override]
        time.sleep(request.data.get("seconds", 0.0))
        inner = request.context.run(
            request.context.call_agent("typed", {"item": "a", "quantity": 2})
        )
        return AgentOutput(result={"inner": inner})


class TalkingAgent(CriticalPathAgent):
    """Streams: a status, tokens, a call of another agent."""

    async def process(self, request: AgentInput) -> AgentOutput:
        context = request.context
        await context.status("thinking")
        for word in ("one ", "two ", "three"):
            await context.token(word)
        inner = await context.call_agent("typed", {"item": "pen", "quantity": 3})
        if request.data.get("fail"):
            raise RuntimeError("too late")
        return AgentOutput(result={"said": "one two three", "inner": inner})


class LoopingAgent(CriticalPathAgent):
    async def process(self, request: AgentInput) -> AgentOutput:
        return AgentOutput(result=await request.context.call_agent("looping", {}))


class DeepAgent(CriticalPathAgent):
    async def process(self, request: AgentInput) -> AgentOutput:
        nested: dict[str, Any] = {}
        for _ in range(int(request.data["depth"])):
            nested = {"in": nested}
        return AgentOutput(result=nested)


def _say(path: str | None, word: str) -> None:
    if path:
        with Path(path).open("a", encoding="utf-8") as file:
            file.write(word + "\n")
