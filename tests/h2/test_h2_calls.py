"""Good peers: gRPC and JSON, many at once, large, slow and mixed on one connection."""

from __future__ import annotations

import asyncio
import gzip
import json
from typing import Any

import grpc
import pytest
from hpack import Encoder

from lakemesh.server.h2_limits import H2Limits
from tests.h2 import h2_peer
from tests.h2.h2_serving import SERVICE, Packet, serve

WAIT = 5.0


def _stub(channel: grpc.aio.Channel, method: str, kind: str = "unary_unary") -> Any:
    make = getattr(channel, kind)
    return make(
        f"/{SERVICE}/{method}",
        request_serializer=lambda message: message.SerializeToString(),
        response_deserializer=Packet.FromString,
    )


async def test_unary_call_is_answered() -> None:
    async with serve() as served, grpc.aio.insecure_channel(served.target) as channel:
        reply = await _stub(channel, "Echo")(Packet(body=b"hello"), timeout=WAIT)
        assert reply.body == b"hello"


async def test_two_thousand_concurrent_calls_on_one_channel_none_fails() -> None:
    async with serve() as served, grpc.aio.insecure_channel(served.target) as channel:
        echo = _stub(channel, "Echo")
        replies = await asyncio.gather(*(echo(Packet(count=n), timeout=30) for n in range(2000)))
        assert [reply.count for reply in replies] == list(range(2000))


async def test_a_thousand_streams_are_open_at_once() -> None:
    async with serve() as served, h2_peer.connect(served.port) as peer:
        ids = [peer.call("Hang", Packet(count=n).SerializeToString()) for n in range(1000)]
        async with asyncio.timeout(WAIT):
            while served.echo.begun < 1000:
                await asyncio.sleep(0)
        served.echo.release.set()
        answers = [await peer.answer(stream_id) for stream_id in ids]
        assert {answer.grpc_status for answer in answers} == {"0"}
        assert [Packet.FromString(bytes(a.body[5:])).count for a in answers] == list(range(1000))


@pytest.mark.slow
async def test_64_mib_are_streamed_each_way() -> None:
    options = [("grpc.max_receive_message_length", -1)]
    async with (
        serve() as served,
        grpc.aio.insecure_channel(served.target, options=options) as channel,
    ):
        size = 0
        async for reply in _stub(channel, "Many", "unary_stream")(
            Packet(count=64, size=1 << 20), timeout=30
        ):
            size += len(reply.body)
        assert size == 64 << 20

        async def requests() -> Any:
            for _ in range(64):
                yield Packet(body=b"z" * (1 << 20))

        total = await _stub(channel, "Sum", "stream_unary")(requests(), timeout=30)
        assert (total.count, total.size) == (64, 64 << 20)


async def test_many_small_messages_keep_their_order() -> None:
    async with serve() as served, grpc.aio.insecure_channel(served.target) as channel:
        call = _stub(channel, "Many", "unary_stream")(Packet(count=5000, size=10), timeout=30)
        assert [reply.count async for reply in call] == list(range(5000))


async def test_a_reader_that_stops_holds_up_its_own_stream_only() -> None:
    async with serve() as served, h2_peer.connect(served.port) as peer:
        peer.reading = False
        slow = peer.call("Many", Packet(count=1000, size=10_000).SerializeToString())
        async with asyncio.timeout(WAIT):
            while len(peer.answers[slow].body) < 65535:
                await asyncio.sleep(0)
        # One window of the peer, and one message, is all that was produced.
        assert served.echo.sent <= 65535 // 10_000 + 2
        # The connection's window is used up too; widen that alone, and others are served.
        peer.h2.increment_flow_control_window(1 << 20)
        peer.flush()
        other = await peer.answer(peer.call("Echo", Packet(body=b"beside").SerializeToString()))
        assert Packet.FromString(bytes(other.body[5:])).body == b"beside"
        assert served.echo.sent <= 65535 // 10_000 + 2


