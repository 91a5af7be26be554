"""JSON values into protobuf messages: a reader compiled once for each message type.

The rules are protojson's with DiscardUnknown. What the binary format could not carry, and so no
other transport, is refused: too deep, NaN or an integer that would be rounded in a Struct.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from google.protobuf import struct_pb2
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message

from lakemesh.agents.structs import NotCarryable, fill_struct
from lakemesh.server import json_wellknown as text
from lakemesh.server.http_rule import WRAPPERS
from lakemesh.server.json_wellknown import (
    JsonError,
    descriptor_of,
    has_value_form,
    is_map,
    map_entry,
    message_class,
    message_type,
)

MAX_DEPTH = 32
"""Objects and lists inside one another in a whole request.

A Struct within is held to 30 by `agents.structs`. A level of a Struct is 3 levels of the binary
format and other levels are 1, so 30 of the first and 2 of the second stay below its 100.
"""

Fill = Callable[[Any, Any, int], None]
"""(message, JSON value, depth of the value, 1 for the outermost) -> the message is filled."""

_MESSAGES = (FieldDescriptor.TYPE_MESSAGE, FieldDescriptor.TYPE_GROUP)


class JsonReader:
    """Fills messages from parsed JSON; readers are made when a type is first met, and kept."""

    def __init__(self) -> None:
        self._fills: dict[Descriptor, Fill] = {}

    def decode(self, value: Any, message: Message) -> None:
        """Fill `message` from a parsed JSON value. Raises JsonError with the field's path."""
        try:
            self.filler(descriptor_of(message))(message, value, 1)
        except JsonError:
            raise
        except (ValueError, TypeError):
            raise JsonError("is not valid text") from None

    def filler(self, descriptor: Descriptor) -> Fill:
        """The compiled reader of a message type."""
        found = self._fills.get(descriptor)
        if found is None:
            found = self._special_fill(descriptor) or self._message_fill(descriptor)
            self._fills[descriptor] = found
        return found

    def _special_fill(self, descriptor: Descriptor) -> Fill | None:
        name = descriptor.full_name
        if name in WRAPPERS:
            return _scalar_fill(descriptor.fields_by_name["value"])
        return {
            "google.protobuf.Struct": _fill_struct,
            "google.protobuf.Value": _fill_value,
            "google.protobuf.ListValue": _fill_list,
            "google.protobuf.Timestamp": _fill_timestamp,
            "google.protobuf.Duration": _fill_duration,
            "google.protobuf.FieldMask": _fill_mask,
            "google.protobuf.Any": self._fill_any,
        }.get(name)

    def _message_fill(self, descriptor: Descriptor) -> Fill:
        fields: dict[str, tuple[int, int, bool, Fill]] = {}

        def fill(message: Any, value: Any, depth: int) -> None:
            if type(value) is not dict:
                raise JsonError("must be an object")
            if depth > MAX_DEPTH:
                raise JsonError(f"is nested more than {MAX_DEPTH} deep")
            seen = 0
            for key, item in value.items():
                entry = fields.get(key)
                if entry is None:
                    continue
                own, group, takes_null, fill_field = entry
                if seen & own:
                    raise JsonError("is given twice").under(key)
                seen |= own
                if item is None and not takes_null:
                    continue
                if seen & group:
                    raise JsonError("stands beside another field of its oneof").under(key)
                seen |= group
                try:
                    fill_field(message, item, depth + 1)
                except JsonError as error:
                    raise error.under(key) from None
                except (ValueError, TypeError):
                    # The one thing left for protobuf to refuse: text with lone surrogates.
                    raise JsonError("is not valid text").under(key) from None

        # Kept before its fields are made: a message may contain itself.
        self._fills[descriptor] = fill
        oneofs = {oneof.name: index for index, oneof in enumerate(descriptor.oneofs)}
        for index, field in enumerate(descriptor.fields):
            oneof = field.containing_oneof
            group = 1 << len(descriptor.fields) + oneofs[oneof.name] if oneof is not None else 0
            takes_null = not field.is_repeated and _is_null_kind(field)
            entry = (1 << index, group, takes_null, self._field_fill(field))
            fields[field.name] = entry
            fields[field.json_name] = entry
        return fill

    def _field_fill(self, field: FieldDescriptor) -> Fill:
        if is_map(field):
            return self._map_fill(field)
        if field.is_repeated:
            return self._list_fill(field)
        if field.type not in _MESSAGES:
            return _scalar_fill(field)
        name = field.name
        inner = self.filler(message_type(field))

        def fill(message: Any, value: Any, depth: int) -> None:
            child = getattr(message, name)
            child.SetInParent()
            inner(child, value, depth)

        return fill

    def _list_fill(self, field: FieldDescriptor) -> Fill:
        name = field.name
        inner = self.filler(message_type(field)) if field.type in _MESSAGES else None
        read = None if inner is not None else _reader(field)

        def fill(message: Any, value: Any, depth: int) -> None:
            if type(value) is not list:
                raise JsonError("must be a list")
            if depth > MAX_DEPTH:
                raise JsonError(f"is nested more than {MAX_DEPTH} deep")
            target = getattr(message, name)
            index = 0
            try:
                if inner is not None:
                    for index, item in enumerate(value):  # noqa: B007 (named in the error)
                        inner(target.add(), item, depth + 1)
                elif read is not None:
                    for index, item in enumerate(value):  # noqa: B007 (named in the error)
                        found = read(item)
                        if found is not None:
                            target.append(found)
            except JsonError as error:
                raise error.under(f"[{index}]") from None

        return fill

    def _map_fill(self, field: FieldDescriptor) -> Fill:
        name = field.name
        key_field, value_field = map_entry(field)
        read_key = text.map_key_reader(key_field)
        inner = self.filler(value_field.message_type) if value_field.message_type else None
        read = None if inner is not None else _reader(value_field)

        def fill(message: Any, value: Any, depth: int) -> None:
            if type(value) is not dict:
                raise JsonError("must be an object")
            if depth > MAX_DEPTH:
                raise JsonError(f"is nested more than {MAX_DEPTH} deep")
            target = getattr(message, name)
            for key, item in value.items():
                try:
                    if inner is not None:
                        inner(target[read_key(key)], item, depth + 1)
                    elif read is not None:
                        found = read(item)
                        if found is not None:
                            target[read_key(key)] = found
                except JsonError as error:
                    raise error.under(f"[{key!r}]") from None

        return fill

    def _fill_any(self, message: Any, value: Any, depth: int) -> None:
        if type(value) is not dict:
            raise JsonError("must be an object")
        if not value:
            return
        url = value.get("@type")
        if type(url) is not str or "/" not in url:
            raise JsonError("must name its type").under("@type")
        try:
            kind = message_class(url)
        except KeyError:
            raise JsonError("is not a type this server knows").under("@type") from None
        content = kind()
        descriptor = descriptor_of(kind)
        if has_value_form(descriptor):
            if "value" not in value:
                raise JsonError("is missing").under("value")
            try:
                self.filler(descriptor)(content, value["value"], depth + 1)
            except JsonError as error:
                raise error.under("value") from None
        else:
            rest = {key: item for key, item in value.items() if key != "@type"}
            self.filler(descriptor)(content, rest, depth)
        message.type_url = url
        message.value = content.SerializeToString()

    def field_filler(self, field: FieldDescriptor) -> Fill:
        """Fills one field of a message from a JSON value (body: "field")."""
        fill = self._field_fill(field)
        takes_null = _is_null_kind(field)

        def read(message: Any, value: Any, depth: int) -> None:
            if value is None and not takes_null:
                return
            try:
                fill(message, value, depth)
            except JsonError as error:
                raise error.under(field.name) from None
            except (ValueError, TypeError):
                raise JsonError("is not valid text").under(field.name) from None

        return read


