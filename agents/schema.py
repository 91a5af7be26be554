"""An agent's typed input and output: JSON Schema out, validated values in."""

from __future__ import annotations

import typing
from collections.abc import Callable, Mapping
from typing import Any

import pydantic
from google.protobuf import json_format
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message

from lakemesh.agents.base import CriticalPathAgent
from lakemesh.agents.errors import FieldError, InvalidInput
from lakemesh.agents.schemas import AgentInput, AgentOutput

JsonSchema = dict[str, Any]
_ANYTHING: JsonSchema = {"type": "object", "additionalProperties": True}


class SchemaError(TypeError):
    """An agent declares a type that is neither a pydantic model nor a proto message."""


def declared_types(agent: type[CriticalPathAgent]) -> tuple[type[Any] | None, type[Any] | None]:
    """(input type, output type) from the class attributes or else `process`'s annotations."""
    given, answered = agent.input_type, agent.output_type
    try:
        hints = typing.get_type_hints(agent.process)
    except NameError as unknown:
        # Only a type that is imported for checkers alone does this; it cannot validate anything.
        if given is None or answered is None:
            raise SchemaError(
                f"{agent.__qualname__}.process is annotated with {unknown.name!r}, which does not "
                "exist at run time: import it outside `if TYPE_CHECKING`"
            ) from None
        return given, answered
    for name, hint in hints.items():
        origin, arguments = typing.get_origin(hint), typing.get_args(hint)
        if not arguments or not isinstance(arguments[0], type):
            continue
        if name == "return" and origin is AgentOutput:
            answered = answered or arguments[0]
        elif origin is AgentInput:
            given = given or arguments[0]
    return given, answered


def json_schema(kind: type[Any] | None) -> JsonSchema:
    """JSON Schema (2020-12) of a declared type; any object when none is declared."""
    if kind is None or kind is dict:
        return dict(_ANYTHING)
    if issubclass(kind, pydantic.BaseModel):
        return kind.model_json_schema()
    if issubclass(kind, Message):
        return message_schema(kind.DESCRIPTOR)
    raise SchemaError(f"{kind.__qualname__} is neither a pydantic model nor a proto message")


def input_parser(kind: type[Any] | None) -> Callable[[dict[str, Any]], Any]:
    """Makes `AgentInput.data` of a request's data; the function raises InvalidInput."""
    if kind is None or kind is dict:
        return lambda data: data
    if issubclass(kind, pydantic.BaseModel):
        return _pydantic_parser(kind)
    if issubclass(kind, Message):
        return _message_parser(kind)
    raise SchemaError(f"{kind.__qualname__} is neither a pydantic model nor a proto message")


def output_dumper(kind: type[Any] | None) -> Callable[[Any], Mapping[str, Any]]:
    """Makes plain Python of `AgentOutput.result`; the function raises TypeError or ValueError."""
    if kind is not None and issubclass(kind, pydantic.BaseModel):
        validate = kind.model_validate

        def dump_model(result: Any) -> Mapping[str, Any]:
            model = result if isinstance(result, kind) else validate(result)
            dumped: dict[str, Any] = model.model_dump(mode="json")
            return dumped

        return dump_model
    return _dump


def _dump(result: Any) -> Mapping[str, Any]:
    if isinstance(result, Mapping):
        return result
    if isinstance(result, pydantic.BaseModel):
        return result.model_dump(mode="json")
    if isinstance(result, Message):
        return json_format.MessageToDict(result, always_print_fields_with_no_presence=True)
    raise TypeError(f"result is {type(result).__name__}, it must be a dict or a declared model")


def _pydantic_parser(kind: type[pydantic.BaseModel]) -> Callable[[dict[str, Any]], Any]:
    validate = kind.model_validate

    def parse(data: dict[str, Any]) -> Any:
        try:
            return validate(data)
        except pydantic.ValidationError as error:
            raise _invalid(
                FieldError(_path(found["loc"]), found["msg"])
                for found in error.errors(include_url=False, include_input=False)
            ) from None

    return parse


