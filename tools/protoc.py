"""protoc for `buf generate`, with the imports that only linters need taken out.

buf hands protoc one serialised FileDescriptorSet; option_imports.py says what goes and why.
"""

from __future__ import annotations

import subprocess
import sys

from google.protobuf import descriptor_pb2
from option_imports import VALIDATION, remove_imports


def main() -> int:
    command = [sys.executable, "-m", "grpc_tools.protoc", *sys.argv[1:]]
    if sys.argv[1:] == ["--version"]:
        return subprocess.call(command)
    files = descriptor_pb2.FileDescriptorSet.FromString(sys.stdin.buffer.read())
    remove_imports(files.file, [VALIDATION])
    return subprocess.run(command, input=files.SerializeToString(), check=False).returncode


if __name__ == "__main__":
    raise SystemExit(main())
