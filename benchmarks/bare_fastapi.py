"""The cheapest idiomatic FastAPI server of POST /api/execute: pydantic in, pydantic out."""

from __future__ import annotations

import socket
from typing import Any

import uvicorn
from fastapi import FastAPI
from pydantic import BaseModel


class ExecuteRequest(BaseModel):
    agent_name: str
    data: dict[str, Any]
    metadata: dict[str, str] = {}


class ExecuteResponse(BaseModel):
    success: bool
    agent: str
    result: dict[str, Any]
    confidence: float
    metadata: dict[str, str]
    runId: str
    traceId: str


app = FastAPI()


@app.post("/api/execute")
async def execute(request: ExecuteRequest) -> ExecuteResponse:
    return ExecuteResponse(
        success=True,
        agent=request.agent_name,
        result=request.data,
        confidence=1.0,
        metadata={},
        runId="",
        traceId="",
    )


if __name__ == "__main__":
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    sock.bind(("127.0.0.1", 0))
    config = uvicorn.Config(
        app,
        loop="uvloop",
        http="httptools",
        access_log=False,
        log_level="warning",
        timeout_keep_alive=75,  # the load's connections wait for their next round
    )
    sock.listen(2048)
    print(f"bare FastAPI ready on http://127.0.0.1:{sock.getsockname()[1]}", flush=True)
    uvicorn.Server(config).run(sockets=[sock])
