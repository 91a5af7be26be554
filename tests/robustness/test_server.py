"""The real process under stress: killed, ended, flooded, blocked."""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import grpc
import httpx
import pytest

from lakemesh.api.agent.v1.request_response_pb2 import ExecuteRequest
from lakemesh.api.agent.v1.service_pb2_grpc import AgentServiceStub
from tests.running import Server

AGENTS = str(Path(__file__).parents[1] / "contract" / "agents_under_test.py")
EDGES = pytest.mark.parametrize("edge", ["grpcio", "h2"])


def request(agent: str, **data: Any) -> ExecuteRequest:
    message = ExecuteRequest(agent_name=agent)
    message.data.update(data)
    return message


def sql(server: Server, query: str) -> list[dict[str, Any]]:
    """`lakemesh sql` over the server's tables."""
    done = subprocess.run(
        [str(Path(sys.executable).with_name("lakemesh")), "sql", "--format", "json", query],
        env=os.environ | {"LAKEMESH_DATA_DIR": str(server.data_dir)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    rows: list[dict[str, Any]] = json.loads(done.stdout)
    return rows


@EDGES
async def test_two_thousand_calls_at_once_on_one_channel_all_succeed(
    edge: str, tmp_path: Path
) -> None:
    with Server(tmp_path, "--grpc-edge", edge) as server:
        async with grpc.aio.insecure_channel(server.target) as channel:
            stub = AgentServiceStub(channel)
            calls = [stub.Execute(request("echo", n=n), timeout=30) for n in range(2000)]
            answers = await asyncio.gather(*calls)
    assert [answer.result["n"] for answer in answers] == list(range(2000))


@EDGES
async def test_sigterm_loses_no_call_that_fits_the_grace_time(edge: str, tmp_path: Path) -> None:
    server = Server(tmp_path / "data", "--grpc-edge", edge, "--agents", AGENTS).wait_ready()
    said = tmp_path / "said"
    async with grpc.aio.insecure_channel(server.target) as channel, httpx.AsyncClient() as client:
        stub = AgentServiceStub(channel)
        slow = {"file": str(said), "seconds": 1.5}
        calls = [asyncio.ensure_future(stub.Execute(request("slow", **slow))) for _ in range(20)]
        body = {"agent_name": "slow", "data": slow}
        posts = [
            asyncio.create_task(client.post(f"{server.url}/api/execute", json=body, timeout=20))
            for _ in range(20)
        ]
        async with asyncio.timeout(5):
            while not said.exists() or said.read_text().count("started") < 40:
                await asyncio.sleep(0.01)
        server.signal(signal.SIGTERM)
        answers = await asyncio.gather(*calls)
        responses = await asyncio.gather(*posts)
    assert all(answer.success for answer in answers)
    assert [response.status_code for response in responses] == [200] * 20
    assert server.process.wait(15) == 0
    # Whoever comes next finds the port free at once.
    second = Server(tmp_path / "other", "--port", str(server.port))
    with second:
        assert second.port == server.port


@pytest.mark.slow
@pytest.mark.timeout(180)
@EDGES
async def test_sigkill_loses_no_acknowledged_calls_span(edge: str, tmp_path: Path) -> None:
    chance = random.Random(7)  # noqa: S311 - when to kill
    acknowledged: list[str] = []

    async def call_until_it_dies(server: Server) -> None:
        async with grpc.aio.insecure_channel(server.target) as channel:
            stub = AgentServiceStub(channel)
            while True:
                try:
                    answer = await stub.Execute(request("echo"), timeout=5)
                except grpc.aio.AioRpcError:
                    return
                acknowledged.append(answer.trace_id)

    fast = {"ZEROBUS_FLUSH_INTERVAL": "0.3", "ZEROBUS_BATCH_SIZE": "200"}
    for _ in range(5):
        server = Server(tmp_path, "--grpc-edge", edge, env=fast).wait_ready()
        callers = [asyncio.create_task(call_until_it_dies(server)) for _ in range(8)]
        await asyncio.sleep(chance.uniform(0.3, 1.2))
        server.kill()
        await asyncio.gather(*callers)
    assert len(acknowledged) > 500
    with Server(tmp_path, env=fast) as server:
        # A clean stop flushes; what dead workers left is adopted meanwhile.
        query = "SELECT trace_id, COUNT(*) AS n FROM main.agents.traces GROUP BY trace_id"
        async with asyncio.timeout(60):
            while True:
                found = {row["trace_id"]: row["n"] for row in sql(server, query)}
                if set(acknowledged) <= set(found):
                    break
                await asyncio.sleep(0.5)
    assert [trace for trace in acknowledged if found.get(trace) != 1] == []


@EDGES
async def test_an_agent_that_blocks_is_named_and_moved_aside(edge: str, tmp_path: Path) -> None:
    with Server(tmp_path, "--grpc-edge", edge, "--agents", AGENTS) as server:
        async with (
            grpc.aio.insecure_channel(server.target) as channel,
            httpx.AsyncClient(base_url=server.url, timeout=20) as client,
        ):
            stub = AgentServiceStub(channel)
            await stub.Execute(request("blocking", seconds=0.6))
            calls = [stub.Execute(request("blocking", seconds=1.0)) for _ in range(8)]
            waiting = asyncio.gather(*calls)
            slowest = 0.0
            for _ in range(20):
                began = time.monotonic()
                assert (await client.get("/livez")).status_code == 200
                slowest = max(slowest, time.monotonic() - began)
            answers = await waiting
            metrics = (await client.get("/metrics")).text
    assert all(answer.result["blocked"] for answer in answers)
    # The feature is time: eight blocked seconds would show, a busy machine's jitter does not.
    assert slowest < 0.5
    named = [line for line in server.lines if "blocks the event loop" in line]
    assert len(named) >= 1
    assert "agent blocking " in named[0]
    assert "agents_under_test.py" in named[0]
    assert 'lakemesh_agent_blocked_loop_total{agent="blocking"}' in metrics


async def test_calls_beyond_the_limit_are_refused_at_once_with_when_to_come_back(
    tmp_path: Path,
) -> None:
    with Server(tmp_path, "--concurrent-calls", "8", "--agents", AGENTS) as server:
        async with httpx.AsyncClient(base_url=server.url, timeout=20) as client:
            body = {"agent_name": "slow", "data": {"seconds": 1.0}}
            calls = [client.post("/api/execute", json=body) for _ in range(40)]
            calls.append(client.get("/health"))
            *answers, health = await asyncio.gather(*calls)
    statuses = [answer.status_code for answer in answers]
    assert statuses.count(200) == 8
    assert statuses.count(429) == 32
    assert health.status_code == 200
    refused = next(answer for answer in answers if answer.status_code == 429)
    assert int(refused.headers["retry-after"]) >= 1
    assert refused.json()["code"] == 8


async def test_two_workers_share_the_port_and_the_memory(tmp_path: Path) -> None:
    with Server(tmp_path, "--workers", "2") as server:
        assert sum("lakemesh ready on" in line for line in server.lines) == 1
        for n in range(20):
            async with grpc.aio.insecure_channel(server.target) as channel:
                answer = await AgentServiceStub(channel).Execute(request("echo", n=n), timeout=10)
                assert answer.result["n"] == n
        async with httpx.AsyncClient(base_url=server.url) as client:
            assert (await client.get("/health")).json()["status"] == "healthy"
    assert server.process.returncode == 0


@pytest.mark.parametrize(
    ("options", "word"),
    [
        (("--workers", "none"), "--workers"),
        (("--grpc-edge", "netty"), "--grpc-edge"),
        (("--agents", "no_such_module_anywhere"), "no_such_module_anywhere"),
        (("--tls-cert", "missing.pem", "--tls-key", "missing.pem"), "--tls-cert"),
        (("--config", "missing.yaml"), "missing.yaml"),
    ],
)
def test_a_bad_setting_ends_at_once_with_one_line_that_names_it(
    options: tuple[str, ...], word: str, tmp_path: Path
) -> None:
    began = time.monotonic()
    server = Server(tmp_path, *options)
    assert server.process.wait(10) == 2
    # Two seconds are promised; the margin is for a busy machine.
    assert time.monotonic() - began < 5
    server._reader.join(5)
    lines = [line for line in server.lines if line.strip()]
    assert len(lines) == 1
    assert word in lines[0]
