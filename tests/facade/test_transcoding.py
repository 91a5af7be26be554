from __future__ import annotations

import asyncio
import json
from typing import Any

import httpx
import pytest

from lakemesh.server.errors import HTTP_STATUS, Code
from lakemesh.server.pipeline import Limits
from tests.facade.conftest import Running, Serve


def _status(response: httpx.Response) -> tuple[int, int, str]:
    body = response.json()
    assert set(body) == {"code", "message", "details"}
    return response.status_code, body["code"], body["message"]


async def test_a_body_goes_in_and_an_answer_comes_out(running: Running) -> None:
    response = await running.post("/probe/echo", json={"a_string": "x", "anInt64": 5})
    assert response.status_code == 200
    assert response.headers["content-type"] == "application/json"
    assert int(response.headers["content-length"]) == len(response.content)
    assert response.json()["aString"] == "x"
    assert response.json()["anInt64"] == "5"
    assert response.json()["inner"] is None


async def test_an_empty_body_is_an_empty_message(running: Running) -> None:
    response = await running.post("/probe/echo")
    assert response.json()["aString"] == ""


@pytest.mark.parametrize("content_type", ["text/plain", "application/x-whatever", ""])
async def test_the_content_type_is_not_enforced(running: Running, content_type: str) -> None:
    response = await running.post(
        "/probe/echo", content=b'{"a_string":"x"}', headers={"content-type": content_type}
    )
    assert response.json()["aString"] == "x"


async def test_a_captured_path_keeps_its_slashes(running: Running) -> None:
    response = await running.get("/probe/shops/1/orders/2")
    assert response.json()["name"] == "shops/1/orders/2"


@pytest.mark.parametrize(
    ("path", "name", "value"),
    [
        ("/probe/by-note/hello%20world", "note", "hello world"),
        ("/probe/by-note/a:b", "note", "a:b"),
        ("/probe/by-note/", "note", ""),
        ("/probe/deep/a/b/c/end", "note", "a/b/c"),
        ("/probe/deep/end", "note", ""),
        ("/probe/inner/it/0x10", "count", 16),
        ("/probe/inner/it/-3", "count", -3),
    ],
)
async def test_path_values_fill_fields(running: Running, path: str, name: str, value: Any) -> None:
    assert (await running.get(path)).json()[name] == value


async def test_a_nested_field_is_filled_from_the_path(running: Running) -> None:
    assert (await running.get("/probe/inner/it/1")).json()["inner"]["label"] == "it"


@pytest.mark.parametrize(
    ("method", "path", "expected"),
    [
        ("GET", "/probe/nothing/here", (404, 5, "Not Found")),
        ("GET", "/probe/echo/", (404, 5, "Not Found")),
        ("GET", "/probe/by-note/a%2Fb", (404, 5, "Not Found")),
        ("GET", "/probe/echo", (501, 12, "Method Not Allowed")),
        ("OPTIONS", "/probe/echo", (501, 12, "Method Not Allowed")),
        ("DELETE", "/probe/shops/1/orders/2", (501, 12, "Method Not Allowed")),
        ("POST", "/lakemesh.test.facade.v1.Probe/Unbound", (404, 5, "Not Found")),
        ("POST", "/probe/orders/x:fly", (501, 12, "Method Not Allowed")),
        ("PUT", "/health", (501, 12, "Method Not Allowed")),
    ],
)
async def test_routing_errors_are_the_gateways(
    running: Running, method: str, path: str, expected: tuple[int, int, str]
) -> None:
    response = await running.client.request(method, path)
    assert _status(response) == expected
    assert response.json()["details"] == []


async def test_head_is_not_implied_by_get(running: Running) -> None:
    assert (await running.client.head("/probe/picture")).status_code == 501


async def test_a_verb_is_told_from_a_colon_in_a_value(running: Running) -> None:
    tagged = await running.post("/probe/orders/a:b:tag", json=["x", "y"])
    assert tagged.json() == ["x", "y"]
    put = await running.client.put("/probe/orders/a:b", json={"label": "in"})
    assert put.json() == {"label": "in", "bigNumber": "0", "next": None, "more": []}


async def test_a_body_field_leaves_the_rest_to_the_query(running: Running) -> None:
    response = await running.client.put("/probe/orders/n?inner.label=query&count=x", json={})
    assert _status(response)[:2] == (400, 3)
    response = await running.client.put("/probe/orders/n?inner.label=query&count=1", json={})
    assert response.json()["label"] == ""


