from __future__ import annotations

from typing import Any

import pytest
from google.api import annotations_pb2
from google.protobuf import descriptor_pb2, descriptor_pool
from hypothesis import given
from hypothesis import strategies as st

from lakemesh.server.http_rule import HttpRuleError, Router, bindings_of, parse_template


@pytest.mark.parametrize(
    "text",
    [
        "",
        "v1/x",
        "/v1//x",
        "/v1/{x",
        "/v1/x}",
        "/v1/{x=}",
        "/v1/{x=a/{y}}",
        "/v1/{9x}",
        "/v1/{a.}",
        "/v1/{x}y",
        "/v1/x:",
        "/v1/{x}:",
        "/v1/{x}/{x}",
        "/**/a/**",
        "/v1/a b",
        "/v1/%zz",
    ],
)
def test_a_template_outside_the_grammar_is_refused(text: str) -> None:
    with pytest.raises(HttpRuleError):
        parse_template(text)


@pytest.mark.parametrize(
    ("template", "path", "variables"),
    [
        ("/", "/", {}),
        ("/v1/x", "/v1/x", {}),
        ("/v1/x", "/v1/x/", None),
        ("/v1/*", "/v1/", {}),
        ("/v1/{x}", "/v1/a", {"x": "a"}),
        ("/v1/{x}", "/v1/", {"x": ""}),
        ("/v1/{x}", "/v1/a/b", None),
        ("/v1/{x=a/*/b/*}", "/v1/a/1/b/2", {"x": "a/1/b/2"}),
        ("/v1/{x=a/*/b/*}", "/v1/a/1/c/2", None),
        ("/v1/{x=**}", "/v1/a/b", {"x": "a/b"}),
        ("/v1/{x=**}", "/v1", {"x": ""}),
        ("/v1/{x=**}/end", "/v1/a/b/end", {"x": "a/b"}),
        ("/v1/{x=**}/{y}/end", "/v1/a/b/c/end", {"x": "a/b", "y": "c"}),
        ("/{a}/{x=q/**}/{y}/{z}", "/1/q/2/3/4/5", {"a": "1", "x": "q/2/3", "y": "4", "z": "5"}),
        ("/v1/{x}:run", "/v1/a:run", {"x": "a"}),
        ("/v1/{x}:run", "/v1/a:b:run", {"x": "a:b"}),
        ("/v1/{x}:run", "/v1/a", None),
        ("/v1/{x}:run", "/v1/:run", None),
        ("/v1/{x}", "/v1/a:run", {"x": "a:run"}),
        ("/v1/x:run", "/v1/x:run", {}),
        ("/v1/{x=**}:run", "/v1/a/b:run", {"x": "a/b"}),
        ("/v1/{a.b.c}", "/v1/z", {"a.b.c": "z"}),
    ],
)
def test_a_path_matches_as_the_gateway_says(
    template: str, path: str, variables: dict[str, str] | None
) -> None:
    router = Router([("GET", parse_template(template), "one", "target")])
    found = router.find("GET", path)
    assert (found.variables if found else None) == variables
    assert router.allows_other("POST", path) is (variables is not None)


def _router(*templates: str) -> Router[str]:
    return Router([("GET", parse_template(text), text, text) for text in templates])


def test_the_route_registered_last_wins() -> None:
    assert _found(_router("/v1/{x}", "/v1/a"), "/v1/a") == "/v1/a"
    assert _found(_router("/v1/a", "/v1/{x}"), "/v1/a") == "/v1/{x}"
    assert _found(_router("/v1/{x=**}", "/{y}/{z}"), "/v1/a") == "/{y}/{z}"
    assert _found(_router("/{y}/{z}", "/v1/{x=**}"), "/v1/a") == "/v1/{x=**}"
    assert _found(_router("/v1/{x}:run", "/v1/{x}"), "/v1/a:run") == "/v1/{x}"


def _found(router: Router[str], path: str) -> str | None:
    found = router.find("GET", path)
    return found.target if found else None


def test_two_claims_on_one_path_are_named() -> None:
    with pytest.raises(HttpRuleError, match=r"b.Two and a.One both claim GET /v1/\{other\}"):
        Router(
            [
                ("GET", parse_template("/v1/{x}"), "a.One", 1),
                ("GET", parse_template("/v1/{other}"), "b.Two", 2),
            ]
        )