async def test_a_reader_that_never_reads_again_is_cut() -> None:
    limits = H2Limits(write_stall_seconds=0.2)
    async with serve(limits) as served, h2_peer.connect(served.port) as peer:
        peer.reading = False
        stream_id = peer.call("Many", Packet(count=1000, size=10_000).SerializeToString())
        answer = await peer.answer(stream_id)
        assert answer.reset == 8  # CANCEL


async def test_a_deaf_service_is_sent_one_window_and_no_more() -> None:
    async with serve() as served, h2_peer.connect(served.port) as peer:
        stream_id = peer.open(h2_peer.grpc_head("Deaf"), end=False)
        message = h2_peer.framed(Packet(body=b"m" * 10_000).SerializeToString())
        sent = 0
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.5):
                while True:
                    await peer.upload(stream_id, message, end=False)
                    sent += len(message)
        window = served.limits.stream_window
        assert window - len(message) <= sent <= window + len(message)
        assert served.connections[0].held <= window
        served.echo.release.set()
        assert (await peer.answer(stream_id)).grpc_status == "0"


async def test_an_idle_stream_is_kept() -> None:
    limits = H2Limits(
        head_seconds=0.1, first_request_seconds=0.1, body_seconds=0.1, write_stall_seconds=0.1
    )
    async with serve(limits) as served, grpc.aio.insecure_channel(served.target) as channel:
        chat = _stub(channel, "Chat", "stream_stream")(timeout=WAIT)
        await chat.write(Packet(count=1))
        assert (await chat.read()).count == 1
        await asyncio.sleep(0.5)  # time is the feature
        await chat.write(Packet(count=2))
        assert (await chat.read()).count == 2
        await chat.done_writing()


async def test_json_and_grpc_share_a_connection() -> None:
    async with serve() as served, h2_peer.connect(served.port) as peer:
        call = peer.call("Echo", Packet(body=b"both").SerializeToString())
        page = await peer.post("/echo", b'{"a":1}')
        assert (page.status, json.loads(page.body)) == ("200", {"a": 1})
        assert Packet.FromString(bytes((await peer.answer(call)).body[5:])).body == b"both"
        assert served.app.scopes[0]["http_version"] == "2"


async def test_a_large_body_is_streamed_to_the_app() -> None:
    async with serve() as served, h2_peer.connect(served.port) as peer:
        answer = await peer.post("/size", b"b" * (3 << 20))
        assert json.loads(answer.body) == {"size": 3 << 20}
        assert served.connections[0].held == 0


async def test_head_is_answered_without_a_body() -> None:
    async with serve() as served, h2_peer.connect(served.port) as peer:
        answer = await peer.get("/", "HEAD")
        shown = (answer.status, answer.headers["content-length"], bytes(answer.body))
        assert shown == ("200", "17", b"")


async def test_a_reset_tells_the_app() -> None:
    async with serve() as served, h2_peer.connect(served.port) as peer:
        stream_id = peer.open(h2_peer.http_head("/forever"))
        async with asyncio.timeout(WAIT):
            await served.app.streaming.wait()
            peer.h2.reset_stream(stream_id, 8)
            peer.flush()
            await served.app.disconnected.wait()


async def test_a_lost_connection_tells_the_app() -> None:
    async with serve() as served:
        async with h2_peer.connect(served.port) as peer:
            peer.open(h2_peer.http_head("/forever"))
            async with asyncio.timeout(WAIT):
                await served.app.streaming.wait()
        async with asyncio.timeout(WAIT):
            await served.app.disconnected.wait()


async def test_an_app_that_streams_waits_for_its_reader() -> None:
    async with serve() as served, h2_peer.connect(served.port) as peer:
        peer.reading = False
        stream_id = peer.open(h2_peer.http_head("/flood"))
        async with asyncio.timeout(WAIT):
            while len(peer.answers[stream_id].body) < 65535:
                await asyncio.sleep(0)
        assert served.app.sent <= 5


async def test_an_app_that_fails_is_500() -> None:
    async with serve() as served, h2_peer.connect(served.port) as peer:
        assert (await peer.get("/raise")).status == "500"
        assert (await peer.get("/")).status == "200"


