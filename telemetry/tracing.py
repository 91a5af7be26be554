"""Opening and closing spans around work, and deciding at the end of a trace whether to keep it.

The spans of one trace that are opened in this process form its local trace. They are handed to the
recorder together when the local root ends, so a call costs one append however many steps it had,
and so that sampling can look back: a trace with an error is always kept.
"""

from __future__ import annotations

import time
from asyncio import CancelledError
from collections.abc import Mapping
from contextvars import ContextVar, Token
from types import TracebackType

from lakemesh.telemetry.recorder import SpanRecorder
from lakemesh.telemetry.span import (
    ERROR,
    ERROR_TYPE,
    INTERNAL,
    SERVER,
    UNSET,
    AttributeValue,
    IdGenerator,
    Span,
    format_traceparent,
    parse_traceparent,
)

MAX_PENDING_SPANS = 1000
"""A local trace that grows beyond this many ended spans is kept whatever the rate says and written
out as it goes: memory stays bounded, and no later error finds its trace already thrown away."""

# Leaving early is not a failure of the work: the caller went away or stopped reading.
_NOT_A_FAILURE = (CancelledError, GeneratorExit)

_current: ContextVar[SpanScope | None] = ContextVar("lakemesh_current_span", default=None)


class _LocalTrace:
    """The spans of one trace that this process has ended so far, and the verdict on them."""

    __slots__ = ("failed", "keep", "sampled", "spans", "tracer")

    def __init__(self, tracer: Tracer, sampled: bool) -> None:
        self.tracer = tracer
        self.sampled = sampled
        self.failed = False
        self.keep: bool | None = None
        self.spans: list[Span] = []

    def ended(self, span: Span, is_root: bool) -> None:
        if span.status_code == ERROR:
            self.failed = True
        keep = self.keep
        if keep is None:
            spans = self.spans
            if is_root:
                self.keep = keep = self.sampled or self.failed
                if keep:
                    if spans:
                        spans.append(span)
                        self.tracer.recorder.record_all(spans)
                    else:
                        self.tracer.recorder.record(span)
                self.spans = []
            else:
                spans.append(span)
                if len(spans) >= MAX_PENDING_SPANS:
                    self.keep = True
                    self.spans = []
                    self.tracer.recorder.record_all(spans)
        elif keep or span.status_code == ERROR:
            # After the root (work that outlives the call), or in a trace that was too long to hold.
            self.tracer.recorder.record(span)


class SpanScope:
    """A span as a context manager: open inside the block, ended when it is left.

    An exception that leaves the block sets the status to ERROR and `error.type` to the exception's
    class, unless a status was set already. Its text is not stored: it may quote a caller's data.
    Cancellation leaves the status as it is. Enter it once.
    """

    __slots__ = ("_is_root", "_token", "_trace", "span")

    def __init__(self, span: Span, trace: _LocalTrace, is_root: bool) -> None:
        self.span = span
        self._trace = trace
        self._is_root = is_root
        self._token: Token[SpanScope | None] | None = None

    def __enter__(self) -> Span:
        self._token = _current.set(self)
        return self.span

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        token = self._token
        if token is not None:
            try:
                _current.reset(token)
            except ValueError:
                # An async generator that is closed by another task than the one that read it
                # leaves the block in that task's context, where there is nothing to restore.
                self._token = None
        span = self.span
        if kind is not None:
            span.attributes.setdefault(ERROR_TYPE, kind.__qualname__)
            if span.status_code == UNSET and not issubclass(kind, _NOT_A_FAILURE):
                span.status_code = ERROR
        if not span.end_ns:
            # Never before its start, also when the wall clock was set back meanwhile.
            now = time.time_ns()
            span.end_ns = now if now > span.start_ns else span.start_ns
        self._trace.ended(span, self._is_root)

    @property
    def tracer(self) -> Tracer:
        """The tracer the span was opened with."""
        return self._trace.tracer

    @property
    def sampled(self) -> bool:
        """What the rate says about this trace; one with an error is kept all the same."""
        return self._trace.sampled


class Tracer:
    """Opens spans and decides, trace by trace, which of them reach the recorder.

    sample_rate is the share of traces kept, 0.0 to 1.0. The verdict depends on the trace id alone,
    so every process of one trace comes to the same one; the caller's sampled flag does not count.
    Traces in which a span of this process has the status ERROR are kept whatever the rate.
    """

    __slots__ = ("_ids", "_keeps_all", "_threshold", "recorder", "sample_rate")

    def __init__(self, recorder: SpanRecorder, sample_rate: float = 1.0) -> None:
        if not 0.0 <= sample_rate <= 1.0:
            raise ValueError(f"sample rate must be between 0 and 1, not {sample_rate}")
        self.recorder = recorder
        self.sample_rate = sample_rate
        self._ids = IdGenerator()
        # The 56 lowest bits of a trace id are random (W3C trace context level 2): those below the
        # threshold are kept, as in OpenTelemetry's consistent probability sampling.
        self._threshold = round(sample_rate * (1 << 56))
        self._keeps_all = sample_rate == 1.0

    def span(
        self,
        name: str,
        kind: str = INTERNAL,
        attributes: Mapping[str, AttributeValue] | None = None,
    ) -> SpanScope:
        """A child of the current span, or the root of a new trace when there is none."""
        parent = _current.get()
        if parent is None:
            return self.root(name, kind, attributes=attributes)
        above = parent.span
        span = Span(above.trace_id, self._ids.span_id(), above.span_id, name, kind, time.time_ns())
        if attributes:
            span.attributes.update(attributes)
        return SpanScope(span, parent._trace, False)

    def root(
        self,
        name: str,
        kind: str = SERVER,
        traceparent: str | None = None,
        attributes: Mapping[str, AttributeValue] | None = None,
    ) -> SpanScope:
        """The first span of a trace in this process.

        It continues the caller's trace when `traceparent` is a valid W3C header and starts a new
        one otherwise, also when a span is current.
        """
        caller = parse_traceparent(traceparent) if traceparent else None
        ids = self._ids
        if caller is None:
            trace_id, span_id = ids.trace_and_span_id()
            parent_id = ""
        else:
            trace_id, parent_id = caller.trace_id, caller.span_id
            span_id = ids.span_id()
        span = Span(trace_id, span_id, parent_id, name, kind, time.time_ns())
        if attributes:
            span.attributes.update(attributes)
        return SpanScope(span, _LocalTrace(self, self.samples(trace_id)), True)

    def samples(self, trace_id: str) -> bool:
        """Whether the rate keeps the trace with this id."""
        return self._keeps_all or int(trace_id[-14:], 16) < self._threshold


def current_span() -> Span | None:
    """The span that is open here, if any."""
    scope = _current.get()
    return None if scope is None else scope.span


def current_traceparent() -> str | None:
    """The `traceparent` header for a call made from here; None outside any span."""
    scope = _current.get()
    if scope is None:
        return None
    return format_traceparent(scope.span.trace_id, scope.span.span_id, scope.sampled)
