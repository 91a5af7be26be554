"""How connections begin: in pieces, too slowly, too often, by way of a proxy."""

from __future__ import annotations

import asyncio
import contextlib
import json
import resource
from collections.abc import AsyncIterator

import pytest
from hpack import Decoder, Encoder

from lakemesh.server import h2_frames as h2
from lakemesh.server.port import PortLimits, bind
from tests.port.port_serving import SERVICE, Packet, Served, call, serve

SHORT = PortLimits(
    first_request_seconds=0.4, head_seconds=0.4, body_seconds=0.4, body_bytes_per_second=1000
)
OPENING = h2.PREFACE + h2.settings({})
GET = b"GET /x HTTP/1.1\r\nhost: a\r\n\r\n"


@pytest.fixture(params=["grpcio", "h2"])
async def hurried(request: pytest.FixtureRequest) -> AsyncIterator[Served]:
    async with serve(grpc_edge=request.param, limits=SHORT) as served:
        yield served


async def answer_of(reader: asyncio.StreamReader) -> tuple[int, dict[str, object]]:
    """Status and JSON body of one HTTP/1.1 answer."""
    async with asyncio.timeout(5):
        head = await reader.readuntil(b"\r\n\r\n")
        length = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0])
        body = json.loads(await reader.readexactly(length))
    return int(head[9:12]), body


async def ends(reader: asyncio.StreamReader) -> bytes:
    """Whatever comes until the connection ends, within five seconds."""
    async with asyncio.timeout(5):
        try:
            return await reader.read()
        except ConnectionResetError:
            return b""


def request(stream: int, path: str, content_type: str, body: bytes, **more: str) -> bytes:
    fields = {
        ":method": "POST",
        ":scheme": "http",
        ":path": path,
        ":authority": "a",
        "content-type": content_type,
        **({"te": "trailers"} if content_type.startswith("application/grpc") else {}),
        **{key.replace("_", "-"): value for key, value in more.items()},
    }
    # An encoder of its own each time: nothing may refer to another request's table.
    encoder = Encoder()
    encoder.header_table_size = 0
    block = encoder.encode(fields.items())
    return h2.frame(h2.HEADERS, h2.END_HEADERS, stream, block) + h2.frame(
        h2.DATA, h2.END_STREAM, stream, body
    )


async def streams_of(reader: asyncio.StreamReader, count: int) -> dict[int, list[object]]:
    """Header lists and data by stream, until so many streams ended."""
    decoder = Decoder()
    found: dict[int, list[object]] = {}
    ended = 0
    async with asyncio.timeout(5):
        while ended < count:
            word, flags, stream = h2.frame_header.unpack(await reader.readexactly(9))
            payload = await reader.readexactly(word >> 8)
            kind = word & 0xFF
            assert kind != h2.GOAWAY, payload
            if kind == h2.HEADERS:
                found.setdefault(stream, []).append(dict(decoder.decode(payload)))
            elif kind == h2.DATA:
                found.setdefault(stream, []).append(payload)
            if kind in (h2.HEADERS, h2.DATA) and flags & h2.END_STREAM:
                ended += 1
    return found


async def test_http1_is_served_in_pieces(served: Served) -> None:
    reader, writer = await served.open()
    for byte in b"PROPFIND /x HTTP/1.1\r\nhost: a\r\ncontent-length: 3\r\n\r\nabc":
        writer.write(bytes((byte,)))
        await writer.drain()
        await asyncio.sleep(0)
    status, body = await answer_of(reader)
    assert status == 200
    assert (body["method"], body["path"], body["bytes"]) == ("PROPFIND", "/x", 3)
    host, port = writer.get_extra_info("sockname")
    assert body["client"] == [host, port]
    writer.close()


async def test_http1_connection_serves_one_request_after_another(served: Served) -> None:
    reader, writer = await served.open()
    for _ in range(3):
        writer.write(GET)
        assert (await answer_of(reader))[0] == 200
    writer.write(GET + GET)
    assert (await answer_of(reader))[0] == 200
    assert (await answer_of(reader))[0] == 200
    writer.close()


