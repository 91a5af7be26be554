"""The class a team writes: one class, one method."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from typing import Any, ClassVar

from lakemesh.agents.schemas import AgentInput, AgentOutput

_WORD_START = re.compile(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])")


def default_name(class_name: str) -> str:
    """Snake case without a trailing `Agent`: `YourCustomAgent` -> `your_custom`."""
    words = _WORD_START.sub("_", class_name).lower()
    return words.removesuffix("_agent") or words


class CriticalPathAgent(ABC):
    """An agent that answers while its caller waits.

    `process` is all a subclass needs. It may be `async def` (it then shares the server's event
    loop and must not block it) or a plain `def` (it then runs in a thread). Raising ends the call
    as AGENT_FAILED and shows the caller none of the exception; raise
    `lakemesh.agents.errors.InvalidInput` to tell the caller what to change.

    One instance serves all calls at once: keep what belongs to one call out of `self`.
    """

    name: ClassVar[str] = ""
    """How callers name it; by default made from the class name."""
    description: ClassVar[str] = ""
    """For people, cards and models that choose a tool; by default the class's docstring."""
    version: ClassVar[str] = ""
    tags: ClassVar[tuple[str, ...]] = ()
    time_budget_seconds: ClassVar[float] = 60.0
    """One call is cancelled after this long. Databricks Apps ends a request after 120 s."""
    isolated: ClassVar[bool] = False
    """True runs each call in a thread with an event loop of its own, for code that blocks."""
    input_type: ClassVar[type[Any] | None] = None
    """A pydantic model or proto message class; by default taken from `process`'s annotation."""
    output_type: ClassVar[type[Any] | None] = None

    @abstractmethod
    async def process(self, request: AgentInput[Any]) -> AgentOutput[Any]:
        """Answer one input."""
