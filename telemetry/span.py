"""What a span is, how its ids are made, and the W3C trace context it travels in.

The data model is OpenTelemetry's (trace_id of 16 bytes and span_id of 8 bytes in lower-case hex,
times in nanoseconds since the Unix epoch); attribute names are those of the OpenTelemetry semantic
conventions, schema 1.37.0.
"""

from __future__ import annotations

import random
import re
from dataclasses import dataclass, field

SCHEMA_URL = "https://opentelemetry.io/schemas/1.37.0"

RPC_SYSTEM = "rpc.system"
RPC_SERVICE = "rpc.service"
RPC_METHOD = "rpc.method"
RPC_GRPC_STATUS_CODE = "rpc.grpc.status_code"
GEN_AI_OPERATION_NAME = "gen_ai.operation.name"
GEN_AI_AGENT_NAME = "gen_ai.agent.name"
ERROR_TYPE = "error.type"

AGENT_ATTRIBUTES = ("agent_id", "agent.id", GEN_AI_AGENT_NAME)
"""Where a span names its agent, strongest first."""

OK = "OK"
ERROR = "ERROR"
UNSET = "UNSET"

SERVER = "SERVER"
INTERNAL = "INTERNAL"
CLIENT = "CLIENT"

AttributeValue = str | int | float | bool
Attributes = dict[str, AttributeValue]


@dataclass(slots=True, eq=False)
class Span:
    """One timed piece of work. Whoever holds it may set any field until it has been recorded."""

    trace_id: str
    """32 lower-case hex digits."""
    span_id: str
    """16 lower-case hex digits."""
    parent_span_id: str
    """16 lower-case hex digits, empty for the root of a trace."""
    name: str
    kind: str = INTERNAL
    """SERVER, INTERNAL, CLIENT (also PRODUCER and CONSUMER for foreign spans)."""
    start_ns: int = 0
    """Unix time in nanoseconds."""
    end_ns: int = 0
    """Unix time in nanoseconds; 0 while the span is open."""
    status_code: str = UNSET
    """OK, ERROR or UNSET."""
    status_message: str = ""
    agent_id: str = ""
    """The agent this span counts for; when empty, AGENT_ATTRIBUTES decide as it is stored."""
    attributes: Attributes = field(default_factory=dict)


def agent_of(span: Span) -> str:
    """The agent a span belongs to: its own field, else the first of AGENT_ATTRIBUTES it carries."""
    if span.agent_id:
        return span.agent_id
    attributes = span.attributes
    for name in AGENT_ATTRIBUTES:
        value = attributes.get(name)
        if value:
            return str(value)
    return ""


class IdGenerator:
    """Random trace and span ids.

    The generator is seeded by the operating system once and then never asks it again: ids must be
    unique, not secret. Safe to call from several threads (one C call draws the bits). A forked
    child would repeat its parent's ids; workers are spawned, never forked.
    """

    __slots__ = ("_bits",)

    def __init__(self) -> None:
        # Mersenne twister on purpose (S311): see above.
        self._bits = random.Random().getrandbits  # noqa: S311

    def trace_id(self) -> str:
        """A new trace id; never the all-zero one, which W3C trace context calls invalid."""
        return f"{self._bits(128) or 1:032x}"

    def trace_and_span_id(self) -> tuple[str, str]:
        """Both at once, for two thirds of the price."""
        digits = f"{self._bits(192):048x}"
        # All zeros for either has a chance of 2**-64 and would only break that trace's links.
        return digits[:32], digits[32:]

    def span_id(self) -> str:
        """A new span id; never all zeros."""
        return f"{self._bits(64) or 1:016x}"


@dataclass(frozen=True, slots=True)
class TraceParent:
    """The caller's place in its trace, as `traceparent` told it."""

    trace_id: str
    span_id: str
    sampled: bool


# W3C Trace Context level 2, section 3.2: four lower-case hex fields. A version above 00 may carry
# more fields after a further dash; version ff is forbidden.
_TRACEPARENT = re.compile(r"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?")
_NO_TRACE = "0" * 32
_NO_SPAN = "0" * 16


def parse_traceparent(value: str) -> TraceParent | None:
    """Reads a `traceparent` header; None when it is not valid, in which case a new trace begins."""
    match = _TRACEPARENT.fullmatch(value.strip())
    if match is None:
        return None
    version, trace_id, span_id, flags, rest = match.groups()
    if (
        version == "ff"
        or (version == "00" and rest)
        or trace_id == _NO_TRACE
        or span_id == _NO_SPAN
    ):
        return None
    return TraceParent(trace_id, span_id, bool(int(flags, 16) & 1))


def format_traceparent(trace_id: str, span_id: str, sampled: bool = True) -> str:
    """The `traceparent` header for a call made inside the span."""
    return f"00-{trace_id}-{span_id}-{'01' if sampled else '00'}"