def _message_parser(kind: type[Message]) -> Callable[[dict[str, Any]], Any]:
    import protovalidate

    validator = protovalidate.Validator()

    def parse(data: dict[str, Any]) -> Any:
        message = kind()
        try:
            json_format.ParseDict(data, message)
        except json_format.ParseError as error:
            raise _invalid([FieldError("data", str(error))]) from None
        violations = validator.collect_violations(message)
        if violations:
            raise _invalid(
                FieldError(
                    _path(tuple(e.field_name for e in v.proto.field.elements))
                    if v.proto.field
                    else "data",
                    v.proto.message,
                )
                for v in violations
            )
        return message

    return parse


def _invalid(fields: typing.Iterable[FieldError]) -> InvalidInput:
    found = tuple(fields)
    first = found[0]
    more = f" (and {len(found) - 1} more)" if len(found) > 1 else ""
    return InvalidInput(f"{first.field}: {first.description}{more}", found)


def _path(location: tuple[int | str, ...]) -> str:
    text = "data"
    for part in location:
        text += f"[{part}]" if isinstance(part, int) else f".{part}"
    return text


_SCALARS: dict[int, JsonSchema] = {
    FieldDescriptor.TYPE_BOOL: {"type": "boolean"},
    FieldDescriptor.TYPE_STRING: {"type": "string"},
    FieldDescriptor.TYPE_BYTES: {"type": "string", "contentEncoding": "base64"},
    FieldDescriptor.TYPE_DOUBLE: {"type": "number"},
    FieldDescriptor.TYPE_FLOAT: {"type": "number"},
}
_SCALARS |= {
    kind: {"type": "integer"}
    for kind in (
        FieldDescriptor.TYPE_INT32,
        FieldDescriptor.TYPE_SINT32,
        FieldDescriptor.TYPE_SFIXED32,
        FieldDescriptor.TYPE_UINT32,
        FieldDescriptor.TYPE_FIXED32,
    )
}
# 64-bit integers are text in protojson and may come as numbers.
_LONG: JsonSchema = {"type": ["string", "integer"]}
_WELL_KNOWN: dict[str, JsonSchema] = {
    "google.protobuf.Struct": {"type": "object"},
    "google.protobuf.Value": {},
    "google.protobuf.ListValue": {"type": "array"},
    "google.protobuf.Timestamp": {"type": "string", "format": "date-time"},
    "google.protobuf.Duration": {"type": "string"},
    "google.protobuf.FieldMask": {"type": "string"},
    "google.protobuf.Empty": {"type": "object"},
    "google.protobuf.Any": {"type": "object"},
}


def message_schema(descriptor: Any) -> JsonSchema:
    """JSON Schema of a message's protojson form; nested messages under `$defs`."""
    definitions: dict[str, JsonSchema] = {}
    root = _object_schema(descriptor, definitions)
    definitions.pop(descriptor.full_name, None)
    return root | ({"$defs": definitions} if definitions else {})


def _object_schema(descriptor: Any, definitions: dict[str, JsonSchema]) -> JsonSchema:
    return {
        "type": "object",
        "title": descriptor.name,
        "properties": {f.json_name: _field_schema(f, definitions) for f in descriptor.fields},
    }


def _field_schema(field: FieldDescriptor, definitions: dict[str, JsonSchema]) -> JsonSchema:
    message = field.message_type
    if message is not None and message.GetOptions().map_entry:
        values = _single_schema(message.fields_by_name["value"], definitions)
        return {"type": "object", "additionalProperties": values}
    single = _single_schema(field, definitions)
    return {"type": "array", "items": single} if field.is_repeated else single


def _single_schema(field: FieldDescriptor, definitions: dict[str, JsonSchema]) -> JsonSchema:
    if field.enum_type is not None:
        return {"type": "string", "enum": [value.name for value in field.enum_type.values]}
    message = field.message_type
    if message is None:
        return dict(_SCALARS.get(field.type, _LONG))
    known = _WELL_KNOWN.get(message.full_name)
    if known is not None:
        return dict(known)
    if message.full_name not in definitions:
        definitions[message.full_name] = {}  # stops a message that contains itself
        definitions[message.full_name] = _object_schema(message, definitions)
    return {"$ref": f"#/$defs/{message.full_name}"}
