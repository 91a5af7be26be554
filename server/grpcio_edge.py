"""The grpc.aio server behind the port: one generic handler over the service table.

Messages come and go as bytes, so that what cannot be decoded is answered by the pipeline's words
and not by grpc's. It listens on a unix socket in a folder that only this user can enter; nothing
but the port connects to it.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import shutil
import tempfile
from collections.abc import AsyncIterator, Iterable
from pathlib import Path
from typing import Any, ClassVar, NoReturn

import grpc
from google.protobuf.message import Message

from lakemesh.server.call import DETAILS_KEY, Call
from lakemesh.server.errors import Code, StatusError
from lakemesh.server.pipeline import Pipeline
from lakemesh.server.services import Method, ServiceTable
from lakemesh.server.splice import PeerNames

_CODES: dict[Code, grpc.StatusCode] = {Code(code.value[0]): code for code in grpc.StatusCode}
_CUT_SECONDS = 0.5
_SOCKET = "grpc"


def options(message_bytes: int, metadata_bytes: int) -> list[tuple[str, int]]:
    """The channel arguments of the server, each with its reason."""
    return [
        ("grpc.max_receive_message_length", message_bytes),
        ("grpc.max_send_message_length", -1),  # how much it takes is the client's to say
        # Between the soft and the hard limit grpc refuses at random: make them one.
        ("grpc.max_metadata_size", metadata_bytes),
        ("grpc.absolute_max_metadata_size", metadata_bytes),
        # Without these three, 0.4-9 % of 2,000 concurrent calls on one channel end CANCELLED.
        ("grpc.server.max_pending_requests", 10_000),
        ("grpc.server.max_pending_requests_hard_limit", 20_000),
        ("grpc.server_max_unrequested_time_in_server", 60),
        ("grpc.so_reuseport", 0),
        # Behind the port an idle connection ends when its client's does, not before.
        ("grpc.http2.max_ping_strikes", 2),
    ]


class GrpcioEdge:
    """Serves the table's RPCs by grpc.aio at `path`, for connections the port joins to it."""

    def __init__(self, services: ServiceTable, pipeline: Pipeline) -> None:
        self.services = services
        self.pipeline = pipeline
        self.closing = ""
        """Why calls are being cut; empty while they are not."""
        self.active: set[asyncio.Task[Any]] = set()
        self._folder = Path(tempfile.mkdtemp(prefix="lakemesh-"))
        self.path = self._folder / _SOCKET
        self.names = PeerNames(self._folder)
        self.idle = asyncio.Event()
        self.idle.set()
        limits = pipeline.limits
        self._server = grpc.aio.server(options=options(limits.message_bytes, limits.metadata_bytes))
        self._server.add_generic_rpc_handlers((_Handlers(self),))

    async def start(self) -> None:
        """Listen. Raises RuntimeError if the socket cannot be made."""
        self._server.add_insecure_port(f"unix:{self.path}")
        await self._server.start()

    async def drain(self, seconds: float, reason: str) -> None:
        """GOAWAY to every connection, finish the calls at work, cut those that last longer.

        A call that is cut ends UNAVAILABLE with `reason`. Returns when none is at work.
        """
        stopping = asyncio.ensure_future(self._server.stop(seconds + 2 * _CUT_SECONDS))
        try:
            await asyncio.wait_for(self.idle.wait(), seconds)
        except TimeoutError:
            await self.cut(reason)
        # Clients close their connections after the GOAWAY; those that do not are not waited for.
        await asyncio.wait((stopping,), timeout=_CUT_SECONDS)
        await self._server.stop(0)
        await stopping

    async def cut(self, reason: str) -> None:
        """End every call at work with UNAVAILABLE and `reason`."""
        self.closing = reason
        for task in tuple(self.active):
            task.cancel(reason)
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self.idle.wait(), _CUT_SECONDS)

    async def close(self) -> None:
        """Stop at once and leave nothing behind."""
        try:
            await self._server.stop(0)
        finally:
            await asyncio.to_thread(shutil.rmtree, self._folder, ignore_errors=True)

    def cut_error(self) -> StatusError:
        return StatusError(Code.UNAVAILABLE, self.closing)

    def begin(self) -> asyncio.Task[Any]:
        """Note the current task as a call at work."""
        task: asyncio.Task[Any] = asyncio.current_task()  # type: ignore[assignment]
        if not self.active:
            self.idle.clear()
        self.active.add(task)
        return task

    def end(self, task: asyncio.Task[Any]) -> None:
        self.active.discard(task)
        if not self.active:
            self.idle.set()


class _Handlers(grpc.GenericRpcHandler):
    def __init__(self, edge: GrpcioEdge) -> None:
        self._edge = edge
        self._methods = edge.services.methods

    def service(self, details: Any) -> Any:
        method = self._methods.get(details.method)
        if method is None:
            return None
        kind = _KINDS[method.client_streaming, method.server_streaming]
        # grpc has made the metadata for this lookup; asking the context again costs a microsecond.
        return kind(self._edge, method, details.invocation_metadata)


