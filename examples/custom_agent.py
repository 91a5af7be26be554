"""An agent of one's own: `lakemesh serve --agents examples/custom_agent.py`."""

from __future__ import annotations

from pydantic import BaseModel, Field

from lakemesh.agents.base import CriticalPathAgent
from lakemesh.agents.schemas import AgentInput, AgentOutput


class Question(BaseModel):
    text: str = Field(min_length=1)


class Recalled(BaseModel):
    remembered: list[str]


class LibrarianAgent(CriticalPathAgent):
    """Remembers what it is told and recalls what is near in meaning."""

    async def process(self, request: AgentInput[Question]) -> AgentOutput[Recalled]:
        memory = request.context.memory
        near = await memory.retrieve(request.data.text, top_k=3)
        await memory.store(request.data.text)
        return AgentOutput(Recalled(remembered=[one.text for one in near]))
