"""Path and query parameters into request fields, as grpc-gateway reads them (runtime/query.go).

These are texts and not JSON: numbers, booleans and durations have Go's spellings.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Callable, Iterable
from typing import Any
from urllib.parse import parse_qsl

from google.protobuf.descriptor import Descriptor, EnumDescriptor, FieldDescriptor
from google.protobuf.message import Message

from lakemesh.server.http_rule import TEXT_MESSAGES
from lakemesh.server.json_codec import JsonCodec
from lakemesh.server.json_wellknown import (
    JsonError,
    is_map,
    map_entry,
    message_type,
    read_timestamp,
)

Convert = Callable[[str], Any]
Put = Callable[[Any, str], None]
"""(the message that holds the field, text): the field is set."""

_MAP_KEY = re.compile(r"(.*)\[(.*)\]")
_TRUE = frozenset({"1", "t", "T", "TRUE", "true", "True"})
_FALSE = frozenset({"0", "f", "F", "FALSE", "false", "False"})
_DECIMAL = re.compile(r"[+-]?[0-9]+")
_ANY_BASE = re.compile(r"[+-]?(?:0[xX][0-9a-fA-F]+|0[oO]?[0-7]+|0[bB][01]+|0|[1-9][0-9]*)")
_GO_DURATION = re.compile(r"([0-9]*\.?[0-9]*)(h|ms|m|s|us|µs|ns)")
_NANOS = {"h": 3600 * 10**9, "m": 60 * 10**9, "s": 10**9, "ms": 10**6, "us": 10**3, "µs": 10**3}
_MAX_QUERY_FIELDS = 1000
"""More would be work for the server and of no use to a caller."""


class ParameterError(ValueError):
    """A parameter that does not fit its field; says which."""

    def __init__(self, parameter: str, why: str) -> None:
        super().__init__(why)
        self.parameter = parameter
        self.why = why


def _whole(low: int, high: int, *, any_base: bool) -> Convert:
    pattern = _ANY_BASE if any_base else _DECIMAL

    def read(value: str) -> int:
        if not pattern.fullmatch(value) or len(value) > 80:
            raise ValueError("must be an integer")
        digits = value.lstrip("+-")
        octal = any_base and len(digits) > 1 and digits[0] == "0" and digits[1].isdigit()
        number = int(value, 8) if octal else int(value, 0 if any_base else 10)
        if not low <= number <= high:
            raise ValueError(f"must be an integer from {low} to {high}")
        return number

    return read


def _number(value: str) -> float:
    text = value.lower().lstrip("+-")
    if not re.fullmatch(r"nan|inf|infinity|(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:e[+-]?[0-9]+)?", text):
        raise ValueError("must be a number")
    return float(value)


def _boolean(value: str) -> bool:
    if value in _TRUE or value in _FALSE:
        return value in _TRUE
    raise ValueError("must be true or false")


def _bytes(value: str) -> bytes:
    for altchars in (None, b"-_"):
        try:
            return base64.b64decode(value, altchars, validate=True)
        except (binascii.Error, ValueError):
            continue
    raise ValueError("must be base64")


def _enum(descriptor: EnumDescriptor) -> Convert:
    names = {name: value.number for name, value in descriptor.values_by_name.items()}
    numbers = frozenset(names.values())

    def read(value: str) -> int:
        if value in names:
            return names[value]
        if _DECIMAL.fullmatch(value) and len(value) < 12 and int(value) in numbers:
            return int(value)
        raise ValueError(f"{value[:64]!r} is not a value of {descriptor.full_name}")

    return read


def go_duration(value: str) -> int:
    """Nanoseconds of a Go duration such as `1h2m3.5s`."""
    rest = value.lstrip("+-")
    if rest == "0":
        return 0
    total, at = 0, 0
    while at < len(rest):
        found = _GO_DURATION.match(rest, at)
        if found is None or found[1] in ("", "."):
            raise ValueError("must be a duration such as 1.5s")
        whole, _, fraction = found[1].partition(".")
        unit = _NANOS.get(found[2], 1)
        total += int(whole or 0) * unit
        if fraction:
            total += int(fraction) * unit // 10 ** len(fraction)
        at = found.end()
    if not rest or total >= 2**63:
        raise ValueError("must be a duration such as 1.5s")
    return -total if value.startswith("-") else total


def _scalar(field: FieldDescriptor, *, any_base: bool) -> Convert:
    if field.enum_type is not None:
        return _enum(field.enum_type)
    kind = field.cpp_type
    if field.type == FieldDescriptor.TYPE_BYTES:
        return _bytes
    if kind == FieldDescriptor.CPPTYPE_STRING:
        return lambda text: text
    if kind == FieldDescriptor.CPPTYPE_BOOL:
        return _boolean
    if kind in (FieldDescriptor.CPPTYPE_DOUBLE, FieldDescriptor.CPPTYPE_FLOAT):
        return _number
    bits = 32 if kind in (FieldDescriptor.CPPTYPE_INT32, FieldDescriptor.CPPTYPE_UINT32) else 64
    if kind in (FieldDescriptor.CPPTYPE_INT32, FieldDescriptor.CPPTYPE_INT64):
        return _whole(-(2 ** (bits - 1)), 2 ** (bits - 1) - 1, any_base=any_base)
    return _whole(0, 2**bits - 1, any_base=any_base)


class Parameters:
    """Fills fields of requests from texts; one for the process, converters kept by field."""

    def __init__(self, codec: JsonCodec) -> None:
        self._codec = codec
        self._fields: dict[Descriptor, dict[str, FieldDescriptor]] = {}
        self._puts: dict[tuple[FieldDescriptor, bool], Put] = {}

    # Path.

    def path_setter(self, message: Descriptor, field_path: str) -> Put:
        """Sets the field at a dotted path of a request from a path segment's text."""
        *outer, last = field_path.split(".")
        descriptor = message
        for name in outer:
            descriptor = message_type(descriptor.fields_by_name[name])
        field = descriptor.fields_by_name[last]
        put = self._put(field, any_base=True)
        # A repeated one in a path is comma separated.
        repeated = field.is_repeated

        def fill(request: Any, value: str) -> None:
            target = request
            for name in outer:
                target = getattr(target, name)
            try:
                # The path overrides what the body said.
                target.ClearField(last)
                for one in value.split(",") if repeated else (value,):
                    put(target, one)
            except ValueError as error:
                raise ParameterError(field_path, _why(error)) from None

        return fill

    # Query.

    def fill_query(self, request: Message, query: str, bound: Iterable[str]) -> None:
        """Set fields from a query string.

        Unknown names and everything at or below the `bound` field paths are passed over. Raises
        ParameterError.
        """
        try:
            pairs = parse_qsl(query, keep_blank_values=True, max_num_fields=_MAX_QUERY_FIELDS)
        except ValueError:
            raise ParameterError("", f"more than {_MAX_QUERY_FIELDS} query parameters") from None
        grouped: dict[str, list[str]] = {}
        for key, value in pairs:
            grouped.setdefault(key, []).append(value)
        for key, values in grouped.items():
            self._fill_one(request, key, values, bound)

    def _fill_one(self, request: Any, key: str, values: list[str], bound: Iterable[str]) -> None:
        name, map_key = key, None
        in_map = _MAP_KEY.fullmatch(key)
        if in_map is not None:
            name, map_key = in_map[1], in_map[2]
        target, field, names = request, None, []
        for step in name.split("."):
            if field is not None:
                if field.is_repeated or field.message_type is None:
                    raise ParameterError(key, f"{'.'.join(names)!r} is not a message")
                target = getattr(target, field.name)
            field = self._field(target.DESCRIPTOR, step)
            if field is None:
                return
            names.append(field.name)
            at = ".".join(names)
            if any(at == one for one in bound):
                return
        if field is None:
            return
        try:
            self._set(target, field, map_key, values)
        except ValueError as error:
            raise ParameterError(key, _why(error)) from None

    def _set(
        self, target: Any, field: FieldDescriptor, map_key: str | None, values: list[str]
    ) -> None:
        if is_map(field):
            self._set_map(target, field, map_key, values)
            return
        oneof = field.containing_oneof
        if oneof is not None and len(oneof.fields) > 1 and target.WhichOneof(oneof.name):
            raise ValueError(f"another field of {oneof.name!r} is set already")
        if not field.is_repeated and len(values) > 1:
            raise ValueError(f"too many values: {', '.join(values)[:128]}")
        put = self._put(field, any_base=False)
        for value in values:
            put(target, value)

    def _set_map(
        self, target: Any, field: FieldDescriptor, map_key: str | None, values: list[str]
    ) -> None:
        key_field, value_field = map_entry(field)
        if map_key is None or value_field.message_type is not None:
            raise ValueError("must be given as name[key]=value")
        if len(values) > 1:
            raise ValueError(f"too many values: {', '.join(values)[:128]}")
        key = _scalar(key_field, any_base=False)(map_key)
        getattr(target, field.name)[key] = _scalar(value_field, any_base=False)(values[0])

    def _field(self, descriptor: Descriptor, name: str) -> FieldDescriptor | None:
        found = self._fields.get(descriptor)
        if found is None:
            found = {field.json_name: field for field in descriptor.fields}
            found.update((field.name, field) for field in descriptor.fields)
            self._fields[descriptor] = found
        return found.get(name)

    def _put(self, field: FieldDescriptor, *, any_base: bool) -> Put:
        found = self._puts.get((field, any_base))
        if found is None:
            found = self._make_put(field, any_base=any_base)
            self._puts[field, any_base] = found
        return found

    def _make_put(self, field: FieldDescriptor, *, any_base: bool) -> Put:
        name = field.name
        if field.message_type is not None:
            fill = self._message(field.message_type)
            if field.is_repeated:
                return lambda target, value: fill(getattr(target, name).add(), value)

            def put_message(target: Any, value: str) -> None:
                inner = getattr(target, name)
                inner.SetInParent()
                fill(inner, value)

            return put_message
        convert = _scalar(field, any_base=any_base)
        if field.is_repeated:
            return lambda target, value: getattr(target, name).append(convert(value))
        return lambda target, value: setattr(target, name, convert(value))

    def _message(self, descriptor: Descriptor) -> Put:
        name = descriptor.full_name
        if name not in TEXT_MESSAGES:

            def refuse(target: Any, value: str) -> None:
                raise ValueError(f"a {name} cannot be a parameter")

            return refuse
        if name == "google.protobuf.Timestamp":
            return _put_timestamp
        if name == "google.protobuf.Duration":
            return _put_duration
        if name == "google.protobuf.FieldMask":
            return lambda target, value: target.paths.extend(value.split(",") if value else ())
        if name in ("google.protobuf.Struct", "google.protobuf.Value"):
            fill = self._codec.filler(descriptor)
            return lambda target, value: fill(target, self._codec.parse(value.encode()), 1)
        convert = _scalar(descriptor.fields_by_name["value"], any_base=False)
        return lambda target, value: setattr(target, "value", convert(value))


def _put_timestamp(target: Any, value: str) -> None:
    target.seconds, target.nanos = read_timestamp(value)


def _put_duration(target: Any, value: str) -> None:
    nanos = go_duration(value)
    seconds, rest = divmod(abs(nanos), 10**9)
    target.seconds, target.nanos = (-seconds, -rest) if nanos < 0 else (seconds, rest)


def _why(error: ValueError) -> str:
    if isinstance(error, JsonError):
        return error.why
    return "is not valid text" if isinstance(error, UnicodeError) else str(error)
