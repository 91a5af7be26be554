"""Protobuf messages to JSON values: a writer compiled once for each message type.

The rules are protojson's with EmitUnpopulated: zero scalars, empty lists and maps are written, an
unset singular message is null, unset members of a oneof and unset `optional` scalars are left out.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from google.protobuf import any_pb2
from google.protobuf.descriptor import Descriptor, FieldDescriptor, OneofDescriptor
from google.protobuf.message import DecodeError, Message

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

Emit = Callable[[Any, dict[str, Any]], None]
"""(message, JSON object): one field, or one oneof, is put into the object."""
Write = Callable[[Any], Any]

_MESSAGES = (FieldDescriptor.TYPE_MESSAGE, FieldDescriptor.TYPE_GROUP)


class JsonWriter:
    """Makes JSON values of messages; writers are made when a type is first met, and kept."""

    def __init__(self) -> None:
        self._writes: dict[Descriptor, Write] = {}

    def encode(self, message: Message) -> Any:
        """The JSON value of a message, for `dumps`.

        Raises JsonError for a message that has no JSON form, with the field's path.
        """
        return self.writer(descriptor_of(message))(message)

    def writer(self, descriptor: Descriptor) -> Write:
        """The compiled writer of a message type."""
        found = self._writes.get(descriptor)
        if found is None:
            found = self._special_write(descriptor) or self._message_write(descriptor)
            self._writes[descriptor] = found
        return found

    def field_writer(self, field: FieldDescriptor) -> Write:
        """Takes a message and gives the JSON value of one of its fields (response_body)."""
        emit = self._emit(field)
        name = field.json_name

        def write(message: Any) -> Any:
            found: dict[str, Any] = {}
            emit(message, found)
            return found.get(name)

        return write

    def _special_write(self, descriptor: Descriptor) -> Write | None:
        name = descriptor.full_name
        if name in WRAPPERS:
            write = _scalar_write(descriptor.fields_by_name["value"])
            return (lambda m: m.value) if write is None else (lambda m: write(m.value))
        return {
            "google.protobuf.Struct": _write_struct,
            "google.protobuf.Value": _write_value,
            "google.protobuf.ListValue": _write_list,
            "google.protobuf.Timestamp": text.write_timestamp,
            "google.protobuf.Duration": text.write_duration,
            "google.protobuf.FieldMask": text.write_mask,
            "google.protobuf.Any": self._write_any,
        }.get(name)

    def _message_write(self, descriptor: Descriptor) -> Write:
        emits: list[tuple[str, Emit]] = []

        def write(message: Any) -> dict[str, Any]:
            found: dict[str, Any] = {}
            name = ""
            try:
                for name, emit in emits:  # noqa: B007 (named in the error)
                    emit(message, found)
            except JsonError as error:
                raise error.under(name) from None
            return found

        self._writes[descriptor] = write
        done: set[str] = set()
        for field in descriptor.fields:
            oneof = field.containing_oneof
            if oneof is None or len(oneof.fields) == 1:
                emits.append((field.json_name, self._emit(field)))
            elif oneof.name not in done:
                done.add(oneof.name)
                emits.append((oneof.name, self._emit_oneof(oneof)))
        return write

    def _emit(self, field: FieldDescriptor) -> Emit:
        if is_map(field):
            return self._emit_map(field)
        write = self._value_write(field)
        if field.is_repeated:
            return _emit_list(field, write)
        if not field.has_presence:
            return _emit_plain(field, write)
        # Go's EmitUnpopulated: null, but nothing for a oneof's members and proto3 `optional`.
        return _emit_optional(field, write, with_null=field.containing_oneof is None)

    def _emit_oneof(self, oneof: OneofDescriptor) -> Emit:
        name = oneof.name
        table = {f.name: (f.json_name, self._value_write(f)) for f in oneof.fields}

        def emit(message: Any, found: dict[str, Any]) -> None:
            chosen = message.WhichOneof(name)
            if chosen is not None:
                key, write = table[chosen]
                value = getattr(message, chosen)
                found[key] = value if write is None else write(value)

        return emit

    def _emit_map(self, field: FieldDescriptor) -> Emit:
        name, key = field.name, field.json_name
        key_field, value_field = map_entry(field)
        write = self._value_write(value_field)
        if key_field.type == FieldDescriptor.TYPE_STRING:
            write_key: Write = str
        elif key_field.type == FieldDescriptor.TYPE_BOOL:
            write_key = {True: "true", False: "false"}.__getitem__
        else:
            write_key = str

        def emit(message: Any, found: dict[str, Any]) -> None:
            entries = getattr(message, name)
            if write is None:
                found[key] = {write_key(k): entries[k] for k in entries}
            else:
                found[key] = {write_key(k): write(entries[k]) for k in entries}

        return emit

    def _value_write(self, field: FieldDescriptor) -> Write | None:
        if field.type in _MESSAGES:
            return self.writer(message_type(field))
        return _scalar_write(field)

    def _write_any(self, message: any_pb2.Any) -> dict[str, Any]:
        if not message.type_url:
            return {}
        try:
            kind = message_class(message.type_url)
            content = kind.FromString(message.value)
        except (KeyError, DecodeError):
            raise JsonError(f"holds a {message.type_url!r} this server cannot read") from None
        descriptor = descriptor_of(kind)
        written = self.writer(descriptor)(content)
        if has_value_form(descriptor):
            return {"@type": message.type_url, "value": written}
        return {"@type": message.type_url, **written}


def _scalar_write(field: FieldDescriptor) -> Write | None:
    if field.enum_type is not None:
        return text.enum_writer(field.enum_type)
    return text.WRITE[field.type]


def _emit_plain(field: FieldDescriptor, write: Write | None) -> Emit:
    name, key = field.name, field.json_name
    if write is None:

        def emit_as_is(message: Any, found: dict[str, Any]) -> None:
            found[key] = getattr(message, name)

        return emit_as_is

    def emit(message: Any, found: dict[str, Any]) -> None:
        found[key] = write(getattr(message, name))

    return emit


def _emit_optional(field: FieldDescriptor, write: Write | None, *, with_null: bool) -> Emit:
    name, key = field.name, field.json_name

    def emit(message: Any, found: dict[str, Any]) -> None:
        if message.HasField(name):
            value = getattr(message, name)
            found[key] = value if write is None else write(value)
        elif with_null:
            found[key] = None

    return emit


def _emit_list(field: FieldDescriptor, write: Write | None) -> Emit:
    name, key = field.name, field.json_name
    if write is None:

        def emit_as_is(message: Any, found: dict[str, Any]) -> None:
            found[key] = list(getattr(message, name))

        return emit_as_is

    def emit(message: Any, found: dict[str, Any]) -> None:
        found[key] = [write(one) for one in getattr(message, name)]

    return emit


def _write_struct(message: Any) -> dict[str, Any]:
    fields = message.fields
    return {key: _write_value(fields[key]) for key in fields}


def _write_value(message: Any) -> Any:
    kind = message.WhichOneof("kind")
    if kind == "string_value":
        return message.string_value
    if kind == "number_value":
        number = message.number_value
        if number - number != 0:
            raise JsonError("holds a number JSON does not have")
        return text.number(number)
    if kind == "struct_value":
        return _write_struct(message.struct_value)
    if kind == "list_value":
        return [_write_value(one) for one in message.list_value.values]
    if kind == "bool_value":
        return message.bool_value
    return None


def _write_list(message: Any) -> list[Any]:
    return [_write_value(one) for one in message.values]
