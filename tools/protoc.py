"""protoc for `buf generate`, with the imports that only linters need taken out.

buf hands protoc one serialised FileDescriptorSet. The option values that
`buf/validate/validate.proto` and its like define stay in our descriptors as they are
(unknown extensions to google.protobuf, read by protovalidate); only the import goes.
So a generated Python module needs no `buf.validate` module, which no wheel ships and which
two packages in one process may not both define (docs/decisions.md).
"""

from __future__ import annotations

import subprocess
import sys

from google.protobuf import descriptor_pb2

OPTION_ONLY_IMPORTS = ("buf/validate/validate.proto",)


def without_option_only_imports(raw: bytes) -> bytes:
    """The same FileDescriptorSet, no file of it importing one of `OPTION_ONLY_IMPORTS`."""
    files = descriptor_pb2.FileDescriptorSet.FromString(raw)
    for file in files.file:
        kept = [name for name in file.dependency if name not in OPTION_ONLY_IMPORTS]
        if len(kept) == len(file.dependency):
            continue
        if file.public_dependency or file.weak_dependency:
            raise SystemExit(f"{file.name}: public and weak imports are not handled here")
        del file.dependency[:]
        file.dependency.extend(kept)
    return files.SerializeToString()


def main() -> int:
    if sys.argv[1:] == ["--version"]:
        return subprocess.call([sys.executable, "-m", "grpc_tools.protoc", "--version"])
    return subprocess.run(
        [sys.executable, "-m", "grpc_tools.protoc", *sys.argv[1:]],
        input=without_option_only_imports(sys.stdin.buffer.read()),
        check=False,
    ).returncode


if __name__ == "__main__":
    raise SystemExit(main())
