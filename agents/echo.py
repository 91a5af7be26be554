"""An agent that answers what it was asked: for first steps, tests and measurements."""

from __future__ import annotations

from lakemesh.agents.base import CriticalPathAgent
from lakemesh.agents.schemas import AgentInput, AgentOutput


class EchoAgent(CriticalPathAgent):
    """Answers its input unchanged."""

    tags = ("example",)

    async def process(self, request: AgentInput) -> AgentOutput:
        return AgentOutput(result=request.data)
