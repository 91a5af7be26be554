"""AgentService: the contract's messages to and from the agent runtime, and nothing else."""

from __future__ import annotations

import base64
import binascii
from collections.abc import AsyncGenerator
from typing import Any

from lakemesh.agents.context import Caller
from lakemesh.agents.events import Event, Status, Token, ToolCall
from lakemesh.agents.registry import Registered
from lakemesh.agents.runtime import AgentRuntime, Answer
from lakemesh.agents.structs import NotCarryable, fill_struct, struct_to_dict
from lakemesh.api.agent.v1 import (
    message_pb2,
    request_response_pb2,
    service_pb2,
    service_pb2_grpc,
)
from lakemesh.server.call import Call
from lakemesh.server.errors import invalid_argument

_ExecuteRequest = request_response_pb2.ExecuteRequest | request_response_pb2.ExecuteStreamRequest

_STATES = {
    "started": message_pb2.StatusEvent.STATE_STARTED,
    "working": message_pb2.StatusEvent.STATE_WORKING,
    "completed": message_pb2.StatusEvent.STATE_COMPLETED,
}
SERVICE: str = service_pb2.DESCRIPTOR.services_by_name["AgentService"].full_name
DEFAULT_PAGE = 100
LARGEST_PAGE = 1000


class AgentService(service_pb2_grpc.AgentServiceServicer):
    """Serves `lakemesh.api.agent.v1.AgentService` from one runtime."""

    checks_structs = True  # struct_to_dict refuses what the pipeline's door would

    def __init__(self, runtime: AgentRuntime) -> None:
        self._runtime = runtime

    async def ListAgents(
        self, request: request_response_pb2.ListAgentsRequest, context: Call
    ) -> request_response_pb2.ListAgentsResponse:
        agents = self._runtime.registry.all()
        after = _page_position(request.page_token)
        size = min(request.page_size or DEFAULT_PAGE, LARGEST_PAGE)
        rest = [one for one in agents if one.name > after]
        page = rest[:size]
        return request_response_pb2.ListAgentsResponse(
            agents=[_described(one) for one in page],
            next_page_token=_page_token(page[-1].name) if len(rest) > size else "",
            count=len(agents),
        )

    async def GetAgent(
        self, request: request_response_pb2.GetAgentRequest, context: Call
    ) -> request_response_pb2.GetAgentResponse:
        found = self._runtime.registry.get(request.name)
        return request_response_pb2.GetAgentResponse(agent=_described(found))

    async def Execute(
        self, request: request_response_pb2.ExecuteRequest, context: Call
    ) -> request_response_pb2.ExecuteResponse:
        answer = await self._runtime.execute(
            request.agent_name,
            _data(request),
            dict(request.metadata),
            Caller(context.identity.subject),
        )
        return self._response(answer)

    async def ExecuteStream(
        self, request: request_response_pb2.ExecuteStreamRequest, context: Call
    ) -> AsyncGenerator[request_response_pb2.ExecuteStreamResponse, None]:
        events = self._runtime.stream(
            request.agent_name,
            _data(request),
            dict(request.metadata),
            Caller(context.identity.subject),
        )
        sequence = 0
        try:
            async for run_id, event in events:
                sequence += 1
                message = request_response_pb2.ExecuteStreamResponse(
                    sequence=sequence, run_id=run_id
                )
                message.create_time.GetCurrentTime()
                if isinstance(event, Answer):
                    message.output.CopyFrom(self._response(event))
                else:
                    _fill_event(message, event)
                yield message
        finally:
            await events.aclose()

    def _response(self, answer: Answer) -> request_response_pb2.ExecuteResponse:
        response = request_response_pb2.ExecuteResponse(
            success=True,
            agent=answer.agent,
            confidence=answer.confidence,
            run_id=answer.run_id,
            trace_id=answer.trace_id,
        )
        try:
            response.result.SetInParent()
            fill_struct(response.result, answer.result, "result")
            if answer.metadata:
                response.metadata.update(answer.metadata)
        except (NotCarryable, TypeError, ValueError) as error:
            raise self._runtime.failed(answer, error) from None
        return response


def _data(request: _ExecuteRequest) -> dict[str, Any]:
    try:
        return struct_to_dict(request.data, "data")
    except NotCarryable as refused:
        raise invalid_argument(str(refused), (refused.path, refused.why)) from None


def _fill_event(message: request_response_pb2.ExecuteStreamResponse, event: Event) -> None:
    if isinstance(event, Status):
        message.status.state = _STATES[event.state]
        message.status.message = event.message
    elif isinstance(event, Token):
        message.token.text = event.text
    elif isinstance(event, ToolCall):
        message.tool_call.call_id = event.call_id
        message.tool_call.tool = event.tool
        fill_struct(message.tool_call.arguments, event.arguments, "arguments")
    else:
        message.tool_result.call_id = event.call_id
        message.tool_result.tool = event.tool
        message.tool_result.is_error = event.is_error
        fill_struct(message.tool_result.result, event.result, "result")


def _described(one: Registered) -> message_pb2.Agent:
    agent = message_pb2.Agent(
        name=one.name,
        description=one.description,
        version=one.version,
        time_budget_seconds=one.time_budget_seconds,
        tags=one.tags,
    )
    fill_struct(agent.input_schema, one.input_schema, "input_schema")
    fill_struct(agent.output_schema, one.output_schema, "output_schema")
    return agent


def _page_token(last: str) -> str:
    return base64.urlsafe_b64encode(last.encode()).decode()


def _page_position(token: str) -> str:
    try:
        return base64.b64decode(token.encode(), altchars=b"-_", validate=True).decode()
    except (binascii.Error, UnicodeError):
        raise invalid_argument(
            "page_token is not one this server gave",
            ("page_token", "must be the next_page_token of an earlier answer"),
        ) from None
