"""gRPC on an HTTP/2 stream: the edge that needs no gRPC server."""

from __future__ import annotations

import asyncio
import logging
import struct
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING

from google.protobuf.message import Message

from lakemesh.server.call import Call
from lakemesh.server.errors import Code, StatusError
from lakemesh.server.grpc_wire import (
    ENCODINGS,
    PREFIX_BYTES,
    MessageReader,
    encode_metadata,
    encode_status,
    frame_message,
    read_metadata,
    supported_encoding,
    timeout_seconds,
)
from lakemesh.server.h2_frames import (
    DATA,
    END_HEADERS,
    END_STREAM,
    HEADERS,
    ErrorCode,
    RequestHead,
)
from lakemesh.server.h2_hpack import encode_field
from lakemesh.server.h2_hpack import encode_status as encode_http_status
from lakemesh.server.h2_stream import Stream, StreamReset

if TYPE_CHECKING:
    from lakemesh.server.h2_connection import H2Connection
    from lakemesh.server.services import Method, ServiceTable

_log = logging.getLogger(__name__)

_CONTENT_TYPE = encode_field(b"content-type", b"application/grpc")
_HEADERS = encode_http_status(200) + _CONTENT_TYPE
_GZIP = encode_field(b"grpc-encoding", b"gzip")
_OK = encode_field(b"grpc-status", b"0")
_ACCEPT = encode_field(b"grpc-accept-encoding", ENCODINGS)

# A short answer in two packs: HEADERS and the DATA frame's head with the message prefix, then,
# after the message, the trailers.
_answer_head = struct.Struct(f">IBI{len(_HEADERS)}sIBIBI")
_answer_tail = struct.Struct(f">IBI{len(_OK)}s")
_HEADERS_WORD = len(_HEADERS) << 8 | HEADERS
_OK_WORD = len(_OK) << 8 | HEADERS

_COMPRESS_FROM = 1024
"""Smaller messages are not worth compressing."""
_LATE = StatusError(Code.UNAVAILABLE, "the server is shutting down")


def is_grpc(content_type: bytes) -> bool:
    """Whether a request is gRPC's: `application/grpc` itself, with a format or a parameter."""
    return content_type.startswith(b"application/grpc") and content_type[16:17] in (b"", b"+", b";")


class GrpcHead:
    """What a gRPC request's head asks for, the same for every request with the same head."""

    __slots__ = (
        "accepts_gzip",
        "content_length",
        "encoding",
        "metadata",
        "method",
        "refusal",
        "status",
        "timeout",
    )

    def __init__(self, head: RequestHead, services: ServiceTable, metadata_bytes: int) -> None:
        self.content_length = head.content_length
        self.method: Method | None = None
        self.metadata: tuple[tuple[str, str | bytes], ...] = ()
        self.timeout: float | None = None
        self.encoding = b""
        self.accepts_gzip = False
        self.status = 200
        self.refusal: StatusError | None = None
        """Why the request is answered without being looked at further."""
        try:
            self._read(head, services, metadata_bytes)
        except StatusError as error:
            self.refusal = error

    def _read(self, head: RequestHead, services: ServiceTable, metadata_bytes: int) -> None:
        for name, value in head.fields:
            if name == b"grpc-timeout":
                self.timeout = timeout_seconds(value)
            elif name == b"grpc-encoding":
                self.encoding = value
            elif name == b"grpc-accept-encoding":
                self.accepts_gzip |= b"gzip" in [part.strip() for part in value.split(b",")]
        path = head.path.decode("latin-1")
        self.method = services.find(path)
        if head.method != b"POST":
            self.status = 405
            raise StatusError(Code.INTERNAL, "gRPC requests are sent by POST")
        if head.content_type[16:] not in (b"", b"+proto") and head.content_type[16:17] == b"+":
            self.status = 415
            raise StatusError(Code.INTERNAL, "only application/grpc and +proto are served")
        if head.size > metadata_bytes:
            raise StatusError(
                Code.RESOURCE_EXHAUSTED,
                f"received metadata larger than max ({head.size} vs. {metadata_bytes})",
            )
        if self.method is None:
            raise _unknown(path, services)
        if not supported_encoding(self.encoding):
            raise StatusError(Code.UNIMPLEMENTED, "grpc-encoding is not supported")
        self.metadata = read_metadata(head.fields)


def _unknown(path: str, services: ServiceTable) -> StatusError:
    service, _, name = path[1:200].partition("/")
    if service in services.names:
        return StatusError(Code.UNIMPLEMENTED, f"unknown method {name} of service {service}")
    return StatusError(Code.UNIMPLEMENTED, f"unknown service {service}")


