"""The spool: frames that survive, tails that do not, bounds that hold."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import textwrap
import threading
from pathlib import Path

import orjson
import pytest

from lakemesh.telemetry.cursor import SpoolCursor
from lakemesh.telemetry.spool import (
    HEADER,
    MAX_FRAME_BYTES,
    SpoolDirectory,
    SpoolWriter,
    adoptable,
)
from tests.telemetry.spans import new_span, spooled_rows


@pytest.fixture
def directory(tmp_path: Path) -> SpoolDirectory:
    return SpoolDirectory.create(tmp_path / "spool")


def segment_of(directory: SpoolDirectory) -> Path:
    return directory.segments()[-1][1]


def test_what_was_recorded_is_read_back_in_order(directory: SpoolDirectory) -> None:
    writer = SpoolWriter(directory)
    spans = [new_span(f"span {n}") for n in range(50)]
    for span in spans[:10]:
        writer.record(span)
    writer.record_all(spans[10:])
    rows = spooled_rows(directory)
    assert [row[1] for row in rows] == [span.span_id for span in spans]
    assert rows[0][:10] == [
        spans[0].trace_id,
        spans[0].span_id,
        "",
        "span 0",
        "SERVER",
        spans[0].start_ns,
        spans[0].end_ns,
        "OK",
        "",
        "echo",
    ]
    assert orjson.loads(rows[0][10]) == spans[0].attributes
    assert writer.sequence == 11
    assert writer.recorded == 50


def test_the_agent_is_taken_from_the_attributes(directory: SpoolDirectory) -> None:
    writer = SpoolWriter(directory)
    span = new_span(agent="")
    span.attributes |= {"gen_ai.agent.name": "named", "agent.id": "preferred"}
    writer.record(span)
    assert spooled_rows(directory)[0][9] == "preferred"


def test_segments_rotate_and_reading_crosses_them(directory: SpoolDirectory) -> None:
    writer = SpoolWriter(directory, segment_bytes=4096)
    spans = [new_span() for _ in range(200)]
    for span in spans:
        writer.record(span)
    assert len(directory.segments()) > 10
    assert [row[1] for row in spooled_rows(directory)] == [span.span_id for span in spans]
    assert [row[1] for row in spooled_rows(directory, after=150)] == [
        span.span_id for span in spans[150:]
    ]


def test_shipped_segments_go_and_the_newest_stays(directory: SpoolDirectory) -> None:
    writer = SpoolWriter(directory, segment_bytes=4096)
    spans = [new_span() for _ in range(100)]
    for span in spans:
        writer.record(span)
    used = writer.bytes_used
    freed = directory.remove_shipped(60)
    writer.freed(freed)
    first = directory.segments()[0][0]
    assert 50 < first <= 61
    assert writer.bytes_used == used - freed
    assert writer.bytes_used == sum(path.stat().st_size for _, path in directory.segments())
    assert [row[1] for row in spooled_rows(directory, after=60)] == [s.span_id for s in spans[60:]]
    directory.remove_shipped(100)
    assert len(directory.segments()) == 1


@pytest.mark.parametrize("cut", range(1, 60, 7))
def test_a_torn_tail_costs_only_the_frame_that_was_never_acknowledged(
    directory: SpoolDirectory, cut: int
) -> None:
    writer = SpoolWriter(directory)
    for n in range(3):
        writer.record(new_span(f"span {n}"))
    path = segment_of(directory)
    os.truncate(path, path.stat().st_size - cut)
    assert [row[3] for row in spooled_rows(directory)] == ["span 0", "span 1"]


def test_garbage_after_the_last_frame_is_not_a_span(directory: SpoolDirectory) -> None:
    writer = SpoolWriter(directory)
    writer.record(new_span("good"))
    with segment_of(directory).open("ab") as file:
        file.write(os.urandom(5000))
    assert [row[3] for row in spooled_rows(directory)] == ["good"]


def test_a_damaged_frame_costs_no_other(
    directory: SpoolDirectory, caplog: pytest.LogCaptureFixture
) -> None:
    writer = SpoolWriter(directory)
    for n in range(5):
        writer.record(new_span(f"span {n}"))
    path = segment_of(directory)
    data = bytearray(path.read_bytes())
    data[data.index(b"span 2")] ^= 0xFF
    path.write_bytes(data)
    with caplog.at_level(logging.WARNING):
        names = [row[3] for row in spooled_rows(directory)]
    assert names == ["span 0", "span 1", "span 3", "span 4"]
    assert "damaged" in caplog.text


def test_a_frame_in_the_wrong_place_is_no_frame(directory: SpoolDirectory) -> None:
    writer = SpoolWriter(directory)
    writer.record(new_span("first"))
    path = segment_of(directory)
    data = bytearray(path.read_bytes())
    length, crc, sequence, spans = HEADER.unpack_from(data, 8)
    HEADER.pack_into(data, 8, length, crc, sequence + 1, spans)
    path.write_bytes(data)
    assert spooled_rows(directory) == []


def test_the_reader_stops_where_the_owner_has_got_to(directory: SpoolDirectory) -> None:
    writer = SpoolWriter(directory)
    cursor = SpoolCursor(directory, 0)
    for _ in range(5):
        writer.record(new_span())
    batch = cursor.read(1000, up_to=3)
    assert batch is not None
    assert (batch.spans, batch.last_sequence) == (3, 3)
    assert cursor.read(1000, up_to=3) is None
    batch = cursor.read(1000, up_to=writer.sequence)
    assert batch is not None
    assert batch.last_sequence == 5


def test_what_json_cannot_hold_is_stored_as_text(directory: SpoolDirectory) -> None:
    writer = SpoolWriter(directory)
    span = new_span("bad \ud800 name")
    span.attributes = {
        "object": object(),  # type: ignore[dict-item]
        "huge": 10**30,
        "nan": float("nan"),
        "surrogate": "\udfff",
        5: "five",  # type: ignore[dict-item]
        "fine": "yes",
    }
    writer.record(span)
    writer.record_all([span, new_span("innocent")])
    rows = spooled_rows(directory)
    assert [row[3] for row in rows] == ["bad ? name", "bad ? name", "innocent"]
    attributes = orjson.loads(rows[0][10])
    assert attributes["fine"] == "yes"
    assert attributes["huge"] == str(10**30)
    assert attributes["nan"] is None
    assert attributes["surrogate"] == "?"
    assert attributes["5"] == "five"
    assert writer.lost == 0


def test_a_span_too_long_for_a_frame_is_shortened(directory: SpoolDirectory) -> None:
    writer = SpoolWriter(directory)
    span = new_span()
    span.attributes = {"prompt": "x" * (2 * MAX_FRAME_BYTES)}
    writer.record_all([span, new_span("beside it")])
    rows = spooled_rows(directory)
    assert [row[3] for row in rows] == ["work", "beside it"]
    assert len(orjson.loads(rows[0][10])["prompt"]) == 4096


def test_long_frames_among_short_ones_are_read(directory: SpoolDirectory) -> None:
    writer = SpoolWriter(directory)
    lengths = [10, 900_000, 10, 300_000, 262_144, 10]
    for length in lengths:
        span = new_span()
        span.attributes = {"text": "x" * length}
        writer.record(span)
    read = [len(orjson.loads(row[10])["text"]) for row in spooled_rows(directory)]
    assert read == lengths


def test_a_full_spool_refuses_counts_and_says_so(
    directory: SpoolDirectory, caplog: pytest.LogCaptureFixture
) -> None:
    writer = SpoolWriter(directory, segment_bytes=8192, max_bytes=65536)
    with caplog.at_level(logging.ERROR):
        for _ in range(1000):
            writer.record(new_span())
    used = sum(path.stat().st_size for path in directory.path.iterdir())
    assert used <= 65536
    assert writer.lost > 0
    assert writer.recorded + writer.lost == 1000
    assert len(spooled_rows(directory)) == writer.recorded
    assert "spans lost: the spool has reached its bound" in caplog.text
    assert len(caplog.records) == 1

    writer.freed(directory.remove_shipped(writer.sequence))
    lost = writer.lost
    writer.record(new_span())
    assert writer.lost == lost


def test_a_full_disk_loses_what_it_must_and_nothing_else(tmp_path: Path) -> None:
    # RLIMIT_FSIZE makes the kernel cut a write short and then fail it, as a full disk does.
    script = """
        import json, resource, sys
        from pathlib import Path
        from lakemesh.telemetry.spool import SpoolDirectory, SpoolWriter
        from tests.telemetry.spans import new_span, spooled_rows
        resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, resource.RLIM_INFINITY))
        directory = SpoolDirectory.create(Path(sys.argv[1]))
        writer = SpoolWriter(directory)
        acknowledged = []
        for n in range(100):
            before = writer.recorded
            span = new_span()
            writer.record(span)
            if writer.recorded > before:
                acknowledged.append(span.span_id)
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY,) * 2)
        last = new_span()
        writer.record(last)
        acknowledged.append(last.span_id)
        print(json.dumps({
            "acknowledged": acknowledged,
            "stored": [row[1] for row in spooled_rows(directory)],
            "lost": writer.lost,
        }))
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script), str(tmp_path / "spool")],
        capture_output=True,
        check=True,
        timeout=20,
        cwd=Path(__file__).parents[2],
    )
    report = orjson.loads(done.stdout)
    assert report["stored"] == report["acknowledged"]
    assert 10 < len(report["stored"]) < 50
    assert report["lost"] == 101 - len(report["stored"])


