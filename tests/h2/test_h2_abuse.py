"""Hostile peers: each is cut or contained, and a good peer beside it does not notice."""

from __future__ import annotations

import asyncio

import pytest
from hpack import Encoder

from lakemesh.server.h2_limits import H2Limits
from tests.h2 import h2_peer
from tests.h2.h2_serving import Packet, Served, serve

WAIT = 5.0
CALM = 11  # ENHANCE_YOUR_CALM


def _head(method: str = "Echo", *extra: tuple[str, str]) -> bytes:
    return Encoder().encode(h2_peer.grpc_head(method, *extra))


async def _good_call(served: Served) -> None:
    async with h2_peer.connect(served.port) as good:
        answer = await good.answer(good.call("Echo", Packet(count=1).SerializeToString()))
        assert answer.grpc_status == "0"


async def _raw(served: Served) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    reader, writer = await asyncio.open_connection("127.0.0.1", served.port)
    writer.write(h2_peer.PREFACE + h2_peer.frame(4, 0, 0))
    return reader, writer


async def _goaway_code(reader: asyncio.StreamReader) -> int | None:
    """Read to the end of the connection; the error code of its GOAWAY, None without one."""
    code = None
    async with asyncio.timeout(WAIT):
        while True:
            kind, _, _, payload = await h2_peer.read_frame(reader)
            if kind == -1:
                return code
            if kind == 7:
                code = payload[7]


async def test_rapid_reset_starts_no_work_and_is_cut() -> None:
    async with serve() as served:
        reader, writer = await _raw(served)
        message = h2_peer.framed(b"")
        # No dynamic table: the same block again and again.
        head = Encoder().encode(h2_peer.grpc_head("Echo"))
        indexed = b""
        for stream_id in range(1, 10_001, 2):
            indexed += h2_peer.frame(1, 4, stream_id, head)
            indexed += h2_peer.frame(0, 1, stream_id, message)
            indexed += h2_peer.frame(3, 0, stream_id, (8).to_bytes(4, "big"))
        writer.write(indexed)
        await _good_call(served)
        assert await _goaway_code(reader) == CALM
        writer.close()
        assert served.echo.begun <= 200  # the good call, and heads cut off from their reset
        assert served.pipeline.active == 0


async def test_slow_rapid_reset_is_cut_and_stops_its_work() -> None:
    async with serve() as served, h2_peer.connect(served.port) as peer:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(2):
                while not peer.ended.is_set():
                    stream_ids = [peer.call("Hang", b"") for _ in range(50)]
                    await asyncio.sleep(0.005)  # the attack waits for the work to begin
                    if peer.going.is_set():
                        break
                    for stream_id in stream_ids:
                        peer.h2.reset_stream(stream_id, 8)
                    peer.flush()
                raise TimeoutError
        assert peer.goaway is not None
        assert peer.goaway.error_code == CALM
        await _good_call(served)
        async with asyncio.timeout(WAIT):
            while served.pipeline.active:
                await asyncio.sleep(0)
        assert served.echo.begun <= 1300


async def test_cancelling_many_old_calls_is_no_attack() -> None:
    limits = H2Limits(resets=10, resets_per_second=0, young_seconds=0)
    async with serve(limits) as served, h2_peer.connect(served.port) as peer:
        stream_ids = [peer.call("Hang", b"") for _ in range(100)]
        async with asyncio.timeout(WAIT):
            while served.echo.begun < 100:
                await asyncio.sleep(0)
            for stream_id in stream_ids:
                peer.h2.reset_stream(stream_id, 8)
            peer.flush()
            await served.echo.all_stopped.wait()
        assert (await peer.answer(peer.call("Echo", b""))).grpc_status == "0"


