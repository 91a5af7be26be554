"""The one error table: domain error -> gRPC code -> HTTP status -> google.rpc.Status.

Only `StatusError` leaves the pipeline, so every transport shows the same failure in its own
words. HTTP statuses are grpc-gateway's (runtime/errors.go, HTTPStatusFromCode).
"""

from __future__ import annotations

import enum
import math
from collections.abc import Callable

from google.protobuf import any_pb2, duration_pb2
from google.protobuf.message import Message
from google.rpc import error_details_pb2, status_pb2

from lakemesh.agents import errors as agent_errors
from lakemesh.memory import errors as memory_errors

DOMAIN = "lakemesh"
"""`domain` of every google.rpc.ErrorInfo of ours."""


class Code(enum.IntEnum):
    """google.rpc.Code."""

    OK = 0
    CANCELLED = 1
    UNKNOWN = 2
    INVALID_ARGUMENT = 3
    DEADLINE_EXCEEDED = 4
    NOT_FOUND = 5
    ALREADY_EXISTS = 6
    PERMISSION_DENIED = 7
    RESOURCE_EXHAUSTED = 8
    FAILED_PRECONDITION = 9
    ABORTED = 10
    OUT_OF_RANGE = 11
    UNIMPLEMENTED = 12
    INTERNAL = 13
    UNAVAILABLE = 14
    DATA_LOSS = 15
    UNAUTHENTICATED = 16


HTTP_STATUS: dict[Code, int] = {
    Code.OK: 200,
    Code.CANCELLED: 499,
    Code.UNKNOWN: 500,
    Code.INVALID_ARGUMENT: 400,
    Code.DEADLINE_EXCEEDED: 504,
    Code.NOT_FOUND: 404,
    Code.ALREADY_EXISTS: 409,
    Code.PERMISSION_DENIED: 403,
    Code.RESOURCE_EXHAUSTED: 429,
    Code.FAILED_PRECONDITION: 400,
    Code.ABORTED: 409,
    Code.OUT_OF_RANGE: 400,
    Code.UNIMPLEMENTED: 501,
    Code.INTERNAL: 500,
    Code.UNAVAILABLE: 503,
    Code.DATA_LOSS: 500,
    Code.UNAUTHENTICATED: 401,
}


class StatusError(Exception):
    """A call's failure as google.rpc.Status: code, words for the caller, typed details."""

    def __init__(self, code: Code, message: str, details: tuple[Message, ...] = ()) -> None:
        super().__init__(f"{code.name}: {message}")
        self.code = code
        self.message = message
        self.details = details

    def to_proto(self) -> status_pb2.Status:
        """The same as a message, its details packed."""
        status = status_pb2.Status(code=int(self.code), message=self.message)
        for detail in self.details:
            if isinstance(detail, any_pb2.Any):
                status.details.append(detail)
            else:
                status.details.add().Pack(detail)
        return status

    def details_trailer(self) -> bytes | None:
        """Value of the gRPC trailer `grpc-status-details-bin`; None when there are no details."""
        return self.to_proto().SerializeToString() if self.details else None


def invalid_argument(message: str, *violations: tuple[str, str]) -> StatusError:
    """INVALID_ARGUMENT; each violation is a field's path and what is wrong with it."""
    if not violations:
        return StatusError(Code.INVALID_ARGUMENT, message)
    bad = error_details_pb2.BadRequest()
    for field, description in violations:
        bad.field_violations.add(field=field, description=description)
    return StatusError(Code.INVALID_ARGUMENT, message, (bad,))


def overloaded(message: str, retry_seconds: float = 1.0) -> StatusError:
    """RESOURCE_EXHAUSTED that says when to come back."""
    delay = duration_pb2.Duration()
    delay.FromMilliseconds(math.ceil(retry_seconds * 1000))
    retry = error_details_pb2.RetryInfo(retry_delay=delay)
    return StatusError(Code.RESOURCE_EXHAUSTED, message, (retry,))


def retry_after(error: StatusError) -> int | None:
    """Whole seconds for an HTTP Retry-After header, from google.rpc.RetryInfo; None without."""
    for detail in error.details:
        if isinstance(detail, error_details_pb2.RetryInfo):
            delay: duration_pb2.Duration = detail.retry_delay
            return max(1, delay.seconds + (delay.nanos > 0))
    return None


def _invalid_input(error: agent_errors.InvalidInput | memory_errors.InvalidMemory) -> StatusError:
    return invalid_argument(str(error), *((f.field, f.description) for f in error.fields))


def _agent_failed(error: agent_errors.AgentFailed) -> StatusError:
    info = error_details_pb2.ErrorInfo(
        reason="AGENT_FAILED",
        domain=DOMAIN,
        metadata={"run_id": error.run_id, "agent": error.agent},
    )
    return StatusError(Code.INTERNAL, str(error), (info,))


def _coded(code: Code) -> Callable[[Exception], StatusError]:
    return lambda error: StatusError(code, str(error))


_TABLE: tuple[tuple[type[Exception], Callable[..., StatusError]], ...] = (
    (agent_errors.AgentNotFound, _coded(Code.NOT_FOUND)),
    (agent_errors.InvalidInput, _invalid_input),
    (agent_errors.AgentFailed, _agent_failed),
    (agent_errors.BudgetExceeded, _coded(Code.DEADLINE_EXCEEDED)),
    (agent_errors.Overloaded, lambda e: overloaded(str(e), e.retry_seconds)),
    (agent_errors.CallLoop, _coded(Code.FAILED_PRECONDITION)),
    (memory_errors.InvalidMemory, _invalid_input),
    (memory_errors.MemoryUnavailable, _coded(Code.UNAVAILABLE)),
)


def status_of(error: Exception) -> StatusError | None:
    """What the caller is told of a domain error; None for one the table does not know."""
    if isinstance(error, StatusError):
        return error
    for kind, convert in _TABLE:
        if isinstance(error, kind):
            return convert(error)
    return None