async def test_an_answer_before_the_body_ends_the_stream_kindly() -> None:
    async with serve() as served, h2_peer.connect(served.port) as peer:
        stream_id = peer.open(h2_peer.http_head("/early", "POST"), end=False)
        answer = await peer.answer(stream_id)
        assert answer.status == "200"
        assert answer.reset in (None, 0)
        assert (await peer.get("/")).status == "200"


async def test_a_cancelled_call_stops_its_handler() -> None:
    async with serve() as served, grpc.aio.insecure_channel(served.target) as channel:
        call = _stub(channel, "Hang")(Packet())
        async with asyncio.timeout(WAIT):
            await served.echo.hanging.wait()
            call.cancel()
            await served.echo.all_stopped.wait()


async def test_a_deadline_ends_the_call_on_the_server() -> None:
    async with serve() as served, h2_peer.connect(served.port) as peer:
        answer = await peer.answer(peer.call("Hang", b"", ("grpc-timeout", "50m")))
        assert answer.grpc_status == "4"
        async with asyncio.timeout(WAIT):
            await served.echo.all_stopped.wait()


@pytest.mark.parametrize("value", ["", "5", "123456789S", "-1S", "5X", "1.5S"])
async def test_a_malformed_timeout_is_invalid(value: str) -> None:
    async with serve() as served, h2_peer.connect(served.port) as peer:
        answer = await peer.answer(peer.call("Echo", b"", ("grpc-timeout", value)))
        assert answer.grpc_status == "3"


async def test_malformed_bytes_are_invalid_argument() -> None:
    async with serve() as served, h2_peer.connect(served.port) as peer:
        answer = await peer.answer(peer.call("Echo", b"\xff" * 20))
        assert answer.grpc_status == "3"
        assert "Packet" in answer.headers["grpc-message"]


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (b"", "12"),
        (b"\0\0\0", "13"),
        (b"\0\0\0\0\5abc", "13"),
        (b"\2\0\0\0\0", "13"),
        (b"\1\0\0\0\3abc", "13"),
        (b"\0\0\0\0\0" * 2, "12"),
    ],
)
async def test_a_broken_request_body_is_refused(body: bytes, code: str) -> None:
    async with serve() as served, h2_peer.connect(served.port) as peer:
        stream_id = peer.open(h2_peer.grpc_head("Echo"), end=False)
        peer.h2.send_data(stream_id, body, end_stream=True)
        peer.flush()
        assert (await peer.answer(stream_id)).grpc_status == code
        assert served.echo.begun == 0


async def test_an_oversize_message_is_refused_by_its_prefix() -> None:
    async with serve() as served, h2_peer.connect(served.port) as peer:
        stream_id = peer.open(h2_peer.grpc_head("Echo"), end=False)
        peer.h2.send_data(stream_id, b"\0" + (4 * 1024 * 1024 + 1).to_bytes(4, "big"))
        peer.flush()
        assert (await peer.answer(stream_id)).grpc_status == "8"
        assert served.connections[0].held == 0


async def test_a_gzip_bomb_is_refused_by_its_decompressed_size() -> None:
    async with serve() as served, h2_peer.connect(served.port) as peer:
        bomb = gzip.compress(b"a" * (64 << 20), 9)
        stream_id = peer.open(h2_peer.grpc_head("Echo", ("grpc-encoding", "gzip")), end=False)
        await peer.upload(stream_id, b"\1" + len(bomb).to_bytes(4, "big") + bomb)
        assert (await peer.answer(stream_id)).grpc_status == "8"


async def test_an_unknown_compression_is_unimplemented_and_the_known_ones_named() -> None:
    async with serve() as served, h2_peer.connect(served.port) as peer:
        answer = await peer.answer(peer.call("Echo", b"", ("grpc-encoding", "snappy")))
        assert answer.grpc_status == "12"
        assert answer.headers["grpc-accept-encoding"] == "identity,deflate,gzip"