async def test_query_parameters_fill_fields(running: Running) -> None:
    query = (
        "count=5&colour=COLOUR_RED&inner.label=l&inner.bigNumber=9&tags=a&tags=b,c"
        "&since=2026-01-31T12:00:00Z&labels[k]=v&labels[l]=w&urgent=T&unheard=of&name=ignored"
    )
    order = (await running.get(f"/probe/shops/1/orders/2?{query}")).json()
    assert order["count"] == 5
    assert order["colour"] == "COLOUR_RED"
    assert order["inner"]["label"] == "l"
    assert order["inner"]["bigNumber"] == "9"
    assert order["tags"] == ["a", "b,c"]
    assert order["since"] == "2026-01-31T12:00:00Z"
    assert order["labels"] == {"k": "v", "l": "w"}
    assert order["urgent"] is True
    assert order["name"] == "shops/1/orders/2"


@pytest.mark.parametrize(
    ("query", "parameter"),
    [
        ("count=x", "count"),
        ("count=0x10", "count"),
        ("count=1&count=2", "count"),
        ("count=2147483648", "count"),
        ("colour=BLUEISH", "colour"),
        ("colour=77", "colour"),
        ("urgent=yes", "urgent"),
        ("since=now", "since"),
        ("inner=x", "inner"),
        ("tags.x=1", "tags.x"),
        ("labels=x", "labels"),
        ("inner.more.label=x", "inner.more.label"),
    ],
)
async def test_a_query_parameter_that_does_not_fit_is_named(
    running: Running, query: str, parameter: str
) -> None:
    response = await running.get(f"/probe/by-note/n?{query}")
    assert response.status_code == 400
    (detail,) = response.json()["details"]
    assert detail["@type"] == "type.googleapis.com/google.rpc.BadRequest"
    assert detail["fieldViolations"][0]["field"] == parameter


async def test_a_body_that_does_not_fit_names_the_field(running: Running) -> None:
    response = await running.post("/probe/echo", json={"inner": {"more": [{}, {"label": 5}]}})
    assert response.status_code == 400
    assert response.json()["code"] == 3
    assert response.json()["message"] == "inner.more[1].label: must be a string"
    violations = response.json()["details"][0]["fieldViolations"]
    assert violations[0]["field"] == "inner.more[1].label"


@pytest.mark.parametrize(
    "body",
    [
        b"{",
        b'{"a_double": NaN}',
        b'{"free_form": {"x": 1e400}}',
        b'{"free_form": {"x": 9007199254740993}}',
        b'{"a_string": "\\ud800"}',
        b'{"a_int32": 1, "a_int32": 1}',
        b"\xff",
        b"[" * 50_000,
        b'{"a_double": ' + b"1" * 6000 + b"}",
    ],
)
async def test_a_body_no_transport_could_carry_is_the_callers_fault(
    running: Running, body: bytes
) -> None:
    response = await running.post("/probe/echo", content=body)
    assert response.status_code == 400
    assert response.json()["code"] == 3
    assert (await running.get("/livez")).status_code == 200


@pytest.mark.parametrize("code", [code for code in Code if code is not Code.OK])
async def test_every_code_has_its_http_status(running: Running, code: Code) -> None:
    response = await running.post("/probe/break", json={"code": int(code), "message": "words"})
    assert response.status_code == HTTP_STATUS[code]
    assert response.json()["code"] == int(code)
    assert response.json()["message"] == "words"
    if code is Code.UNAUTHENTICATED:
        assert response.headers["www-authenticate"] == "words"


async def test_an_unexpected_failure_tells_nothing_of_the_insides(running: Running) -> None:
    response = await running.post("/probe/break", json={"code": -1})
    assert _status(response) == (500, 13, "internal error")
    assert b"secret" not in response.content


async def test_overload_says_when_to_come_back(running: Running) -> None:
    response = await running.post("/probe/break", json={"message": "full", "retry_seconds": 3})
    assert response.status_code == 429
    assert response.headers["retry-after"] == "3"
    assert response.json()["details"] == [
        {"@type": "type.googleapis.com/google.rpc.RetryInfo", "retryDelay": "3s"}
    ]


