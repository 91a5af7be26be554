"""One client for each transport, all with the same few calls and the same errors."""

from __future__ import annotations

import contextlib
import json
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, AsyncIterator
from dataclasses import dataclass, field
from typing import Any

import grpc
import httpx
from google.protobuf import json_format
from google.rpc import code_pb2, error_details_pb2, status_pb2

from lakemesh.api.agent.v1 import request_response_pb2 as messages
from lakemesh.api.agent.v1 import service_pb2_grpc

SERVICE = "lakemesh.api.agent.v1.AgentService"
DETAILS = (error_details_pb2.BadRequest, error_details_pb2.ErrorInfo, error_details_pb2.RetryInfo)


@dataclass
class Failed(Exception):
    """google.rpc.Status, whichever way it came."""

    code: str
    message: str
    details: list[dict[str, Any]] = field(default_factory=list)
    raw: str = ""
    """Everything the caller could read of it."""

    def fields(self) -> list[str]:
        """The fields that google.rpc.BadRequest names."""
        return [
            violation["field"]
            for detail in self.details
            for violation in detail.get("fieldViolations", [])
        ]


class Transport(ABC):
    """Requests and answers are protojson-shaped dicts; int64 is text."""

    name: str

    @abstractmethod
    async def call(
        self,
        method: str,
        request: dict[str, Any],
        *,
        headers: dict[str, str] | None = None,
        timeout: float | None = None,
    ) -> dict[str, Any]: ...

    @abstractmethod
    def stream(self, request: dict[str, Any]) -> AsyncGenerator[dict[str, Any], None]: ...

    @abstractmethod
    async def raw(self, body: bytes) -> dict[str, Any]:
        """Execute with these bytes as the request."""

    @abstractmethod
    async def hang_up(self) -> None:
        """Go away after a call was cancelled, where cancelling alone does not tell the server."""

    @abstractmethod
    async def unknown_method(self) -> None: ...

    async def execute(
        self,
        agent: str,
        data: dict[str, Any] | None = None,
        metadata: dict[str, str] | None = None,
        **options: Any,
    ) -> dict[str, Any]:
        request = {"agent_name": agent, "data": data or {}, "metadata": metadata or {}}
        return await self.call("Execute", request, **options)


class GrpcTransport(Transport):
    def __init__(self, name: str, target: str) -> None:
        self.name = name
        self._channel = grpc.aio.insecure_channel(
            target, options=[("grpc.max_send_message_length", -1)]
        )
        self._stub = service_pb2_grpc.AgentServiceStub(self._channel)

    async def call(
        self,
        method: str,
        request: dict[str, Any],
        *,
        headers: dict[str, str] | None = None,
        timeout: float | None = None,
    ) -> dict[str, Any]:
        message = getattr(messages, f"{method}Request")()
        json_format.ParseDict(request, message)
        # ParseDict refuses what a careless client could still send.
        return await self._send(method, message, tuple((headers or {}).items()), timeout)

    async def _send(self, method: str, message: Any, metadata: Any, timeout: float | None) -> Any:
        try:
            rpc: Any = getattr(self._stub, method)
            answer = await rpc(message, metadata=metadata, timeout=timeout)
        except grpc.aio.AioRpcError as error:
            raise failed_grpc(error) from None
        if method == "GetAgent":
            answer = answer.agent
        found: dict[str, Any] = json_format.MessageToDict(
            answer, always_print_fields_with_no_presence=True
        )
        return found

    async def send_message(self, message: Any) -> dict[str, Any]:
        found: dict[str, Any] = await self._send("Execute", message, (), None)
        return found

    async def stream(self, request: dict[str, Any]) -> AsyncGenerator[dict[str, Any], None]:
        message = json_format.ParseDict(request, messages.ExecuteStreamRequest())
        call = self._stub.ExecuteStream(message)
        try:
            async for event in call:
                yield json_format.MessageToDict(event)
        except grpc.aio.AioRpcError as error:
            raise failed_grpc(error) from None
        finally:
            call.cancel()

    async def raw(self, body: bytes) -> dict[str, Any]:
        call: Any = self._channel.unary_unary(f"/{SERVICE}/Execute")
        try:
            answer = await call(body)
        except grpc.aio.AioRpcError as error:
            raise failed_grpc(error) from None
        return json_format.MessageToDict(messages.ExecuteResponse.FromString(answer))

    async def unknown_method(self) -> None:
        try:
            call: Any = self._channel.unary_unary(f"/{SERVICE}/NoSuchMethod")
            await call(b"")
        except grpc.aio.AioRpcError as error:
            raise failed_grpc(error) from None

    async def hang_up(self) -> None:
        """Cancelling resets the stream, which tells the server enough."""

    async def close(self) -> None:
        await self._channel.close()


