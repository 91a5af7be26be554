"""Imports of a .proto that carry options only, and taking them out of descriptors.

The option values that `buf/validate/validate.proto` and its like define stay in our descriptors
as they are (unknown extensions to google.protobuf, read by protovalidate); only the import goes.
So generated code needs no `buf.validate` module, which no wheel ships and which two packages in
one process may not both define (docs/decisions.md).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from google.protobuf.descriptor_pb2 import FileDescriptorProto

VALIDATION = "buf/validate/validate.proto"
HTTP_RULES = "google/api/annotations.proto"


def remove_imports(files: Iterable[FileDescriptorProto], option_only: Iterable[str]) -> None:
    """Take the imports named in `option_only` out of every file, in place."""
    dropped = frozenset(option_only)
    for file in files:
        kept = [name for name in file.dependency if name not in dropped]
        if len(kept) == len(file.dependency):
            continue
        if file.public_dependency or file.weak_dependency:
            raise SystemExit(f"{file.name}: public and weak imports are not handled here")
        del file.dependency[:]
        file.dependency.extend(kept)


def needed_files(
    files: Iterable[FileDescriptorProto], wanted: Iterable[str]
) -> list[FileDescriptorProto]:
    """The files of `wanted` and all they import, in the order given."""
    by_name = {file.name: file for file in files}
    waiting, seen = list(wanted), set[str]()
    while waiting:
        name = waiting.pop()
        if name not in seen:
            seen.add(name)
            waiting.extend(by_name[name].dependency)
    return [file for name, file in by_name.items() if name in seen]