# Streams.


async def test_a_stream_is_one_json_object_a_line(running: Running) -> None:
    response = await running.post("/probe/ticks", json={"after": 3})
    assert response.headers["content-type"] == "application/json"
    assert response.headers["transfer-encoding"] == "chunked"
    assert response.headers["grpc-metadata-x-stream"] == "yes"
    lines = [json.loads(line) for line in response.text.splitlines()]
    assert lines == [{"result": {"sequence": str(n), "word": f"word {n}"}} for n in (1, 2, 3)]


async def test_a_streams_error_is_its_last_line(running: Running) -> None:
    response = await running.post(
        "/probe/ticks", json={"after": 1, "code": 5, "message": "ran out"}
    )
    assert response.status_code == 200
    lines = [json.loads(line) for line in response.text.splitlines()]
    assert lines[1] == {"error": {"code": 5, "message": "ran out", "details": []}}


async def test_a_streams_first_error_has_the_mapped_status(running: Running) -> None:
    response = await running.post("/probe/ticks", json={"code": 5, "message": "none"})
    assert response.status_code == 404
    assert response.json() == {"error": {"code": 5, "message": "none", "details": []}}
    refused = await running.post("/probe/ticks", content=b"{")
    assert refused.status_code == 400
    assert refused.json()["error"]["code"] == 3


async def test_a_stream_without_messages_is_empty(running: Running) -> None:
    response = await running.post("/probe/ticks", json={})
    assert (response.status_code, response.content) == (200, b"")


async def test_events_are_sent_to_those_who_ask_for_them(running: Running) -> None:
    response = await running.post(
        "/probe/ticks",
        json={"after": 2, "code": 8, "message": "enough"},
        headers={"accept": "text/event-stream"},
    )
    assert response.headers["content-type"] == "text/event-stream"
    first, second, last, rest = response.text.split("\n\n")
    assert first == 'event: word\nid: 1\ndata: {"result":{"sequence":"1","word":"word 1"}}'
    assert second.startswith("event: word\nid: 2\n")
    assert last == 'event: error\ndata: {"error":{"code":8,"message":"enough","details":[]}}'
    assert rest == ""


async def test_a_response_body_applies_within_a_stream(running: Running) -> None:
    response = await running.get("/probe/inners")
    lines = [json.loads(line) for line in response.text.splitlines()]
    assert lines[0]["result"]["label"] == "a"
    assert lines[1] == {"result": None}


async def test_a_client_stream_is_json_values_one_after_the_other(running: Running) -> None:
    body = b'{"name":"a"}\n{"name":"b"} {"name":"c"}'
    response = await running.post("/probe/collect", content=body)
    assert response.json()["tags"] == ["a", "b", "c"]
    broken = await running.post("/probe/collect", content=body + b"{")
    assert broken.status_code == 400


async def test_an_http_body_is_sent_as_it_is(running: Running) -> None:
    response = await running.get("/probe/picture")
    assert response.headers["content-type"] == "image/png"
    assert response.content == b"\x89PNG"


# Headers.


async def test_headers_become_metadata(running: Running) -> None:
    headers = {
        "authorization": "Bearer t",
        "grpc-metadata-foo": "bar",
        "grpc-metadata-raw-bin": "AQID",
        "x-forwarded-for": "10.0.0.1",
        "x-forwarded-user": "ann",
        "x-request-id": "dropped",
        "traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
        "tracestate": "a=b",
        "user-agent": "probe",
    }
    response = await running.get("/probe/headers", headers=headers)
    labels = response.json()["labels"]
    assert labels["authorization"] == "Bearer t"
    assert labels["grpcgateway-authorization"] == "Bearer t"
    assert labels["grpcgateway-user-agent"] == "probe"
    assert labels["foo"] == "bar"
    assert labels["raw-bin"] == "010203"
    assert labels["x-forwarded-for"] == "10.0.0.1, 127.0.0.1"
    assert labels["x-forwarded-host"] == f"127.0.0.1:{running.port}"
    assert labels["x-forwarded-user"] == "ann"
    assert labels["traceparent"].startswith("00-0af7")
    assert labels["tracestate"] == "a=b"
    assert "x-request-id" not in labels
    assert response.json()["name"].startswith("127.0.0.1:")
    assert response.headers["grpc-metadata-x-answer"] == "42"
    assert "set-cookie" not in response.headers


