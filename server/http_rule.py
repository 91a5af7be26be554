"""google.api.http rules: path templates, the bindings of a method, and the router over them.

Grammar and matching are those of grpc-gateway v2 (internal/httprule and runtime/mux.go), which
differ from what web frameworks do: paths are matched after percent-decoding, a trailing slash is
one more, empty, segment, and of two templates that match the one registered last wins.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Generic, TypeVar

from google.api import annotations_pb2, http_pb2
from google.protobuf.descriptor import Descriptor, FieldDescriptor, MethodDescriptor

_LITERAL = re.compile(r"(?:[A-Za-z0-9\-._~!$&'()*+,;=:@]|%[0-9A-Fa-f]{2})+")
_FIELD_PATH = re.compile(r"[A-Za-z_][A-Za-z0-9_]*(?:\.[A-Za-z_][A-Za-z0-9_]*)*")

WRAPPERS = frozenset(
    f"google.protobuf.{name}Value"
    for name in ("Double", "Float", "Int64", "UInt64", "Int32", "UInt32", "Bool", "String", "Bytes")
)
# Messages that have a text form, and so may stand in a path (runtime/query.go).
TEXT_MESSAGES = WRAPPERS | frozenset(
    f"google.protobuf.{name}" for name in ("Timestamp", "Duration", "FieldMask", "Value", "Struct")
)


class HttpRuleError(ValueError):
    """An annotation no server could serve; says which method and why. Raised at start."""


@dataclass(frozen=True, slots=True)
class Variable:
    """A field filled from path segments `start` to `end`; an end after `**` counts backwards."""

    field_path: str
    start: int
    end: int | None


@dataclass(frozen=True, slots=True)
class Template:
    """A parsed path template such as `/v1/{name=projects/*}:run`."""

    text: str
    segments: tuple[str, ...]
    """Literals, `*` and `**`, without the variables' braces."""
    verb: str
    variables: tuple[Variable, ...]

    @property
    def language(self) -> str:
        """The same text for two templates exactly when they match the same paths."""
        path = "/" + "/".join(self.segments)
        return f"{path}:{self.verb}" if self.verb else path

    @property
    def is_literal(self) -> bool:
        """True when only one path matches."""
        return not ({"*", "**"} & set(self.segments))


def parse_template(text: str) -> Template:
    """Parse `text`; HttpRuleError says what is wrong with it."""
    if not text.startswith("/"):
        raise HttpRuleError(f"template {text!r} must begin with '/'")
    pieces = _split(text)
    pieces[-1], verb = _cut_verb(text, pieces[-1])
    segments: list[str] = []
    spans: list[tuple[str, int, int]] = []
    for piece in pieces:
        if not piece.startswith("{"):
            _check_segment(text, piece, alone=len(pieces) == 1)
            segments.append(piece)
            continue
        if not piece.endswith("}"):
            raise HttpRuleError(f"template {text!r}: {piece!r} is not a segment")
        field_path, equals, inner = piece[1:-1].partition("=")
        if not _FIELD_PATH.fullmatch(field_path):
            raise HttpRuleError(f"template {text!r}: {field_path!r} is not a field path")
        start = len(segments)
        for segment in inner.split("/") if equals else ["*"]:
            _check_segment(text, segment, alone=False)
            segments.append(segment)
        spans.append((field_path, start, len(segments)))
    if segments.count("**") > 1:
        raise HttpRuleError(f"template {text!r}: '**' may stand only once")
    names = [name for name, _, _ in spans]
    if len(set(names)) != len(names):
        raise HttpRuleError(f"template {text!r} names a variable twice")
    return Template(text, tuple(segments), verb, tuple(_variables(segments, spans)))


def _split(text: str) -> list[str]:
    """The pieces between slashes that are outside braces."""
    pieces = [""]
    inside = False
    for char in text[1:]:
        if char in "{}":
            if inside is (char == "{"):
                raise HttpRuleError(f"template {text!r}: braces do not match")
            inside = not inside
        if char == "/" and not inside:
            pieces.append("")
        else:
            pieces[-1] += char
    if inside:
        raise HttpRuleError(f"template {text!r}: braces do not match")
    return pieces