@pytest.mark.parametrize("step", [1, 10_000])
@pytest.mark.parametrize("content_type", ["application/grpc", "application/json"])
async def test_http2_is_served_however_it_arrives(
    served: Served, step: int, content_type: str
) -> None:
    reader, writer = await served.open()
    message = Packet(text="hello").SerializeToString()
    body = b"\x00" + len(message).to_bytes(4, "big") + message
    grpc = content_type == "application/grpc"
    path = f"/{SERVICE}/Echo" if grpc else "/y"
    data = OPENING + request(1, path, content_type, body)
    for at in range(0, len(data), step):
        writer.write(data[at : at + step])
        await asyncio.sleep(0)
    found = (await streams_of(reader, 1))[1]
    assert found[0][":status"] == "200"  # type: ignore[index]
    assert body in found if grpc else any(isinstance(f, bytes) and b'"/y"' in f for f in found)
    writer.close()


async def test_headers_in_a_later_packet_are_waited_for(served: Served) -> None:
    reader, writer = await served.open()
    writer.write(OPENING)
    async with asyncio.timeout(5):
        first = await reader.readexactly(9)
    assert first[3] == h2.SETTINGS
    length = int.from_bytes(first[:3], "big")
    await reader.readexactly(length)
    writer.write(h2.frame(h2.SETTINGS, h2.ACK, 0))
    message = b"\x00\x00\x00\x00\x00"
    writer.write(request(1, f"/{SERVICE}/Echo", "application/grpc", message))
    found = await streams_of(reader, 1)
    assert found[1][-1]["grpc-status"] == "0"  # type: ignore[index]
    writer.close()


async def test_proxy_may_mix_grpc_and_json_on_one_connection(served: Served) -> None:
    reader, writer = await served.open()
    empty = b"\x00\x00\x00\x00\x00"
    writer.write(
        OPENING
        + request(1, f"/{SERVICE}/Echo", "application/grpc", empty, x_forwarded_for="10.1.1.1")
        + request(3, "/z", "application/json", b"{}", x_forwarded_for="10.1.1.2")
        + request(5, f"/{SERVICE}/Echo", "application/grpc", empty, x_forwarded_for="10.1.1.3")
    )
    found = await streams_of(reader, 3)
    assert found[1][-1]["grpc-status"] == "0"  # type: ignore[index]
    assert found[5][-1]["grpc-status"] == "0"  # type: ignore[index]
    assert any(isinstance(item, bytes) and b'"/z"' in item for item in found[3])
    writer.close()


@pytest.mark.parametrize(
    "begin", [b"", h2.PREFACE[:10], h2.PREFACE, OPENING, b"GE", GET[:-4], b"\x16\x03"]
)
async def test_a_peer_that_stops_early_is_closed(hurried: Served, begin: bytes) -> None:
    if hurried.port.terminates_grpc and begin.startswith(h2.PREFACE):
        pytest.skip("the HTTP/2 edge keeps that time itself: tests/h2")
    reader, writer = await hurried.open()
    writer.write(begin)
    await ends(reader)
    writer.close()


async def test_a_greeted_peer_is_told_goodbye() -> None:
    async with serve(limits=SHORT) as served:
        reader, writer = await served.open()
        writer.write(OPENING)
        said = await ends(reader)
        assert h2.goaway(0, h2.ErrorCode.NO_ERROR) in said
        writer.close()


async def test_slow_headers_are_answered_408(hurried: Served) -> None:
    reader, writer = await hurried.open()

    async def trickle() -> None:
        for byte in b"GET / HTTP/1.1\r\nhost: " + b"a" * 1000:
            writer.write(bytes((byte,)))
            await asyncio.sleep(0.02)

    trickling = asyncio.create_task(trickle())
    assert (await answer_of(reader))[0] == 408
    trickling.cancel()
    writer.close()


async def test_slow_headers_of_a_later_request_are_answered_408(hurried: Served) -> None:
    reader, writer = await hurried.open()
    writer.write(GET)
    assert (await answer_of(reader))[0] == 200
    writer.write(GET[:10])
    assert (await answer_of(reader))[0] == 408
    writer.close()


