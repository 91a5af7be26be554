"""What happens while an agent works, as a streaming caller is told."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal


@dataclass(frozen=True, slots=True)
class Status:
    """The work entered a state; `message` is one line for people."""

    state: Literal["started", "working", "completed"]
    message: str = ""


@dataclass(frozen=True, slots=True)
class Token:
    """The next piece of text of a model."""

    text: str


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A tool or another agent is being called."""

    call_id: str
    tool: str
    arguments: dict[str, Any]


@dataclass(frozen=True, slots=True)
class ToolResult:
    """What the tool or agent answered; empty when it failed."""

    call_id: str
    tool: str
    result: dict[str, Any]
    is_error: bool = False


Event = Status | Token | ToolCall | ToolResult
