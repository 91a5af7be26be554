"""Ids, the W3C trace context, and whom a span counts for."""

from __future__ import annotations

import pytest

from lakemesh.telemetry.span import (
    IdGenerator,
    Span,
    TraceParent,
    agent_of,
    format_traceparent,
    parse_traceparent,
)

TRACE = "0af7651916cd43dd8448eb211c80319c"
PARENT = "b7ad6b7169203331"


def test_a_traceparent_survives_the_round_trip() -> None:
    header = format_traceparent(TRACE, PARENT)
    assert header == f"00-{TRACE}-{PARENT}-01"
    assert parse_traceparent(header) == TraceParent(TRACE, PARENT, sampled=True)


def test_a_later_version_of_traceparent_is_read_by_its_first_four_fields() -> None:
    assert parse_traceparent(f"01-{TRACE}-{PARENT}-00-more") == TraceParent(TRACE, PARENT, False)


@pytest.mark.parametrize(
    "header",
    [
        "",
        "garbage",
        f"ff-{TRACE}-{PARENT}-01",
        f"00-{TRACE}-{PARENT}-01-more",
        f"00-{TRACE}-{PARENT}-01-",
        f"00-{'0' * 32}-{PARENT}-01",
        f"00-{TRACE}-{'0' * 16}-01",
        f"00-{TRACE.upper()}-{PARENT}-01",
        f"00-{TRACE[:-1]}-{PARENT}-01",
        f"00-{TRACE}-{PARENT}-1",
        f"00-{TRACE}-{PARENT}-01\x00",
    ],
)
def test_an_invalid_traceparent_is_no_traceparent(header: str) -> None:
    assert parse_traceparent(header) is None


def test_ids_are_hexadecimal_and_do_not_repeat() -> None:
    ids = IdGenerator()
    traces = {ids.trace_id() for _ in range(10_000)}
    spans = {ids.span_id() for _ in range(10_000)}
    assert len(traces) == len(spans) == 10_000
    assert {len(each) for each in traces} == {32}
    assert {len(each) for each in spans} == {16}
    assert set("".join(traces) + "".join(spans)) == set("0123456789abcdef")


def test_agent_attributes_count_in_their_order() -> None:
    span = Span(TRACE, PARENT, "", "work")
    assert agent_of(span) == ""
    span.attributes["gen_ai.agent.name"] = "third"
    assert agent_of(span) == "third"
    span.attributes["agent.id"] = "second"
    assert agent_of(span) == "second"
    span.attributes["agent_id"] = "first"
    assert agent_of(span) == "first"
    span.agent_id = "own field"
    assert agent_of(span) == "own field"
