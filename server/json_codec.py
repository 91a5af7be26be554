"""JSON bodies to and from protobuf messages, by protobuf's JSON mapping.

The rules are those grpc-gateway's default marshaler sets (protojson with EmitUnpopulated and
DiscardUnknown; gateway_parity.md, section E). json_format is the reference it is tested against;
it costs several times as much.
"""

from __future__ import annotations

import json
from typing import Any

import orjson

from lakemesh.server.json_read import MAX_DEPTH, JsonReader
from lakemesh.server.json_wellknown import JsonError
from lakemesh.server.json_write import JsonWriter


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        seen = set()
        for key, _ in pairs:
            if key in seen:
                raise JsonError(f"key {key[:64]!r} stands twice in one object")
            seen.add(key)
    return found


def _constant(name: str) -> Any:
    raise JsonError(f"{name} is not a JSON value")


_SPACE = " \t\n\r"


class JsonCodec(JsonReader, JsonWriter):
    """Reads and writes JSON bodies of any message type of the default descriptor pool."""

    def __init__(self) -> None:
        JsonReader.__init__(self)
        JsonWriter.__init__(self)
        self._decoder = json.JSONDecoder(object_pairs_hook=_unique, parse_constant=_constant)

    def parse(self, body: bytes) -> Any:
        """The first JSON value of `body`; None when there is none (the gateway: an empty body is
        an empty message, and what follows the first value is ignored). Raises JsonError."""
        values = self.parse_all(body, only_first=True)
        return values[0] if values else None

    def parse_all(self, body: bytes, *, only_first: bool = False) -> list[Any]:
        """The JSON values of `body`, with nothing but white space between them."""
        try:
            source = body.decode()
        except UnicodeDecodeError:
            raise JsonError("the body is not UTF-8") from None
        values: list[Any] = []
        at = 0
        try:
            while True:
                while source[at : at + 1] and source[at] in _SPACE:
                    at += 1
                if at == len(source):
                    return values
                value, at = self._decoder.raw_decode(source, at)
                values.append(value)
                if only_first:
                    return values
        except json.JSONDecodeError as error:
            raise JsonError(
                f"the body is not JSON: {error.msg} (line {error.lineno}:{error.colno})"
            ) from None
        except RecursionError:
            raise JsonError(f"the body is nested more than {MAX_DEPTH} deep") from None
        except JsonError:
            raise
        except ValueError:
            # Python refuses to read integers of more than 4,300 digits.
            raise JsonError("the body has a number of too many digits") from None

    def dumps(self, value: Any) -> bytes:
        """What `encode` returned, as JSON text."""
        try:
            return orjson.dumps(value)
        except orjson.JSONEncodeError:
            # orjson stops at 254 levels and at integers a JSON message cannot have.
            raise JsonError("is nested too deep for JSON") from None
