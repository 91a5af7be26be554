"""The one call path: admit, identify, validate, trace, run. Every transport goes through it."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Iterator
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Protocol, TypeVar

import protovalidate
from google.protobuf.message import DecodeError, Message

from lakemesh.agents.deadlines import Deadlines
from lakemesh.agents.structs import NotCarryable
from lakemesh.server.call import Call
from lakemesh.server.door import refuse_uncarryable
from lakemesh.server.errors import Code, StatusError, invalid_argument, overloaded, status_of
from lakemesh.server.identity import Identifier
from lakemesh.server.services import Method
from lakemesh.telemetry.span import SERVER
from lakemesh.telemetry.tracing import Tracer

logger = logging.getLogger(__name__)


class CallMetrics(Protocol):
    """Counts calls."""

    def ended(self, path: str, code: str, transport: str, seconds: float) -> None:
        """One call ended with the named code after so many seconds."""


T = TypeVar("T")
Request = Message | AsyncIterator[Message]


@dataclass(frozen=True, slots=True)
class Limits:
    """What one caller may ask of the port."""

    message_bytes: int = 4 * 1024 * 1024
    """Of one message, as gRPC's default; decompressed size counts."""
    metadata_bytes: int = 16 * 1024
    """Of one call's metadata or headers, grpc's hard limit."""
    concurrent_calls: int = 4096
    """Calls at work at once; health and its like are not counted."""


class Pipeline:
    """Runs calls of any registered method; what it raises is StatusError or CancelledError."""

    def __init__(
        self, *, limits: Limits, identifier: Identifier, tracer: Tracer, metrics: CallMetrics
    ) -> None:
        self.limits = limits
        self.active = 0
        """Calls at work now, the exempt ones not counted."""
        self.identifier = identifier
        self.tracer = tracer
        self.metrics = metrics
        self._deadlines = Deadlines()
        self._violations = protovalidate.Validator().collect_violations

    def decode(self, method: Method, data: bytes) -> Message:
        """The request message of some bytes.

        Raises INVALID_ARGUMENT with the same words for whatever is wrong with them: grpc's own
        answer is UNKNOWN with a Python class name in it (measured, grpcio 1.85).
        """
        try:
            return method.request_class.FromString(data)
        except (DecodeError, RecursionError, ValueError):
            name = method.descriptor.input_type.full_name
            raise invalid_argument(f"request bytes are not a valid {name}") from None

    async def unary(self, call: Call, request: Request) -> Message:
        """The answer to a call of a method that answers once."""
        with _Work(self, call):
            method = call.method
            if method.client_streaming:
                request = self._checked(method, request)  # type: ignore[arg-type]
            else:
                self._check(method, request)  # type: ignore[arg-type]
            if method.is_async:
                answering = method.handler(request, call)
            else:
                answering = asyncio.to_thread(method.handler, request, call)
            response: Message
            if call.deadline is None:
                response = await answering
            else:
                response = await self._within(call.deadline, answering)
            failure = call.failure()
            if failure is not None:
                raise failure
            if not isinstance(response, method.response_class):
                raise TypeError(f"{method.path} answered {type(response).__name__}")
            return response

    async def stream(self, call: Call, request: Request) -> AsyncGenerator[Message, None]:
        """The answers to a call of a method that answers many times.

        Closing the generator cancels the work.
        """
        with _Work(self, call):
            method = call.method
            if method.client_streaming:
                request = self._checked(method, request)  # type: ignore[arg-type]
            else:
                self._check(method, request)  # type: ignore[arg-type]
            answers = method.handler(request, call)
            if not hasattr(answers, "__aiter__"):
                answers = _from_thread(answers)
            try:
                if call.deadline is None:
                    async for answer in answers:
                        yield answer
                else:
                    # Each step has the time that is left: a timeout around a yield would cancel
                    # whatever the edge is doing with the message.
                    while (
                        answer := await self._within(call.deadline, anext(answers, None))
                    ) is not None:
                        yield answer
            finally:
                await answers.aclose()
            failure = call.failure()
            if failure is not None:
                raise failure

    async def _within(self, deadline: float, work: Awaitable[T]) -> T:
        """Await until the call's deadline. Raises DEADLINE_EXCEEDED; a TimeoutError of the work's
        own stays one."""
        limit = self._deadlines.limit(deadline)
        try:
            with limit:
                return await work
        except TimeoutError:
            if limit.expired:
                raise StatusError(Code.DEADLINE_EXCEEDED, "the call's deadline passed") from None
            raise

    def refused(self, call: Call, error: StatusError) -> None:
        """Record a call that an edge refused before it had a message."""
        with contextlib.suppress(StatusError), _Work(self, call):
            raise error

    def _check(self, method: Method, request: Message) -> None:
        if method.input_has_struct:
            try:
                refuse_uncarryable(request)
            except NotCarryable as refused:
                raise invalid_argument(str(refused), (refused.path, refused.why)) from None
        violations = self._violations(request)
        if violations:
            found = [(_field_path(v.proto), v.proto.message) for v in violations]
            field, description = found[0]
            raise invalid_argument(f"{field}: {description}", *found)

    async def _checked(
        self, method: Method, requests: AsyncIterator[Message]
    ) -> AsyncIterator[Message]:
        async for request in requests:
            self._check(method, request)
            yield request


