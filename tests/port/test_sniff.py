"""Who takes a connection, from its bytes alone."""

from __future__ import annotations

import pytest
from hpack import Encoder
from hypothesis import given
from hypothesis import strategies as st

from lakemesh.server import h2_frames as h2
from lakemesh.server.sniff import AckFilter, Choice, Sniffer

OPENING = h2.PREFACE + h2.settings({2: 0, 4: 4194304}) + h2.window_update(0, 1 << 20)
ACK = h2.frame(h2.SETTINGS, h2.ACK, 0)
GRPC = {"content-type": "application/grpc"}


def headers(
    extra: dict[str, str], *, flags: int = h2.END_HEADERS, before: bytes = b"", after: bytes = b""
) -> bytes:
    fields = {":method": "POST", ":scheme": "http", ":path": "/a.B/C", "te": "trailers", **extra}
    block = Encoder().encode(fields.items(), huffman=True)
    return h2.frame(h2.HEADERS, flags, 1, before + block + after)


def fed(data: bytes, step: int) -> Choice | None:
    sniffer = Sniffer()
    for at in range(0, len(data), step):
        choice = sniffer.feed(data[at : at + step])
        if choice is not None:
            return choice
        if sniffer.wants_greeting:
            sniffer.greeted = True
    return None


CASES: dict[str, tuple[bytes, Choice | None]] = {
    "get": (b"GET / HTTP/1.1\r\n", Choice.HTTP1),
    "propfind": (b"PROPFIND / HTTP/1.1\r\n", Choice.HTTP1),
    "pri path": (b"PRI /x HTTP/1.1\r\n\r\n", Choice.HTTP1),
    "not even http": (b"\x00\x01\x02", Choice.HTTP1),
    "tls without a certificate": (b"\x16\x03\x01\x02\x00", Choice.HTTP1),
    "half a preface": (h2.PREFACE[:10], None),
    "preface": (h2.PREFACE, None),
    "no headers yet": (OPENING, None),
    "grpc": (OPENING + headers(GRPC), Choice.GRPC),
    "grpc+proto": (
        OPENING + headers({"content-type": "application/grpc+proto"}),
        Choice.GRPC,
    ),
    "padded": (
        OPENING
        + headers(GRPC, flags=h2.END_HEADERS | h2.PADDED, before=b"\x04", after=b"\x00" * 4),
        Choice.GRPC,
    ),
    "with priority": (
        OPENING + headers(GRPC, flags=h2.END_HEADERS | h2.WITH_PRIORITY, before=b"\x00" * 5),
        Choice.GRPC,
    ),
    "grpc-web": (OPENING + headers({"content-type": "application/grpc-web"}), Choice.H2),
    "json": (OPENING + headers({"content-type": "application/json"}), Choice.H2),
    "no content type": (OPENING + headers({}), Choice.H2),
    "behind a proxy": (OPENING + headers({**GRPC, "x-forwarded-for": "10.0.0.1"}), Choice.H2),
    "behind another": (OPENING + headers({**GRPC, "forwarded": "for=10.0.0.1"}), Choice.H2),
    "ping first": (OPENING + h2.frame(h2.PING, 0, 0, b"12345678"), Choice.H2),
    "settings twice": (OPENING + h2.settings({}), Choice.H2),
    "settings missing": (h2.PREFACE + headers(GRPC), Choice.H2),
    "window update of 0": (OPENING + h2.window_update(0, 0), Choice.H2),
    "window too large": (OPENING + h2.window_update(0, h2.MAX_WINDOW), Choice.H2),
    "bad setting": (h2.PREFACE + h2.settings({5: 1}), Choice.H2),
    "even stream": (OPENING + h2.frame(h2.HEADERS, h2.END_HEADERS, 2), Choice.H2),
    "padding without end": (
        OPENING + h2.frame(h2.HEADERS, h2.END_HEADERS | h2.PADDED, 1, b"\xff"),
        Choice.H2,
    ),
    "not hpack": (OPENING + h2.frame(h2.HEADERS, h2.END_HEADERS, 1, b"\xff" * 8), Choice.H2),
    "frame too large": (OPENING + b"\xff\xff\xff\x01\x04\x00\x00\x00\x01", Choice.H2),
}


@pytest.mark.parametrize("step", [1, 7, 1 << 20])
@pytest.mark.parametrize("name", CASES)
def test_choice_does_not_depend_on_how_bytes_arrive(name: str, step: int) -> None:
    data, expected = CASES[name]
    assert fed(data, step) is expected


def test_header_block_may_be_continued() -> None:
    whole = headers(GRPC)[9:]
    first = h2.frame(h2.HEADERS, 0, 1, whole[:5])
    rest = h2.frame(h2.CONTINUATION, h2.END_HEADERS, 1, whole[5:])
    assert fed(OPENING + first, 1) is None
    assert fed(OPENING + first + rest, 1) is Choice.GRPC
    assert fed(OPENING + first + h2.window_update(0, 1), 1) is Choice.H2


def test_held_bytes_are_all_that_came() -> None:
    sniffer = Sniffer()
    data = OPENING + headers(GRPC) + b"and the rest"
    assert sniffer.feed(data) is Choice.GRPC
    assert sniffer.held == data


def test_a_header_block_without_end_is_not_held_for_ever() -> None:
    sniffer = Sniffer()
    choice = sniffer.feed(OPENING + h2.frame(h2.HEADERS, 0, 1, b"\x00"))
    frames = 0
    while choice is None:
        frames += 1
        choice = sniffer.feed(h2.frame(h2.CONTINUATION, 0, 1, b"\x00" * 4096))
    assert choice is Choice.H2
    assert frames < 20


def test_acknowledgement_before_a_greeting_is_not_expected() -> None:
    sniffer = Sniffer()
    assert sniffer.feed(OPENING + ACK) is Choice.H2


FRAMES = st.lists(
    st.one_of(
        st.just(h2.settings({4: 1})),
        st.just(h2.window_update(0, 7)),
        st.binary(max_size=300).map(lambda data: h2.frame(h2.DATA, 0, 1, data)),
    ),
    max_size=6,
)


@given(before=FRAMES, after=FRAMES, cuts=st.lists(st.integers(1, 40), max_size=30))
def test_filter_leaves_out_the_first_acknowledgement_only(
    before: list[bytes], after: list[bytes], cuts: list[int]
) -> None:
    strip = AckFilter()
    passed = b""
    rest = b"".join(before) + ACK + b"".join(after) + ACK
    for cut in cuts:
        passed += strip.feed(rest[:cut])
        rest = rest[cut:]
    passed += strip.feed(rest)
    assert strip.done
    assert passed == b"".join(before) + b"".join(after) + ACK


@given(st.binary(max_size=400), st.sampled_from([b"", h2.PREFACE, OPENING]))
def test_no_input_raises(data: bytes, prefix: bytes) -> None:
    fed(prefix + data, 13)
