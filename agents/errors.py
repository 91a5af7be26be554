"""What can go wrong when an agent is asked to work, in words of the domain.

No transport is known here; `lakemesh.server.errors` says how each looks on the wire.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class FieldError:
    """One field of an input and what is wrong with it."""

    field: str
    """Path from the request's root, such as `data.amount`."""
    description: str


class AgentError(Exception):
    """Base of everything this module defines; its text may be shown to the caller."""


class AgentNotFound(AgentError):
    """No agent of this server has the name."""

    def __init__(self, name: str) -> None:
        super().__init__(f'no agent is named "{name}"')
        self.name = name


class InvalidInput(AgentError):
    """The input does not fit; every field at fault is named."""

    def __init__(self, message: str, fields: tuple[FieldError, ...] = ()) -> None:
        super().__init__(message)
        self.fields = fields


class AgentFailed(AgentError):
    """The agent raised or answered what it must not; the cause is for the log alone."""

    def __init__(self, agent: str, run_id: str) -> None:
        super().__init__(f'agent "{agent}" failed')
        self.agent = agent
        self.run_id = run_id


class BudgetExceeded(AgentError):
    """The agent used up its time budget and was cancelled."""

    def __init__(self, agent: str, seconds: float) -> None:
        super().__init__(f'agent "{agent}" took longer than its time budget of {seconds:g} s')
        self.agent = agent
        self.seconds = seconds


class Overloaded(AgentError):
    """Too much is being worked on; try again after `retry_seconds`."""

    def __init__(self, message: str, retry_seconds: float = 1.0) -> None:
        super().__init__(message)
        self.retry_seconds = retry_seconds


class CallLoop(AgentError):
    """An agent called agents that led back to itself, or too deep."""
