"""The servers under load, the rows of the table, and the goals beside them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from benchmarks.payload import EXECUTE
from benchmarks.peer_environments import PEERS, python_of
from benchmarks.processes import ServerProcess, lakemesh, python_module

REST = "/api/execute"
OFF = {"TELEMETRY_ENABLED": "false"}


@dataclass(frozen=True, slots=True)
class Row:
    """One server under one protocol."""

    key: str
    title: str
    server: str
    protocol: str
    path: str
    against: str = ""
    """The row whose CPU a request is the unit of this one's."""
    goal: float | None = None
    """Highest ratio of CPU to that row's that is good enough."""
    connections: int = 0
    """How many connections gRPC and HTTP/2 callers share; 0 means one."""
    share: float = 1.0
    """Requests a round, against the other rows': slow servers get fewer."""


SERVERS: dict[str, Callable[[Path], ServerProcess]] = {
    "bare-grpc": lambda folder: python_module("benchmarks.bare_grpc"),
    "bare-grpc-uvloop": lambda folder: python_module("benchmarks.bare_grpc", "--uvloop"),
    "bare-fastapi": lambda folder: python_module("benchmarks.bare_fastapi"),
    "mlflow": lambda folder: ServerProcess(
        [
            str(python_of("mlflow")),
            str(PEERS / "mlflow" / "serve.py"),
            str(folder / "mlflow.db"),
        ],
        folder=folder,
    ),
    "grpcio": lambda folder: lakemesh(folder, "--grpc-edge", "grpcio"),
    "h2": lambda folder: lakemesh(folder, "--grpc-edge", "h2"),
    "grpcio-off": lambda folder: lakemesh(folder, "--grpc-edge", "grpcio", **OFF),
    "h2-off": lambda folder: lakemesh(folder, "--grpc-edge", "h2", **OFF),
    "two": lambda folder: lakemesh(folder, "--grpc-edge", "h2", "--workers", "2"),
}

ROWS = (
    Row("bare-grpc", "bare grpc.aio echo", "bare-grpc", "grpc", EXECUTE),
    Row(
        "bare-grpc-uvloop",
        "the same on uvloop",
        "bare-grpc-uvloop",
        "grpc",
        EXECUTE,
        against="bare-grpc",
    ),
    Row(
        "grpcio",
        "Lakemesh gRPC Execute, grpcio edge",
        "grpcio",
        "grpc",
        EXECUTE,
        against="bare-grpc",
        goal=1.6,
    ),
    Row(
        "grpcio-off",
        "... tracing off",
        "grpcio-off",
        "grpc",
        EXECUTE,
        against="bare-grpc",
    ),
    Row(
        "h2",
        "Lakemesh gRPC Execute, h2 edge",
        "h2",
        "grpc",
        EXECUTE,
        against="bare-grpc",
        goal=1.0,
    ),
    Row("h2-off", "... tracing off", "h2-off", "grpc", EXECUTE, against="bare-grpc"),
    Row("fastapi", "bare FastAPI, pydantic in and out", "bare-fastapi", "http1", REST),
    Row(
        "mlflow",
        "MLflow AgentServer /invocations, tracing on",
        "mlflow",
        "http1",
        "/invocations",
        against="fastapi",
        share=0.08,
    ),
    Row(
        "json",
        "Lakemesh JSON Execute, HTTP/1.1",
        "h2",
        "http1",
        REST,
        against="fastapi",
        goal=1.0,
    ),
    Row("json-off", "... tracing off", "h2-off", "http1", REST, against="fastapi"),
    Row("json-http2", "Lakemesh JSON Execute, HTTP/2", "h2", "http2", REST, against="fastapi"),
    Row(
        "two",
        "Lakemesh JSON Execute, HTTP/1.1, two workers",
        "two",
        "http1",
        REST,
        against="fastapi",
    ),
)

COMPARISONS = (
    # (what, row, row it is compared with, goal, whether more is better)
    ("tracing on / off, gRPC on the grpcio edge", "grpcio", "grpcio-off", 1.2),
    ("tracing on / off, gRPC on the h2 edge", "h2", "h2-off", 1.2),
    ("tracing on / off, JSON over HTTP/1.1", "json", "json-off", 1.2),
)
"""Further ratios of CPU a request, with their goals."""
MLFLOW_TIMES = 25.0
"""How many times Lakemesh's JSON row MLflow's must cost at least."""
TWO_WORKERS = 1.7
