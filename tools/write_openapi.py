"""Write the OpenAPI document of our protos, comments included.

    python tools/write_openapi.py DESCRIPTORS TARGET

DESCRIPTORS is what `buf build` writes. They get a pool of their own, so neither the generated
modules that are installed nor their age matter; lakemesh.server.openapi must be importable.
"""

from __future__ import annotations

import json
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

from google.protobuf.descriptor import MethodDescriptor
from google.protobuf.descriptor_pb2 import FileDescriptorSet
from google.protobuf.descriptor_pool import DescriptorPool

from lakemesh.server.openapi import build_openapi, comments_of

ROOT = Path(__file__).resolve().parent.parent
OURS = "lakemesh/"


def methods(files: FileDescriptorSet) -> Iterator[MethodDescriptor]:
    """Every method of our services, by file name and then as the file has them."""
    pool = DescriptorPool()
    for file in files.file:  # buf writes a file after all it imports
        pool.Add(file)
    for name in sorted(file.name for file in files.file if file.name.startswith(OURS)):
        for service in pool.FindFileByName(name).services_by_name.values():
            yield from service.methods


def main() -> int:
    descriptors, target = map(Path, sys.argv[1:])
    files = FileDescriptorSet.FromString(descriptors.read_bytes())
    with (ROOT / "pyproject.toml").open("rb") as file:
        version = tomllib.load(file)["project"]["version"]
    ours = FileDescriptorSet(file=[file for file in files.file if file.name.startswith(OURS)])
    document = build_openapi(
        methods(files), title="Lakemesh", version=version, comments=comments_of(ours)
    )
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(json.dumps(document, indent=2, ensure_ascii=False) + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
