"""From the spool to the sinks: when, how often, and what a bad sink does to whom."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import orjson
import pytest

from lakemesh.telemetry.cursor import Batch
from lakemesh.telemetry.recorder import NullRecorder
from lakemesh.telemetry.spool import SpoolDirectory, SpoolWriter
from lakemesh.telemetry.telemetry import Telemetry, open_telemetry
from tests.telemetry.spans import new_span, span_ids_in_table


class ListSink:
    """A sink in memory, which a test can break."""

    def __init__(self, name: str = "list") -> None:
        self.name = name
        self.set_aside = 0
        self.spans: list[str] = []
        self.positions: dict[str, int] = {}
        self.batches: list[Batch] = []
        self.fail: Callable[[Batch], None] = lambda batch: None
        self.attempted = threading.Event()

    def committed(self, spool_id: str) -> int:
        return self.positions.get(spool_id, 0)

    def write(self, batch: Batch) -> None:
        self.attempted.set()
        self.fail(batch)
        self.batches.append(batch)
        self.positions[batch.spool_id] = batch.last_sequence
        for payload in batch.payloads:
            self.spans += [row[1] for row in orjson.loads(payload)]

    def maintain(self) -> None:
        pass


class Opened:
    """Opens telemetry and closes all of it at the end of a test."""

    def __init__(self, data_dir: Path) -> None:
        self.data_dir = data_dir
        self.all: list[Telemetry] = []

    def __call__(self, *sinks: ListSink, interval: float = 0.05, batch: int = 1000) -> Telemetry:
        telemetry = open_telemetry(
            self.data_dir, flush_interval=interval, batch_size=batch, sinks=sinks or None
        )
        self.all.append(telemetry)
        return telemetry


@pytest.fixture
def opened(tmp_path: Path) -> Iterator[Opened]:
    opened = Opened(tmp_path)
    yield opened
    for telemetry in opened.all:
        telemetry.close(5)


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 5
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.005)


def record(telemetry: Telemetry, count: int) -> list[str]:
    spans = [new_span() for _ in range(count)]
    for span in spans:
        telemetry.recorder.record(span)
    return [span.span_id for span in spans]


def test_spans_are_in_the_table_when_flush_returns(opened: Opened) -> None:
    telemetry = opened(interval=60)
    telemetry.start()
    ids = record(telemetry, 25)
    assert telemetry.flush(5)
    assert sorted(span_ids_in_table(opened.data_dir)) == sorted(ids)
    (sink,) = telemetry.status().sinks
    assert (sink.shipped, sink.commits, sink.pending) == (25, 1, 0)


def test_spans_leave_by_themselves_within_the_interval(opened: Opened) -> None:
    sink = ListSink()
    telemetry = opened(sink, interval=0.3)
    telemetry.start()
    ids = record(telemetry, 3)
    wait_until(lambda: sink.spans == ids)


def test_a_full_batch_does_not_wait_for_the_interval(opened: Opened) -> None:
    sink = ListSink()
    telemetry = opened(sink, interval=4.0, batch=50)
    ids = record(telemetry, 50)
    telemetry.start()
    began = time.monotonic()
    wait_until(lambda: sink.spans == ids)
    assert time.monotonic() - began < 3


def test_a_flood_makes_few_and_large_commits(opened: Opened) -> None:
    sink = ListSink()
    telemetry = opened(sink, interval=1.0, batch=10)
    telemetry.start()
    ids: list[str] = []
    end = time.monotonic() + 2.2
    while time.monotonic() < end:
        ids += record(telemetry, 20)
        time.sleep(0.01)
    assert telemetry.flush(5)
    assert sink.spans == ids
    assert len(sink.batches) <= 4


def test_close_ships_the_rest_and_leaves_no_directory(opened: Opened) -> None:
    telemetry = opened(interval=60)
    telemetry.start()
    ids = record(telemetry, 10)
    assert telemetry.close(5)
    assert sorted(span_ids_in_table(opened.data_dir)) == sorted(ids)
    assert list((opened.data_dir / "spool").iterdir()) == []


def test_a_sink_that_fails_gets_everything_once_when_it_recovers(opened: Opened) -> None:
    sink = ListSink()
    broken = True

    def fail(batch: Batch) -> None:
        if broken:
            raise ConnectionError("the sink is down")

    sink.fail = fail
    telemetry = opened(sink)
    telemetry.start()
    ids = record(telemetry, 5)
    wait_until(lambda: bool(telemetry.status().detail))
    status = telemetry.status()
    assert not status.healthy
    assert "the sink is down" in status.detail
    assert status.sinks[0].pending == 5
    ids += record(telemetry, 5)
    broken = False
    assert telemetry.flush(5)
    assert sink.spans == ids
    assert telemetry.status().healthy


def test_a_commit_whose_answer_was_lost_is_not_repeated(opened: Opened) -> None:
    sink = ListSink()
    lost = iter([True])

    def write(batch: Batch) -> None:
        ListSink.write(sink, batch)
        if next(lost, False):
            raise TimeoutError("no answer")

    sink.write = write  # type: ignore[method-assign]
    telemetry = opened(sink)
    telemetry.start()
    ids = record(telemetry, 5)
    wait_until(lambda: sink.spans == ids)
    ids += record(telemetry, 5)
    assert telemetry.flush(5)
    assert sink.spans == ids
    wait_until(lambda: telemetry.status().sinks[0].pending == 0)


def test_a_hanging_sink_holds_up_neither_calls_nor_the_end(opened: Opened) -> None:
    sink = ListSink()
    released = threading.Event()

    def hang(batch: Batch) -> None:
        released.wait(10)

    sink.fail = hang
    telemetry = opened(sink)
    telemetry.start()
    record(telemetry, 1)
    assert sink.attempted.wait(5)
    began = time.monotonic()
    record(telemetry, 1000)
    assert not telemetry.flush(0.1)
    assert not telemetry.close(0.3)
    assert time.monotonic() - began < 3
    released.set()


def test_each_sink_has_its_own_position(opened: Opened) -> None:
    good, bad = ListSink("good"), ListSink("bad")
    down = True

    def fail(batch: Batch) -> None:
        if down:
            raise ConnectionError("down")

    bad.fail = fail
    telemetry = opened(bad, good)
    telemetry.start()
    ids = record(telemetry, 10)
    wait_until(lambda: good.spans == ids)
    assert bad.spans == []
    assert [sink.pending for sink in telemetry.status().sinks] == [10, 0]
    down = False
    assert telemetry.flush(5)
    assert bad.spans == ids
    assert good.spans == ids


def test_what_a_dead_worker_left_is_shipped_by_the_next(opened: Opened) -> None:
    dead = SpoolDirectory.create(opened.data_dir / "spool")
    writer = SpoolWriter(dead, segment_bytes=4096)
    left = [new_span() for _ in range(100)]
    for span in left:
        writer.record(span)
    dead.release()
    telemetry = opened()
    telemetry.start()
    ids = record(telemetry, 10) + [span.span_id for span in left]
    wait_until(lambda: not dead.path.exists())
    assert telemetry.flush(5)
    assert sorted(span_ids_in_table(opened.data_dir)) == sorted(ids)


def test_an_adopted_spool_goes_on_where_its_sink_already_was(opened: Opened) -> None:
    # The worker died after its commit and before it wrote the position down.
    sink = ListSink()
    dead = SpoolDirectory.create(opened.data_dir / "spool")
    writer = SpoolWriter(dead)
    left = [new_span() for _ in range(10)]
    for span in left:
        writer.record(span)
    dead.release()
    sink.positions[dead.id] = 6
    telemetry = opened(sink)
    telemetry.start()
    wait_until(lambda: not dead.path.exists())
    assert sink.spans == [span.span_id for span in left[6:]]


def test_spans_recorded_before_start_are_only_later(opened: Opened) -> None:
    sink = ListSink()
    telemetry = opened(sink)
    ids = record(telemetry, 3)
    assert not telemetry.flush(0.05)
    telemetry.start()
    assert telemetry.flush(5)
    assert sink.spans == ids


def test_a_poisoned_frame_is_set_aside_and_the_rest_goes_on(opened: Opened) -> None:
    telemetry = opened(interval=60)
    spool = telemetry.recorder
    assert isinstance(spool, SpoolWriter)
    ids = record(telemetry, 3)
    spool._append(b'[["too","short"]]', 1)
    ids += record(telemetry, 3)
    telemetry.start()
    assert telemetry.flush(5)
    assert sorted(span_ids_in_table(opened.data_dir)) == sorted(ids)
    assert telemetry.status().sinks[0].set_aside == 1


def test_loss_shows_in_the_status(tmp_path: Path) -> None:
    telemetry = open_telemetry(tmp_path, spool_max_bytes=1, sinks=[ListSink()])
    record(telemetry, 2)
    status = telemetry.status()
    assert not status.healthy
    assert status.detail == "2 spans lost"
    assert status.lost == 2
    telemetry.close(1)


def test_telemetry_can_be_switched_off(tmp_path: Path) -> None:
    telemetry = open_telemetry(tmp_path, enabled=False)
    telemetry.start()
    with telemetry.tracer.root("call") as span:
        assert len(span.trace_id) == 32
    assert isinstance(telemetry.recorder, NullRecorder)
    assert telemetry.flush(1)
    assert telemetry.close(1)
    assert not telemetry.status().enabled
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("values", "word"),
    [
        ({"flush_interval": 0.0}, "interval"),
        ({"batch_size": 0}, "size"),
        ({"sample_rate": 2.0}, "rate"),
    ],
)
def test_impossible_settings_are_refused(
    tmp_path: Path, values: dict[str, float], word: str
) -> None:
    with pytest.raises(ValueError, match=word):
        open_telemetry(tmp_path, **values)  # type: ignore[arg-type]
