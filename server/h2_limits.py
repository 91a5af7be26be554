"""What one HTTP/2 peer may make the server hold or do before it is cut."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class H2Limits:
    """Limits of one HTTP/2 connection. Sizes are bytes, times are seconds.

    The floods these answer are listed in CVE-2019-9511 to 9518 (resource exhaustion by control
    frames), CVE-2023-44487 (rapid reset), CVE-2025-8671 (MadeYouReset) and VU#421644
    (CONTINUATION).
    """

    concurrent_streams: int = 1024
    """SETTINGS_MAX_CONCURRENT_STREAMS; calls that were reset but still run count as well."""
    header_list_bytes: int = 16384
    """Accepted header list, counted as RFC 9113 section 10.5.1 does (32 bytes a field on top)."""
    header_list_hard_bytes: int = 262144
    """A list beyond `header_list_bytes` is refused on its stream, beyond this the peer is cut."""
    header_block_bytes: int = 131072
    """Compressed header block over HEADERS and all its CONTINUATION frames."""
    continuation_frames: int = 32
    stream_window: int = 262144
    """SETTINGS_INITIAL_WINDOW_SIZE: what a peer may send on a stream nobody reads."""
    connection_window: int = 1048576
    held_bytes: int = 8388608
    """Unread request bytes of all streams beyond which the connection's window stays shut."""
    resets: int = 1000
    """Streams a peer may reset young, or have reset by breaking a rule, in one burst."""
    resets_per_second: float = 100.0
    young_seconds: float = 1.0
    """Age up to which a peer's RST_STREAM counts as rapid. Older ones are bounded by
    `concurrent_streams` a second, and a burst of expired deadlines must not cut a good peer."""
    pings: int = 6
    """Pings without a HEADERS or DATA frame in between, as grpc's `too_many_pings`."""
    ping_seconds: float = 10.0
    """One more ping is forgiven after each of these: keepalives of idle streams are welcome."""
    settings: int = 32
    settings_per_second: float = 1.0
    idle_frames: int = 1000
    """Burst of frames that do no work: PRIORITY, empty DATA, unknown types."""
    idle_frames_per_second: float = 100.0
    write_backlog_bytes: int = 1048576
    """Answers to a peer that does not read them, beyond which it is no longer read from."""
    write_stall_seconds: float = 60.0
    """A stream, or the connection, whose data the peer does not take for so long is cut."""
    head_seconds: float = 10.0
    """From the first byte of a preface or header block to its last."""
    first_request_seconds: float = 15.0
    """From accepting a connection to its first request."""
    body_seconds: float = 15.0
    """Silence in the middle of an HTTP request body (not of a gRPC stream)."""


class Bucket:
    """Token bucket: `burst` at once, then `per_second`."""

    __slots__ = ("_at", "_burst", "_level", "_per_second")

    def __init__(self, burst: float, per_second: float) -> None:
        self._burst = burst
        self._per_second = per_second
        self._level = burst
        self._at = 0.0

    def take(self, now: float) -> bool:
        """Take one token; False when there is none. `now` is seconds on a monotonic clock."""
        level = min(self._burst, self._level + (now - self._at) * self._per_second)
        self._at = now
        self._level = level - 1.0 if level >= 1.0 else level
        return level >= 1.0
