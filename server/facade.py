"""The HTTP face of the server: transcoded routes first, FastAPI for everything else.

A plain ASGI callable. A request whose path has a compiled route never meets FastAPI, whose
routing and handlers cost more than the whole call (measured: 105 us against 38 us for a bare ASGI
app); `/docs`, health, metrics and users' own routes live there.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, PlainTextResponse, Response
from starlette.exceptions import HTTPException

from lakemesh.server.errors import HTTP_STATUS, Code, StatusError, invalid_argument
from lakemesh.server.health import HealthState, degraded
from lakemesh.server.http_errors import (
    BAD_REQUEST,
    METHOD_NOT_ALLOWED,
    NOT_FOUND,
    error_body,
    error_headers,
    send_error,
)
from lakemesh.server.json_codec import JsonCodec
from lakemesh.server.metrics import CONTENT_TYPE, Registry
from lakemesh.server.openapi import build_openapi
from lakemesh.server.pipeline import Pipeline
from lakemesh.server.services import ServiceTable
from lakemesh.server.transcoding import Transcoder

# The gateway's table, read the other way: what a status of Starlette's means as a code. The first
# code of those that share a status is the general one.
_CODES = {status: code for code, status in reversed(HTTP_STATUS.items())} | {
    500: Code.INTERNAL,
    400: Code.INVALID_ARGUMENT,
    409: Code.ABORTED,
}


class Facade:
    """The ASGI application of one server."""

    def __init__(self, app: FastAPI, transcoder: Transcoder) -> None:
        self.app = app
        """Where users' own routes go. Of a path that an RPC has too, the RPC's wins."""
        self.transcoder = transcoder
        self._find = transcoder.find

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http":
            path = scope["path"]
            found = self._find(scope["method"], path)
            if found is not None:
                await self.transcoder.serve(found, scope, receive, send)
                return
            if not path.startswith("/"):
                await send_error(send, self.transcoder.codec, BAD_REQUEST)
                return
        await self.app(scope, receive, send)

    def lifespan(self) -> AbstractAsyncContextManager[Any]:
        """Runs what users' routes do at start and stop; enter it before the port opens."""
        return self.app.router.lifespan_context(self.app)


def build_facade(
    *,
    pipeline: Pipeline,
    services: ServiceTable,
    health: HealthState,
    metrics: Registry,
    agents: Callable[[], Sequence[str]],
    places: Mapping[str, str],
    version: str,
    comments: Mapping[str, str] | None = None,
    configure: Callable[[FastAPI], None] | None = None,
) -> Facade:
    """The façade of every service in `services`, compiled now.

    `agents` gives the names of the agents that run; `places` are further entries of the map at
    `/`, name to path; `comments` are `openapi.comments_of` the protos, if they are at hand;
    `configure` adds a user's own routes, which come before ours.

    HttpRuleError names the methods whose annotations cannot be served or claim one path.
    """
    transcoder = Transcoder(pipeline, services.methods.values())
    app = FastAPI(title="Lakemesh", version=version, redirect_slashes=False)
    _answer_errors(app, transcoder)
    if configure is not None:
        configure(app)
    _add_health(app, health, agents)
    service_map = {
        "status": "running",
        "services": {"agent_api": "/api", **places},
        "docs": "/docs",
        "openapi": "/openapi.json",
        "health": "/health",
        "metrics": "/metrics",
        "grpc": services.names,
    }

    @app.get("/", include_in_schema=False)
    async def show_map() -> JSONResponse:
        return JSONResponse(service_map)

    @app.get("/metrics", include_in_schema=False)
    async def show_metrics() -> Response:
        return Response(metrics.text(), media_type=CONTENT_TYPE)

    app.openapi = _documented(app, services, version, comments)  # type: ignore[method-assign]
    return Facade(app, transcoder)


def _add_health(app: FastAPI, health: HealthState, agents: Callable[[], Sequence[str]]) -> None:
    async def show_health() -> JSONResponse:
        parts = dict(health.parts)
        word = "degraded" if degraded(health) or not health.ready else "healthy"
        return JSONResponse({"status": word, "agents": list(agents()), "parts": parts})

    app.add_api_route("/health", show_health, methods=["GET"], include_in_schema=False)
    app.add_api_route("/api/health", show_health, methods=["GET"], include_in_schema=False)

    # Alive means that the loop answers; whether to send work here is what /readyz says.
    @app.get("/livez", include_in_schema=False)
    async def live() -> PlainTextResponse:
        return PlainTextResponse("ok")

    @app.get("/readyz", include_in_schema=False)
    async def ready() -> PlainTextResponse:
        if health.ready:
            return PlainTextResponse("ok")
        return PlainTextResponse("not ready", status_code=503)


def _answer_errors(app: FastAPI, transcoder: Transcoder) -> None:
    """Errors of FastAPI's side in the same words as everywhere: google.rpc.Status."""
    codec = transcoder.codec

    async def refused(request: Request, error: Exception) -> Response:
        if not isinstance(error, HTTPException):
            raise error
        status = error.status_code
        if status == 404 and error.detail == "Not Found":
            missing = NOT_FOUND
            if transcoder.allows_other(request.method, request.scope["path"]):
                missing = METHOD_NOT_ALLOWED
            return error_response(codec, missing)
        if status == 405:
            return error_response(codec, METHOD_NOT_ALLOWED)
        told = StatusError(_CODES.get(status, Code.UNKNOWN), str(error.detail))
        return error_response(codec, told, status, error.headers)

    async def invalid(request: Request, error: Exception) -> Response:
        if not isinstance(error, RequestValidationError):
            raise error
        found = [(".".join(map(str, one["loc"])), str(one["msg"])) for one in error.errors()]
        field, why = found[0]
        return error_response(codec, invalid_argument(f"{field}: {why}", *found))

    async def status(request: Request, error: Exception) -> Response:
        if not isinstance(error, StatusError):
            raise error
        return error_response(codec, error)

    async def failed(request: Request, error: Exception) -> Response:
        # Starlette raises it again when it is answered, so that the log has all of it.
        return error_response(codec, StatusError(Code.INTERNAL, "internal error"))

    app.add_exception_handler(HTTPException, refused)
    app.add_exception_handler(RequestValidationError, invalid)
    app.add_exception_handler(StatusError, status)
    app.add_exception_handler(Exception, failed)


def error_response(
    codec: JsonCodec,
    error: StatusError,
    status: int | None = None,
    headers: Mapping[str, str] | None = None,
) -> Response:
    """An error as a FastAPI response; `status` where it is not the code's own."""
    response = Response(
        error_body(codec, error),
        status_code=status or HTTP_STATUS[error.code],
        media_type="application/json",
        headers=dict(headers or {}),
    )
    response.raw_headers.extend(error_headers(error))
    return response


def _documented(
    app: FastAPI, services: ServiceTable, version: str, comments: Mapping[str, str] | None
) -> Callable[[], dict[str, Any]]:
    made: dict[str, Any] = {}

    def document() -> dict[str, Any]:
        if not made:
            own = FastAPI.openapi(app)
            methods = [method.descriptor for method in services.methods.values()]
            ours = build_openapi(methods, title=app.title, version=version, comments=comments)
            schemas = own.get("components", {}).get("schemas", {})
            for path, operations in own.get("paths", {}).items():
                ours["paths"].setdefault(path, {}).update(
                    {k: v for k, v in operations.items() if k not in ours["paths"].get(path, {})}
                )
            ours["components"]["schemas"] = {**schemas, **ours["components"]["schemas"]}
            made.update(ours)
        return made

    return document