class _Work:
    """One call at work: counted, identified, traced; whatever ends it becomes its status.

    A class and not @contextmanager: it is entered for every call, and needs no generator to run.
    """

    __slots__ = ("_call", "_counted", "_pipeline", "_scope")

    def __init__(self, pipeline: Pipeline, call: Call) -> None:
        self._pipeline = pipeline
        self._call = call
        self._counted = False
        method = call.method
        self._scope = pipeline.tracer.root(method.path[1:], SERVER, call.header("traceparent"))

    def __enter__(self) -> None:
        pipeline, call = self._pipeline, self._call
        call.span = self._scope.__enter__()
        try:
            call.identity = pipeline.identifier.identify(call)
            if not call.method.exempt:
                if pipeline.active >= pipeline.limits.concurrent_calls:
                    raise overloaded(
                        f"{pipeline.active} calls are being worked on; try again later"
                    )
                pipeline.active += 1
                self._counted = True
        except StatusError as error:
            self._end(error)
            raise

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if error is None:
            self._end(None)
        elif isinstance(error, StatusError):
            self._end(error)
        elif isinstance(error, Exception):
            told = self._told(error)
            self._end(told)
            raise told from None
        else:
            # Cancelled, or the generator closed: the caller went away and learns nothing.
            self._end(StatusError(Code.CANCELLED, "the caller went away"))

    def _end(self, error: StatusError | None) -> None:
        pipeline, call = self._pipeline, self._call
        if self._counted:
            pipeline.active -= 1
        method, span = call.method, self._scope.span
        attributes = span.attributes
        attributes["rpc.system"] = "grpc"
        attributes["rpc.service"] = method.service
        attributes["rpc.method"] = method.name
        attributes["network.protocol.name"] = call.transport
        attributes["client.address"] = call.peer_address
        if call.identity.subject:
            attributes["enduser.id"] = call.identity.subject
        if error is None:
            code = Code.OK
            span.status_code = "OK"
        else:
            code = error.code
            span.status_code = "ERROR"
            span.status_message = error.message
        attributes["rpc.grpc.status_code"] = int(code)
        self._scope.__exit__(None, None, None)
        pipeline.metrics.ended(
            method.path, code.name, call.transport, (span.end_ns - span.start_ns) / 1e9
        )
        call.finish()

    def _told(self, error: Exception) -> StatusError:
        told = status_of(error)
        if told is not None:
            return told
        # The caller learns nothing of our insides; the log has all of it, once.
        logger.error("%s failed", self._call.method.path, exc_info=error)
        return StatusError(Code.INTERNAL, "internal error")


def _field_path(violation: Any) -> str:
    path = ""
    for element in violation.field.elements if violation.field else ():
        path += f".{element.field_name}" if path else element.field_name
        subscript = element.subscript
        if subscript is not None:
            path += f"[{subscript.value!r}]"
    return path or "request"


async def _from_thread(answers: Any) -> AsyncGenerator[Message, None]:
    """A plain generator's messages, each made in a thread."""
    iterator: Iterator[Message] = iter(answers)
    try:
        while (answer := await asyncio.to_thread(next, iterator, None)) is not None:
            yield answer
    finally:
        close = getattr(iterator, "close", None)
        if close is not None:
            await asyncio.to_thread(close)
