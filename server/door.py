"""What is refused before any servicer sees it, because some transport could not carry it."""

from __future__ import annotations

from google.protobuf import struct_pb2
from google.protobuf.message import Message

from lakemesh.agents.structs import NotCarryable, struct_to_dict

_STRUCT = "google.protobuf.Struct"
_VALUE = "google.protobuf.Value"
_LIST = "google.protobuf.ListValue"


def refuse_uncarryable(message: Message, path: str = "") -> None:
    """Raise NotCarryable for a Struct, Value or ListValue below `message` that JSON cannot carry.

    Only messages whose type reaches one of the three need the walk (`Method.input_has_struct`).
    """
    kind = message.DESCRIPTOR.full_name
    if kind == _STRUCT:
        struct_to_dict(message, path)  # type: ignore[arg-type]
        return
    if kind in (_VALUE, _LIST):
        holder = struct_pb2.Struct()
        inner = holder.fields["value"]
        (inner if kind == _VALUE else inner.list_value).MergeFromString(message.SerializeToString())
        try:
            struct_to_dict(holder, "")
        except NotCarryable as refused:
            raise NotCarryable(path + refused.path.removeprefix(".value"), refused.why) from None
        return
    for field, value in message.ListFields():
        if field.message_type is None:
            continue
        name = f"{path}.{field.name}" if path else field.name
        if field.message_type.GetOptions().map_entry:
            if field.message_type.fields_by_name["value"].message_type is not None:
                for key in value:
                    refuse_uncarryable(value[key], f"{name}[{key}]")
        elif field.is_repeated:
            for index, item in enumerate(value):
                refuse_uncarryable(item, f"{name}[{index}]")
        else:
            refuse_uncarryable(value, name)
