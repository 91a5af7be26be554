"""MLflow's AgentServer with an echo agent, tracing on, into a SQLite file of its folder.

Run by the Python of build/peers/mlflow; nothing of Lakemesh is there.
"""

from __future__ import annotations

import socket
import sys
from typing import Any

import mlflow  # type: ignore[import-not-found]
import uvicorn
from mlflow.genai.agent_server import AgentServer, invoke  # type: ignore[import-not-found]


@invoke()  # type: ignore[untyped-decorator]
async def echo(request: dict[str, Any]) -> dict[str, Any]:
    return {"success": True, "agent": request["agent_name"], "result": request["data"]}


def main() -> None:
    mlflow.set_tracking_uri(f"sqlite:///{sys.argv[1]}")
    mlflow.set_experiment("bench")
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    sock.bind(("127.0.0.1", 0))
    sock.listen(2048)
    # What AgentServer.run starts, on a socket that is bound already.
    config = uvicorn.Config(
        AgentServer().app, access_log=False, log_level="warning", timeout_keep_alive=75
    )
    print(f"MLflow AgentServer ready on http://127.0.0.1:{sock.getsockname()[1]}", flush=True)
    uvicorn.Server(config).run(sockets=[sock])


if __name__ == "__main__":
    main()