async def test_slow_body_is_answered_408_and_the_app_hears_of_it(hurried: Served) -> None:
    reader, writer = await hurried.open()
    writer.write(b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 1000\r\n\r\nabc")
    assert (await answer_of(reader))[0] == 408
    async with asyncio.timeout(2):
        await hurried.app.disconnected.wait()
    writer.close()


async def test_a_body_that_keeps_its_pace_may_take_longer(hurried: Served) -> None:
    reader, writer = await hurried.open()
    writer.write(b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 5000\r\n\r\n")
    for _ in range(10):
        await asyncio.sleep(0.1)
        writer.write(b"x" * 500)
    assert (await answer_of(reader))[0] == 200
    writer.close()


async def test_an_idle_connection_that_asked_once_is_kept(hurried: Served) -> None:
    reader, writer = await hurried.open()
    async with hurried.channel() as channel:
        writer.write(GET)
        assert (await answer_of(reader))[0] == 200
        await call(channel, "Echo", Packet())
        before = hurried.port.accepted
        await asyncio.sleep(0.9)  # time is the feature: twice the deadline
        writer.write(GET)
        assert (await answer_of(reader))[0] == 200
        await call(channel, "Echo", Packet())
        assert hurried.port.accepted == before
    writer.close()


@pytest.mark.parametrize("size", [17_000, 200_000])
async def test_large_headers_are_answered_431(served: Served, size: int) -> None:
    for head in (b"x: " + b"a" * size, b"x: y\r\n" * (size // 6)):
        reader, writer = await served.open()
        writer.write(b"GET / HTTP/1.1\r\nhost: a\r\n" + head + b"\r\n\r\n")
        assert (await answer_of(reader))[0] == 431
        writer.close()


async def test_headers_just_below_the_limit_pass(served: Served) -> None:
    reader, writer = await served.open()
    body = b"b" * 100_000
    writer.write(
        b"POST / HTTP/1.1\r\nhost: a\r\nx: %b\r\ncontent-length: %d\r\n\r\n%b"
        % (b"a" * 16_000, len(body), body)
    )
    assert (await answer_of(reader))[0] == 200
    writer.close()


async def test_what_is_not_http_is_answered_400(served: Served) -> None:
    reader, writer = await served.open()
    writer.write(b"\x00\x01\x02\x03\r\n\r\n")
    status, body = await answer_of(reader)
    assert (status, body["code"]) == (400, 3)
    writer.close()


async def test_h2c_upgrade_is_answered_on_http1(served: Served) -> None:
    reader, writer = await served.open()
    writer.write(
        b"GET /x HTTP/1.1\r\nhost: a\r\nconnection: Upgrade, HTTP2-Settings\r\n"
        b"upgrade: h2c\r\nhttp2-settings: AAMAAABkAAQAAP__\r\n\r\n"
    )
    assert (await answer_of(reader))[0] == 200
    writer.close()


async def test_good_calls_do_not_mind_silent_and_half_open_peers(hurried: Served) -> None:
    silent = [await hurried.open() for _ in range(200)]
    half = [await hurried.open() for _ in range(20)]
    for _, writer in half:
        writer.write(h2.PREFACE[:10])
    async with hurried.channel() as channel:
        for _ in range(20):
            await call(channel, "Echo", Packet(), timeout=1)
        for reader, _ in silent + half:
            await ends(reader)
        await call(channel, "Echo", Packet(), timeout=1)
        assert hurried.port.connections == 1
    for _, writer in silent + half:
        writer.close()


async def test_a_peer_with_too_many_connections_is_turned_away() -> None:
    limits = PortLimits(connections_per_peer=3, connections_per_loopback_peer=3)
    async with serve(limits=limits) as served:
        kept = [await served.open() for _ in range(3)]
        for reader, writer in kept:
            writer.write(GET)
            await answer_of(reader)
        reader, writer = await served.open()
        assert await ends(reader) == b""
        assert served.port.turned_away == 1
        writer.close()
        kept[0][1].close()
        async with asyncio.timeout(2):
            while served.port.connections == 3:
                await asyncio.sleep(0.01)
        reader, writer = await served.open()
        writer.write(GET)
        assert (await answer_of(reader))[0] == 200
        writer.close()
        for _, one in kept:
            one.close()


async def test_nothing_is_left_when_all_clients_are_gone(served: Served) -> None:
    async with served.channel() as channel:
        await call(channel, "Echo", Packet())
        reader, writer = await served.open()
        writer.write(GET)
        await answer_of(reader)
        writer.close()
    port = served.port
    async with asyncio.timeout(5):
        while port.connections or port.splices or port.h2 or len(port.arrivals):
            await asyncio.sleep(0.01)
    if port.grpcio is not None:
        assert not port.grpcio.names.addresses


async def test_grpc_is_served_when_descriptors_for_splices_run_out() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    async with contextlib.AsyncExitStack() as stack:
        # The port reads the limit when it is made; the test itself needs more than that.
        resource.setrlimit(resource.RLIMIT_NOFILE, (600, hard))
        try:
            served = Served()
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        await served.port.start(bind("127.0.0.1", 0))
        stack.push_async_callback(served.port.close)
        for _ in range(105):
            channel = await stack.enter_async_context(served.channel())
            await call(channel, "Echo", Packet())
        assert len(served.port.splices) == 100
        assert len(served.port.h2) == 5
