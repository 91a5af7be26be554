"""betterproto2's protoc plugin, fed with what its output needs and no more.

The plugin writes a module for every file of the request, so the files that only carry options
(validation rules, HTTP routes) would become modules of ours; they are taken out first. It also
calls `ruff`, which must be found beside the interpreter although no environment is activated.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from google.protobuf.compiler import plugin_pb2
from option_imports import HTTP_RULES, VALIDATION, needed_files, remove_imports


def main() -> int:
    request = plugin_pb2.CodeGeneratorRequest.FromString(sys.stdin.buffer.read())
    remove_imports(request.proto_file, [VALIDATION, HTTP_RULES])
    files = needed_files(request.proto_file, request.file_to_generate)
    reduced = plugin_pb2.CodeGeneratorRequest(
        file_to_generate=request.file_to_generate,
        parameter=request.parameter,
        proto_file=files,
        compiler_version=request.compiler_version,
    )
    programs = Path(sys.executable).parent
    environment = os.environ | {"PATH": f"{programs}{os.pathsep}{os.environ.get('PATH', '')}"}
    done = subprocess.run(
        [str(programs / "protoc-gen-python_betterproto2")],
        input=reduced.SerializeToString(),
        capture_output=True,
        env=environment,
        check=False,
    )
    if done.returncode:
        sys.stderr.buffer.write(done.stderr)
        return done.returncode
    sys.stdout.buffer.write(done.stdout)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
