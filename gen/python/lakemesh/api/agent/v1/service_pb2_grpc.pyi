# Generated from lakemesh/api/agent/v1/service.proto; do not edit.
from collections.abc import AsyncIterator, Awaitable, Iterator
from typing import Any, overload

import grpc
import grpc.aio
import lakemesh.api.agent.v1.request_response_pb2

class AgentServiceStub:
    @overload
    def __new__(cls, channel: grpc.Channel) -> AgentServiceStub: ...
    @overload
    def __new__(cls, channel: grpc.aio.Channel) -> AgentServiceAsyncStub: ...
    ListAgents: grpc.UnaryUnaryMultiCallable[lakemesh.api.agent.v1.request_response_pb2.ListAgentsRequest, lakemesh.api.agent.v1.request_response_pb2.ListAgentsResponse]
    GetAgent: grpc.UnaryUnaryMultiCallable[lakemesh.api.agent.v1.request_response_pb2.GetAgentRequest, lakemesh.api.agent.v1.request_response_pb2.GetAgentResponse]
    Execute: grpc.UnaryUnaryMultiCallable[lakemesh.api.agent.v1.request_response_pb2.ExecuteRequest, lakemesh.api.agent.v1.request_response_pb2.ExecuteResponse]
    ExecuteStream: grpc.UnaryStreamMultiCallable[lakemesh.api.agent.v1.request_response_pb2.ExecuteStreamRequest, lakemesh.api.agent.v1.request_response_pb2.ExecuteStreamResponse]

# For type checkers only: what the class above is when made from a grpc.aio channel.
class AgentServiceAsyncStub(AgentServiceStub):
    ListAgents: grpc.aio.UnaryUnaryMultiCallable[lakemesh.api.agent.v1.request_response_pb2.ListAgentsRequest, lakemesh.api.agent.v1.request_response_pb2.ListAgentsResponse]  # type: ignore[assignment]
    GetAgent: grpc.aio.UnaryUnaryMultiCallable[lakemesh.api.agent.v1.request_response_pb2.GetAgentRequest, lakemesh.api.agent.v1.request_response_pb2.GetAgentResponse]  # type: ignore[assignment]
    Execute: grpc.aio.UnaryUnaryMultiCallable[lakemesh.api.agent.v1.request_response_pb2.ExecuteRequest, lakemesh.api.agent.v1.request_response_pb2.ExecuteResponse]  # type: ignore[assignment]
    ExecuteStream: grpc.aio.UnaryStreamMultiCallable[lakemesh.api.agent.v1.request_response_pb2.ExecuteStreamRequest, lakemesh.api.agent.v1.request_response_pb2.ExecuteStreamResponse]  # type: ignore[assignment]

class AgentServiceServicer:
    def ListAgents(self, request: lakemesh.api.agent.v1.request_response_pb2.ListAgentsRequest, context: Any) -> Awaitable[lakemesh.api.agent.v1.request_response_pb2.ListAgentsResponse] | lakemesh.api.agent.v1.request_response_pb2.ListAgentsResponse: ...
    def GetAgent(self, request: lakemesh.api.agent.v1.request_response_pb2.GetAgentRequest, context: Any) -> Awaitable[lakemesh.api.agent.v1.request_response_pb2.GetAgentResponse] | lakemesh.api.agent.v1.request_response_pb2.GetAgentResponse: ...
    def Execute(self, request: lakemesh.api.agent.v1.request_response_pb2.ExecuteRequest, context: Any) -> Awaitable[lakemesh.api.agent.v1.request_response_pb2.ExecuteResponse] | lakemesh.api.agent.v1.request_response_pb2.ExecuteResponse: ...
    def ExecuteStream(self, request: lakemesh.api.agent.v1.request_response_pb2.ExecuteStreamRequest, context: Any) -> AsyncIterator[lakemesh.api.agent.v1.request_response_pb2.ExecuteStreamResponse] | Iterator[lakemesh.api.agent.v1.request_response_pb2.ExecuteStreamResponse]: ...

def add_AgentServiceServicer_to_server(
    servicer: AgentServiceServicer, server: grpc.Server | grpc.aio.Server
) -> None: ...

class AgentService:
    @staticmethod
    def ListAgents(*args: Any, **kwargs: Any) -> Any: ...
    @staticmethod
    def GetAgent(*args: Any, **kwargs: Any) -> Any: ...
    @staticmethod
    def Execute(*args: Any, **kwargs: Any) -> Any: ...
    @staticmethod
    def ExecuteStream(*args: Any, **kwargs: Any) -> Any: ...
