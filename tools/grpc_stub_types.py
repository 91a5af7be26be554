"""Type stubs for the `*_pb2_grpc` modules, which grpcio-tools writes untyped.

What they promise a type checker: a stub made from a synchronous channel has synchronous
multi-callables, one made from a `grpc.aio` channel has asynchronous ones, both typed by request
and response; a servicer's methods take the request and any context (grpc's own, or the one of
another server that runs the same servicer) and answer either way.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from google.protobuf.descriptor_pb2 import (
        DescriptorProto,
        FileDescriptorProto,
        MethodDescriptorProto,
        ServiceDescriptorProto,
    )


def stub_types(file: FileDescriptorProto, files: Iterable[FileDescriptorProto]) -> str:
    """The text of the .pyi beside the `_pb2_grpc` module of `file`."""
    modules = _modules(files)
    used = {
        modules[name]
        for service in file.service
        for method in service.method
        for name in (method.input_type, method.output_type)
    }
    lines = [
        f"# Generated from {file.name}; do not edit.",
        "from collections.abc import AsyncIterator, Awaitable, Iterator",
        "from typing import Any, overload",
        "",
        "import grpc",
        "import grpc.aio",
        *sorted(f"import {module}" for module in used),
    ]
    for service in file.service:
        lines += ["", *_service(service, modules)]
    return "\n".join(lines) + "\n"


def _modules(files: Iterable[FileDescriptorProto]) -> dict[str, str]:
    """Python module of each top-level and nested message, by its full name with a leading dot."""
    found: dict[str, str] = {}

    def walk(prefix: str, messages: Iterable[DescriptorProto], module: str) -> None:
        for message in messages:
            found[f"{prefix}.{message.name}"] = module
            walk(f"{prefix}.{message.name}", message.nested_type, module)

    for file in files:
        module = file.name.removesuffix(".proto").replace("-", "_").replace("/", ".") + "_pb2"
        walk(f".{file.package}" if file.package else "", file.message_type, module)
    return found


def _service(service: ServiceDescriptorProto, modules: dict[str, str]) -> Iterator[str]:
    def python_name(name: str) -> str:
        # A nested message has its parents' names before it, a package does not.
        module, parts = modules[name], name.split(".")
        depth = len(parts) - 1
        while ".".join(parts[:depth]) in modules:
            depth -= 1
        return f"{module}.{'.'.join(parts[depth:])}"

    def shape(method: MethodDescriptorProto) -> str:
        kind = {True: "Stream", False: "Unary"}
        return f"{kind[method.client_streaming]}{kind[method.server_streaming]}MultiCallable"

    def types(method: MethodDescriptorProto) -> tuple[str, str]:
        return python_name(method.input_type), python_name(method.output_type)

    stub, asynchronous = f"{service.name}Stub", f"{service.name}AsyncStub"
    yield f"class {stub}:"
    yield "    @overload"
    yield f"    def __new__(cls, channel: grpc.Channel) -> {stub}: ..."
    yield "    @overload"
    yield f"    def __new__(cls, channel: grpc.aio.Channel) -> {asynchronous}: ..."
    for method in service.method:
        yield f"    {method.name}: grpc.{shape(method)}[{', '.join(types(method))}]"
    yield ""
    yield "# For type checkers only: what the class above is when made from a grpc.aio channel."
    yield f"class {asynchronous}({stub}):"
    for method in service.method:
        callable_type = f"grpc.aio.{shape(method)}[{', '.join(types(method))}]"
        yield f"    {method.name}: {callable_type}  # type: ignore[assignment]"
    if not service.method:
        yield "    ..."
    yield ""
    yield f"class {service.name}Servicer:"
    for method in service.method:
        request, response = types(method)
        # Any for a stream of requests: a servicer is written for one of the two iterators.
        taken = "Any" if method.client_streaming else request
        given = (
            f"AsyncIterator[{response}] | Iterator[{response}]"
            if method.server_streaming
            else f"Awaitable[{response}] | {response}"
        )
        yield f"    def {method.name}(self, request: {taken}, context: Any) -> {given}: ..."
    if not service.method:
        yield "    ..."
    yield ""
    yield f"def add_{service.name}Servicer_to_server("
    yield f"    servicer: {service.name}Servicer, server: grpc.Server | grpc.aio.Server"
    yield ") -> None: ..."
    yield ""
    yield f"class {service.name}:"
    for method in service.method:
        yield "    @staticmethod"
        yield f"    def {method.name}(*args: Any, **kwargs: Any) -> Any: ..."
    if not service.method:
        yield "    ..."