async def test_an_identity_cannot_be_smuggled_in_as_metadata(running: Running) -> None:
    headers = {"grpc-metadata-x-forwarded-user": "root"}
    labels = (await running.get("/probe/headers", headers=headers)).json()["labels"]
    assert "x-forwarded-user" not in labels


async def test_a_grpc_timeout_is_the_calls_deadline(running: Running) -> None:
    order = (await running.get("/probe/headers", headers={"grpc-timeout": "2M"})).json()
    assert order["note"] == "120"
    late = await running.get("/probe/hang", headers={"grpc-timeout": "50m"})
    assert _status(late)[:2] == (504, 4)
    await asyncio.wait_for(running.probe.cancelled.wait(), 5)
    bad = await running.get("/probe/headers", headers={"grpc-timeout": "soon"})
    assert _status(bad) == (400, 3, "invalid grpc-timeout: soon")


async def test_a_binary_header_that_is_not_base64_is_refused(running: Running) -> None:
    response = await running.get("/probe/headers", headers={"grpc-metadata-a-bin": "*"})
    assert _status(response)[:2] == (400, 3)


# Limits and ends.


async def test_headers_beyond_the_limit_are_refused(running: Running) -> None:
    response = await running.get("/probe/headers", headers={"grpc-metadata-a": "x" * 20_000})
    assert (response.status_code, response.json()["code"]) == (431, 8)


@pytest.mark.parametrize("chunked", [False, True])
async def test_a_body_beyond_the_limit_is_refused(serve: Serve, chunked: bool) -> None:
    async with serve(limits=Limits(message_bytes=1000)) as running:

        async def chunks() -> Any:
            for _ in range(20):
                yield b" " * 100

        content = chunks() if chunked else b" " * 2000
        response = await running.post("/probe/echo", content=content)
        assert (response.status_code, response.json()["code"]) == (413, 8)
        fits = await running.post("/probe/echo", content=b"{}" + b" " * 998)
        assert fits.status_code == 200


async def test_a_declared_length_is_refused_before_the_body_comes(running: Running) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", running.port)
    writer.write(b"POST /probe/echo HTTP/1.1\r\nHost: x\r\nContent-Length: 5000000\r\n\r\n")
    head = await asyncio.wait_for(reader.readuntil(b"\r\n"), 5)
    assert b"413" in head
    writer.close()


async def test_too_many_calls_are_429(serve: Serve) -> None:
    async with serve(limits=Limits(concurrent_calls=1)) as running:
        hanging = asyncio.ensure_future(running.get("/probe/hang"))
        await asyncio.wait_for(running.probe.hanging.wait(), 5)
        response = await running.get("/probe/picture")
        assert (response.status_code, response.json()["code"]) == (429, 8)
        assert response.headers["retry-after"] == "1"
        assert (await running.get("/health")).status_code == 200
        hanging.cancel()


@pytest.mark.parametrize("path", ["/probe/hang", "/probe/hang-stream"])
async def test_a_caller_who_leaves_ends_the_work(running: Running, path: str) -> None:
    _, writer = await asyncio.open_connection("127.0.0.1", running.port)
    writer.write(f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
    await asyncio.wait_for(running.probe.hanging.wait(), 5)
    writer.close()
    await asyncio.wait_for(running.probe.cancelled.wait(), 5)


async def test_a_caller_who_leaves_within_the_body_starts_nothing(running: Running) -> None:
    _, writer = await asyncio.open_connection("127.0.0.1", running.port)
    writer.write(b"POST /probe/echo HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{")
    await writer.drain()
    writer.close()
    await writer.wait_closed()
    assert (await running.get("/livez")).status_code == 200
    assert running.probe.calls == []


async def test_calls_are_counted_by_method_code_and_transport(running: Running) -> None:
    await running.post("/probe/echo", json={})
    await running.post("/probe/echo", content=b"{")
    text = (await running.get("/metrics")).text
    name = "lakemesh.test.facade.v1.Probe/Echo"
    line = 'lakemesh_calls_total{{method="{}",code="{}",transport="http/1.1"}} 1'
    assert line.format(name, "OK") in text
    assert line.format(name, "INVALID_ARGUMENT") in text
    assert "lakemesh_active_calls 0" in text
