"""The load client: a process of its own that sends what its standard input asks for.

Started with PROTOCOL HOST:PORT PATH CONNECTIONS. Each line in is {"concurrency": C, "requests": N},
each line out what came of it: failures, seconds, percentiles in milliseconds. Connections are kept
from line to line.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections.abc import Awaitable, Callable
from typing import Any

import grpc

from benchmarks.payload import AGENT, TRANSACTION
from benchmarks.wire import BadAnswer, Http1Connection, Http2Connection
from lakemesh.api.agent.v1 import request_response_pb2 as messages
from lakemesh.api.agent.v1 import service_pb2_grpc as service

_BATCH_SECONDS = 120.0
Ask = Callable[[], Awaitable[Any]]


class Client:
    """As many ways to ask as there are callers; made by one of the three functions below."""

    def __init__(self, opener: Callable[[], Awaitable[Any]], shared: int) -> None:
        self._opener = opener
        self._shared = shared
        """How many connections the callers share; 0 gives each its own."""
        self._open: list[Any] = []

    async def askers(self, concurrency: int) -> list[Ask]:
        wanted = min(self._shared, concurrency) or concurrency
        # Between two batches a server may have closed what was idle.
        self._open = [connection for connection in self._open if not connection.closed]
        while len(self._open) < wanted:
            self._open.append(await self._opener())
        return [self._open[i % wanted].ask for i in range(concurrency)]


class _Channel:
    """A stock grpc.aio channel."""

    closed = False  # it connects anew by itself

    def __init__(self, target: str) -> None:
        # Without its own pool, channels to one target share a connection.
        self._channel = grpc.aio.insecure_channel(
            target, options=[("grpc.use_local_subchannel_pool", 1)]
        )
        self._execute = service.AgentServiceStub(self._channel).Execute
        self._request = messages.ExecuteRequest(agent_name=AGENT)
        self._request.data.update(TRANSACTION)

    async def ask(self) -> None:
        answer = await self._execute(self._request)
        if len(answer.result.fields) != len(TRANSACTION):
            raise BadAnswer(f"the echo lost fields: {answer}")


def grpc_client(target: str, path: str, connections: int) -> Client:
    async def opener() -> _Channel:
        return _Channel(target)

    return Client(opener, connections or 1)


def http1_client(target: str, path: str, connections: int) -> Client:
    host, _, port = target.rpartition(":")
    return Client(lambda: Http1Connection.open(host, int(port), path), 0)


def http2_client(target: str, path: str, connections: int) -> Client:
    host, _, port = target.rpartition(":")
    return Client(lambda: Http2Connection.open(host, int(port), path), connections or 1)


_CLIENTS = {"grpc": grpc_client, "http1": http1_client, "http2": http2_client}


async def batch(client: Client, concurrency: int, requests: int) -> dict[str, Any]:
    """Send `requests` from `concurrency` callers, each waiting for its answer before the next."""
    latencies: list[float] = []
    failures: list[str] = []
    left = requests
    clock = time.perf_counter

    async def caller(ask: Ask) -> None:
        nonlocal left
        while left > 0:
            left -= 1
            began = clock()
            try:
                await ask()
            except (BadAnswer, grpc.RpcError, OSError) as error:
                failures.append(" ".join(str(error).split())[:300])
                if len(failures) > 100:
                    left = 0
            else:
                latencies.append(clock() - began)

    askers = await client.askers(concurrency)
    cpu = time.process_time()
    began = clock()
    async with asyncio.timeout(_BATCH_SECONDS):
        await asyncio.gather(*(caller(ask) for ask in askers))
    seconds = clock() - began
    cpu = time.process_time() - cpu
    latencies.sort()
    return {
        "answered": len(latencies),
        "failed": len(failures),
        "failure": failures[0] if failures else "",
        "seconds": seconds,
        "client_cpu_seconds": cpu,
        "p50_ms": percentile(latencies, 0.50) * 1e3,
        "p99_ms": percentile(latencies, 0.99) * 1e3,
    }


def percentile(ordered: list[float], part: float) -> float:
    """Nearest rank; NaN of nothing."""
    if not ordered:
        return float("nan")
    return ordered[min(len(ordered) - 1, int(part * len(ordered)))]


async def main(protocol: str, target: str, path: str, connections: str) -> None:
    client = _CLIENTS[protocol](target, path, int(connections))
    print("ready", flush=True)
    while line := await asyncio.to_thread(sys.stdin.readline):
        order = json.loads(line)
        try:
            result = await batch(client, order["concurrency"], order["requests"])
        except (TimeoutError, OSError) as error:
            result = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(result), flush=True)


if __name__ == "__main__":
    if sys.argv[1] == "grpc":
        asyncio.run(main(*sys.argv[1:]))  # the stock client on the stock loop
    else:
        import uvloop

        uvloop.run(main(*sys.argv[1:]))