@pytest.mark.parametrize(
    "provocation",
    [
        pytest.param(lambda n: h2_peer.frame(8, 0, n, bytes(4)), id="window-update-of-zero"),
        pytest.param(
            lambda n: h2_peer.frame(8, 0, n, b"\x7f\xff\xff\xff"), id="window-beyond-the-limit"
        ),
        pytest.param(
            lambda n: h2_peer.frame(2, 0, n, n.to_bytes(4, "big") + b"\0"), id="own-dependency"
        ),
        pytest.param(lambda n: h2_peer.frame(0, 1, n, b"late"), id="data-after-the-end"),
        pytest.param(lambda n: h2_peer.frame(1, 5, n, _head()), id="headers-after-the-end"),
    ],
)
async def test_resets_the_server_is_made_to_send_count_too(provocation: object) -> None:
    assert callable(provocation)
    async with serve() as served:
        reader, writer = await _raw(served)
        head = _head("Hang")
        for stream_id in range(1, 4001, 2):
            writer.write(
                h2_peer.frame(1, 4, stream_id, head)
                + h2_peer.frame(0, 1, stream_id, h2_peer.framed(b""))
                + provocation(stream_id)
            )
        await _good_call(served)
        assert await _goaway_code(reader) == CALM
        writer.close()
        async with asyncio.timeout(WAIT):
            while served.pipeline.active:
                await asyncio.sleep(0)
        assert served.echo.begun <= 1200


async def test_calls_that_were_reset_but_still_run_count_as_streams() -> None:
    limits = H2Limits(concurrent_streams=4)
    async with serve(limits) as served:
        connection = served.make()
        assert connection.limits.concurrent_streams == 4
        served.connections.remove(connection)
        async with h2_peer.connect(served.port) as peer:
            ids = [peer.call("Hang", b"") for _ in range(4)]
            raw = h2_peer.frame(1, 5, ids[-1] + 2, _head("Hang"))
            peer.raw(raw)
            async with asyncio.timeout(WAIT):
                while served.echo.begun < 4:
                    await asyncio.sleep(0)
            served.echo.release.set()
            assert {(await peer.answer(n)).grpc_status for n in ids} == {"0"}
            assert served.echo.begun == 4


async def test_a_ping_flood_is_cut() -> None:
    async with serve() as served:
        reader, writer = await _raw(served)
        for _ in range(10):
            writer.write(h2_peer.frame(6, 0, 0, b"pingping"))
        assert await _goaway_code(reader) == CALM
        writer.close()
        await _good_call(served)


async def test_pings_beside_data_are_answered() -> None:
    async with serve() as served, h2_peer.connect(served.port) as peer:
        for _ in range(50):
            peer.h2.ping(b"pingping")
            assert (await peer.answer(peer.call("Echo", b""))).grpc_status == "0"


@pytest.mark.parametrize(
    ("kind", "payload", "count"),
    [
        pytest.param(4, b"", 100, id="settings"),
        pytest.param(2, b"\0\0\0\0\0", 3000, id="priority"),
        pytest.param(250, b"what", 3000, id="unknown"),
    ],
)
async def test_a_flood_of_idle_frames_is_cut(kind: int, payload: bytes, count: int) -> None:
    async with serve() as served:
        reader, writer = await _raw(served)
        stream_id = 0 if kind == 4 else 7
        writer.write(h2_peer.frame(kind, 0, stream_id, payload) * count)
        assert await _goaway_code(reader) == CALM
        writer.close()
        await _good_call(served)


async def test_a_flood_of_empty_data_is_cut() -> None:
    async with serve() as served:
        reader, writer = await _raw(served)
        writer.write(h2_peer.frame(1, 4, 1, _head("Deaf")))
        writer.write(h2_peer.frame(0, 0, 1) * 3000)
        assert await _goaway_code(reader) == CALM
        writer.close()
        await _good_call(served)


@pytest.mark.parametrize("piece", [b"", b"\x00\x01a\x01b"])
async def test_a_continuation_flood_is_cut(piece: bytes) -> None:
    async with serve() as served:
        reader, writer = await _raw(served)
        writer.write(h2_peer.frame(1, 0, 1, _head()))
        writer.write(h2_peer.frame(9, 0, 1, piece) * 1000)
        assert await _goaway_code(reader) == CALM
        writer.close()
        await _good_call(served)


