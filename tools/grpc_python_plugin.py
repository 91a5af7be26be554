"""The grpc_python protoc plugin that grpcio-tools carries, as a program buf can call.

A plugin reads a CodeGeneratorRequest and writes a CodeGeneratorResponse; grpcio-tools only
has the generator inside its own protoc, so the request's files are handed to that and what it
wrote is handed back. grpcio-tools writes no types for its stubs; they are added here
(grpc_stub_types.py).
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

from google.protobuf import descriptor_pb2
from google.protobuf.compiler import plugin_pb2
from grpc_stub_types import stub_types


def main() -> int:
    request = plugin_pb2.CodeGeneratorRequest.FromString(sys.stdin.buffer.read())
    response = plugin_pb2.CodeGeneratorResponse(
        supported_features=plugin_pb2.CodeGeneratorResponse.FEATURE_PROTO3_OPTIONAL
    )
    wanted = set(request.file_to_generate)
    with_services = [file for file in request.proto_file if file.name in wanted and file.service]
    if with_services:
        with tempfile.TemporaryDirectory() as folder:
            files = Path(folder, "files.binpb")
            files.write_bytes(
                descriptor_pb2.FileDescriptorSet(file=request.proto_file).SerializeToString()
            )
            out = Path(folder, "out")
            out.mkdir()
            arguments = [f"--descriptor_set_in={files}", f"--grpc_python_out={out}"]
            names = [file.name for file in with_services]
            done = subprocess.run(
                [sys.executable, "-m", "grpc_tools.protoc", *arguments, *names],
                capture_output=True,
                text=True,
                check=False,
            )
            if done.returncode:
                response.error = done.stderr
            for path in sorted(out.rglob("*.py")):
                text = path.read_text()
                response.file.add(name=path.relative_to(out).as_posix(), content=text)
    for file in with_services:
        name = file.name.removesuffix(".proto").replace("-", "_") + "_pb2_grpc.pyi"
        response.file.add(name=name, content=stub_types(file, request.proto_file))
    sys.stdout.buffer.write(response.SerializeToString())
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
