"""Compiles probe.proto once for the process, with its comments, into the default pool."""

from __future__ import annotations

import importlib.resources
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import google
from google.api import annotations_pb2, httpbody_pb2
from google.protobuf import (
    any_pb2,
    descriptor_pb2,
    descriptor_pool,
    duration_pb2,
    field_mask_pb2,
    message_factory,
    struct_pb2,
    timestamp_pb2,
    wrappers_pb2,
)
from grpc_tools import protoc

PACKAGE = "lakemesh.test.facade.v1"
SERVICE = f"{PACKAGE}.Probe"
# Imported for what they put into the pool.
IMPORTED = (
    annotations_pb2,
    any_pb2,
    duration_pb2,
    field_mask_pb2,
    httpbody_pb2,
    struct_pb2,
    timestamp_pb2,
    wrappers_pb2,
)


@cache
def files() -> descriptor_pb2.FileDescriptorSet:
    here = Path(__file__).parent
    wheel = Path(next(iter(google.__path__))).parent
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "set.binpb"
        code = protoc.main(
            [
                "protoc",
                f"-I{here}",
                f"-I{wheel}",
                f"-I{importlib.resources.files('grpc_tools') / '_proto'}",
                "--include_source_info",
                f"--descriptor_set_out={out}",
                "probe.proto",
            ]
        )
        assert code == 0
        found = descriptor_pb2.FileDescriptorSet.FromString(out.read_bytes())
    for file in found.file:
        plain = descriptor_pb2.FileDescriptorProto()
        plain.CopyFrom(file)
        plain.ClearField("source_code_info")
        descriptor_pool.Default().Add(plain)
    return found


@cache
def kind(name: str) -> Any:
    """The message class of that name."""
    files()
    descriptor = descriptor_pool.Default().FindMessageTypeByName(f"{PACKAGE}.{name}")
    return message_factory.GetMessageClass(descriptor)
