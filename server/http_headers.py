"""HTTP headers to gRPC metadata and back, as grpc-gateway maps them (runtime/context.go).

Beyond the gateway: the W3C trace headers go through under their own names, and so do the
X-Forwarded-* ones, from which the pipeline learns who calls when a proxy in front is trusted.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Iterable

from lakemesh.server.call import Metadata
from lakemesh.server.errors import invalid_argument
from lakemesh.server.http_errors import Headers, HttpError

_PERMANENT = (
    "accept accept-charset accept-language accept-ranges authorization cache-control content-type "
    "cookie date expect from host if-match if-modified-since if-none-match if-schedule-tag-match "
    "if-unmodified-since max-forwards origin pragma referer user-agent via warning"
)
_KEYS = {name.encode(): f"grpcgateway-{name}" for name in _PERMANENT.split(" ")}
_KEYS[b"traceparent"] = "traceparent"
_KEYS[b"tracestate"] = "tracestate"
_PREFIX = b"grpc-metadata-"
_FORWARDED = b"x-forwarded-"
_KEY = re.compile(rb"[0-9a-z_.\-]+")
_TIMEOUT = re.compile(rb"([0-9]{1,8})([HMSmun])")
_UNITS = {b"H": 3600.0, b"M": 60.0, b"S": 1.0, b"m": 1e-3, b"u": 1e-6, b"n": 1e-9}
_FIELD_OVERHEAD = 32
"""Bytes HTTP/2 counts for a header field besides its text (RFC 9113, section 6.5.2)."""


def to_metadata(
    headers: Iterable[tuple[bytes, bytes]], peer: str, limit: int
) -> tuple[Metadata, float | None, bool]:
    """The metadata, the timeout in seconds if the caller set one, and whether SSE is accepted.

    `headers` as ASGI gives them, names in lower case; `peer` is the caller's address without a
    port; `limit` is the most bytes they may have together. Raises StatusError.
    """
    found: list[tuple[str, str | bytes]] = []
    timeout: float | None = None
    events = False
    forwarded_for = forwarded_host = host = ""
    size = 0
    for name, raw in headers:
        size += len(name) + len(raw) + _FIELD_OVERHEAD
        key = _KEYS.get(name)
        if key is None:
            if name.startswith(_PREFIX):
                _add_own(found, name[len(_PREFIX) :], raw)
            elif name == b"grpc-timeout":
                timeout = _timeout(raw)
            elif name.startswith(_FORWARDED):
                value = raw.decode("latin-1")
                if name == b"x-forwarded-for":
                    forwarded_for = f"{forwarded_for}, {value}" if forwarded_for else value
                elif name == b"x-forwarded-host":
                    forwarded_host = value
                elif value.isascii() and value.isprintable():
                    found.append((name.decode("latin-1"), value))
            continue
        value = raw.decode("latin-1")
        if not (value.isascii() and value.isprintable()):
            continue
        if name == b"host":
            host = value
        elif name == b"authorization":
            found.append(("authorization", value))
        elif name == b"accept" and "text/event-stream" in value:
            events = True
        found.append((key, value))
    if size > limit:
        raise HttpError(431, f"the headers have {size} bytes, more than {limit}")
    if forwarded_host or host:
        found.append(("x-forwarded-host", forwarded_host or host))
    if peer:
        found.append(("x-forwarded-for", f"{forwarded_for}, {peer}" if forwarded_for else peer))
    return tuple(found), timeout, events


def _add_own(found: list[tuple[str, str | bytes]], name: bytes, raw: bytes) -> None:
    # A proxy that is trusted strips forged X-Forwarded-* headers, but not in this disguise.
    if not _KEY.fullmatch(name) or name.startswith((b"grpc-", _FORWARDED)):
        return
    key = name.decode("ascii")
    if key.endswith("-bin"):
        try:
            text = raw.rstrip(b"=")
            found.append(
                (key, binascii.a2b_base64(text + b"=" * (-len(text) % 4), strict_mode=True))
            )
        except ValueError:
            raise invalid_argument(f"invalid binary header {key!r}") from None
        return
    value = raw.decode("latin-1")
    if value.isascii() and value.isprintable():
        found.append((key, value))


def _timeout(raw: bytes) -> float:
    parts = _TIMEOUT.fullmatch(raw)
    if parts is None:
        raise invalid_argument(f"invalid grpc-timeout: {raw.decode('latin-1')[:64]}")
    return int(parts[1]) * _UNITS[parts[2]]


def from_metadata(metadata: Iterable[tuple[str, str | bytes]]) -> Headers:
    """Initial metadata as the response headers the gateway makes of it."""
    headers: Headers = []
    for key, value in metadata:
        if isinstance(value, bytes):
            raw = base64.b64encode(value)
        elif value.isascii() and value.isprintable():
            raw = value.encode("ascii")
        else:
            continue  # a line break would begin another header
        headers.append((_PREFIX + key.encode("ascii"), raw))
    return headers