def _cut_verb(text: str, last: str) -> tuple[str, str]:
    """The last piece without its verb, and the verb.

    After a variable the verb begins at the first colon, else at the last (parse.go does the same).
    """
    if "}" in last:
        end = last.rindex("}") + 1
        rest = last[end:]
        if rest and not rest.startswith(":"):
            raise HttpRuleError(f"template {text!r}: {rest!r} after a variable")
        piece, verb = last[:end], rest[1:]
        colon = bool(rest)
    else:
        head, found, tail = last.rpartition(":")
        piece, verb, colon = (head, tail, True) if found else (last, "", False)
    if colon and not _LITERAL.fullmatch(verb):
        raise HttpRuleError(f"template {text!r}: {verb!r} is not a verb")
    return piece, verb


def _check_segment(text: str, segment: str, *, alone: bool) -> None:
    if segment in ("*", "**") or (alone and not segment):
        return
    if not _LITERAL.fullmatch(segment):
        raise HttpRuleError(f"template {text!r}: {segment!r} is not a segment")


def _variables(segments: list[str], spans: list[tuple[str, int, int]]) -> Iterable[Variable]:
    deep = segments.index("**") if "**" in segments else len(segments)
    count = len(segments)
    for name, start, end in spans:
        first = start - count if start > deep else start
        stop: int | None = end - count if end > deep else end
        yield Variable(name, first, None if stop == 0 else stop)


@dataclass(frozen=True, slots=True)
class Binding:
    """One way in to a method over HTTP."""

    method: MethodDescriptor
    http_method: str
    template: Template
    body: str
    """Empty: no body; `*`: the whole request; else the field the body fills."""
    response_body: str
    """Empty: the whole answer; else the field that is the answer's body."""


def bindings_of(method: MethodDescriptor) -> list[Binding]:
    """The bindings a method's google.api.http annotation asks for, the primary first.

    Empty without an annotation. HttpRuleError for what protoc-gen-grpc-gateway refuses too:
    nested additional bindings, GET or DELETE with a body, fields that do not exist or have no
    text form, path parameters of a client-streaming method.
    """
    options = method.GetOptions()
    if not options.HasExtension(annotations_pb2.http):
        return []
    rule = options.Extensions[annotations_pb2.http]
    found = [_binding(method, rule)]
    for extra in rule.additional_bindings:
        if extra.additional_bindings:
            raise HttpRuleError(f"{method.full_name}: additional bindings may not be nested")
        found.append(_binding(method, extra))
    return found


def _binding(method: MethodDescriptor, rule: http_pb2.HttpRule) -> Binding:
    pattern = rule.WhichOneof("pattern")
    if pattern is None:
        raise HttpRuleError(f"{method.full_name}: an http rule without a path")
    if pattern == "custom":
        http_method, path = rule.custom.kind, rule.custom.path
    else:
        http_method, path = pattern.upper(), getattr(rule, pattern)
    try:
        template = parse_template(path)
        if http_method in ("GET", "DELETE") and rule.body:
            raise HttpRuleError(f"{http_method} may not have a body")
        if template.variables and method.client_streaming:
            raise HttpRuleError("a client-streaming method may not have path parameters")
        for variable in template.variables:
            _check_parameter(method.input_type, variable.field_path)
        if rule.body not in ("", "*"):
            field_at(method.input_type, rule.body)
        response_body = "" if rule.response_body == "*" else rule.response_body
        if response_body:
            field_at(method.output_type, response_body)
    except HttpRuleError as error:
        raise HttpRuleError(f"{method.full_name}: {error}") from None
    return Binding(method, http_method, template, rule.body, response_body)


def field_at(message: Descriptor, path: str) -> FieldDescriptor:
    """The field at a dotted path of proto names."""
    field: FieldDescriptor | None = None
    at: Descriptor | None = message
    for name in path.split("."):
        field = at.fields_by_name.get(name) if at is not None else None
        if field is None:
            raise HttpRuleError(f"{message.full_name} has no field {path!r}")
        at = None if field.is_repeated else field.message_type
    if field is None:
        raise HttpRuleError("an empty field path")
    return field


def _check_parameter(message: Descriptor, path: str) -> None:
    field = field_at(message, path)
    kind = field.message_type
    if kind is not None and (field.is_repeated or kind.full_name not in TEXT_MESSAGES):
        raise HttpRuleError(f"field {path!r} cannot stand in a path")


TargetT = TypeVar("TargetT")