def _is_null_kind(field: FieldDescriptor) -> bool:
    """True where a JSON null is a value and not the absence of one."""
    if field.message_type is not None:
        return bool(field.message_type.full_name == "google.protobuf.Value")
    return field.enum_type is not None and (
        field.enum_type.full_name == "google.protobuf.NullValue"
    )


def _reader(field: FieldDescriptor) -> text.SCALAR:
    if field.enum_type is None:
        return text.READ[field.type]
    if field.enum_type.full_name == "google.protobuf.NullValue":
        return _read_null
    return text.enum_reader(field.enum_type)


def _read_null(value: Any) -> int:
    if value is None or value == "NULL_VALUE" or (value == 0 and type(value) is int):
        return 0
    raise JsonError("must be null")


def _scalar_fill(field: FieldDescriptor) -> Fill:
    name = field.name
    if field.type == FieldDescriptor.TYPE_STRING:

        def fill_string(message: Any, value: Any, depth: int) -> None:
            if type(value) is not str:
                raise JsonError("must be a string")
            setattr(message, name, value)

        return fill_string
    read = _reader(field)

    def fill(message: Any, value: Any, depth: int) -> None:
        found = read(value)
        if found is not None:
            setattr(message, name, found)

    return fill


def _fill_struct(message: Any, value: Any, depth: int) -> None:
    if type(value) is not dict:
        raise JsonError("must be an object")
    if depth > 3 and depth + _depth(value) - 1 > MAX_DEPTH:
        raise JsonError(f"is nested more than {MAX_DEPTH} deep")
    try:
        fill_struct(message, value, "")
    except NotCarryable as refused:
        error = JsonError(refused.why)
        raise (error.under(refused.path.lstrip(".")) if refused.path else error) from None


def _fill_value(message: Any, value: Any, depth: int) -> None:
    # One level of wrapping lends the Struct's reader to a bare value.
    holder = struct_pb2.Struct()
    try:
        _fill_struct(holder, {"": value}, depth)
    except JsonError as error:
        raise _unwrapped(error) from None
    message.CopyFrom(holder.fields[""])


def _fill_list(message: Any, value: Any, depth: int) -> None:
    if type(value) is not list:
        raise JsonError("must be a list")
    holder = struct_pb2.Value()
    _fill_value(holder, value, depth)
    message.CopyFrom(holder.list_value)


def _unwrapped(error: JsonError) -> JsonError:
    inner = JsonError(error.why)
    path = error.path.lstrip(".")
    return inner.under(path) if path else inner


def _depth(value: Any) -> int:
    """Objects and lists inside one another; a scalar is 0."""
    level, found = [value], 0
    while True:
        inner: list[Any] = []
        nested = False
        for one in level:
            if isinstance(one, dict):
                nested = True
                inner.extend(one.values())
            elif isinstance(one, list):
                nested = True
                inner.extend(one)
        if not nested:
            return found
        found += 1
        level = inner


def _fill_timestamp(message: Any, value: Any, depth: int) -> None:
    message.seconds, message.nanos = text.read_timestamp(value)


def _fill_duration(message: Any, value: Any, depth: int) -> None:
    message.seconds, message.nanos = text.read_duration(value)


def _fill_mask(message: Any, value: Any, depth: int) -> None:
    message.paths.extend(text.read_mask(value))
