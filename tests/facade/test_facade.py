from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from fastapi import FastAPI, HTTPException
from google.protobuf import descriptor_pool
from grpc_health.v1 import health_pb2

from lakemesh.server.call import Call
from lakemesh.server.errors import Code, StatusError
from lakemesh.server.health import HealthService, ServerHealth
from lakemesh.server.metrics import MAX_CHILDREN, Registry
from lakemesh.server.openapi import build_openapi, comments_of
from lakemesh.server.services import ServiceTable
from tests.facade.conftest import Running, Serve
from tests.facade.probe_contract import SERVICE, files

# Pages beside the RPCs.


async def test_the_map_names_what_is_served(running: Running) -> None:
    found = (await running.get("/")).json()
    assert found["status"] == "running"
    assert found["services"] == {"agent_api": "/api", "mcp_server": "/mcp"}
    assert SERVICE in found["grpc"]


async def test_health_names_agents_and_parts(running: Running) -> None:
    running.health.set_part("memory")
    for path in ("/health", "/api/health"):
        found = (await running.get(path)).json()
        assert found == {"status": "healthy", "agents": ["echo"], "parts": {"memory": "ok"}}
    running.health.set_part("delta", "disk full")
    found = (await running.get("/health")).json()
    assert found["status"] == "degraded"
    assert found["parts"]["delta"] == "degraded: disk full"


async def test_readiness_falls_and_liveness_stays(running: Running) -> None:
    assert (await running.get("/readyz")).status_code == 200
    running.health.set_ready(False)
    assert (await running.get("/readyz")).status_code == 503
    assert (await running.get("/livez")).status_code == 200


async def test_docs_and_document_are_served(running: Running) -> None:
    assert (await running.get("/docs")).status_code == 200
    document = (await running.get("/openapi.json")).json()
    assert document["openapi"].startswith("3.1")
    assert document["info"]["version"] == "1.2.3"
    assert "/probe/echo" in document["paths"]


async def test_users_routes_stand_beside_the_rpcs(serve: Serve) -> None:
    started: list[str] = []

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncGenerator[None, None]:
        started.append("up")
        yield
        started.append("down")

    def configure(app: FastAPI) -> None:
        app.router.lifespan_context = lifespan

        @app.get("/mine/{number}")
        async def mine(number: int) -> dict[str, int]:
            if number == 7:
                raise HTTPException(409, "seven is taken")
            if number == 13:
                raise StatusError(Code.OUT_OF_RANGE, "too unlucky")
            return {"number": number}

    async with serve(configure=configure) as running, running.facade.lifespan():
        assert started == ["up"]
        assert (await running.get("/mine/5")).json() == {"number": 5}
        refused = await running.get("/mine/x")
        assert (refused.status_code, refused.json()["code"]) == (400, 3)
        assert "path.number" in refused.json()["message"]
        taken = await running.get("/mine/7")
        assert taken.status_code == 409
        assert taken.json() == {"code": 10, "message": "seven is taken", "details": []}
        assert (await running.get("/mine/13")).json()["code"] == 11
        wrong = await running.post("/mine/5")
        assert (wrong.status_code, wrong.json()["code"]) == (501, 12)
        slash = await running.get("/mine/5/")
        assert (slash.status_code, slash.json()["code"]) == (404, 5)
        assert "/mine/{number}" in (await running.get("/openapi.json")).json()["paths"]
    assert started == ["up", "down"]


async def test_a_target_that_is_not_a_path_is_a_bad_request(running: Running) -> None:
    answer = await running.raw(b"OPTIONS * HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 400")
    assert b'"code":3' in answer


# grpc.health.v1.


def _health_call() -> Call:
    table = ServiceTable()
    table.add(HealthService(ServerHealth(), list), "grpc.health.v1.Health")
    found = table.find("/grpc.health.v1.Health/Watch")
    assert found is not None
    return Call(found, transport="grpc")


async def test_health_is_told_and_watched_by_service() -> None:
    health = ServerHealth()
    service = HealthService(health, lambda: [SERVICE])
    kinds = health_pb2.HealthCheckResponse
    ask = health_pb2.HealthCheckRequest
    call = _health_call()
    assert (await service.Check(ask(), call)).status == kinds.NOT_SERVING
    watch = service.Watch(ask(service=SERVICE), call)
    unknown = service.Watch(ask(service="no.Such"), call)
    assert (await anext(unknown)).status == kinds.SERVICE_UNKNOWN
    assert (await anext(watch)).status == kinds.NOT_SERVING
    health.set_ready(True)
    assert (await asyncio.wait_for(anext(watch), 5)).status == kinds.SERVING
    assert (await service.Check(ask(service=SERVICE), call)).status == kinds.SERVING
    with pytest.raises(StatusError, match="NOT_FOUND"):
        await service.Check(ask(service="no.Such"), call)
    await watch.aclose()
    await unknown.aclose()


