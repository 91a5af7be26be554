"""Errors as the REST façade answers them: google.rpc.Status in JSON, with the gateway's status."""

from __future__ import annotations

import logging
from typing import Any

import orjson

from lakemesh.server.errors import HTTP_STATUS, Code, StatusError, retry_after
from lakemesh.server.json_codec import JsonCodec
from lakemesh.server.json_wellknown import JsonError

logger = logging.getLogger(__name__)

Headers = list[tuple[bytes, bytes]]

# What the gateway answers when a status itself cannot be written (runtime/errors.go).
_FALLBACK: dict[str, Any] = {"code": 13, "message": "failed to marshal error message"}

NOT_FOUND = StatusError(Code.NOT_FOUND, "Not Found")
"""No route. The gateway's words are HTTP's."""
METHOD_NOT_ALLOWED = StatusError(Code.UNIMPLEMENTED, "Method Not Allowed")
"""A route, but for another method: 501 and not 405 (runtime/mux.go)."""
BAD_REQUEST = StatusError(Code.INVALID_ARGUMENT, "Bad Request")


class HttpError(StatusError):
    """RESOURCE_EXHAUSTED for which HTTP has a status of its own: 413 or 431, not 429."""

    def __init__(self, http_status: int, message: str) -> None:
        super().__init__(Code.RESOURCE_EXHAUSTED, message)
        self.http_status = http_status


def error_value(codec: JsonCodec, error: StatusError) -> dict[str, Any]:
    """The google.rpc.Status of an error as a JSON value."""
    if not error.details:
        return {"code": int(error.code), "message": error.message, "details": []}
    try:
        value: dict[str, Any] = codec.encode(error.to_proto())
    except JsonError:
        logger.exception("an error's details cannot be written as JSON")
        return _FALLBACK
    return value


def http_status(error: StatusError) -> int:
    """The HTTP status an error is answered with."""
    return error.http_status if isinstance(error, HttpError) else HTTP_STATUS[error.code]


def error_headers(error: StatusError) -> Headers:
    """Retry-After where the error says when, WWW-Authenticate for UNAUTHENTICATED."""
    headers: Headers = []
    if error.code is Code.RESOURCE_EXHAUSTED:
        seconds = retry_after(error)
        if seconds is not None:
            headers.append((b"retry-after", b"%d" % seconds))
    elif error.code is Code.UNAUTHENTICATED and error.message.isascii():
        words = "".join(c if c.isprintable() else " " for c in error.message)
        headers.append((b"www-authenticate", words.encode("ascii")))
    return headers


def error_body(codec: JsonCodec, error: StatusError) -> bytes:
    """The JSON body of an error."""
    return orjson.dumps(error_value(codec, error))


async def send_error(
    send: Any, codec: JsonCodec, error: StatusError, headers: Headers | None = None
) -> None:
    """Answer an ASGI request with an error."""
    body = error_body(codec, error)
    own = [
        (b"content-type", b"application/json"),
        (b"content-length", b"%d" % len(body)),
        *error_headers(error),
        *(headers or ()),
    ]
    await send({"type": "http.response.start", "status": http_status(error), "headers": own})
    await send({"type": "http.response.body", "body": body})
