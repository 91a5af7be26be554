"""REST to RPC: a route for each google.api.http binding of each registered method.

Fill the request from path, query and body, run it through the pipeline like any other call, write
the answer. Rules: gateway_parity.md, sections A to I.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Iterable
from contextlib import aclosing
from typing import Any

import orjson
from google.protobuf.message import Message

from lakemesh.server.call import Call
from lakemesh.server.errors import Code, StatusError, invalid_argument
from lakemesh.server.http_errors import (
    Headers,
    error_headers,
    error_value,
    http_status,
    send_error,
)
from lakemesh.server.http_headers import from_metadata, to_metadata
from lakemesh.server.http_request import CallerGone, Watch, Watches, read_body
from lakemesh.server.http_rule import Binding, Found, Router, bindings_of, field_at
from lakemesh.server.json_codec import JsonCodec
from lakemesh.server.json_read import Fill
from lakemesh.server.json_wellknown import JsonError
from lakemesh.server.json_write import Write
from lakemesh.server.parameters import ParameterError, Parameters
from lakemesh.server.pipeline import Pipeline
from lakemesh.server.services import Method

logger = logging.getLogger(__name__)

_JSON = (b"content-type", b"application/json")
_EVENTS: Headers = [(b"content-type", b"text/event-stream"), (b"cache-control", b"no-cache")]
_HTTP_BODY = "google.api.HttpBody"


class Route:
    """One binding, compiled: texts and JSON to a request, an answer to JSON."""

    def __init__(
        self, method: Method, binding: Binding, codec: JsonCodec, parameters: Parameters
    ) -> None:
        self.method = method
        self.binding = binding
        self.reads_body = bool(binding.body)
        self.raw = method.descriptor.output_type.full_name == _HTTP_BODY and (
            not binding.response_body
        )
        """The answer is not JSON but what a google.api.HttpBody holds."""
        self._codec = codec
        self._parameters = parameters
        self._request_class = method.request_class
        request, response = method.descriptor.input_type, method.descriptor.output_type
        self._fill: Fill | None = None
        if binding.body == "*":
            self._fill = codec.filler(request)
        elif binding.body:
            self._fill = _nested_filler(codec, request, binding.body)
        self._whole_body = binding.body == "*"
        self._paths = {
            variable.field_path: parameters.path_setter(request, variable.field_path)
            for variable in binding.template.variables
        }
        self._bound = [*self._paths, *([binding.body] if binding.body else [])]
        self.write: Write = (
            codec.field_writer(field_at(response, binding.response_body))
            if binding.response_body
            else codec.writer(response)
        )
        self._oneof = next(
            (oneof.name for oneof in response.oneofs if not oneof.name.startswith("_")), None
        )
        self._numbered = "sequence" in response.fields_by_name

    def request(self, body: bytes, variables: dict[str, str], query: bytes) -> Message:
        """The request message: body first, then path, then query. Raises StatusError."""
        message = self._request_class()
        try:
            if self._fill is not None and body:
                value = self._codec.parse(body)
                if value is not None:
                    self._fill(message, value, 1)
            if variables:
                for path, text in variables.items():
                    self._paths[path](message, text)
            if query and not self._whole_body:
                self._parameters.fill_query(message, query.decode("latin-1"), self._bound)
        except JsonError as error:
            raise _bad_json(error) from None
        except ParameterError as error:
            raise _bad_parameter(error) from None
        except ValueError:
            raise invalid_argument("the body is not valid text") from None
        return message

    def requests(self, body: bytes, query: bytes) -> list[Message]:
        """The messages of a client-streaming request: JSON values, one after the other."""
        if not self.reads_body:
            return [self.request(b"", {}, query)]
        try:
            values = self._codec.parse_all(body)
            messages = []
            for value in values:
                message = self._request_class()
                if value is not None and self._fill is not None:
                    self._fill(message, value, 1)
                messages.append(message)
        except JsonError as error:
            raise _bad_json(error) from None
        except ValueError:
            raise invalid_argument("the body is not valid text") from None
        return messages

    def answer(self, message: Message) -> bytes:
        """A unary answer's body."""
        try:
            return orjson.dumps(self.write(message))
        except (JsonError, orjson.JSONEncodeError) as error:
            raise self._unwritable(error) from None

    def line(self, message: Message) -> bytes:
        """One message of a stream, as a line."""
        try:
            return orjson.dumps({"result": self.write(message)}) + b"\n"
        except (JsonError, orjson.JSONEncodeError) as error:
            raise self._unwritable(error) from None

    def event(self, message: Any) -> bytes:
        """One message of a stream, as a server-sent event."""
        name = (message.WhichOneof(self._oneof) if self._oneof else None) or "message"
        number = f"id: {message.sequence}\n" if self._numbered else ""
        return f"event: {name}\n{number}data: ".encode() + self.line(message) + b"\n"

    def _unwritable(self, error: Exception) -> StatusError:
        path = error.path if isinstance(error, JsonError) else ""
        logger.error("%s: answer cannot be written: %s %s", self.method.path, path, error)
        return StatusError(Code.INTERNAL, f"the answer cannot be written as JSON: {path} {error}")


def _nested_filler(codec: JsonCodec, request: Any, path: str) -> Fill:
    *outer, _ = path.split(".")
    fill = codec.field_filler(field_at(request, path))

    def fill_at(message: Any, value: Any, depth: int) -> None:
        for name in outer:
            message = getattr(message, name)
        fill(message, value, depth)

    return fill_at


