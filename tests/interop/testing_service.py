"""grpc.testing.TestService, served by our table and pipeline.

What it must do: grpc/doc/interop-test-descriptions.md. Its messages come from the Go module that
owns the protos (tests/interop/go/protos), as descriptors; no proto is copied.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import grpc
from google.protobuf import any_pb2, descriptor_pb2, descriptor_pool, message_factory
from google.rpc import error_details_pb2, status_pb2

SERVICE = "grpc.testing.TestService"
INITIAL = "x-grpc-test-echo-initial"
TRAILING = "x-grpc-test-echo-trailing-bin"
WANT_DETAILS = "want-details"
DETAILS = "grpc-status-details-bin"
_CODES: dict[int, grpc.StatusCode] = {code.value[0]: code for code in grpc.StatusCode}


def load_messages(descriptors: bytes) -> Any:
    """The message classes of grpc.testing, by name."""
    pool = descriptor_pool.Default()
    names = []
    for file in descriptor_pb2.FileDescriptorSet.FromString(descriptors).file:
        pool.Add(file)
        names += [f"{file.package}.{message.name}" for message in file.message_type]
    classes = (message_factory.GetMessageClass(pool.FindMessageTypeByName(n)) for n in names)
    return SimpleNamespace(**{c.DESCRIPTOR.name: c for c in classes})


@dataclass
class RichStatus(grpc.Status):  # type: ignore[misc]
    """What grpcio-status would make of a google.rpc.Status."""

    code: grpc.StatusCode
    details: str
    trailing_metadata: tuple[tuple[str, bytes], ...]


class TestService:
    """The servicer, written as for grpc.aio."""

    __test__ = False

    def __init__(self, messages: Any) -> None:
        self._messages = messages

    async def EmptyCall(self, request: Any, context: Any) -> Any:
        return request

    async def UnaryCall(self, request: Any, context: Any) -> Any:
        await self._echo_metadata(context)
        await self._echo_status(request, context)
        response = self._messages.SimpleResponse(payload=self._payload(request.response_size))
        if request.fill_server_id:
            response.server_id = "lakemesh"
        return response

    async def StreamingOutputCall(self, request: Any, context: Any) -> AsyncIterator[Any]:
        async for response in self._outputs(request):
            yield response

    async def StreamingInputCall(self, requests: AsyncIterator[Any], context: Any) -> Any:
        size = 0
        async for request in requests:
            size += len(request.payload.body)
        return self._messages.StreamingInputCallResponse(aggregated_payload_size=size)

    async def FullDuplexCall(
        self, requests: AsyncIterator[Any], context: Any
    ) -> AsyncIterator[Any]:
        await self._echo_metadata(context)
        async for request in requests:
            await self._echo_status(request, context)
            async for response in self._outputs(request):
                yield response

    async def HalfDuplexCall(
        self, requests: AsyncIterator[Any], context: Any
    ) -> AsyncIterator[Any]:
        for request in [request async for request in requests]:
            async for response in self._outputs(request):
                yield response

    async def CacheableUnaryCall(self, request: Any, context: Any) -> Any:
        await context.abort(grpc.StatusCode.UNIMPLEMENTED, "no cache here")

    async def UnimplementedCall(self, request: Any, context: Any) -> Any:
        await context.abort(grpc.StatusCode.UNIMPLEMENTED, "by name")

    async def _echo_metadata(self, context: Any) -> None:
        for key, value in context.invocation_metadata():
            if key == INITIAL:
                await context.send_initial_metadata(((key, value),))
            elif key == TRAILING:
                context.set_trailing_metadata(((key, value),))
            elif key == WANT_DETAILS:
                detail = any_pb2.Any()
                detail.Pack(error_details_pb2.ErrorInfo(reason="ASKED", domain="interop"))
                status = status_pb2.Status(code=9, message="as asked", details=[detail])
                trailing = ((DETAILS, status.SerializeToString()),)
                await context.abort_with_status(
                    RichStatus(grpc.StatusCode.FAILED_PRECONDITION, status.message, trailing)
                )

    async def _echo_status(self, request: Any, context: Any) -> None:
        if request.response_status.code:
            code = _CODES[request.response_status.code]
            await context.abort(code, request.response_status.message)

    async def _outputs(self, request: Any) -> AsyncIterator[Any]:
        for parameters in request.response_parameters:
            if parameters.interval_us:
                await asyncio.sleep(parameters.interval_us / 1e6)
            yield self._messages.StreamingOutputCallResponse(payload=self._payload(parameters.size))

    def _payload(self, size: int) -> Any:
        return self._messages.Payload(body=bytes(size))