def test_threads_may_record_at_the_same_time(directory: SpoolDirectory) -> None:
    writer = SpoolWriter(directory, segment_bytes=16384)

    def work() -> None:
        for _ in range(200):
            writer.record(new_span())

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(5)
    rows = spooled_rows(directory)
    assert len(rows) == len({row[1] for row in rows}) == 1600


def test_nothing_is_kept_after_the_end(directory: SpoolDirectory) -> None:
    writer = SpoolWriter(directory)
    writer.close()
    writer.record(new_span())
    assert writer.lost == 1


def test_only_a_dead_workers_directory_can_be_adopted(tmp_path: Path) -> None:
    root = tmp_path / "spool"
    alive, dead = SpoolDirectory.create(root), SpoolDirectory.create(root)
    SpoolWriter(dead).record(new_span("left behind"))
    assert list(adoptable(root, own=alive.id)) == []
    dead.release()
    (adopted,) = adoptable(root, own=alive.id)
    assert adopted.id == dead.id
    assert [row[3] for row in spooled_rows(adopted)] == ["left behind"]
    assert list(adoptable(root, own=alive.id)) == []
    adopted.remove()
    assert [path.name for path in root.iterdir()] == [alive.id]


def test_positions_are_kept_and_an_unreadable_file_counts_as_none(
    directory: SpoolDirectory,
) -> None:
    assert directory.read_positions() == {}
    directory.write_positions({"delta": 7, "zerobus": 3})
    assert directory.read_positions() == {"delta": 7, "zerobus": 3}
    (directory.path / "position").write_bytes(b'{"delta": ')
    assert directory.read_positions() == {}