async def test_answers_are_compressed_only_when_asked() -> None:
    async with serve() as served, h2_peer.connect(served.port) as peer:
        body = Packet(body=b"a" * 10_000).SerializeToString()
        plain = await peer.answer(peer.call("Echo", body, ("grpc-accept-encoding", "gzip")))
        assert plain.body[0] == 0
        asked = await peer.answer(
            peer.call("Echo", body, ("grpc-accept-encoding", "gzip"), ("grpc-encoding", "gzip"))
        )
        assert asked.headers["grpc-encoding"] == "gzip"
        assert asked.body[0] == 1
        assert gzip.decompress(asked.body[5:]) == body


@pytest.mark.parametrize(
    ("content_type", "status"),
    [("application/grpc+proto", "200"), ("application/grpc+json", "415")],
)
async def test_content_type_decides(content_type: str, status: str) -> None:
    async with serve() as served, h2_peer.connect(served.port) as peer:
        head = [h for h in h2_peer.grpc_head("Echo") if h[0] != "content-type"]
        stream_id = peer.open([*head, ("content-type", content_type)], end=False)
        peer.h2.send_data(stream_id, h2_peer.framed(b""), end_stream=True)
        peer.flush()
        assert (await peer.answer(stream_id)).status == status


async def test_grpc_web_goes_to_the_app() -> None:
    async with serve() as served, h2_peer.connect(served.port) as peer:
        head = [*h2_peer.http_head("/web", "POST"), ("content-type", "application/grpc-web")]
        stream_id = peer.open(head, end=False)
        peer.h2.send_data(stream_id, b"web", end_stream=True)
        peer.flush()
        assert (await peer.answer(stream_id)).body == b"web"


async def test_drain_finishes_open_streams_and_refuses_new_ones() -> None:
    # By raw frames: the h2 package takes the first GOAWAY for the end of everything.
    async with serve() as served:
        reader, writer = await asyncio.open_connection("127.0.0.1", served.port)
        head = Encoder().encode(h2_peer.grpc_head("Hang"))
        message = h2_peer.framed(Packet(count=7).SerializeToString())
        writer.write(
            h2_peer.PREFACE + h2_peer.frame(4, 0, 0) + h2_peer.frame(1, 4, 1, head)
            + h2_peer.frame(0, 1, 1, message)
        )  # fmt: skip
        goaways: list[tuple[int, int]] = []
        sent_late = False
        refused = answered = False
        async with asyncio.timeout(WAIT):
            await served.echo.hanging.wait()
            served.connections[0].shutdown()
            while not reader.at_eof():
                kind, flags, stream_id, payload = await h2_peer.read_frame(reader)
                if kind == 7:
                    last, code = int.from_bytes(payload[:4], "big"), payload[7]
                    goaways.append((last, code))
                elif kind == 6 and not flags:
                    writer.write(h2_peer.frame(6, 1, 0, payload))
                refused |= (kind, stream_id) == (3, 3) and payload[3] == 7
                answered |= (kind, flags & 1, stream_id) == (1, 1, 1)
                if len(goaways) == 2 and not sent_late:
                    sent_late = True
                    writer.write(h2_peer.frame(1, 5, 3, head))
                if refused:
                    served.echo.release.set()
            await served.connections[0].closed
        writer.close()
        assert goaways == [(0x7FFFFFFF, 0), (1, 0)]
        assert (refused, answered) == (True, True)


async def test_abort_tells_what_is_left_that_the_server_goes() -> None:
    async with serve() as served, h2_peer.connect(served.port) as peer:
        stream_id = peer.call("Hang", b"")
        page = peer.open(h2_peer.http_head("/echo", "POST"), end=False)
        async with asyncio.timeout(WAIT):
            await served.echo.hanging.wait()
            served.connections[0].abort()
            await served.connections[0].closed
        assert (await peer.answer(stream_id)).grpc_status == "14"
        assert (await peer.answer(page)).status == "503"
        assert served.echo.stopped == 1