@dataclass(frozen=True, slots=True)
class _Entry(Generic[TargetT]):
    template: Template
    target: TargetT
    deep: int
    """Index of `**`, or -1."""

    def match(self, parts: list[str]) -> dict[str, str] | None:
        """The variables' texts when the path, split at its slashes, matches."""
        verb = self.template.verb
        if verb:
            last = parts[-1]
            if not last.endswith(":" + verb) or len(last) == len(verb) + 1:
                return None
            parts = [*parts[:-1], last[: -len(verb) - 1]]
        segments = self.template.segments
        if self.deep < 0:
            if len(parts) != len(segments):
                return None
            pairs = zip(segments, parts, strict=True)
        else:
            tail = len(segments) - self.deep - 1
            if len(parts) < self.deep + tail:
                return None
            fixed = segments[: self.deep] + segments[self.deep + 1 :]
            pairs = zip(fixed, parts[: self.deep] + (parts[-tail:] if tail else []), strict=True)
        for segment, part in pairs:
            if segment != part and segment != "*":
                return None
        return {v.field_path: "/".join(parts[v.start : v.end]) for v in self.template.variables}


@dataclass(frozen=True, slots=True)
class Found(Generic[TargetT]):
    """A route, and the texts of its path variables by field path."""

    target: TargetT
    variables: dict[str, str]


class _Verb(Generic[TargetT]):
    """The routes of one HTTP method."""

    def __init__(self, entries: list[_Entry[TargetT]]) -> None:
        newest_first = entries[::-1]
        self.literal: dict[str, Found[TargetT]] = {}
        patterns = [entry for entry in newest_first if not entry.template.is_literal]
        for entry in newest_first:
            path = entry.template.language
            if entry.template.is_literal:
                parts = path[1:].split("/")
                winner = next(e for e in newest_first if e.match(parts) is not None)
                self.literal[path] = Found(winner.target, winner.match(parts) or {})
        # Patterns by their first literal segment, so that more services do not mean longer walks.
        self.anywhere = [e for e in patterns if e.template.segments[0] in ("*", "**")]
        heads = {e.template.segments[0] for e in patterns} - {"*", "**"}
        self.by_head = {
            head: [e for e in patterns if e.template.segments[0] in (head, "*", "**")]
            for head in heads
        }

    def find(self, path: str, parts: list[str]) -> Found[TargetT] | None:
        found = self.literal.get(path)
        if found is not None:
            return found
        for entry in self.by_head.get(parts[0], self.anywhere):
            variables = entry.match(parts)
            if variables is not None:
                return Found(entry.target, variables)
        return None


class Router(Generic[TargetT]):
    """Finds the target of a request; built once, then only read.

    Of several templates that match, the one registered last wins, as in the gateway; a path
    without variables costs one dictionary look-up.
    """

    def __init__(self, routes: Iterable[tuple[str, Template, str, TargetT]]) -> None:
        """Routes as (HTTP method, template, owner for messages, target).

        HttpRuleError names the two owners when they claim the very same paths.
        """
        entries: dict[str, list[_Entry[TargetT]]] = {}
        owners: dict[tuple[str, str], str] = {}
        for http_method, template, owner, target in routes:
            claim = (http_method, template.language)
            if claim in owners:
                raise HttpRuleError(
                    f"{owner} and {owners[claim]} both claim {http_method} {template.text}"
                )
            owners[claim] = owner
            deep = template.segments.index("**") if "**" in template.segments else -1
            entries.setdefault(http_method, []).append(_Entry(template, target, deep))
        self._verbs = {method: _Verb(found) for method, found in entries.items()}
        self._literal = {method: verb.literal for method, verb in self._verbs.items()}
        self._none: dict[str, Found[TargetT]] = {}

    def find(self, http_method: str, path: str) -> Found[TargetT] | None:
        """The route of a request; `path` is percent-decoded and begins with a slash."""
        found = self._literal.get(http_method, self._none).get(path)
        if found is not None:
            return found
        verb = self._verbs.get(http_method)
        return verb.find(path, path[1:].split("/")) if verb is not None else None

    def allows_other(self, http_method: str, path: str) -> bool:
        """True when another HTTP method has a route at this path."""
        parts = path[1:].split("/")
        return any(
            verb.find(path, parts) is not None
            for method, verb in self._verbs.items()
            if method != http_method
        )
