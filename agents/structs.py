"""google.protobuf.Struct to and from plain Python, refusing what some transport cannot carry.

Three limits make a value carryable by every transport: numbers are finite (JSON has no NaN),
nesting is at most `MAX_DEPTH` objects and lists (protobuf's binary decoders stop at 100 message
levels, that is 33 nested Structs, and json_format at 50; measured, protobuf 6.33), and integers in
an answer stay within 2**53 (a Struct's numbers are doubles).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from google.protobuf import struct_pb2

MAX_DEPTH = 30
"""Objects and lists inside one another, the outermost counted."""

MAX_EXACT_INTEGER = 2**53
"""The largest magnitude up to which a double holds every integer."""


class NotCarryable(ValueError):
    """A value that not every transport can carry; `path` says where, `why` says what."""

    def __init__(self, path: str, why: str) -> None:
        super().__init__(f"{path}: {why}")
        self.path = path
        self.why = why


def struct_to_dict(struct: struct_pb2.Struct, path: str) -> dict[str, Any]:
    """The fields as plain Python: None, bool, float, str, list, dict.

    Raises NotCarryable, its path below `path`.
    """
    return _object(struct, path, 1)


def _object(struct: struct_pb2.Struct, path: str, depth: int) -> dict[str, Any]:
    if depth > MAX_DEPTH:
        raise NotCarryable(path, f"nested more than {MAX_DEPTH} deep")
    found: dict[str, Any] = {}
    fields = struct.fields
    # Not .items(): upb's map has it from collections.abc, which runs in Python.
    for key in fields:
        value = fields[key]
        kind = value.WhichOneof("kind")
        if kind == "string_value":
            found[key] = value.string_value
        elif kind == "number_value":
            number = value.number_value
            # A number minus itself is 0 but for NaN and the infinities.
            if number - number != 0:
                raise NotCarryable(f"{path}.{key}", "must be a finite number")
            found[key] = number
        else:
            found[key] = _value(value, kind, f"{path}.{key}", depth)
    return found


def _value(value: struct_pb2.Value, kind: str | None, path: str, depth: int) -> Any:
    if kind == "string_value":
        return value.string_value
    if kind == "number_value":
        if not math.isfinite(value.number_value):
            raise NotCarryable(path, "must be a finite number")
        return value.number_value
    if kind == "bool_value":
        return value.bool_value
    if kind == "struct_value":
        return _object(value.struct_value, path, depth + 1)
    if kind == "list_value":
        if depth >= MAX_DEPTH:
            raise NotCarryable(path, f"nested more than {MAX_DEPTH} deep")
        return [
            _value(item, item.WhichOneof("kind"), f"{path}[{index}]", depth + 1)
            for index, item in enumerate(value.list_value.values)
        ]
    return None


def fill_struct(struct: struct_pb2.Struct, source: Mapping[str, Any], path: str) -> None:
    """Put plain Python into an empty Struct.

    Raises NotCarryable for what JSON does not know (sets, dates, bytes, non-finite numbers,
    integers beyond 2**53, keys that are not str) or nesting beyond `MAX_DEPTH`.
    """
    _fill(struct, source, path, 1)


def _fill(struct: struct_pb2.Struct, source: Mapping[str, Any], path: str, depth: int) -> None:
    if depth > MAX_DEPTH:
        raise NotCarryable(path, f"nested more than {MAX_DEPTH} deep")
    fields = struct.fields
    for key, item in source.items():
        kind = type(item)
        if kind is str:
            fields[key].string_value = item
        elif kind is float and item - item == 0:
            fields[key].number_value = item
        elif type(key) is not str:
            raise NotCarryable(path, f"key {key!r} must be a string")
        else:
            _set(fields[key], item, f"{path}.{key}", depth)


def _set(target: struct_pb2.Value, item: Any, path: str, depth: int) -> None:
    if isinstance(item, str):
        target.string_value = item
    elif item is None:
        target.null_value = struct_pb2.NULL_VALUE
    elif isinstance(item, bool):
        target.bool_value = item
    elif isinstance(item, int):
        if not -MAX_EXACT_INTEGER <= item <= MAX_EXACT_INTEGER:
            raise NotCarryable(path, "an integer beyond 2**53 would be rounded; give it as text")
        target.number_value = item
    elif isinstance(item, float):
        if not math.isfinite(item):
            raise NotCarryable(path, "must be a finite number")
        target.number_value = item
    elif isinstance(item, Mapping):
        # Touching the oneof makes an empty object an object, not nothing.
        target.struct_value.SetInParent()
        _fill(target.struct_value, item, path, depth + 1)
    elif isinstance(item, list | tuple):
        if depth >= MAX_DEPTH:
            raise NotCarryable(path, f"nested more than {MAX_DEPTH} deep")
        target.list_value.SetInParent()
        values = target.list_value.values
        for index, element in enumerate(item):
            _set(values.add(), element, f"{path}[{index}]", depth + 1)
    else:
        raise NotCarryable(path, f"{type(item).__name__} is not a JSON value")
