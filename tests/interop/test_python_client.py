"""The gRPC interop list with grpc.aio as client, against both edges.

Names and contents of the cases: grpc/doc/interop-test-descriptions.md.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest
from google.rpc import error_details_pb2, status_pb2

from tests.interop.testing_service import DETAILS, INITIAL, SERVICE, TRAILING, WANT_DETAILS

pytestmark = [pytest.mark.go, pytest.mark.timeout(300)]

WAIT = 5.0
REQUEST_SIZES = (27182, 8, 1828, 45904)
RESPONSE_SIZES = (31415, 9, 2653, 58979)
SPECIAL = "\t\ntest with whitespace\r\nand Unicode BMP \u263a and non-BMP \U0001f608\t\n"


class Client:
    """A stub made from the message classes."""

    def __init__(self, channel: grpc.aio.Channel, messages: Any) -> None:
        self._channel = channel
        self.messages = messages

    def method(self, name: str, kind: str, reply: str, service: str = SERVICE) -> Any:
        return getattr(self._channel, kind)(
            f"/{service}/{name}",
            request_serializer=lambda message: message.SerializeToString(),
            response_deserializer=getattr(self.messages, reply).FromString,
        )

    @property
    def unary(self) -> Any:
        return self.method("UnaryCall", "unary_unary", "SimpleResponse")

    @property
    def duplex(self) -> Any:
        return self.method("FullDuplexCall", "stream_stream", "StreamingOutputCallResponse")

    @property
    def output(self) -> Any:
        return self.method("StreamingOutputCall", "unary_stream", "StreamingOutputCallResponse")

    @property
    def input(self) -> Any:
        return self.method("StreamingInputCall", "stream_unary", "StreamingInputCallResponse")

    def payload(self, size: int) -> Any:
        return self.messages.Payload(body=bytes(size))

    def ask(self, *sizes: int, body: int = 0) -> Any:
        """A request for answers of these sizes."""
        request = self.messages.StreamingOutputCallRequest(payload=self.payload(body))
        for size in sizes:
            request.response_parameters.add(size=size)
        return request


@pytest.fixture
async def client(served_port: int, messages: Any) -> AsyncIterator[Client]:
    options = [("grpc.use_local_subchannel_pool", 1)]
    async with grpc.aio.insecure_channel(f"127.0.0.1:{served_port}", options=options) as channel:
        yield Client(channel, messages)


async def test_empty_unary(client: Client) -> None:
    empty = client.method("EmptyCall", "unary_unary", "Empty")
    assert await empty(client.messages.Empty(), timeout=WAIT) == client.messages.Empty()


async def test_large_unary(client: Client) -> None:
    request = client.messages.SimpleRequest(response_size=314159, payload=client.payload(271828))
    assert len((await client.unary(request, timeout=WAIT)).payload.body) == 314159


@pytest.mark.parametrize("compression", [grpc.Compression.Gzip, grpc.Compression.Deflate])
async def test_client_compressed_unary(client: Client, compression: grpc.Compression) -> None:
    request = client.messages.SimpleRequest(response_size=314159, payload=client.payload(271828))
    reply = await client.unary(request, timeout=WAIT, compression=compression)
    assert len(reply.payload.body) == 314159


async def test_client_compressed_streaming(client: Client) -> None:
    request = client.messages.StreamingInputCallRequest
    call = client.input(timeout=WAIT, compression=grpc.Compression.Gzip)
    for size in (27182, 45904):
        await call.write(request(payload=client.payload(size)))
    await call.done_writing()
    assert (await call).aggregated_payload_size == 73086


async def test_client_streaming(client: Client) -> None:
    request = client.messages.StreamingInputCallRequest
    call = client.input(timeout=WAIT)
    for size in REQUEST_SIZES:
        await call.write(request(payload=client.payload(size)))
    await call.done_writing()
    assert (await call).aggregated_payload_size == sum(REQUEST_SIZES)


async def test_server_streaming(client: Client) -> None:
    call = client.output(client.ask(*RESPONSE_SIZES), timeout=WAIT)
    assert [len(reply.payload.body) async for reply in call] == list(RESPONSE_SIZES)


async def test_ping_pong(client: Client) -> None:
    call = client.duplex(timeout=WAIT)
    for asked, sent in zip(RESPONSE_SIZES, REQUEST_SIZES, strict=True):
        await call.write(client.ask(asked, body=sent))
        assert len((await call.read()).payload.body) == asked
    await call.done_writing()
    assert await call.read() is grpc.aio.EOF
    assert await call.code() is grpc.StatusCode.OK


async def test_empty_stream(client: Client) -> None:
    call = client.duplex(timeout=WAIT)
    await call.done_writing()
    assert await call.read() is grpc.aio.EOF
    assert await call.code() is grpc.StatusCode.OK


async def test_cancel_after_begin(client: Client) -> None:
    call = client.input(timeout=WAIT)
    assert call.cancel()
    assert await call.code() is grpc.StatusCode.CANCELLED


async def test_cancel_after_first_response(client: Client) -> None:
    call = client.duplex(timeout=WAIT)
    await call.write(client.ask(31415, body=27182))
    await call.read()
    assert call.cancel()
    assert await call.code() is grpc.StatusCode.CANCELLED


async def test_timeout_on_sleeping_server(client: Client) -> None:
    request = client.ask(31415, body=27182)
    request.response_parameters[0].interval_us = 10_000_000
    call = client.duplex(timeout=0.05)
    # The deadline may pass before the message is taken.
    with pytest.raises((grpc.aio.AioRpcError, asyncio.InvalidStateError)):
        await call.write(request)
        await call.read()
    assert await call.code() is grpc.StatusCode.DEADLINE_EXCEEDED


@pytest.mark.parametrize("kind", ["unary", "duplex"])
async def test_custom_metadata(client: Client, kind: str) -> None:
    sent = ((INITIAL, "test_initial_metadata_value"), (TRAILING, b"\xab\xab\xab"))
    if kind == "unary":
        call = client.unary(client.messages.SimpleRequest(response_size=1), metadata=sent)
        await call
    else:
        call = client.duplex(metadata=sent)
        await call.write(client.ask(1))
        await call.read()
        await call.done_writing()
        assert await call.read() is grpc.aio.EOF
    async with asyncio.timeout(WAIT):
        assert dict(await call.initial_metadata())[INITIAL] == "test_initial_metadata_value"
        assert dict(await call.trailing_metadata())[TRAILING] == b"\xab\xab\xab"


@pytest.mark.parametrize("message", ["test status message", SPECIAL])
@pytest.mark.parametrize("kind", ["unary", "duplex"])
async def test_status_code_and_message(client: Client, kind: str, message: str) -> None:
    status = client.messages.EchoStatus(code=2, message=message)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        if kind == "unary":
            request = client.messages.SimpleRequest(response_status=status)
            await client.unary(request, timeout=WAIT)
        else:
            call = client.duplex(timeout=WAIT)
            await call.write(client.messages.StreamingOutputCallRequest(response_status=status))
            await call.done_writing()
            await call.read()
            await call.read()
    assert caught.value.code() is grpc.StatusCode.UNKNOWN
    assert caught.value.details() == message


async def test_status_details(client: Client) -> None:
    request = client.messages.SimpleRequest(response_size=1)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await client.unary(request, timeout=WAIT, metadata=((WANT_DETAILS, "1"),))
    assert caught.value.code() is grpc.StatusCode.FAILED_PRECONDITION
    status = status_pb2.Status.FromString(dict(caught.value.trailing_metadata())[DETAILS])
    assert (status.code, status.message) == (9, "as asked")
    info = error_details_pb2.ErrorInfo()
    assert status.details[0].Unpack(info)
    assert info.reason == "ASKED"


@pytest.mark.parametrize(
    ("service", "method"),
    [
        (SERVICE, "UnimplementedCall"),
        (SERVICE, "NoSuchCall"),
        ("grpc.testing.UnimplementedService", "UnimplementedCall"),
    ],
)
async def test_unimplemented(client: Client, service: str, method: str) -> None:
    call = client.method(method, "unary_unary", "Empty", service)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call(client.messages.Empty(), timeout=WAIT)
    assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED
