from __future__ import annotations

import json
import math
import struct
from typing import Any

import pytest
from google.protobuf import any_pb2, json_format, message_factory, timestamp_pb2, wrappers_pb2
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lakemesh.server.json_codec import JsonCodec
from lakemesh.server.json_read import MAX_DEPTH
from lakemesh.server.json_wellknown import JsonError
from tests.facade.probe_contract import kind

CODEC = JsonCodec()
Everything = kind("Everything")

# Messages with every kind of value a JSON document can hold.

_TEXT = st.text(max_size=8)
_FINITE = st.floats(allow_nan=False, allow_infinity=False)
_SCALARS: dict[int, st.SearchStrategy[Any]] = {
    FieldDescriptor.CPPTYPE_INT32: st.integers(-(2**31), 2**31 - 1),
    FieldDescriptor.CPPTYPE_INT64: st.integers(-(2**63), 2**63 - 1),
    FieldDescriptor.CPPTYPE_UINT32: st.integers(0, 2**32 - 1),
    FieldDescriptor.CPPTYPE_UINT64: st.integers(0, 2**64 - 1),
    FieldDescriptor.CPPTYPE_DOUBLE: st.floats(allow_nan=False),
    FieldDescriptor.CPPTYPE_FLOAT: st.floats(width=32, allow_nan=False),
    FieldDescriptor.CPPTYPE_BOOL: st.booleans(),
    FieldDescriptor.CPPTYPE_ENUM: st.sampled_from([0, 1, 2]),
}
_JSON = st.recursive(
    st.none() | st.booleans() | _TEXT | _FINITE | st.integers(-(2**53), 2**53).map(float),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_TEXT, inner, max_size=3),
    max_leaves=6,
)


def _scalar(field: FieldDescriptor) -> st.SearchStrategy[Any]:
    if field.type == FieldDescriptor.TYPE_BYTES:
        return st.binary(max_size=9)
    if field.cpp_type == FieldDescriptor.CPPTYPE_STRING:
        return _TEXT
    if field.enum_type is not None and field.enum_type.full_name.endswith("NullValue"):
        return st.just(0)
    return _SCALARS[field.cpp_type]


@st.composite
def _messages(draw: st.DrawFn, descriptor: Descriptor, depth: int = 0) -> Any:
    name = descriptor.full_name
    message = _class(descriptor)()
    if name == "google.protobuf.Timestamp":
        message.seconds = draw(st.integers(-62135596800, 253402300799))
        message.nanos = draw(st.sampled_from([0, 1, 500_000_000, 999_999_999, 120_000]))
    elif name == "google.protobuf.Duration":
        message.seconds = draw(st.integers(-315_576_000_000, 315_576_000_000))
        if abs(message.seconds) < 315_576_000_000:
            nanos = draw(st.sampled_from([0, 1, 500_000_000, 999_999_999, 120_000]))
            message.nanos = -nanos if message.seconds < 0 else nanos
    elif name == "google.protobuf.FieldMask":
        message.paths.extend(draw(st.lists(st.sampled_from(["a", "b_c", "d.e_f"]), max_size=3)))
    elif name == "google.protobuf.Any":
        if draw(st.booleans()):
            message.Pack(draw(_messages(kind("Inner").DESCRIPTOR, 3)))
        elif draw(st.booleans()):
            message.Pack(draw(_messages(timestamp_pb2.Timestamp.DESCRIPTOR)))
    elif name == "google.protobuf.Struct":
        message.update(draw(st.dictionaries(_TEXT, _JSON, max_size=3)))
    elif name == "google.protobuf.ListValue":
        message.extend(draw(st.lists(_JSON, max_size=3)))
    elif name == "google.protobuf.Value":
        holder = {"": draw(_JSON)}
        json_format.ParseDict(holder[""], message)  # type: ignore[arg-type]
    else:
        names = [field.name for field in descriptor.fields]
        wanted = draw(st.lists(st.sampled_from(names), max_size=8, unique=True))
        for field in descriptor.fields:
            if field.name in wanted:
                _fill(draw, message, field, depth)
    return message


def _fill(draw: st.DrawFn, message: Any, field: FieldDescriptor, depth: int) -> None:
    inner = field.message_type
    if inner is not None and depth >= 3 and not inner.full_name.startswith("google."):
        return
    if inner is not None and inner.GetOptions().map_entry:
        keys, value = _scalar(inner.fields_by_name["key"]), inner.fields_by_name["value"]
        for key in draw(st.lists(keys, max_size=2)):
            if value.message_type is None:
                getattr(message, field.name)[key] = draw(_scalar(value))
            else:
                made = draw(_messages(value.message_type, depth + 1))
                getattr(message, field.name)[key].CopyFrom(made)
    elif field.is_repeated and inner is not None:
        for one in draw(st.lists(_messages(inner, depth + 1), max_size=2)):
            getattr(message, field.name).append(one)
    elif field.is_repeated:
        getattr(message, field.name).extend(draw(st.lists(_scalar(field), max_size=3)))
    elif inner is not None:
        getattr(message, field.name).CopyFrom(draw(_messages(inner, depth + 1)))
        getattr(message, field.name).SetInParent()
    else:
        setattr(message, field.name, draw(_scalar(field)))


def _class(descriptor: Descriptor) -> Any:
    return message_factory.GetMessageClass(descriptor)


def _without_nulls_for_unset(descriptor: Descriptor, value: Any) -> Any:
    """What json_format would have printed: it leaves unset messages out."""
    if descriptor.full_name.startswith("google.protobuf.") or type(value) is not dict:
        return value
    found = {}
    for field in descriptor.fields:
        if field.json_name not in value:
            continue
        item = value[field.json_name]
        inner = field.message_type
        if inner is None:
            found[field.json_name] = item
        elif inner.GetOptions().map_entry:
            of = inner.fields_by_name["value"].message_type
            found[field.json_name] = (
                {k: _without_nulls_for_unset(of, v) for k, v in item.items()} if of else item
            )
        elif field.is_repeated:
            found[field.json_name] = [_without_nulls_for_unset(inner, one) for one in item]
        elif item is not None or inner.full_name == "google.protobuf.Value":
            found[field.json_name] = _without_nulls_for_unset(inner, item)
    return found


def _printed(message: Any) -> Any:
    return json.loads(CODEC.dumps(CODEC.encode(message)))


def _read(body: bytes | str, name: str = "Everything") -> Any:
    message = kind(name)()
    CODEC.decode(CODEC.parse(body.encode() if isinstance(body, str) else body), message)
    return message


@settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck))
@given(_messages(Everything.DESCRIPTOR))
def test_it_prints_what_json_format_prints_and_reads_it_back(message: Any) -> None:
    ours = _printed(message)
    reference = json_format.MessageToDict(message, always_print_fields_with_no_presence=True)
    told = _without_nulls_for_unset(Everything.DESCRIPTOR, ours)
    assert _plain(told) == _plain(reference)
    assert _read(json.dumps(reference)) == message
    assert _read(json.dumps(ours)) == _null_values_read_as_set(message, ours)


def _plain(value: Any, *, in_any: bool = False) -> Any:
    """Without the nulls of unset messages within an Any, and of unset Values."""
    if isinstance(value, dict):
        in_any = in_any or "@type" in value
        return {
            key: _plain(item, in_any=in_any)
            for key, item in value.items()
            if not (item is None and (in_any or key == "anyValue"))
        }
    return [_plain(one, in_any=in_any) for one in value] if isinstance(value, list) else value


def _null_values_read_as_set(message: Any, printed: Any) -> Any:
    """A printed null for an unset Value is read as a Value that is null, in protojson too."""
    copy = type(message)()
    copy.CopyFrom(message)
    _set_null_values(copy)
    return copy


def _set_null_values(message: Any) -> None:
    if message.DESCRIPTOR.full_name != Everything.DESCRIPTOR.full_name:
        return
    if not message.HasField("any_value"):
        message.any_value.null_value = 0
    if message.HasField("itself"):
        _set_null_values(message.itself)


def test_unset_messages_are_null_and_unset_choices_are_left_out() -> None:
    printed = _printed(Everything())
    assert printed["inner"] is None
    assert printed["atTime"] is None
    assert printed["wrappedInt64"] is None
    assert printed["anInt64"] == "0"
    assert printed["aDouble"] == 0
    assert printed["intList"] == []
    assert printed["stringMap"] == {}
    assert printed["colour"] == "COLOUR_UNSPECIFIED"
    assert printed["otherName"] == ""
    for absent in ("maybeInt", "maybeString", "chosenText", "chosenInner", "chosenNull"):
        assert absent not in printed


def test_both_spellings_of_a_field_are_read() -> None:
    assert _read('{"an_int64": "5", "otherName": "x"}').an_int64 == 5
    assert _read('{"anInt64": 5, "renamed": "y"}').renamed == "y"


@pytest.mark.parametrize(
    ("body", "field", "value"),
    [
        ('{"an_int32": "7"}', "an_int32", 7),
        ('{"an_int32": 1e3}', "an_int32", 1000),
        ('{"an_int32": "1e3"}', "an_int32", 1000),
        ('{"an_int64": "9223372036854775807"}', "an_int64", 2**63 - 1),
        ('{"a_uint64": 18446744073709551615}', "a_uint64", 2**64 - 1),
        ('{"a_double": "1.5"}', "a_double", 1.5),
        ('{"a_double": "-Infinity"}', "a_double", -math.inf),
        ('{"colour": "COLOUR_BLUE"}', "colour", 2),
        ('{"colour": 2}', "colour", 2),
        ('{"colour": 77}', "colour", 77),
        ('{"colour": "COLOUR_OF_MAGIC"}', "colour", 0),
        ('{"some_bytes": "-_-_"}', "some_bytes", b"\xfb\xff\xbf"),
        ('{"some_bytes": "+/8="}', "some_bytes", b"\xfb\xff"),
        ('{"some_bytes": "+/8"}', "some_bytes", b"\xfb\xff"),
        ('{"a_string": null}', "a_string", ""),
        ('{"unheard_of": {"x": [1]}}', "a_string", ""),
        ('{"a_string": "one"} trailing rubbish', "a_string", "one"),
        ("", "a_string", ""),
    ],
)
def test_lenient_forms_are_read(body: str, field: str, value: Any) -> None:
    parsed = CODEC.parse(body.encode())
    message = Everything()
    if parsed is not None:
        CODEC.decode(parsed, message)
    assert getattr(message, field) == value


@pytest.mark.parametrize(
    ("body", "path"),
    [
        ('{"an_int32": 1.5}', "an_int32"),
        ('{"an_int32": 2147483648}', "an_int32"),
        ('{"an_int32": true}', "an_int32"),
        ('{"an_int32": "0x10"}', "an_int32"),
        ('{"an_int32": "1e999999999"}', "an_int32"),
        ('{"an_int32": "1_000"}', "an_int32"),
        ('{"a_uint64": -1}', "a_uint64"),
        ('{"a_double": 1e400}', "a_double"),
        ('{"a_double": "1e400"}', "a_double"),
        ('{"a_float": 1e39}', "a_float"),
        ('{"a_bool": "true"}', "a_bool"),
        ('{"a_string": 5}', "a_string"),
        ('{"a_string": "\\ud800"}', "a_string"),
        ('{"some_bytes": "!"}', "some_bytes"),
        ('{"colour": true}', "colour"),
        ('{"inner": [1]}', "inner"),
        ('{"inner": {"bigNumber": "x"}}', "inner.bigNumber"),
        ('{"inner_list": [{}, {"next": {"label": 1}}]}', "inner_list[1].next.label"),
        ('{"inner_list": [null]}', "inner_list[0]"),
        ('{"int_list": [1, "x"]}', "int_list[1]"),
        ('{"string_map": {"a": 1}}', "string_map['a']"),
        ('{"string_map": {"a": null}}', "string_map['a']"),
        ('{"inner_map": {"01": {}}}', "inner_map['01']"),
        ('{"bool_map": {"yes": 1}}', "bool_map['yes']"),
        ('{"chosen_text": "a", "chosen_number": 1}', "chosen_number"),
        ('{"an_int32": 1, "anInt32": 1}', "anInt32"),
        ('{"at_time": "yesterday"}', "at_time"),
        ('{"at_time": "2026-02-30T00:00:00Z"}', "at_time"),
        ('{"at_time": "2026-02-03T00:00:00"}', "at_time"),
        ('{"how_long": "5"}', "how_long"),
        ('{"how_long": "315576000001s"}', "how_long"),
        ('{"update_mask": "a_b"}', "update_mask"),
        ('{"free_form": {"a": {"b": [1e400]}}}', "free_form.a.b[0]"),
        ('{"free_form": {"a": 9007199254740993}}', "free_form.a"),
        ('{"free_form": [1]}', "free_form"),
        ('{"free_form": {"a": "\\ud800"}}', "free_form"),
        ('{"any_value": 9007199254740993}', "any_value"),
        ('{"value_list": {"a": 1}}', "value_list"),
        ('{"anything": {"a": 1}}', "anything.@type"),
        ('{"anything": {"@type": "x/no.Such"}}', "anything.@type"),
        ('{"a_null": 1}', "a_null"),
        ("[1]", ""),
    ],
)
def test_what_does_not_fit_is_refused_by_field(body: str, path: str) -> None:
    with pytest.raises(JsonError) as refused:
        _read(body)
    assert refused.value.path == path


@pytest.mark.parametrize(
    "body",
    [
        b'{"a_string": "x", "a_string": "y"}',
        b'{"free_form": {"a": 1, "a": 1}}',
        b'{"free_form": {"a": NaN}}',
        b'{"free_form": {"a": -Infinity}}',
        b'{"a_double": ' + b"9" * 5000 + b"}",
        b"{",
        b"\xff\xfe",
        b'{"a_string": "\xff"}',
        b"[" * 100_000,
        b'{"free_form":' * 3000,
    ],
)
def test_bodies_that_are_not_json_are_refused(body: bytes) -> None:
    with pytest.raises(JsonError):
        CODEC.parse(body)


