"""What an agent takes and gives."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Generic

from typing_extensions import TypeVar

if TYPE_CHECKING:
    from lakemesh.agents.context import AgentContext

Data = TypeVar("Data", default=dict[str, Any])
Result = TypeVar("Result", default=Any)


@dataclass(slots=True)
class AgentInput(Generic[Data]):
    """One input, as `process` receives it.

    `AgentInput[Model]` in the annotation of `process`, with a pydantic model or a proto message
    class, makes `data` an instance of it and the model's schema the agent's input schema. Plain
    `AgentInput` leaves `data` the dict that came, numbers as float.
    """

    data: Data
    metadata: dict[str, str]
    context: AgentContext


@dataclass(slots=True)
class AgentOutput(Generic[Result]):
    """One answer: `result` is a dict, or an instance of the model in `AgentOutput[Model]`.

    `confidence` is 0 to 1. `metadata` reaches the caller beside the server's own entries.
    """

    result: Result
    confidence: float = 1.0
    metadata: dict[str, str] = field(default_factory=dict)
