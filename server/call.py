"""One RPC on its way through the server, as every edge makes it and every servicer sees it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn

import grpc
from google.rpc import status_pb2

from lakemesh.server.errors import Code, StatusError
from lakemesh.server.identity import ANONYMOUS, Identity

if TYPE_CHECKING:
    from lakemesh.server.services import Method
    from lakemesh.telemetry.span import Span

DETAILS_KEY = "grpc-status-details-bin"


class Metadatum(NamedTuple):
    """One entry of gRPC metadata; the value of a key ending in `-bin` is bytes."""

    key: str
    value: str | bytes


Metadata = tuple[tuple[str, str | bytes], ...]


class Call:
    """Method, caller, deadline and metadata of one RPC, whichever transport brought it.

    Also the `context` of a servicer: the part of grpc.aio.ServicerContext that does not depend on
    a transport, so that a servicer written for grpc.aio is served unchanged. Reading and writing
    messages through the context is not part of it: streams are async generators here.
    """

    __slots__ = (
        "_code",
        "_details",
        "_done_callbacks",
        "deadline",
        "finished",
        "identity",
        "initial_metadata",
        "metadata",
        "method",
        "on_initial_metadata",
        "peer_address",
        "span",
        "trailing_metadata",
        "transport",
    )

    def __init__(
        self,
        method: Method,
        *,
        transport: str,
        peer: str = "",
        metadata: Metadata = (),
        deadline: float | None = None,
    ) -> None:
        """`metadata` keys are lower case; `deadline` is seconds on the running loop's clock."""
        self.method = method
        self.transport = transport
        self.peer_address = peer
        self.metadata = metadata
        self.deadline = deadline
        self.identity: Identity = ANONYMOUS
        self.span: Span | None = None
        self.initial_metadata: list[tuple[str, str | bytes]] = []
        self.trailing_metadata: list[tuple[str, str | bytes]] = []
        self.on_initial_metadata: Callable[[], Awaitable[None]] | None = None
        self.finished = False
        self._code: Code | None = None
        self._details = ""
        self._done_callbacks: list[Callable[[Any], None]] | None = None

    def header(self, key: str) -> str | None:
        """The first text value of a lower-case metadata key, or None."""
        for name, value in self.metadata:
            if name == key:
                return value if isinstance(value, str) else None
        return None

    def remaining(self) -> float | None:
        """Seconds until the deadline, negative once it passed; None without one."""
        if self.deadline is None:
            return None
        return self.deadline - asyncio.get_running_loop().time()

    def failure(self) -> StatusError | None:
        """The status a servicer set without raising, if it is not OK."""
        if self._code is None or self._code is Code.OK:
            return None
        return StatusError(self._code, self._details)

    def finish(self) -> None:
        """Called once by the pipeline when the call has its answer."""
        self.finished = True
        if self._done_callbacks:
            for callback in self._done_callbacks:
                callback(self)

    # What follows has the names and meanings of grpc.aio.ServicerContext.

    def invocation_metadata(self) -> tuple[Metadatum, ...]:
        return tuple(Metadatum(key, value) for key, value in self.metadata)

    def peer(self) -> str:
        return self.peer_address

    def peer_identities(self) -> Iterable[bytes] | None:
        return None

    def peer_identity_key(self) -> str | None:
        return None

    def auth_context(self) -> dict[str, Iterable[bytes]]:
        return {}

    def time_remaining(self) -> float | None:
        remaining = self.remaining()
        return None if remaining is None else max(0.0, remaining)

    def cancelled(self) -> bool:
        task = asyncio.current_task()
        return task is not None and task.cancelling() > 0

    def done(self) -> bool:
        return self.finished

    def is_active(self) -> bool:
        return not self.finished

    def add_done_callback(self, callback: Callable[[Any], None]) -> None:
        if self._done_callbacks is None:
            self._done_callbacks = []
        self._done_callbacks.append(callback)

    async def send_initial_metadata(self, metadata: Iterable[tuple[str, str | bytes]]) -> None:
        self.initial_metadata.extend(metadata)
        if self.on_initial_metadata is not None:
            await self.on_initial_metadata()

    def set_trailing_metadata(self, metadata: Iterable[tuple[str, str | bytes]]) -> None:
        self.trailing_metadata[:] = metadata

    def set_code(self, code: grpc.StatusCode) -> None:
        self._code = Code(code.value[0])

    def set_details(self, details: str) -> None:
        self._details = details

    def code(self) -> int:
        return int(self._code or Code.OK)

    def details(self) -> str:
        return self._details

    async def abort(
        self,
        code: grpc.StatusCode,
        details: str = "",
        trailing_metadata: Iterable[tuple[str, str | bytes]] = (),
    ) -> NoReturn:
        self.trailing_metadata.extend(trailing_metadata)
        raise StatusError(Code(code.value[0]), details)

    async def abort_with_status(self, status: grpc.Status) -> NoReturn:
        rich: tuple[Any, ...] = ()
        for key, value in status.trailing_metadata or ():
            if key == DETAILS_KEY:
                rich = tuple(status_pb2.Status.FromString(value).details)
            else:
                self.trailing_metadata.append((key, value))
        raise StatusError(Code(status.code.value[0]), status.details, rich)

    def set_compression(self, compression: grpc.Compression) -> None:
        """Answers are compressed as the edge decides; a servicer's wish is not followed."""

    def disable_next_message_compression(self) -> None:
        """See `set_compression`."""
