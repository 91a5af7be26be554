"""Opening and ending spans, and which traces are kept."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence

import pytest

from lakemesh.telemetry.recorder import NullRecorder
from lakemesh.telemetry.span import Span
from lakemesh.telemetry.tracing import (
    MAX_PENDING_SPANS,
    Tracer,
    current_span,
    current_traceparent,
)


class Kept:
    """A recorder that lists what reached it."""

    def __init__(self) -> None:
        self.spans: list[Span] = []
        self.appends = 0

    def record(self, span: Span) -> None:
        self.spans.append(span)
        self.appends += 1

    def record_all(self, spans: Sequence[Span]) -> None:
        self.spans += spans
        self.appends += 1

    def names(self) -> list[str]:
        return [span.name for span in self.spans]


@pytest.fixture
def kept() -> Kept:
    return Kept()


def test_children_belong_to_the_span_around_them(kept: Kept) -> None:
    tracer = Tracer(kept)
    with tracer.root("call") as call:
        with tracer.span("step", attributes={"n": 1}) as step:
            assert current_span() is step
        assert current_span() is call
    assert current_span() is None
    assert kept.names() == ["step", "call"]
    assert step.parent_span_id == call.span_id
    assert step.trace_id == call.trace_id
    assert call.parent_span_id == ""
    assert call.start_ns <= step.start_ns <= step.end_ns <= call.end_ns
    assert step.attributes == {"n": 1}


def test_a_local_trace_is_one_append(kept: Kept) -> None:
    tracer = Tracer(kept)
    with tracer.root("call"):
        for _ in range(5):
            with tracer.span("step"):
                pass
    assert len(kept.spans) == 6
    assert kept.appends == 1


def test_the_callers_trace_is_continued(kept: Kept) -> None:
    header = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-00"
    with Tracer(kept).root("call", traceparent=header) as span:
        onward = current_traceparent()
    assert span.trace_id == "0af7651916cd43dd8448eb211c80319c"
    assert span.parent_span_id == "b7ad6b7169203331"
    assert onward == f"00-{span.trace_id}-{span.span_id}-01"


def test_a_span_without_surroundings_begins_a_trace(kept: Kept) -> None:
    with Tracer(kept).span("alone") as span:
        pass
    assert span.parent_span_id == ""
    assert kept.names() == ["alone"]


def test_an_exception_marks_the_span_and_keeps_its_text_out(kept: Kept) -> None:
    with pytest.raises(ValueError, match="secret"), Tracer(kept).root("call") as span:
        raise ValueError("secret")
    assert span.status_code == "ERROR"
    assert span.attributes["error.type"] == "ValueError"
    assert "secret" not in repr(span)


def test_a_status_that_was_set_is_not_overruled(kept: Kept) -> None:
    scope = Tracer(kept).root("call")
    scope.span.status_code = "OK"
    with pytest.raises(ValueError, match="x"), scope:
        raise ValueError("x")
    assert kept.spans[0].status_code == "OK"


async def test_cancellation_is_not_an_error(kept: Kept) -> None:
    tracer = Tracer(kept, sample_rate=1.0)
    started = asyncio.Event()

    async def work() -> None:
        with tracer.root("call"):
            started.set()
            await asyncio.Event().wait()

    task = asyncio.create_task(work())
    await started.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert kept.spans[0].status_code == "UNSET"
    assert kept.spans[0].attributes["error.type"] == "CancelledError"


def test_the_rate_decides_by_trace_id_and_the_same_everywhere(kept: Kept) -> None:
    first, second = Tracer(kept, 0.25), Tracer(NullRecorder(), 0.25)
    verdicts = []
    for _ in range(4000):
        with first.root("call") as span:
            pass
        verdicts.append(first.samples(span.trace_id))
        assert second.samples(span.trace_id) == verdicts[-1]
    assert len(kept.spans) == sum(verdicts)
    # Four standard deviations of a binomial of 4000 at 0.25.
    assert abs(len(kept.spans) - 1000) < 110


@pytest.mark.parametrize("flag", ["00", "01"])
@pytest.mark.parametrize(("rate", "spans"), [(0.0, 0), (1.0, 1)])
def test_the_callers_sampled_flag_does_not_count(
    kept: Kept, rate: float, spans: int, flag: str
) -> None:
    header = f"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-{flag}"
    with Tracer(kept, rate).root("call", traceparent=header):
        pass
    assert len(kept.spans) == spans


def test_a_trace_with_an_error_in_any_step_is_kept_whole(kept: Kept) -> None:
    tracer = Tracer(kept, sample_rate=0.0)
    with tracer.root("call"):
        with tracer.span("before"):
            pass
        with tracer.span("failing") as step:
            step.status_code = "ERROR"
        with tracer.span("after"):
            pass
    with tracer.root("good call"):
        pass
    assert kept.names() == ["before", "failing", "after", "call"]


async def test_work_that_outlives_the_call_follows_its_verdict(kept: Kept) -> None:
    released = asyncio.Event()

    async def background(tracer: Tracer, name: str) -> None:
        with tracer.span(name):
            await released.wait()

    tasks = []
    for rate, name in ((1.0, "of a kept call"), (0.0, "of a dropped call")):
        tracer = Tracer(kept, rate)
        with tracer.root("call"):
            tasks.append(asyncio.create_task(background(tracer, name)))
            await asyncio.sleep(0)
    released.set()
    await asyncio.gather(*tasks)
    assert kept.names() == ["call", "of a kept call"]


def test_an_endless_trace_is_written_as_it_goes(kept: Kept) -> None:
    tracer = Tracer(kept, sample_rate=0.0)
    with tracer.root("call"):
        for _ in range(MAX_PENDING_SPANS - 1):
            with tracer.span("step"):
                pass
        assert kept.spans == []
        with tracer.span("step"):
            pass
        assert len(kept.spans) == MAX_PENDING_SPANS
    assert len(kept.spans) == MAX_PENDING_SPANS + 1


async def test_parallel_tasks_do_not_mix_their_spans(kept: Kept) -> None:
    tracer = Tracer(kept)

    async def call(name: str) -> str:
        with tracer.root(name) as root:
            await asyncio.sleep(0)
            with tracer.span("step of " + name) as step:
                await asyncio.sleep(0)
            assert step.parent_span_id == root.span_id
            return root.trace_id

    traces = await asyncio.gather(*(call(f"call {n}") for n in range(50)))
    assert len(set(traces)) == 50
    for span in kept.spans:
        assert span.trace_id == traces[int(span.name.rsplit(" ", 1)[1])]


async def test_a_stream_closed_by_another_task_ends_its_span(kept: Kept) -> None:
    tracer = Tracer(kept)

    async def stream() -> AsyncIterator[int]:
        with tracer.root("stream"):
            yield 1
            yield 2

    events = stream()

    async def read() -> int:
        return await anext(events)

    assert await asyncio.create_task(read()) == 1
    await events.aclose()  # type: ignore[attr-defined]
    assert kept.names() == ["stream"]
    assert kept.spans[0].status_code == "UNSET"
    assert current_span() is None


@pytest.mark.parametrize("rate", [-0.1, 1.1, float("nan")])
def test_an_impossible_rate_is_refused(rate: float) -> None:
    with pytest.raises(ValueError, match="sample rate"):
        Tracer(NullRecorder(), rate)
