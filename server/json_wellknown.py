"""The text forms protobuf's JSON mapping gives to numbers, bytes and the well-known messages.

Source of the rules: protobuf.dev/programming-guides/json and protojson, the implementation behind
grpc-gateway (design: gateway_parity.md, section E).
"""

from __future__ import annotations

import base64
import binascii
import math
import re
import struct
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any, cast

from google.protobuf import descriptor_pool, message_factory
from google.protobuf.descriptor import Descriptor, EnumDescriptor, FieldDescriptor
from google.protobuf.message import Message

from lakemesh.server.http_rule import WRAPPERS

SCALAR = Callable[[Any], Any]

_NUMBER = re.compile(r"-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?")
_TIMESTAMP = re.compile(
    r"(\d{4}-\d\d-\d\d)T(\d\d:\d\d:\d\d)(?:\.(\d{1,9}))?(?:Z|([+-])(\d\d):(\d\d))", re.ASCII
)
_DURATION = re.compile(r"(-?)(\d+)(?:\.(\d{1,9}))?s", re.ASCII)
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_SECOND = timedelta(seconds=1)
_FIRST_SECOND, _LAST_SECOND = -62135596800, 253402300799  # years 1 to 9999
_LONGEST_DURATION = 315_576_000_000  # duration.proto: about 10,000 years
_BEYOND_FLOAT32 = 2.0**128 - 2.0**103
"""Half a step above the largest float32: from here on a double rounds to infinity."""
_LARGEST_EXACT = 2**53
_SPECIAL = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}


class JsonError(ValueError):
    """A JSON value that does not fit its field; `path` is filled in on the way out."""

    def __init__(self, why: str) -> None:
        super().__init__(why)
        self.why = why
        self._steps: list[str] = []

    def under(self, step: str) -> JsonError:
        """The same error one level further out; a step is a field name or `[index]`."""
        self._steps.append(step)
        return self

    @property
    def path(self) -> str:
        """From the outermost message, such as `data.items[2].price`; empty for itself."""
        path = ""
        for step in reversed(self._steps):
            path += step if step.startswith("[") or not path else f".{step}"
        return path


def descriptor_of(message: Message | type[Message]) -> Descriptor:
    """The descriptor of a message, whichever of the two classes the stubs call it."""
    found: Any = message.DESCRIPTOR
    return cast(Descriptor, found)


def message_type(field: FieldDescriptor) -> Descriptor:
    """The type of a field that is known to hold messages."""
    return cast(Descriptor, field.message_type)


def map_entry(field: FieldDescriptor) -> tuple[FieldDescriptor, FieldDescriptor]:
    """The fields of a map's keys and values."""
    names = message_type(field).fields_by_name
    return names["key"], names["value"]


def is_map(field: FieldDescriptor) -> bool:
    """True for a map, which descriptors show as a repeated entry message."""
    kind = field.message_type
    return field.is_repeated and kind is not None and kind.GetOptions().map_entry


def has_value_form(descriptor: Descriptor) -> bool:
    """True for the types whose JSON is not an object of their fields."""
    return descriptor.full_name in WRAPPERS or descriptor.full_name in (
        "google.protobuf.Any",
        "google.protobuf.Duration",
        "google.protobuf.FieldMask",
        "google.protobuf.ListValue",
        "google.protobuf.Struct",
        "google.protobuf.Timestamp",
        "google.protobuf.Value",
    )


def message_class(url: str) -> type[Message]:
    """The class an Any's type URL names. Raises KeyError."""
    descriptor = descriptor_pool.Default().FindMessageTypeByName(url.rpartition("/")[2])
    return message_factory.GetMessageClass(descriptor)


# From JSON.


def _whole(low: int, high: int) -> SCALAR:
    def read(value: Any) -> int:
        kind = type(value)
        if kind is int:
            number: int = value
        elif kind is str:
            number = _whole_text(value)
        elif kind is float and value.is_integer():
            number = int(value)
        else:
            raise JsonError("must be an integer")
        if low <= number <= high:
            return number
        raise JsonError(f"must be an integer from {low} to {high}")

    return read


def _whole_text(text: str) -> int:
    if not _NUMBER.fullmatch(text) or abs(float(text)) > 2.0**65:
        raise JsonError("must be an integer")
    number = Decimal(text)
    if number != number.to_integral_value():
        raise JsonError("must be an integer")
    return int(number)


def _double(value: Any) -> float:
    kind = type(value)
    if kind is float or kind is int:
        number = float(value)
    elif kind is str:
        if value in _SPECIAL:
            return _SPECIAL[value]
        if not _NUMBER.fullmatch(value):
            raise JsonError("must be a number")
        number = float(value)
    else:
        raise JsonError("must be a number")
    if number - number != 0:
        raise JsonError("is beyond what a double can hold")
    return number


def _float(value: Any) -> float:
    number = _double(value)
    if abs(number) >= _BEYOND_FLOAT32 and not math.isinf(number):
        raise JsonError("is beyond what a float can hold")
    return number