@pytest.mark.parametrize("levels", [29, 30, 31, 32, 33, 34, 60, 200])
@pytest.mark.parametrize(
    ("opening", "closing", "within"),
    [
        ('{"a":', "}", "free_form"),
        ("[", "]", "any_value"),
        ('{"next":', "}", "inner"),
        ('{"a":', "}", "itself.itself.itself.itself.free_form"),
    ],
)
def test_what_is_read_can_also_be_sent_in_binary(
    levels: int, opening: str, closing: str, within: str
) -> None:
    value = opening * levels + ("null" if within == "inner" else "1") + closing * levels
    for name in reversed(within.split(".")):
        value = f'{{"{name}":{value}}}'
    refused = _refused(value)
    if refused is not None:
        assert "nested" in refused.why
        assert levels > MAX_DEPTH - 5
        return
    message = _read(value)
    assert Everything.FromString(message.SerializeToString()) == message
    assert levels <= MAX_DEPTH


def _refused(body: str) -> JsonError | None:
    try:
        _read(body)
    except JsonError as error:
        return error
    return None


_NAMES = [field.name for field in Everything.DESCRIPTOR.fields]
_NAMES += [field.json_name for field in Everything.DESCRIPTOR.fields]
_NAMES += ["@type", "label", "next", "more", "bigNumber", "value", "seconds", "paths"]
_ANYTHING = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(alphabet=st.characters(), max_size=6)
    | st.sampled_from(
        [
            "1",
            "-1.0",
            "1e3",
            "1e400",
            "NaN",
            "Infinity",
            "true",
            "AAA=",
            "\ud800",
            "2026-01-31T12:00:00.5+01:00",
            "0000-01-01T00:00:00Z",
            "9999-12-31T23:59:59-01:00",
            "-0.5s",
            "a.bC,d",
            "COLOUR_RED",
            "NULL_VALUE",
            "type.googleapis.com/google.protobuf.Duration",
            "type.googleapis.com/google.protobuf.Any",
            "type.googleapis.com/lakemesh.test.facade.v1.Inner",
            1e400,
            2**53 + 1,
        ]
    ),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(_NAMES) | _TEXT, inner, max_size=4)
    ),
    max_leaves=10,
)


@settings(max_examples=500, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.dictionaries(st.sampled_from(_NAMES), _ANYTHING, max_size=6))
def test_any_json_is_refused_or_carried_by_every_transport(document: dict[str, Any]) -> None:
    text = json.dumps(document).replace("Infinity,", "1e400,")
    if _refused(text) is not None:
        return
    message = _read(text)
    assert Everything.FromString(message.SerializeToString()) == message
    printed = _printed(message)
    again = _null_values_read_as_set(message, printed)
    assert _read(json.dumps(printed)) == again


def test_a_struct_keeps_whole_numbers_whole_on_the_way_out() -> None:
    message = _read('{"free_form": {"amount": 5000, "rate": 0.25, "huge": 1e300}}')
    text = CODEC.dumps(CODEC.encode(message)).decode()
    assert '"amount":5000' in text
    assert '"rate":0.25' in text
    assert _printed(message)["freeForm"]["huge"] == 1e300


def test_a_number_json_lacks_is_not_printed_as_null() -> None:
    message = Everything()
    message.free_form["x"] = math.nan
    with pytest.raises(JsonError):
        CODEC.encode(message)
    assert _printed(Everything(a_double=math.nan))["aDouble"] == "NaN"


@settings(max_examples=300, deadline=None)
@given(st.floats(width=32, allow_nan=False, allow_infinity=False))
def test_a_float_is_printed_with_digits_that_give_it_back(value: float) -> None:
    printed = _printed(Everything(a_float=value))["aFloat"]
    assert struct.pack("<f", printed) == struct.pack("<f", value)
    assert len(repr(printed)) <= len(repr(value)) or value.is_integer()


def test_any_carries_types_with_and_without_a_form_of_their_own() -> None:
    message = Everything()
    message.anything.Pack(wrappers_pb2.Int64Value(value=5))
    printed = _printed(message)["anything"]
    assert printed == {
        "@type": "type.googleapis.com/google.protobuf.Int64Value",
        "value": "5",
    }
    assert _read(json.dumps({"anything": printed})) == message
    unknown = Everything(anything=any_pb2.Any(type_url="type.googleapis.com/no.Such"))
    with pytest.raises(JsonError) as refused:
        CODEC.encode(unknown)
    assert refused.value.path == "anything"


def test_only_white_space_separates_several_values() -> None:
    assert CODEC.parse_all(b'{"a":1}\n{"a":2} [3]') == [{"a": 1}, {"a": 2}, [3]]
    with pytest.raises(JsonError):
        CODEC.parse_all(b'{"a":1},{"a":2}')
