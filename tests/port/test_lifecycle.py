"""Start, drain, end: the real process and its exit code."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import pytest

from tests.port.port_serving import Packet, call
from tests.port.test_arrivals import answer_of

PROGRAM = Path(__file__).with_name("port_serving.py")
GET = b"GET %b HTTP/1.1\r\nhost: a\r\n\r\n"


class Program:
    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process
        self.port = 0

    async def ready(self) -> str:
        assert self.process.stdout is not None
        async with asyncio.timeout(10):
            line = await asyncio.to_thread(self.process.stdout.readline)
        assert line.startswith("lakemesh ready on http://127.0.0.1:"), line
        self.port = int(line.split(":")[2].split()[0])
        return line

    async def end(self) -> tuple[int, str]:
        """Exit code and what it wrote to stderr."""
        _, said = await asyncio.to_thread(self.process.communicate, timeout=10)
        return self.process.returncode, said

    def signal(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def channel(self) -> grpc.aio.Channel:
        return grpc.aio.insecure_channel(
            f"127.0.0.1:{self.port}", options=[("grpc.use_local_subchannel_pool", 1)]
        )

    async def open(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        return await asyncio.open_connection("127.0.0.1", self.port)


@contextlib.asynccontextmanager
async def program(*arguments: str) -> AsyncIterator[Program]:
    # subprocess uses vfork. uvloop's own way forks, and grpc's fork handlers, which then run in
    # this process full of its threads, now and then never come back (seen with grpcio 1.85).
    process = subprocess.Popen(  # noqa: ASYNC220  # returns at once
        [sys.executable, str(PROGRAM), *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        yield Program(process)
    finally:
        if process.poll() is None:
            process.kill()
        process.communicate()


@pytest.mark.parametrize("edge", ["grpcio", "h2"])
async def test_drain_finishes_calls_in_flight_and_frees_the_port(edge: str) -> None:
    async with program("worker", "127.0.0.1", "0", f"edge={edge}") as worker:
        assert (await worker.ready()).rstrip().endswith("(grpc+http), 3 agents")
        async with worker.channel() as channel:
            await call(channel, "Echo", Packet())
            calls = [
                asyncio.ensure_future(call(channel, "Wait", Packet(count=1500), timeout=8))
                for _ in range(20)
            ]
            reader, writer = await worker.open()
            writer.write(GET % b"/wait/1500")
            idle_reader, idle_writer = await worker.open()
            idle_writer.write(GET % b"/")
            await answer_of(idle_reader)
            # A call sent after those was answered, so they have arrived.
            await call(channel, "Echo", Packet())
            worker.signal(signal.SIGTERM)
            async with asyncio.timeout(8):
                assert await idle_reader.read() == b""
                with pytest.raises(ConnectionRefusedError):
                    await worker.open()
                # Free while the last calls are still at work.
                with socket.socket() as again:
                    again.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                    again.bind(("127.0.0.1", worker.port))
                    again.listen()
                assert (await answer_of(reader))[0] == 200
                await asyncio.gather(*calls)
            writer.close()
            idle_writer.close()
        assert await worker.end() == (0, "")


@pytest.mark.parametrize("edge", ["grpcio", "h2"])
async def test_readiness_falls_before_the_door_closes(edge: str) -> None:
    async with program("worker", "127.0.0.1", "0", f"edge={edge}") as worker:
        await worker.ready()
        seen: list[int] = []
        with pytest.raises(ConnectionRefusedError):
            while True:
                reader, writer = await worker.open()
                writer.write(GET % b"/readyz")
                # The last one may still be in the kernel's queue when the door closes.
                with contextlib.suppress(ConnectionResetError, asyncio.IncompleteReadError):
                    seen.append((await answer_of(reader))[0])
                writer.close()
                if len(seen) == 1:
                    worker.signal(signal.SIGTERM)
        assert seen[0] == 200
        assert seen[-1] == 503
        assert (await worker.end())[0] == 0


@pytest.mark.parametrize("edge", ["grpcio", "h2"])
async def test_overlong_calls_are_cut_and_told_why(edge: str) -> None:
    async with program("worker", "127.0.0.1", "0", f"edge={edge}", "total=2.5") as worker:
        await worker.ready()
        async with worker.channel() as channel:
            await call(channel, "Echo", Packet())
            calling = asyncio.ensure_future(call(channel, "Wait", Packet(count=60000), timeout=30))
            reader, writer = await worker.open()
            writer.write(GET % b"/wait/60000")
            await call(channel, "Echo", Packet())
            began = time.monotonic()
            worker.signal(signal.SIGTERM)
            async with asyncio.timeout(8):
                with pytest.raises(grpc.aio.AioRpcError) as raised:
                    await calling
                assert raised.value.code() is grpc.StatusCode.UNAVAILABLE
                assert "shutting down" in (raised.value.details() or "")
                status, body = await answer_of(reader)
            assert (status, body["code"]) == (503, 14)
            writer.close()
            assert (await worker.end())[0] == 0
            assert time.monotonic() - began < 4


async def test_second_signal_forces_and_is_the_exit_status() -> None:
    async with program("worker", "127.0.0.1", "0") as worker:
        await worker.ready()
        async with worker.channel() as channel:
            await call(channel, "Echo", Packet())
            calling = asyncio.ensure_future(call(channel, "Wait", Packet(count=60000), timeout=30))
            await call(channel, "Echo", Packet())
            worker.signal(signal.SIGTERM)
            await asyncio.sleep(0.3)  # two signals at once may arrive as one
            worker.signal(signal.SIGINT)
            began = time.monotonic()
            assert (await worker.end())[0] == -signal.SIGINT
            assert time.monotonic() - began < 4
            with pytest.raises(grpc.aio.AioRpcError):
                await calling


async def test_interrupt_drains_too() -> None:
    async with program("worker", "127.0.0.1", "0") as worker:
        await worker.ready()
        worker.signal(signal.SIGINT)
        assert await worker.end() == (0, "")


@pytest.mark.parametrize("what", [("worker",), ("supervise", "2")])
async def test_taken_port_is_one_line_and_exit_code_1(what: tuple[str, ...]) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        began = time.monotonic()
        async with program(what[0], "127.0.0.1", str(port), *what[1:]) as worker:
            code, said = await worker.end()
    assert code == 1
    assert said == f"lakemesh: cannot listen on 127.0.0.1:{port}: address already in use\n"
    assert time.monotonic() - began < 4  # most of it is Python's imports, on a busy machine


@pytest.mark.parametrize("what", [("worker",), ("supervise", "2")])
async def test_bad_setting_is_said_and_exit_code_2(what: tuple[str, ...]) -> None:
    async with program(what[0], "127.0.0.1", "0", *what[1:], "failure=setting") as worker:
        code, said = await worker.end()
    assert code == 2
    assert "lakemesh: LAKEMESH_COLOUR is not a colour\n" in said
    assert "Traceback" not in said


async def test_a_start_that_hangs_can_be_stopped() -> None:
    async with program("worker", "127.0.0.1", "0", "failure=hang") as worker:
        await asyncio.sleep(1.0)  # it has no way to say that it hangs
        worker.signal(signal.SIGTERM)
        code, _ = await worker.end()
    assert code in (0, -signal.SIGTERM)


async def pids(worker: Program) -> set[int]:
    found = set()
    for _ in range(40):
        reader, writer = await worker.open()
        writer.write(GET % b"/")
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            found.add(int(str((await answer_of(reader))[1]["pid"])))
        writer.close()
    return found


async def test_workers_share_the_port_and_a_dead_one_is_replaced() -> None:
    async with program("supervise", "127.0.0.1", "0", "2") as worker:
        await worker.ready()
        before = await pids(worker)
        assert len(before) == 2
        assert worker.process.pid not in before
        killed = before.pop()
        os.kill(killed, signal.SIGKILL)
        async with asyncio.timeout(10):
            now: set[int] = set()
            while len(now - {killed}) < 2:
                with contextlib.suppress(OSError):
                    now = await pids(worker)
        assert killed not in now
        assert before < now
        async with worker.channel() as channel:
            assert json.loads((await call(channel, "Who", Packet())).text)["pid"] in now
        worker.signal(signal.SIGTERM)
        code, said = await worker.end()
    assert code == 0
    assert "ended by signal 9; starting another" in said


async def test_workers_drain_when_their_supervisor_is_killed() -> None:
    async with program("supervise", "127.0.0.1", "0", "2") as worker:
        await worker.ready()
        members = await pids(worker)
        worker.signal(signal.SIGKILL)
        async with asyncio.timeout(8):
            while any(Path(f"/proc/{pid}").exists() for pid in members):
                await asyncio.sleep(0.05)