# OpenAPI.


def _document() -> dict[str, Any]:
    found = files()
    service = descriptor_pool.Default().FindServiceByName(SERVICE)
    return build_openapi(service.methods, title="T", version="1", comments=comments_of(found))


def test_every_reference_in_the_document_leads_somewhere() -> None:
    document = _document()
    schemas = document["components"]["schemas"]
    names: list[str] = []

    def walk(value: Any) -> None:
        if isinstance(value, dict):
            if "$ref" in value:
                assert value["$ref"].removeprefix("#/components/schemas/") in schemas
            names.extend([value["operationId"]] if "operationId" in value else [])
            for item in value.values():
                walk(item)
        elif isinstance(value, list):
            for item in value:
                walk(item)

    walk(document)
    assert len(names) == len(set(names)) == 15


def test_the_document_says_what_the_protos_say() -> None:
    document = _document()
    echo = document["paths"]["/probe/echo"]["post"]
    assert echo["summary"] == "Echo gives everything back."
    assert echo["operationId"] == "Probe_Echo"
    assert echo["responses"]["default"]["content"]["application/json"]["schema"] == {
        "$ref": "#/components/schemas/google.rpc.Status"
    }
    order = document["paths"]["/probe/{name}"]["get"]
    by_name = {one["name"]: one for one in order["parameters"]}
    assert by_name["name"]["schema"]["pattern"] == "^shops/[^/]*/orders/[^/]*$"
    assert by_name["inner.label"]["in"] == "query"
    assert by_name["since"]["schema"]["format"] == "date-time"
    tag = document["paths"]["/probe/orders/{name}:tag"]["post"]
    assert tag["requestBody"]["content"]["application/json"]["schema"]["type"] == "array"
    ticks = document["paths"]["/probe/ticks"]["post"]["responses"]["200"]["content"]
    assert set(ticks["text/event-stream"]["schema"]["properties"]) == {"result", "error"}
    everything = document["components"]["schemas"]["lakemesh.test.facade.v1.Everything"]
    assert everything["description"] == "Every kind of field there is."
    fields = everything["properties"]
    assert fields["anInt64"] == {"type": "string", "format": "int64"}
    assert fields["otherName"] == {"type": "string"}
    assert fields["wrappedBool"]["type"] == ["boolean", "null"]
    assert fields["inner"]["anyOf"][1] == {"type": "null"}
    assert "/lakemesh.test.facade.v1.Probe/Unbound" not in document["paths"]


# Metrics.


def test_metrics_are_written_as_prometheus_reads_them() -> None:
    registry = Registry()
    counter = registry.counter("things_total", "Things.\nMany.", ("kind",))
    counter.labels('a"b\\c').inc()
    counter.labels("x").inc(2.5)
    registry.gauge("level", "Level.").labels().set(-1)
    histogram = registry.histogram("took_seconds", "Time.", bounds=(0.1, 1.0)).labels()
    for value in (0.05, 0.1, 0.5, 7.0):
        histogram.observe(value)
    registry.reading("now", "Read when asked.", lambda: 3)
    assert registry.text() == (
        "# HELP things_total Things.\\nMany.\n"
        "# TYPE things_total counter\n"
        'things_total{kind="a\\"b\\\\c"} 1\n'
        'things_total{kind="x"} 2.5\n'
        "# HELP level Level.\n"
        "# TYPE level gauge\n"
        "level -1\n"
        "# HELP took_seconds Time.\n"
        "# TYPE took_seconds histogram\n"
        'took_seconds_bucket{le="0.1"} 2\n'
        'took_seconds_bucket{le="1"} 3\n'
        'took_seconds_bucket{le="+Inf"} 4\n'
        "took_seconds_sum 7.65\n"
        "took_seconds_count 4\n"
        "# HELP now Read when asked.\n"
        "# TYPE now gauge\n"
        "now 3\n"
    )


def test_labels_a_caller_chooses_cannot_fill_the_memory() -> None:
    counter = Registry().counter("calls_total", "Calls.", ("who",))
    for number in range(MAX_CHILDREN + 50):
        counter.labels(str(number)).inc()
    assert len(counter.children) == MAX_CHILDREN + 1
    assert counter.children[("other",)].value == 50


def test_a_metric_is_made_once_and_with_its_labels() -> None:
    registry = Registry()
    counter = registry.counter("calls_total", "Calls.", ("who",))
    with pytest.raises(ValueError, match="exists already"):
        registry.gauge("calls_total", "Again.")
    with pytest.raises(ValueError, match="has labels"):
        counter.labels("a", "b")