def _boolean(value: Any) -> bool:
    if value is True or value is False:
        return bool(value)
    raise JsonError("must be true or false")


def _string(value: Any) -> str:
    if type(value) is str:
        return value
    raise JsonError("must be a string")


def read_bytes(value: Any) -> bytes:
    """Bytes of base64 text, standard or URL alphabet, with or without padding."""
    if type(value) is not str:
        raise JsonError("must be a base64 string")
    text = value.rstrip("=").replace("-", "+").replace("_", "/")
    try:
        return binascii.a2b_base64(text + "=" * (-len(text) % 4), strict_mode=True)
    except ValueError:
        raise JsonError("must be a base64 string") from None


READ: dict[int, SCALAR] = {
    FieldDescriptor.TYPE_DOUBLE: _double,
    FieldDescriptor.TYPE_FLOAT: _float,
    FieldDescriptor.TYPE_INT64: _whole(-(2**63), 2**63 - 1),
    FieldDescriptor.TYPE_UINT64: _whole(0, 2**64 - 1),
    FieldDescriptor.TYPE_INT32: _whole(-(2**31), 2**31 - 1),
    FieldDescriptor.TYPE_FIXED64: _whole(0, 2**64 - 1),
    FieldDescriptor.TYPE_FIXED32: _whole(0, 2**32 - 1),
    FieldDescriptor.TYPE_BOOL: _boolean,
    FieldDescriptor.TYPE_STRING: _string,
    FieldDescriptor.TYPE_BYTES: read_bytes,
    FieldDescriptor.TYPE_UINT32: _whole(0, 2**32 - 1),
    FieldDescriptor.TYPE_SFIXED32: _whole(-(2**31), 2**31 - 1),
    FieldDescriptor.TYPE_SFIXED64: _whole(-(2**63), 2**63 - 1),
    FieldDescriptor.TYPE_SINT32: _whole(-(2**31), 2**31 - 1),
    FieldDescriptor.TYPE_SINT64: _whole(-(2**63), 2**63 - 1),
}
"""Readers of JSON values by field type; each raises JsonError."""


def enum_reader(descriptor: EnumDescriptor) -> SCALAR:
    """Reads a value by name or number; None for a name the enum does not have.

    Unknown names are dropped, as protojson does when it discards unknown fields.
    """
    names = {name: value.number for name, value in descriptor.values_by_name.items()}
    known = frozenset(names.values()) if descriptor.is_closed else None
    whole = READ[FieldDescriptor.TYPE_INT32]

    def read(value: Any) -> int | None:
        if type(value) is str:
            return names.get(value)
        if type(value) is bool or not isinstance(value, int | float):
            raise JsonError("must be the name or the number of an enum value")
        number: int = whole(value)
        if known is not None and number not in known:
            raise JsonError(f"{number} is not a value of {descriptor.full_name}")
        return number

    return read


def map_key_reader(field: FieldDescriptor) -> Callable[[str], Any]:
    """Reads a map's key from the text it is in JSON."""
    if field.type == FieldDescriptor.TYPE_STRING:
        return lambda text: text
    if field.type == FieldDescriptor.TYPE_BOOL:
        return _boolean_key
    whole = READ[field.type]

    def read(text: str) -> Any:
        if not re.fullmatch(r"-?(0|[1-9][0-9]*)", text):
            raise JsonError("key must be an integer")
        return whole(text)

    return read


def _boolean_key(text: str) -> bool:
    if text not in ("true", "false"):
        raise JsonError("key must be true or false")
    return text == "true"


def read_timestamp(value: Any) -> tuple[int, int]:
    """Seconds since 1970 and nanoseconds of an RFC 3339 text."""
    found = _TIMESTAMP.fullmatch(value) if type(value) is str else None
    if found is None:
        raise JsonError("must be an RFC 3339 time such as 2026-01-31T12:00:00Z")
    day, time, fraction, sign, hours, minutes = found.groups()
    try:
        moment = datetime.fromisoformat(f"{day}T{time}+00:00")
    except ValueError:
        raise JsonError("is not a time of the calendar") from None
    seconds = (moment - _EPOCH) // _SECOND
    if sign:
        if int(hours) > 23 or int(minutes) > 59:
            raise JsonError("has an offset beyond 23:59")
        offset = int(hours) * 3600 + int(minutes) * 60
        seconds += -offset if sign == "+" else offset
    if not _FIRST_SECOND <= seconds <= _LAST_SECOND:
        raise JsonError("must be within the years 1 to 9999")
    return seconds, int((fraction or "").ljust(9, "0"))


def read_duration(value: Any) -> tuple[int, int]:
    """Seconds and nanoseconds, of one sign, of a text such as `1.5s`."""
    found = _DURATION.fullmatch(value) if type(value) is str else None
    if found is None or len(found[2]) > 12:
        raise JsonError("must be a duration in seconds such as 1.5s")
    seconds, nanos = int(found[2]), int((found[3] or "").ljust(9, "0"))
    if seconds > _LONGEST_DURATION or (seconds == _LONGEST_DURATION and nanos):
        raise JsonError(f"must be at most {_LONGEST_DURATION}s")
    return (-seconds, -nanos) if found[1] else (seconds, nanos)


