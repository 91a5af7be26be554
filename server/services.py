"""Which RPC is served by which method: built from descriptors, read by every edge."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from google.protobuf import descriptor_pool, message_factory
from google.protobuf.descriptor import Descriptor, MethodDescriptor, ServiceDescriptor
from google.protobuf.message import Message

Handler = Callable[[Any, Any], Any]
"""What grpc.aio calls a servicer's method: (request or request iterator, context)."""

_STRUCTS = frozenset(
    {"google.protobuf.Struct", "google.protobuf.Value", "google.protobuf.ListValue"}
)


class Method:
    """One RPC of one registered service."""

    __slots__ = (
        "client_streaming",
        "descriptor",
        "exempt",
        "handler",
        "input_has_struct",
        "is_async",
        "name",
        "path",
        "request_class",
        "response_class",
        "server_streaming",
        "service",
    )

    def __init__(self, descriptor: MethodDescriptor, handler: Handler, *, exempt: bool) -> None:
        self.descriptor = descriptor
        self.service: str = descriptor.containing_service.full_name
        self.name: str = descriptor.name
        self.path = f"/{self.service}/{self.name}"
        self.request_class: type[Message] = message_factory.GetMessageClass(descriptor.input_type)
        self.response_class: type[Message] = message_factory.GetMessageClass(descriptor.output_type)
        self.client_streaming: bool = descriptor.client_streaming
        self.server_streaming: bool = descriptor.server_streaming
        self.handler = handler
        self.exempt = exempt
        """Not counted by admission: health and its like must answer under overload."""
        self.is_async = inspect.iscoroutinefunction(handler) or inspect.isasyncgenfunction(handler)
        owner = getattr(handler, "__self__", None)
        # A servicer that looks at each Struct anyway says so and is spared a second walk.
        self.input_has_struct = not getattr(owner, "checks_structs", False) and _reaches_struct(
            descriptor.input_type, set()
        )

    def __repr__(self) -> str:
        return f"Method({self.path})"


class ServiceTable:
    """Every service this port serves; filled in the composition root, then only read."""

    def __init__(self) -> None:
        self.methods: dict[str, Method] = {}
        self.services: dict[str, ServiceDescriptor] = {}

    @property
    def names(self) -> list[str]:
        """Full names of the registered services, sorted."""
        return sorted(self.services)

    def add(self, servicer: object, service: str, *, exempt: bool = False) -> None:
        """Serve `service` (a full proto name in the default pool) by `servicer`.

        The servicer is what grpc.aio would take: an object with a method for each RPC. One that is
        missing is a mistake of the server's author and raises TypeError here, at start.
        """
        if service in self.services:
            raise ValueError(f"service {service} is registered twice")
        descriptor = descriptor_pool.Default().FindServiceByName(service)
        for method in descriptor.methods:
            handler = getattr(servicer, method.name, None)
            if handler is None:
                raise TypeError(f"{type(servicer).__name__} has no method {method.name}")
            entry = Method(method, handler, exempt=exempt)
            self.methods[entry.path] = entry
        self.services[service] = descriptor

    def find(self, path: str) -> Method | None:
        """The method at an HTTP/2 `:path`, or None."""
        return self.methods.get(path)


def _reaches_struct(message: Descriptor, seen: set[str]) -> bool:
    if message.full_name in _STRUCTS:
        return True
    if message.full_name in seen:
        return False
    seen.add(message.full_name)
    return any(
        _reaches_struct(field.message_type, seen)
        for field in message.fields
        if field.message_type is not None
    )