class GrpcStream(Stream):
    """One RPC."""

    __slots__ = (
        "_arrived",
        "_body_ended",
        "_call",
        "_credited",
        "_entered",
        "_head",
        "_headers_sent",
        "_message",
        "_reader",
        "_task",
    )

    def __init__(self, connection: H2Connection, stream_id: int, head: GrpcHead) -> None:
        super().__init__(connection, stream_id, head.content_length)
        self._head = head
        self._reader: MessageReader | None = None
        self._message: bytes | None = None
        self._credited = 0
        """Bytes at the head of the reader whose window was already given back."""
        self._body_ended = False
        self._headers_sent = False
        self._entered = False
        self._arrived: asyncio.Future[None] | None = None
        self._task: asyncio.Task[None] | None = None
        self._call: Call | None = None

    # What the connection calls.

    def opened(self) -> None:
        head = self._head
        if head.refusal is not None or (head.method is not None and head.method.client_streaming):
            self.connection.ready.append(self)

    def receive_data(self, data: bytes, end: bool) -> None:
        head = self._head
        method = head.method
        if not self.local_open or head.refusal is not None or method is None:
            if end and not self.running:
                self.connection.ready.append(self)
            return
        if (
            end
            and self._reader is None
            and not method.client_streaming
            and len(data) >= PREFIX_BYTES
            and data[0] == 0
            and int.from_bytes(data[1:5], "big") == len(data) - PREFIX_BYTES
            and len(data) - PREFIX_BYTES <= self.connection.pipeline.limits.message_bytes
        ):
            # Nearly every unary request: one message in one frame.
            self._message = data[PREFIX_BYTES:]
            self.connection.ready.append(self)
            return
        reader = self._reader
        if reader is None:
            reader = self._reader = MessageReader(
                head.encoding, self.connection.pipeline.limits.message_bytes
            )
        self._body_ended = end
        try:
            reader.feed(data)
            if method.client_streaming:
                self._received(reader, len(data), end)
            else:
                self.credit(len(data))
                self._received_single(reader, end)
        except StatusError as error:
            self._refuse(error)

    def _received(self, reader: MessageReader, size: int, end: bool) -> None:
        """Part of a request stream: what is not read yet keeps its window."""
        self.hold(size)
        if not reader.whole:
            self._credit_partial()
        arrived = self._arrived
        if arrived is not None and not arrived.done():
            arrived.set_result(None)
        if end and not self.running and self._task is None:
            self.connection.ready.append(self)

    def _received_single(self, reader: MessageReader, end: bool) -> None:
        if self._message is not None:
            if not reader.empty:
                raise StatusError(Code.UNIMPLEMENTED, "more than one message in a unary request")
            return
        if reader.whole:
            self._message = reader.take()[0]
            if not reader.empty:
                raise StatusError(Code.UNIMPLEMENTED, "more than one message in a unary request")
            self.connection.ready.append(self)
        elif end:
            raise _no_message(reader)

    def start(self) -> None:
        head = self._head
        if head.refusal is not None or head.method is None:
            self._refuse(head.refusal or _LATE)
            return
        if self._task is not None or not self.local_open:
            return
        if head.method.server_streaming:
            work = self._run_stream(head.method)
        else:
            work = self._run_unary(head.method)
        self.running = True
        self._task = self.connection.loop.create_task(work)

    def aborted(self) -> None:
        if self._task is not None and not self._task.done():
            self._task.cancel()
            if not self._entered:
                # A task cancelled before its first step never runs, so it cannot say it ended.
                self.connection.finished(self)

    def refuse_late(self) -> None:
        task, self._task = self._task, None
        self._fail(_LATE)
        self._task = task
        self.aborted()

    # The call.

    def _new_call(self, method: Method) -> Call:
        connection = self.connection
        head = self._head
        timeout = head.timeout
        call = Call(
            method,
            transport="grpc",
            peer=connection.peer,
            metadata=head.metadata,
            deadline=None if timeout is None else self.opened_at + timeout,
        )
        call.on_initial_metadata = self._send_initial_metadata
        self._call = call
        return call

    async def _run_unary(self, method: Method) -> None:
        self._entered = True
        pipeline = self.connection.pipeline
        try:
            call = self._new_call(method)
            message = self._message
            request: Message | AsyncIterator[Message]
            if message is None:
                request = self._requests(method)
            else:
                try:
                    request = pipeline.decode(method, message)
                except StatusError as error:
                    pipeline.refused(call, error)
                    raise
            reply = await pipeline.unary(call, request)
            self._answer(call, reply.SerializeToString())
            if self.blocked:
                await self._written()
        except StatusError as error:
            self._fail(error)
        except (asyncio.CancelledError, StreamReset):
            self._fail(_LATE)
        except Exception:
            _log.exception("%s failed in the edge", method.path)
            self._fail(StatusError(Code.INTERNAL, "internal error"))
        finally:
            self.connection.finished(self)

    async def _run_stream(self, method: Method) -> None:
        self._entered = True
        pipeline = self.connection.pipeline
        try:
            call = self._new_call(method)
            message = self._message
            request: Message | AsyncIterator[Message]
            if message is None:
                request = self._requests(method)
            else:
                try:
                    request = pipeline.decode(method, message)
                except StatusError as error:
                    pipeline.refused(call, error)
                    raise
            replies = pipeline.stream(call, request)
            compress = self._compresses()
            try:
                async for reply in replies:
                    payload = reply.SerializeToString()
                    if not self._headers_sent:
                        self._send_headers(call)
                    self.send_data(
                        frame_message(payload, compress=compress and len(payload) > _COMPRESS_FROM)
                    )
                    if self.blocked:
                        await self._written()
            finally:
                await replies.aclose()
            if not self._headers_sent:
                self._send_headers(call)
            self.send_headers(_OK + encode_metadata(call.trailing_metadata), end_stream=True)
        except StatusError as error:
            self._fail(error)
        except (asyncio.CancelledError, StreamReset):
            self._fail(_LATE)
        except Exception:
            _log.exception("%s failed in the edge", method.path)
            self._fail(StatusError(Code.INTERNAL, "internal error"))
        finally:
            self.connection.finished(self)

    async def _requests(self, method: Method) -> AsyncIterator[Message]:
        """The messages of a request stream, as they are wanted."""
        pipeline = self.connection.pipeline
        while True:
            reader = self._reader
            if reader is not None and reader.whole:
                data, size = reader.take()
                self._take_held(size)
                yield pipeline.decode(method, data)
            elif self._body_ended:
                if reader is not None and not reader.empty:
                    raise _no_message(reader)
                return
            else:
                self._arrived = self.connection.loop.create_future()
                await self._arrived

    def _take_held(self, size: int) -> None:
        """`size` bytes left the reader: give back their window, unless that was done."""
        paid = min(size, self._credited)
        self._credited -= paid
        if size > paid and self.held:
            self.release(min(size - paid, self.held))
        reader = self._reader
        if reader is not None and not reader.whole:
            self._credit_partial()

    def _credit_partial(self) -> None:
        """A message longer than the window arrives only if its own bytes do not fill it."""
        if self.held:
            self._credited += self.held
            self.release(self.held)

    async def _written(self) -> None:
        """Wait until the peer took what was sent, at most until the call's deadline."""
        call = self._call
        deadline = None if call is None else call.deadline
        try:
            async with asyncio.timeout_at(deadline):
                await self.writable()
        except TimeoutError:
            self.reset(ErrorCode.CANCEL)
            raise StreamReset from None

    # Answering.

    def _answer(self, call: Call, payload: bytes) -> None:
        """Headers, one message and trailers."""
        connection = self.connection
        size = len(payload) + PREFIX_BYTES
        compress = len(payload) > _COMPRESS_FROM and self._compresses()
        if (
            self.local_open
            and not self._headers_sent
            and not self.remote_open
            and not compress
            and size <= connection.peer_frame_bytes
            and size <= self.send_window
            and size <= connection.send_window
            and not connection.write_paused
            and connection.plain_blocks
            and not call.initial_metadata
            and not call.trailing_metadata
        ):
            connection.send_window -= size
            stream_id = self.id
            connection.write(
                _answer_head.pack(
                    _HEADERS_WORD, END_HEADERS, stream_id, _HEADERS,
                    size << 8 | DATA, 0, stream_id, 0, len(payload),
                )
                + payload
                + _answer_tail.pack(_OK_WORD, END_HEADERS | END_STREAM, stream_id, _OK)
            )  # fmt: skip
            self.ended()
            return
        if not self._headers_sent:
            self._send_headers(call)
        self.send_data(frame_message(payload, compress=compress))
        self.send_headers(_OK + encode_metadata(call.trailing_metadata), end_stream=True)

    def _compresses(self) -> bool:
        """Asked for by a client that compressed its request, or enabled for all that accept it."""
        head = self._head
        return head.accepts_gzip and (head.encoding == b"gzip" or self.connection.compress_answers)

    async def _send_initial_metadata(self) -> None:
        if not self._headers_sent and self._call is not None:
            self._send_headers(self._call)

    def _send_headers(self, call: Call) -> None:
        self._headers_sent = True
        block = _HEADERS
        if self._compresses():
            block += _GZIP
        if call.initial_metadata:
            block += encode_metadata(call.initial_metadata)
        self.send_headers(block)

    def _fail(self, error: StatusError) -> None:
        """Trailers with a status, after what was already sent."""
        if not self.local_open:
            return
        call = self._call
        trailers = encode_status(error)
        if call is not None and call.trailing_metadata:
            trailers += encode_metadata(call.trailing_metadata)
        if not self._headers_sent:
            if call is not None and call.initial_metadata:
                self._send_headers(call)
            else:
                self._headers_sent = True
                head = encode_http_status(self._head.status) + _CONTENT_TYPE
                if error.code is Code.UNIMPLEMENTED:
                    head += _ACCEPT
                trailers = head + trailers
        self.send_headers(trailers, end_stream=True)

    def _refuse(self, error: StatusError) -> None:
        """Answer a request that is not, or no longer, worth running."""
        head = self._head
        if head.method is not None and self._call is None and self.local_open:
            self.connection.pipeline.refused(self._new_call(head.method), error)
        self._fail(error)
        self.unhold()
        self.aborted()


def _no_message(reader: MessageReader) -> StatusError:
    if reader.empty:
        return StatusError(Code.UNIMPLEMENTED, "a unary request without its message")
    return StatusError(Code.INTERNAL, "the request ended inside a message")
