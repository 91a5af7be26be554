"""What every transport must do, one sentence each. tests/contract/test_manifest.py holds both
sides to it: a requirement without a test fails, and so does a test without a requirement."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

F = TypeVar("F", bound=Callable[..., Any])

REQUIREMENTS: dict[str, str] = {
    # id: the sentence that must hold (source: the project's interfaces unless another is named)
    "agents.list": "ListAgents names every agent, in order, with schemas and a count",
    "agents.list.pages": "pages are as large as asked and join without gap or repeat",
    "agents.list.bad-token": "a page token we did not give is INVALID_ARGUMENT naming page_token",
    "agents.get": "GetAgent describes one agent",
    "agents.get.unknown": "an unknown agent is NOT_FOUND",
    "agents.names": "an agent's default name is its class in snake case without Agent",
    "execute.answer": "an answer has every field the contract names",
    "execute.metadata": "request metadata reaches the agent",
    "execute.unknown": "executing an unknown agent is NOT_FOUND",
    "execute.no-name": "an empty agent name is INVALID_ARGUMENT naming agent_name",
    "execute.schema": "input that fails the agent's schema is INVALID_ARGUMENT naming each field",
    "execute.refused": "an agent may refuse its input in its own words",
    "execute.raises": "an agent that raises is INTERNAL, AGENT_FAILED, without its words",
    "execute.exits": "an agent that calls sys.exit ends its call, not the server",
    "execute.wrong-type": "an agent that answers the wrong type is AGENT_FAILED",
    "execute.not-finite": "an agent that answers NaN is AGENT_FAILED",
    "execute.budget": "an agent over its time budget is DEADLINE_EXCEEDED and is cancelled",
    "execute.deadline": "the caller's deadline ends the call and cancels the agent",
    "execute.disconnect": "a caller that goes away cancels the agent",
    "execute.sync": "a synchronous process runs in a thread and may call other agents",
    "execute.loop": "agents that call themselves without end are refused",
    "execute.depth": "an answer nested too deep for some transport is AGENT_FAILED",
    "execute.too-deep": "input nested too deep for some transport is INVALID_ARGUMENT",
    "execute.not-a-number": "a number no transport can carry is INVALID_ARGUMENT naming the field",
    "execute.too-large": "a message over 4 MiB is RESOURCE_EXHAUSTED",
    "execute.malformed": "bytes that are no message are INVALID_ARGUMENT, without class names",
    "execute.many-metadata": "more metadata than the contract allows is INVALID_ARGUMENT",
    "trace.continued": "an incoming traceparent is continued",
    "trace.new": "without traceparent each call has a trace id of its own",
    "stream.order": "events are numbered from 1 without gaps and end with the output",
    "stream.kinds": "status, token, tool_call, tool_result and output arrive as they happen",
    "stream.error": "an agent that fails mid-stream ends the stream with AGENT_FAILED",
    "stream.unknown": "streaming an unknown agent is NOT_FOUND",
    "stream.disconnect": "a caller that stops reading and goes away cancels the agent",
    "transports.agree": "every transport gives the same answer to the same request",
    "method.unknown": "an RPC or path that does not exist is refused, not answered",
}


def requirement(*ids: str) -> Callable[[F], F]:
    """Marks a test as showing the requirements of these ids."""

    def mark(test: F) -> F:
        test.requirements = ids  # type: ignore[attr-defined]
        return test

    return mark
