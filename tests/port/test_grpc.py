"""gRPC on the port, over both edges: whatever serves a call, the caller sees the same."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import grpc
import pytest
from google.rpc import error_details_pb2, status_pb2

from tests.port.port_serving import SERVICE, Packet, Served, call


async def test_unary_call_carries_metadata_both_ways(served: Served) -> None:
    async with served.channel() as channel:
        calling = call(channel, "Echo", Packet(text="hello"))
        assert (await calling).text == "hello"
        assert ("first", "1") in tuple(await calling.initial_metadata())
        assert ("last-bin", b"\x00\xff") in tuple(await calling.trailing_metadata())


async def test_servicer_sees_the_caller_and_not_the_splice(served: Served) -> None:
    async with served.channel() as channel:
        answer = await call(channel, "Who", Packet(), metadata=(("a", "b"),))
    known = json.loads(answer.text)
    host, _, port = known["peer"].rpartition(":")
    assert host == "127.0.0.1"
    assert int(port) != served.port.port
    assert known["transport"] == "grpc"
    assert ["a", "b"] in known["metadata"]
    # The loop's clock is read once a turn, so a busy turn shows as some time more.
    assert 0 < known["remaining"] <= 5.5


async def test_two_callers_are_told_apart(served: Served) -> None:
    async with served.channel() as one, served.channel() as other:
        peers = {json.loads((await call(c, "Who", Packet())).text)["peer"] for c in (one, other)}
    assert len(peers) == 2


async def test_call_without_a_deadline_has_none(served: Served) -> None:
    async with served.channel() as channel:
        answer = await call(channel, "Who", Packet(), timeout=None)
    assert json.loads(answer.text)["remaining"] is None


async def test_failure_carries_its_details(served: Served) -> None:
    async with served.channel() as channel:
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await call(channel, "Fail", Packet())
    assert raised.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert raised.value.details() == "text: is wrong"
    packed = dict(raised.value.trailing_metadata() or ())["grpc-status-details-bin"]
    status = status_pb2.Status.FromString(packed)  # type: ignore[arg-type]
    bad = error_details_pb2.BadRequest()
    assert status.details[0].Unpack(bad)
    assert bad.field_violations[0].field == "text"


async def test_malformed_bytes_are_the_callers_fault(served: Served) -> None:
    async with served.channel() as channel:
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await channel.unary_unary(f"/{SERVICE}/Echo")(b"\xff" * 20, timeout=5)  # type: ignore[arg-type]
    assert raised.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert "DecodeError" not in (raised.value.details() or "")


@pytest.mark.parametrize("path", [f"/{SERVICE}/Nothing", "/no.such.Service/Echo"])
async def test_unknown_method_is_unimplemented(served: Served, path: str) -> None:
    async with served.channel() as channel:
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await channel.unary_unary(path)(b"", timeout=5)  # type: ignore[arg-type]
    assert raised.value.code() is grpc.StatusCode.UNIMPLEMENTED


async def test_deadline_stops_the_work(served: Served) -> None:
    async with served.channel() as channel:
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await call(channel, "Wait", Packet(count=5000), timeout=0.2)
        assert raised.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        async with asyncio.timeout(2):
            await served.service.cancelled.wait()


async def test_cancelling_stops_the_work(served: Served) -> None:
    async with served.channel() as channel:
        calling = call(channel, "Wait", Packet(count=5000))
        async with asyncio.timeout(2):
            await served.service.waiting.acquire()
        calling.cancel()
        async with asyncio.timeout(2):
            await served.service.cancelled.wait()


async def test_a_vanished_client_stops_the_work(served: Served) -> None:
    channel = served.channel()
    calling = call(channel, "Wait", Packet(count=5000))
    async with asyncio.timeout(2):
        await served.service.waiting.acquire()
        await channel.close()
        await served.service.cancelled.wait()
    with pytest.raises(asyncio.CancelledError):
        await calling


def _stream(channel: grpc.aio.Channel, kind: str, name: str) -> Any:
    return getattr(channel, kind)(
        f"/{SERVICE}/{name}",
        request_serializer=Packet.SerializeToString,
        response_deserializer=Packet.FromString,
    )


async def test_server_stream_comes_in_order(served: Served) -> None:
    async with served.channel() as channel:
        answers = _stream(channel, "unary_stream", "Many")(Packet(count=1000), timeout=5)
        counts = [answer.count async for answer in answers]
    assert counts == list(range(1000))


async def test_server_stream_may_end_in_an_error(served: Served) -> None:
    async with served.channel() as channel:
        answers = _stream(channel, "unary_stream", "Many")(Packet(count=3, text="no"), timeout=5)
        got = 0
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            async for _ in answers:
                got += 1
    assert got == 3
    assert raised.value.code() is grpc.StatusCode.ABORTED


async def test_client_stream_is_summed(served: Served) -> None:
    async with served.channel() as channel:
        requests = [Packet(body=b"x" * 100_000) for _ in range(50)]
        answer = await _stream(channel, "stream_unary", "Sum")(iter(requests), timeout=5)
    assert answer.count == 5_000_000


async def test_both_streams_talk_in_turns(served: Served) -> None:
    async with served.channel() as channel:
        talk = _stream(channel, "stream_stream", "Chat")(timeout=5)
        for count in range(20):
            await talk.write(Packet(count=count))
            assert (await talk.read()).count == count
        await talk.done_writing()
        assert await talk.read() is grpc.aio.EOF


async def test_large_message_and_gzip_pass(served: Served) -> None:
    body = bytes(range(256)) * 12_000
    async with served.channel() as channel:
        for compression in (grpc.Compression.NoCompression, grpc.Compression.Gzip):
            answer = await call(channel, "Echo", Packet(body=body), compression=compression)
            assert answer.body == body


async def test_oversized_message_is_refused(served: Served) -> None:
    async with served.channel() as channel:
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await call(channel, "Echo", Packet(body=b"x" * (4 * 1024 * 1024 + 10)))
    assert raised.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED


@pytest.mark.parametrize(("size", "passes"), [(12_000, True), (20_000, False)])
async def test_metadata_is_bounded(served: Served, size: int, passes: bool) -> None:
    async with served.channel() as channel:
        await call(channel, "Echo", Packet())  # the server's limit is known from here on
        calling = call(channel, "Echo", Packet(), metadata=(("k", "v" * size),))
        if passes:
            await calling
        else:
            with pytest.raises(grpc.aio.AioRpcError) as raised:
                await calling
            assert raised.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED


async def test_two_thousand_concurrent_calls_all_succeed(served: Served) -> None:
    async with served.channel() as channel:
        calls = (call(channel, "Wait", Packet(count=50), timeout=30) for _ in range(2000))
        answers = await asyncio.gather(*calls)
    assert len(answers) == 2000


async def test_slow_reader_gets_everything(served: Served) -> None:
    async with served.channel() as channel:
        request = Packet(count=64, body=b"x" * 200_000)
        answers = _stream(channel, "unary_stream", "Many")(request, timeout=20)
        assert (await answers.read()).count == 0
        await asyncio.sleep(0.3)  # time is the feature: the windows fill up meanwhile
        size = 200_000
        while (answer := await answers.read()) is not grpc.aio.EOF:
            size += len(answer.body)
    assert size == 64 * 200_000