class _Rpc:
    """What grpc.aio takes for a grpc.RpcMethodHandler, made for one RPC."""

    __slots__ = ("_edge", "_metadata", "_method")
    request_streaming: ClassVar[bool] = False
    response_streaming: ClassVar[bool] = False
    request_deserializer: ClassVar[None] = None
    response_serializer: ClassVar[None] = None

    def __init__(self, edge: GrpcioEdge, method: Method, metadata: Any) -> None:
        self._edge = edge
        self._method = method
        self._metadata = metadata

    def _call(self, context: Any) -> Call:
        edge = self._edge
        remaining = context.time_remaining()
        call = Call(
            self._method,
            transport="grpc",
            peer=edge.names.addresses.get(context.peer(), ""),
            metadata=self._metadata,
            deadline=None if remaining is None else asyncio.get_running_loop().time() + remaining,
        )
        call.on_initial_metadata = functools.partial(_send_initial, context, call)
        return call

    def _decode(self, call: Call, data: bytes) -> Message:
        pipeline = self._edge.pipeline
        try:
            return pipeline.decode(self._method, data)
        except StatusError as error:
            pipeline.refused(call, error)
            raise

    async def _requests(self, data: AsyncIterator[bytes]) -> AsyncIterator[Message]:
        decode, method = self._edge.pipeline.decode, self._method
        async for item in data:
            yield decode(method, item)

    async def _answer_once(self, context: Any, data: Any) -> bytes:
        edge = self._edge
        task = edge.begin()
        call = self._call(context)
        try:
            request = self._requests(data) if self.request_streaming else self._decode(call, data)
            response = await edge.pipeline.unary(call, request)
            answer = response.SerializeToString()
            if call.initial_metadata:
                await _send_initial(context, call)
            if call.trailing_metadata:
                context.set_trailing_metadata(tuple(call.trailing_metadata))
            return answer
        except StatusError as error:
            await _fail(context, call, error)
        except asyncio.CancelledError:
            # By the caller, who learns nothing more, or by the drain, and then told so.
            if not edge.closing:
                raise
            await _fail(context, call, edge.cut_error())
        finally:
            edge.end(task)

    async def _answer_many(self, context: Any, data: Any) -> None:
        edge = self._edge
        task = edge.begin()
        call = self._call(context)
        try:
            request = self._requests(data) if self.request_streaming else self._decode(call, data)
            async with contextlib.aclosing(edge.pipeline.stream(call, request)) as answers:
                async for answer in answers:
                    await context.write(answer.SerializeToString())
            if call.initial_metadata:
                await _send_initial(context, call)
            if call.trailing_metadata:
                context.set_trailing_metadata(tuple(call.trailing_metadata))
        except StatusError as error:
            await _fail(context, call, error)
        except asyncio.CancelledError:
            if not edge.closing:
                raise
            await _fail(context, call, edge.cut_error())
        finally:
            edge.end(task)


class _UnaryUnary(_Rpc):
    __slots__ = ()

    async def unary_unary(self, data: bytes, context: Any) -> bytes:
        return await self._answer_once(context, data)


class _UnaryStream(_Rpc):
    __slots__ = ()
    response_streaming = True

    async def unary_stream(self, data: bytes, context: Any) -> None:
        await self._answer_many(context, data)


class _StreamUnary(_Rpc):
    __slots__ = ()
    request_streaming = True

    async def stream_unary(self, data: AsyncIterator[bytes], context: Any) -> bytes:
        return await self._answer_once(context, data)


class _StreamStream(_Rpc):
    __slots__ = ()
    request_streaming = True
    response_streaming = True

    async def stream_stream(self, data: AsyncIterator[bytes], context: Any) -> None:
        await self._answer_many(context, data)


_KINDS: dict[tuple[bool, bool], type[_Rpc]] = {
    (False, False): _UnaryUnary,
    (False, True): _UnaryStream,
    (True, False): _StreamUnary,
    (True, True): _StreamStream,
}


async def _send_initial(context: Any, call: Call) -> None:
    """Send what the servicer wants in front; a second time there is nothing left to send."""
    metadata: Iterable[tuple[str, str | bytes]] = tuple(call.initial_metadata)
    call.initial_metadata.clear()
    await context.send_initial_metadata(metadata)


async def _fail(context: Any, call: Call, error: StatusError) -> NoReturn:
    """End the RPC with a status. Raises grpc.aio.AbortError, as the server expects of a handler."""
    if call.initial_metadata:
        await _send_initial(context, call)
    trailing = list(call.trailing_metadata)
    if error.details:
        trailing.append((DETAILS_KEY, error.to_proto().SerializeToString()))
    await context.abort(_CODES[error.code], error.message, tuple(trailing))
    raise AssertionError("abort returned")
