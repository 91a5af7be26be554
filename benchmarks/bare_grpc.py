"""The cheapest grpc.aio server of the Execute contract: decodes, copies the data, encodes."""

from __future__ import annotations

import asyncio
import sys
from typing import Any

import grpc

from lakemesh.api.agent.v1 import request_response_pb2 as messages
from lakemesh.api.agent.v1 import service_pb2_grpc as service


class Echo(service.AgentServiceServicer):
    async def Execute(
        self, request: messages.ExecuteRequest, context: Any
    ) -> messages.ExecuteResponse:
        return messages.ExecuteResponse(
            success=True, agent=request.agent_name, result=request.data, confidence=1.0
        )


async def serve() -> None:
    server = grpc.aio.server()
    service.add_AgentServiceServicer_to_server(Echo(), server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    print(f"bare grpc.aio ready on http://127.0.0.1:{port}", flush=True)
    await server.wait_for_termination()


if __name__ == "__main__":
    if "--uvloop" in sys.argv:
        import uvloop

        uvloop.run(serve())
    else:
        asyncio.run(serve())
