"""OpenAPI 3.1 of every http binding, from descriptors; comments where their sources are at hand."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from google.protobuf.descriptor import Descriptor, EnumDescriptor, FieldDescriptor, MethodDescriptor
from google.protobuf.descriptor_pb2 import FileDescriptorSet
from google.rpc import status_pb2

from lakemesh.server.http_rule import Binding, bindings_of, field_at
from lakemesh.server.json_wellknown import is_map, map_entry

Schema = dict[str, Any]

_STATUS = status_pb2.Status.DESCRIPTOR
_INT32: Schema = {"type": "integer", "format": "int32"}
_INT64: Schema = {"type": "string", "format": "int64"}
_SCALARS: dict[int, Schema] = {
    FieldDescriptor.TYPE_DOUBLE: {"type": "number", "format": "double"},
    FieldDescriptor.TYPE_FLOAT: {"type": "number", "format": "float"},
    FieldDescriptor.TYPE_INT64: _INT64,
    FieldDescriptor.TYPE_SINT64: _INT64,
    FieldDescriptor.TYPE_SFIXED64: _INT64,
    FieldDescriptor.TYPE_UINT64: {"type": "string", "format": "uint64"},
    FieldDescriptor.TYPE_FIXED64: {"type": "string", "format": "uint64"},
    FieldDescriptor.TYPE_INT32: _INT32,
    FieldDescriptor.TYPE_SINT32: _INT32,
    FieldDescriptor.TYPE_SFIXED32: _INT32,
    FieldDescriptor.TYPE_UINT32: {"type": "integer", "format": "int64", "minimum": 0},
    FieldDescriptor.TYPE_FIXED32: {"type": "integer", "format": "int64", "minimum": 0},
    FieldDescriptor.TYPE_BOOL: {"type": "boolean"},
    FieldDescriptor.TYPE_STRING: {"type": "string"},
    FieldDescriptor.TYPE_BYTES: {"type": "string", "contentEncoding": "base64"},
}
_WELL_KNOWN: dict[str, Schema] = {
    "Timestamp": {"type": "string", "format": "date-time"},
    "Duration": {"type": "string", "pattern": r"^-?[0-9]+(\.[0-9]{1,9})?s$"},
    "FieldMask": {"type": "string"},
    "Struct": {"type": "object", "additionalProperties": True},
    "Value": {},
    "ListValue": {"type": "array", "items": {}},
    "Any": {
        "type": "object",
        "properties": {"@type": {"type": "string"}},
        "additionalProperties": True,
    },
}
_WRAPPED = {
    f"{name}Value": getattr(FieldDescriptor, f"TYPE_{name.upper()}")
    for name in ("Double", "Float", "Int64", "UInt64", "Int32", "UInt32", "Bool", "String", "Bytes")
}
_VERBS = frozenset({"get", "put", "post", "delete", "patch", "head", "options", "trace"})


def comments_of(files: FileDescriptorSet) -> dict[str, str]:
    """Leading comments by full name, from descriptors that carry their source info."""
    found: dict[str, str] = {}
    for file in files.file:
        names = _names_by_path(file)
        for location in file.source_code_info.location:
            name = names.get(tuple(location.path))
            text = _paragraphs(location.leading_comments)
            if name and text:
                found[name] = text
    return found


def _paragraphs(comment: str) -> str:
    lines = [line.removeprefix(" ").rstrip() for line in comment.split("\n")]
    return re.sub(r"(?<!\n)\n(?![\n\s*-])", " ", "\n".join(lines).strip())


def _names_by_path(file: Any) -> dict[tuple[int, ...], str]:
    names: dict[tuple[int, ...], str] = {}

    def message(at: tuple[int, ...], prefix: str, one: Any) -> None:
        full = f"{prefix}.{one.name}"
        names[at] = full
        for index, field in enumerate(one.field):
            names[*at, 2, index] = f"{full}.{field.name}"
        for index, nested in enumerate(one.nested_type):
            message((*at, 3, index), full, nested)
        for index, nested in enumerate(one.enum_type):
            enum((*at, 4, index), full, nested)

    def enum(at: tuple[int, ...], prefix: str, one: Any) -> None:
        names[at] = f"{prefix}.{one.name}"
        for index, value in enumerate(one.value):
            names[*at, 2, index] = f"{prefix}.{one.name}.{value.name}"

    # Numbers of the fields of FileDescriptorProto, DescriptorProto and so on (descriptor.proto).
    for index, one in enumerate(file.message_type):
        message((4, index), file.package, one)
    for index, one in enumerate(file.enum_type):
        enum((5, index), file.package, one)
    for index, service in enumerate(file.service):
        full = f"{file.package}.{service.name}"
        names[6, index] = full
        for number, method in enumerate(service.method):
            names[6, index, 2, number] = f"{full}.{method.name}"
    return names


def build_openapi(
    methods: Iterable[MethodDescriptor],
    *,
    title: str,
    version: str,
    comments: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """The document of all bindings of `methods`, in their order.

    Bindings with a custom HTTP method that OpenAPI has no place for are left out.
    """
    return _Document(comments or {}).build(methods, title, version)


class _Document:
    """One document being made: its paths, and the schemas they turned out to need."""

    def __init__(self, comments: Mapping[str, str]) -> None:
        self._comments = comments
        self._schemas: dict[str, Schema] = {}

    def build(
        self, methods: Iterable[MethodDescriptor], title: str, version: str
    ) -> dict[str, Any]:
        paths: dict[str, dict[str, Any]] = {}
        tags: dict[str, Schema] = {}
        for method in methods:
            service = method.containing_service
            for number, binding in enumerate(bindings_of(method)):
                verb = binding.http_method.lower()
                if verb not in _VERBS:
                    continue
                tags.setdefault(service.name, self._tag(service))
                path = openapi_path(binding)
                operation_id = f"{service.name}_{method.name}" + (str(number + 1) if number else "")
                paths.setdefault(path, {})[verb] = self._operation(binding, operation_id)
        self._ref(_STATUS)
        return {
            "openapi": "3.1.0",
            "info": {"title": title, "version": version},
            "tags": list(tags.values()),
            "paths": paths,
            "components": {"schemas": dict(sorted(self._schemas.items()))},
        }

    def _tag(self, service: Any) -> Schema:
        text = self._comments.get(service.full_name)
        return {"name": service.name, **({"description": text} if text else {})}

    def _operation(self, binding: Binding, operation_id: str) -> dict[str, Any]:
        method = binding.method
        text = self._comments.get(method.full_name, "")
        operation: dict[str, Any] = {
            "operationId": operation_id,
            "tags": [method.containing_service.name],
        }
        if text:
            operation["summary"] = text.split("\n\n")[0]
            operation["description"] = text
        parameters = [*self._path_parameters(binding), *self._query_parameters(binding)]
        if parameters:
            operation["parameters"] = parameters
        if binding.body:
            field = None if binding.body == "*" else field_at(method.input_type, binding.body)
            schema = self._ref(method.input_type) if field is None else self._field(field)
            if method.client_streaming:
                content = {"application/json": {"schema": schema}}
                description = "One JSON value after the other, one for each message."
                operation["requestBody"] = {"content": content, "description": description}
            else:
                operation["requestBody"] = {
                    "content": {"application/json": {"schema": schema}},
                    "required": True,
                }
        operation["responses"] = {
            "200": self._answer(binding),
            "default": {
                "description": "The call failed.",
                "content": {"application/json": {"schema": self._ref(_STATUS)}},
            },
        }
        return operation

    def _answer(self, binding: Binding) -> dict[str, Any]:
        output = binding.method.output_type
        if output.full_name == "google.api.HttpBody" and not binding.response_body:
            return {"description": "The content.", "content": {"*/*": {"schema": {}}}}
        schema = (
            self._field(field_at(output, binding.response_body))
            if binding.response_body
            else self._ref(output)
        )
        if not binding.method.server_streaming:
            return {
                "description": "The answer.",
                "content": {"application/json": {"schema": schema}},
            }
        line = {
            "type": "object",
            "properties": {"result": schema, "error": self._ref(_STATUS)},
        }
        return {
            "description": "A stream: one JSON object a line, its last one an error if the call "
            "failed on the way. With `Accept: text/event-stream` the same objects as the data of "
            "server-sent events.",
            "content": {
                "application/json": {"schema": line},
                "text/event-stream": {"schema": line},
            },
        }

    # Parameters.

    def _path_parameters(self, binding: Binding) -> Iterable[Schema]:
        for variable in binding.template.variables:
            field = field_at(binding.method.input_type, variable.field_path)
            pattern = "/".join(binding.template.segments[variable.start : variable.end])
            schema = self._field(field)
            text = self._comments.get(field.full_name, "")
            if pattern not in ("*", ""):
                schema = {**schema, "pattern": _as_regex(pattern)}
            yield {
                "name": variable.field_path,
                "in": "path",
                "required": True,
                "schema": schema,
                **({"description": text} if text else {}),
            }

    def _query_parameters(self, binding: Binding) -> Iterable[Schema]:
        if binding.body == "*":
            return
        bound = {variable.field_path for variable in binding.template.variables} | {binding.body}
        yield from self._query_fields(binding.method.input_type, "", bound, ())

    def _query_fields(
        self, message: Descriptor, prefix: str, bound: set[str], above: tuple[str, ...]
    ) -> Iterable[Schema]:
        for field in message.fields:
            path = f"{prefix}{field.name}"
            if path in bound:
                continue
            name = f"{prefix}{field.json_name}" if not prefix else path
            kind = field.message_type
            if kind is not None and not kind.full_name.startswith("google.protobuf."):
                # What repeats or contains itself cannot be said in a query.
                if not field.is_repeated and kind.full_name not in above:
                    inner = (*above, message.full_name)
                    yield from self._query_fields(kind, f"{path}.", bound, inner)
                continue
            text = self._comments.get(field.full_name, "")
            yield {
                "name": name,
                "in": "query",
                "schema": self._field(field),
                **({"description": text} if text else {}),
            }

    # Schemas.

    def _ref(self, message: Descriptor) -> Schema:
        name = message.full_name
        package, _, short = name.rpartition(".")
        if package == "google.protobuf":
            if short in _WELL_KNOWN:
                return dict(_WELL_KNOWN[short])
            if short in _WRAPPED:
                return {**_SCALARS[_WRAPPED[short]], "type": [_scalar_type(short), "null"]}
        if name not in self._schemas:
            schema: Schema = {"type": "object"}
            self._schemas[name] = schema  # kept first: a message may contain itself
            text = self._comments.get(name)
            if text:
                schema["description"] = text
            properties = {}
            for field in message.fields:
                one = self._field(field)
                if field.has_presence and field.message_type and not field.containing_oneof:
                    one = _nullable(one)  # an unset message is written as null
                note = self._comments.get(field.full_name)
                properties[field.json_name] = {**one, "description": note} if note else one
            if properties:
                schema["properties"] = properties
        return {"$ref": f"#/components/schemas/{name}"}

    def _enum(self, enum: EnumDescriptor) -> Schema:
        if enum.full_name == "google.protobuf.NullValue":
            return {"type": "null"}
        if enum.full_name not in self._schemas:
            notes = [
                f"{value.name}: {self._comments[f'{enum.full_name}.{value.name}']}"
                for value in enum.values
                if f"{enum.full_name}.{value.name}" in self._comments
            ]
            text = "\n\n".join([*filter(None, [self._comments.get(enum.full_name)]), *notes])
            self._schemas[enum.full_name] = {
                "type": "string",
                "enum": [value.name for value in enum.values],
                **({"description": text} if text else {}),
            }
        return {"$ref": f"#/components/schemas/{enum.full_name}"}

    def _field(self, field: FieldDescriptor) -> Schema:
        if is_map(field):
            _, value = map_entry(field)
            return {"type": "object", "additionalProperties": self._single(value)}
        if field.is_repeated:
            return {"type": "array", "items": self._single(field)}
        return self._single(field)

    def _single(self, field: FieldDescriptor) -> Schema:
        if field.message_type is not None:
            return self._ref(field.message_type)
        if field.enum_type is not None:
            return self._enum(field.enum_type)
        return dict(_SCALARS[field.type])


def _nullable(schema: Schema) -> Schema:
    kind = schema.get("type")
    if "$ref" in schema:
        return {"anyOf": [schema, {"type": "null"}]}
    return {**schema, "type": [kind, "null"]} if isinstance(kind, str) else schema


def _scalar_type(wrapper: str) -> str:
    kind: str = _SCALARS[_WRAPPED[wrapper]]["type"]
    return kind


def openapi_path(binding: Binding) -> str:
    """The template as OpenAPI writes it: `/v1/{name}`, its segments left to the parameter."""
    parts = list(binding.template.segments)
    whole = range(len(parts))
    for variable in reversed(binding.template.variables):
        covered = whole[variable.start : variable.end]
        parts[covered.start : covered.stop] = [f"{{{variable.field_path}}}"]
    path = "/" + "/".join(parts)
    return f"{path}:{binding.template.verb}" if binding.template.verb else path


def _as_regex(pattern: str) -> str:
    parts = [
        ".*" if part == "**" else "[^/]*" if part == "*" else re.escape(part)
        for part in pattern.split("/")
    ]
    return f"^{'/'.join(parts)}$"