@given(st.lists(st.sampled_from(["a", "b", "", "c:d", ":v", "**", "x:v"]), max_size=6))
def test_any_path_finds_what_a_walk_over_all_templates_finds(parts: list[str]) -> None:
    templates = [
        "/a/{x}",
        "/a/b",
        "/{x=**}:v",
        "/{x}/b/{y=**}",
        "/a/{x=b/*}/c",
        "/a/{y=*}:v",
        "/b",
    ]
    path = "/" + "/".join(parts)
    walked = next(
        (text for text in reversed(templates) if _router(text).find("GET", path) is not None), None
    )
    assert _found(_router(*templates), path) == walked


def _method(streaming: bool = False, **rule: Any) -> Any:
    _method.count = getattr(_method, "count", 0) + 1  # type: ignore[attr-defined]
    package = f"lakemesh.test.rules.n{_method.count}"  # type: ignore[attr-defined]
    file = descriptor_pb2.FileDescriptorProto(
        name=f"{package}.proto",
        package=package,
        syntax="proto3",
        dependency=["google/api/annotations.proto"],
    )
    message = file.message_type.add(name="M")
    kinds = descriptor_pb2.FieldDescriptorProto
    message.field.add(name="text", number=1, type=kinds.TYPE_STRING, label=kinds.LABEL_OPTIONAL)
    message.field.add(
        name="inner",
        number=2,
        type=kinds.TYPE_MESSAGE,
        label=kinds.LABEL_OPTIONAL,
        type_name=f".{package}.M",
    )
    method = file.service.add(name="S").method.add(
        name="Do",
        input_type=f".{package}.M",
        output_type=f".{package}.M",
        client_streaming=streaming,
    )
    http = method.options.Extensions[annotations_pb2.http]
    for extra in rule.pop("additional", ()):
        http.additional_bindings.add(**extra)
    for name, value in rule.items():
        if isinstance(value, dict):
            getattr(http, name).kind, getattr(http, name).path = value["kind"], value["path"]
        else:
            setattr(http, name, value)
    descriptor_pool.Default().AddSerializedFile(file.SerializeToString())
    found = descriptor_pool.Default().FindServiceByName(f"{package}.S")
    return found.methods_by_name["Do"]


@pytest.mark.parametrize(
    ("rule", "words"),
    [
        ({"get": "/x", "body": "*"}, "GET may not have a body"),
        ({"delete": "/x", "body": "*"}, "DELETE may not have a body"),
        ({"post": "/x", "body": "none"}, "has no field 'none'"),
        ({"get": "/x", "response_body": "none"}, "has no field 'none'"),
        ({"get": "/{none}"}, "has no field 'none'"),
        ({"get": "/{inner}"}, "cannot stand in a path"),
        ({"get": "/{text.x}"}, "has no field 'text.x'"),
        ({"get": "x"}, "must begin with"),
        ({"body": "*"}, "without a path"),
        (
            {
                "get": "/x",
                "additional": [{"get": "/y", "additional_bindings": [{"get": "/z"}]}],
            },
            "may not be nested",
        ),
    ],
)
def test_a_rule_the_gateway_would_not_build_is_refused(rule: dict[str, Any], words: str) -> None:
    with pytest.raises(HttpRuleError, match=words) as refused:
        bindings_of(_method(**rule))
    assert ".S.Do" in str(refused.value)


def test_a_client_stream_has_no_path_parameters() -> None:
    with pytest.raises(HttpRuleError, match="path parameters"):
        bindings_of(_method(streaming=True, post="/{text}", body="*"))


def test_bindings_come_in_their_order() -> None:
    method = _method(
        post="/a/{text}",
        body="inner",
        response_body="text",
        additional=[{"get": "/b"}, {"custom": {"kind": "SEARCH", "path": "/c"}}],
    )
    first, second, third = bindings_of(method)
    assert (first.http_method, first.body, first.response_body) == ("POST", "inner", "text")
    assert (second.http_method, second.template.text) == ("GET", "/b")
    assert (third.http_method, third.template.text) == ("SEARCH", "/c")