async def test_an_hpack_bomb_is_cut() -> None:
    async with serve() as served:
        reader, writer = await _raw(served)
        # One entry of 4 kB in the table, then named 16,000 times.
        entry = b"\x40\x01a" + b"\x7f" + bytes((0x80 | (3800 - 127) & 0x7F, (3800 - 127) >> 7))
        writer.write(h2_peer.frame(1, 4, 1, entry + b"v" * 3800 + b"\xbe" * 12_000))
        assert await _goaway_code(reader) == CALM
        writer.close()
        await _good_call(served)


@pytest.mark.parametrize("size", [20 * 1024, 64 * 1024])
async def test_large_metadata_is_refused_on_its_call_alone(size: int) -> None:
    async with serve() as served, h2_peer.connect(served.port) as peer:
        assert (await peer.answer(peer.call("Echo", b"", ("x-ok", "v" * 12_288)))).grpc_status == (
            "0"
        )
        peer.h2.max_outbound_frame_size = 16384
        refused = peer.call("Echo", b"", ("x-large", "v" * size))
        assert (await peer.answer(refused)).grpc_status == "8"
        page = peer.open([*h2_peer.http_head("/"), ("x-large", "v" * size)])
        assert (await peer.answer(page)).status == "431"
        assert (await peer.answer(peer.call("Echo", b""))).grpc_status == "0"


@pytest.mark.parametrize(
    "opening",
    [
        b"",
        h2_peer.PREFACE[:10],
        h2_peer.PREFACE,
        h2_peer.PREFACE + h2_peer.frame(4, 0, 0) + b"\0\0\x20\1\4\0\0\0\1half",
        h2_peer.PREFACE + h2_peer.frame(4, 0, 0) + h2_peer.frame(1, 0, 1, b"\x82"),
        h2_peer.PREFACE + h2_peer.frame(4, 0, 0),
    ],
    ids=["silent", "half-preface", "no-settings", "half-frame", "open-headers", "no-request"],
)
async def test_a_peer_that_stops_before_its_request_is_closed(opening: bytes) -> None:
    limits = H2Limits(head_seconds=0.2, first_request_seconds=0.4)
    async with serve(limits) as served:
        reader, writer = await asyncio.open_connection("127.0.0.1", served.port)
        writer.write(opening)
        await _goaway_code(reader)
        writer.close()
        await _good_call(served)


async def test_a_body_that_stops_is_408() -> None:
    async with serve(H2Limits(body_seconds=0.2)) as served, h2_peer.connect(served.port) as peer:
        stream_id = peer.open(h2_peer.http_head("/size", "POST"), end=False)
        peer.h2.send_data(stream_id, b"some")
        peer.flush()
        assert (await peer.answer(stream_id)).status == "408"


async def test_a_peer_that_sends_and_never_reads_costs_bounded_memory() -> None:
    limits = H2Limits(write_backlog_bytes=100_000, write_stall_seconds=0.5)
    async with serve(limits) as served:
        _, writer = await _raw(served)
        writer.transport.pause_reading()  # type: ignore[attr-defined]
        head = _head("Echo")
        body = h2_peer.framed(Packet(body=b"r" * 1000).SerializeToString())
        stream_id = 1
        with pytest.raises((TimeoutError, ConnectionError)):
            async with asyncio.timeout(3):
                while True:
                    batch = b""
                    for _ in range(50):
                        batch += h2_peer.frame(1, 4, stream_id, head)
                        batch += h2_peer.frame(0, 1, stream_id, body)
                        stream_id += 2
                    writer.write(batch)
                    await writer.drain()
        async with asyncio.timeout(WAIT):
            await served.connections[0].closed
        writer.transport.abort()
        await _good_call(served)


async def test_nothing_is_left_of_a_connection_that_ends() -> None:
    async with serve() as served:
        async with h2_peer.connect(served.port) as peer:
            for _ in range(10):
                peer.call("Hang", b"")
            async with asyncio.timeout(WAIT):
                while served.echo.begun < 10:
                    await asyncio.sleep(0)
        async with asyncio.timeout(WAIT):
            await served.connections[0].closed
        assert (served.echo.stopped, served.pipeline.active) == (10, 0)
        assert served.connections[0].streams == 0