def read_mask(value: Any) -> list[str]:
    """Proto paths of a comma-separated list of lowerCamelCase paths."""
    if type(value) is not str or "_" in value:
        raise JsonError("must be lowerCamelCase field paths separated by commas")
    if not value:
        return []
    return [re.sub(r"[A-Z]", lambda m: "_" + m[0].lower(), path) for path in value.split(",")]


# To JSON.


def number(value: float) -> Any:
    """A double as a JSON number: whole ones without a fraction, as protojson prints them.

    The three that JSON has no number for become text.
    """
    if value.is_integer():
        if -_LARGEST_EXACT <= value <= _LARGEST_EXACT and (value or math.copysign(1.0, value) > 0):
            return int(value)
        return value
    if value - value == 0:
        return value
    return "NaN" if value != value else "Infinity" if value > 0 else "-Infinity"


def _short(value: float) -> Any:
    """A float32 by its shortest digits, which a double of the same value would not have."""
    if value - value != 0 or (value.is_integer() and abs(value) < 2**24):
        return number(value)
    for digits in (6, 7, 8):
        short = float(f"{value:.{digits}g}")
        # Rounding may lead beyond the largest float32.
        if abs(short) < _BEYOND_FLOAT32 and struct.unpack("<f", struct.pack("<f", short))[0] == (
            value
        ):
            return number(short)
    return number(float(f"{value:.9g}"))


def write_bytes(value: bytes) -> str:
    """Standard base64 with padding."""
    return base64.b64encode(value).decode("ascii")


WRITE: dict[int, SCALAR | None] = {
    FieldDescriptor.TYPE_DOUBLE: number,
    FieldDescriptor.TYPE_FLOAT: _short,
    FieldDescriptor.TYPE_INT64: str,
    FieldDescriptor.TYPE_UINT64: str,
    FieldDescriptor.TYPE_INT32: None,
    FieldDescriptor.TYPE_FIXED64: str,
    FieldDescriptor.TYPE_FIXED32: None,
    FieldDescriptor.TYPE_BOOL: None,
    FieldDescriptor.TYPE_STRING: None,
    FieldDescriptor.TYPE_BYTES: write_bytes,
    FieldDescriptor.TYPE_UINT32: None,
    FieldDescriptor.TYPE_SFIXED32: None,
    FieldDescriptor.TYPE_SFIXED64: str,
    FieldDescriptor.TYPE_SINT32: None,
    FieldDescriptor.TYPE_SINT64: str,
}
"""Writers by field type; None where the Python value is the JSON value."""


def enum_writer(descriptor: EnumDescriptor) -> SCALAR:
    """Writes a value's first name; the number when it has none."""
    if descriptor.full_name == "google.protobuf.NullValue":
        return lambda value: None
    names: dict[int, str] = {}
    for value in descriptor.values:
        names.setdefault(value.number, value.name)
    return lambda value: names.get(value, value)


def _fraction(nanos: int) -> str:
    """No digits, or a point and 3, 6 or 9 of them."""
    if not nanos:
        return ""
    if nanos % 1_000_000 == 0:
        return f".{nanos // 1_000_000:03d}"
    return f".{nanos // 1000:06d}" if nanos % 1000 == 0 else f".{nanos:09d}"


def write_timestamp(message: Any) -> str:
    """RFC 3339 in UTC with 0, 3, 6 or 9 digits."""
    seconds, nanos = message.seconds, message.nanos
    if not (_FIRST_SECOND <= seconds <= _LAST_SECOND and 0 <= nanos < 1_000_000_000):
        raise JsonError("is not a time of the years 1 to 9999")
    moment = _EPOCH + timedelta(seconds=seconds)
    return f"{moment.isoformat()[:19]}{_fraction(nanos)}Z"


def write_duration(message: Any) -> str:
    """Seconds with 0, 3, 6 or 9 digits and an `s`."""
    seconds, nanos = message.seconds, message.nanos
    if abs(seconds) > _LONGEST_DURATION or abs(nanos) >= 1_000_000_000 or seconds * nanos < 0:
        raise JsonError("is not a duration")
    sign = "-" if seconds < 0 or nanos < 0 else ""
    return f"{sign}{abs(seconds)}{_fraction(abs(nanos))}s"


def write_mask(message: Any) -> str:
    """lowerCamelCase paths separated by commas."""
    found = []
    for path in message.paths:
        camel = re.sub(r"_([a-z])", lambda m: m[1].upper(), path)
        if "_" in camel or re.search(r"[A-Z]", path):
            raise JsonError(f"path {path!r} has no JSON form")
        found.append(camel)
    return ",".join(found)