class JsonTransport(Transport):
    def __init__(self, name: str, url: str, *, http2: bool) -> None:
        self.name = name
        self._client = httpx.AsyncClient(
            base_url=url, http1=not http2, http2=http2, timeout=20, trust_env=False
        )
        self._version = "HTTP/2" if http2 else "HTTP/1.1"

    async def call(
        self,
        method: str,
        request: dict[str, Any],
        *,
        headers: dict[str, str] | None = None,
        timeout: float | None = None,
    ) -> dict[str, Any]:
        sent = dict(headers or {})
        if timeout is not None:
            sent["Grpc-Timeout"] = f"{round(timeout * 1000)}m"
        if method == "Execute":
            answer = await self._client.post("/api/execute", json=request, headers=sent)
        elif method == "GetAgent":
            answer = await self._client.get(f"/api/agents/{request['name']}", headers=sent)
        else:
            answer = await self._client.get("/api/agents", params=request, headers=sent)
        return self._answer(answer)

    async def stream(self, request: dict[str, Any]) -> AsyncGenerator[dict[str, Any], None]:
        async with self._client.stream("POST", "/api/execute:stream", json=request) as answer:
            async for line in answer.aiter_lines():
                if not line:
                    continue
                event = json.loads(line)
                if "error" in event:
                    raise failed_json(event["error"], line)
                yield event["result"]

    async def raw(self, body: bytes) -> dict[str, Any]:
        return self._answer(await self._client.post("/api/execute", content=body))

    async def unknown_method(self) -> None:
        self._answer(await self._client.get("/api/no-such-thing"))

    async def hang_up(self) -> None:
        # httpx cancels an HTTP/2 stream without RST_STREAM; closing the connection is what it has.
        await self._client.aclose()

    async def close(self) -> None:
        await self._client.aclose()

    def _answer(self, answer: httpx.Response) -> dict[str, Any]:
        assert answer.http_version == self._version
        assert answer.headers["content-type"] == "application/json"
        found: dict[str, Any] = answer.json()
        if answer.status_code != 200:
            assert answer.status_code == HTTP[found["code"]], found
            raise failed_json(found, answer.text)
        return found


NAMES = {number: name for name, number in code_pb2.Code.items()}
# grpc-gateway's table (runtime/errors.go); a body that is too large is 413 (our own rule).
HTTP = {3: 400, 4: 504, 5: 404, 8: 429, 9: 400, 12: 501, 13: 500, 14: 503}


def failed_json(status: dict[str, Any], raw: str) -> Failed:
    return Failed(NAMES[status["code"]], status["message"], status["details"], raw)


def failed_grpc(error: grpc.aio.AioRpcError) -> Failed:
    raw = f"{error.code().name} {error.details()}"
    details: list[dict[str, Any]] = []
    for key, value in error.trailing_metadata() or ():
        if key == "grpc-status-details-bin":
            status = status_pb2.Status.FromString(value)
            raw += repr(status)
            for packed in status.details:
                for kind in DETAILS:
                    if packed.Is(kind.DESCRIPTOR):
                        detail = kind()
                        packed.Unpack(detail)
                        details.append(json_format.MessageToDict(detail))
    return Failed(error.code().name, error.details() or "", details, raw)


@contextlib.asynccontextmanager
async def open_transport(name: str, target: str) -> AsyncIterator[Transport]:
    """`grpc`, `json/1.1` or `json/2`, connected to HOST:PORT."""
    transport: GrpcTransport | JsonTransport
    if name == "grpc":
        transport = GrpcTransport(name, target)
    else:
        transport = JsonTransport(name, f"http://{target}", http2=name == "json/2")
    try:
        yield transport
    finally:
        await transport.close()
