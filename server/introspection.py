"""What debugging tools ask of a gRPC server: reflection v1 and v1alpha, channelz."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator
from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.protobuf.message import Message
from grpc_channelz.v1 import channelz
from grpc_reflection.v1alpha import reflection, reflection_pb2

from lakemesh.server.call import Call
from lakemesh.server.services import ServiceTable

V1_ALPHA = "grpc.reflection.v1alpha.ServerReflection"
V1 = "grpc.reflection.v1.ServerReflection"
CHANNELZ = "grpc.channelz.v1.Channelz"
_V1_FILE = "grpc/reflection/v1/reflection.proto"


class ReflectionV1:
    """grpc.reflection.v1: the messages of v1alpha under another package, and nothing more."""

    def __init__(self, alpha: Any) -> None:
        self._alpha = alpha
        self._request = reflection_pb2.ServerReflectionRequest
        found = descriptor_pool.Default().FindMessageTypeByName(
            "grpc.reflection.v1.ServerReflectionResponse"
        )
        self._response: type[Message] = message_factory.GetMessageClass(found)

    async def ServerReflectionInfo(
        self, requests: AsyncIterator[Message], context: Call
    ) -> AsyncGenerator[Message, None]:
        async def as_alpha() -> AsyncGenerator[Message, None]:
            async for request in requests:
                yield self._request.FromString(request.SerializeToString())

        async for answer in self._alpha.ServerReflectionInfo(as_alpha(), context):
            yield self._response.FromString(answer.SerializeToString())


def add_introspection(services: ServiceTable) -> None:
    """Serve reflection (both versions) and channelz; call it after every other service is added."""
    _define_v1()
    names = sorted({*services.names, V1, V1_ALPHA, CHANNELZ})
    alpha = reflection.aio.ReflectionServicer(names)
    services.add(alpha, V1_ALPHA)
    services.add(ReflectionV1(alpha), V1)
    services.add(channelz.aio.ChannelzServicer(), CHANNELZ)


def _define_v1() -> None:
    """Add the v1 file to the process's pool, from v1alpha's: grpcio-reflection ships only that."""
    pool = descriptor_pool.Default()
    try:
        pool.FindFileByName(_V1_FILE)
    except KeyError:
        alpha = reflection_pb2.DESCRIPTOR.serialized_pb
        text = descriptor_pb2.FileDescriptorProto.FromString(alpha)
        text.name = _V1_FILE
        text.package = "grpc.reflection.v1"
        old, new = ".grpc.reflection.v1alpha.", ".grpc.reflection.v1."
        for message in text.message_type:
            for field in message.field:
                if field.type_name:
                    field.type_name = field.type_name.replace(old, new)
        for service in text.service:
            for method in service.method:
                method.input_type = method.input_type.replace(old, new)
                method.output_type = method.output_type.replace(old, new)
        pool.Add(text)