def _bad_json(error: JsonError) -> StatusError:
    path = error.path
    if not path:
        return invalid_argument(error.why)
    return invalid_argument(f"{path}: {error.why}", (path, error.why))


def _bad_parameter(error: ParameterError) -> StatusError:
    name = error.parameter
    if not name:
        return invalid_argument(error.why)
    return invalid_argument(f"parameter {name}: {error.why}", (name, error.why))


async def _each(messages: list[Message]) -> AsyncIterator[Message]:
    for message in messages:
        yield message


class Transcoder:
    """The REST face of every method that has a binding."""

    def __init__(
        self, pipeline: Pipeline, methods: Iterable[Method], codec: JsonCodec | None = None
    ) -> None:
        """Compiles all routes; HttpRuleError names what cannot be served."""
        self.codec = codec or JsonCodec()
        self._pipeline = pipeline
        self._watches = Watches()
        parameters = Parameters(self.codec)
        self.routes = [
            Route(method, binding, self.codec, parameters)
            for method in methods
            for binding in bindings_of(method.descriptor)
        ]
        self._router = Router(
            (route.binding.http_method, route.binding.template, route.method.path[1:], route)
            for route in self.routes
        )
        self.find = self._router.find
        self.allows_other = self._router.allows_other

    async def serve(self, found: Found[Route], scope: Any, receive: Any, send: Any) -> None:
        """Answer one HTTP request that `find` found a route for."""
        route = found.target
        method = route.method
        pipeline = self._pipeline
        limits = pipeline.limits
        client = scope["client"]
        host, port = client if client else ("", 0)
        loop = asyncio.get_running_loop()
        version = scope["http_version"]
        call = Call(
            method,
            transport="http/2" if version[:1] == "2" else "http/1.1",
            peer=f"{host}:{port}" if host else "",
        )
        events = False
        request: Any
        try:
            call.metadata, timeout, events = to_metadata(
                scope["headers"], host, limits.metadata_bytes
            )
            if timeout is not None:
                call.deadline = loop.time() + timeout
            if route.reads_body:
                body = await read_body(scope, receive, limits.message_bytes)
            else:
                body = b""
            if method.client_streaming:
                request = _each(route.requests(body, scope["query_string"]))
            else:
                request = route.request(body, found.variables, scope["query_string"])
        except CallerGone:
            return
        except StatusError as error:
            pipeline.refused(call, error)
            if method.server_streaming:
                await self._fail_stream(send, call, error, events=events)
            else:
                await send_error(send, self.codec, error)
            return
        if method.server_streaming:
            with Watch(receive, self._watches, at_once=True):
                await self._stream(route, call, request, send, events=events)
        else:
            with Watch(receive, self._watches):
                await self._unary(route, call, request, send)

    async def _unary(self, route: Route, call: Call, request: Any, send: Any) -> None:
        try:
            answer = await self._pipeline.unary(call, request)
            if route.raw:
                body, kind = _raw(answer)
            else:
                body, kind = route.answer(answer), _JSON
        except StatusError as error:
            await send_error(send, self.codec, error, from_metadata(call.initial_metadata))
            return
        headers = [kind, (b"content-length", b"%d" % len(body))]
        if call.initial_metadata:
            headers += from_metadata(call.initial_metadata)
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    async def _stream(
        self, route: Route, call: Call, request: Any, send: Any, *, events: bool
    ) -> None:
        started = False
        write = route.event if events else route.line
        try:
            async with aclosing(self._pipeline.stream(call, request)) as answers:
                async for answer in answers:
                    if route.raw:
                        body, kind = _raw(answer)
                        chunk, headers = body + b"\n", [kind]
                    else:
                        chunk, headers = write(answer), _EVENTS if events else [_JSON]
                    if not started:
                        await _start(send, 200, [*headers, *from_metadata(call.initial_metadata)])
                        started = True
                    await send({"type": "http.response.body", "body": chunk, "more_body": True})
        except StatusError as error:
            await self._fail_stream(send, call, error, events=events, started=started)
            return
        if not started:
            headers = _EVENTS if events else [_JSON]
            await _start(send, 200, [*headers, *from_metadata(call.initial_metadata)])
        await send({"type": "http.response.body", "body": b""})

    async def _fail_stream(
        self, send: Any, call: Call, error: StatusError, *, events: bool, started: bool = False
    ) -> None:
        """The error as the stream's last line, or its only one."""
        chunk = orjson.dumps({"error": error_value(self.codec, error)}) + b"\n"
        if events:
            chunk = b"event: error\ndata: " + chunk + b"\n"
        if not started:
            headers = [*(_EVENTS if events else [_JSON]), *error_headers(error)]
            headers += from_metadata(call.initial_metadata)
            await _start(send, http_status(error), headers)
        await send({"type": "http.response.body", "body": chunk})


async def _start(send: Any, status: int, headers: Headers) -> None:
    await send({"type": "http.response.start", "status": status, "headers": headers})


def _raw(answer: Any) -> tuple[bytes, tuple[bytes, bytes]]:
    kind = answer.content_type
    safe = kind.isascii() and kind.isprintable() and kind
    return answer.data, (b"content-type", (kind if safe else "application/octet-stream").encode())
