"""Whether a call costs more when the server runs more agents."""

from __future__ import annotations

from pathlib import Path

from benchmarks.payload import EXECUTE
from benchmarks.processes import lakemesh
from benchmarks.report import Figure
from benchmarks.rounds import LoadClient, say
from benchmarks.rows import Row

_ROW = Row("agents", "agents", "h2", "grpc", EXECUTE)
_MODULE = """
from lakemesh.agents.base import CriticalPathAgent
from lakemesh.agents.schemas import AgentInput, AgentOutput

class Base(CriticalPathAgent):
    async def process(self, request: AgentInput) -> AgentOutput:
        return AgentOutput(result=request.data)

"""


def measure(folder: Path, counts: tuple[int, ...], requests: int) -> list[Figure]:
    """CPU per request of the same call beside so many further agents."""
    figures = []
    for count in counts:
        say(f"{count} further agents")
        module = folder / f"bench_agents_{count}.py"
        lines = [f"class Number{n}(Base):\n    name = 'number_{n}'\n" for n in range(count)]
        module.write_text(_MODULE + "\n".join(lines))
        options = ("--agents", str(module)) if count else ()
        with lakemesh(folder / f"agents-{count}", "--grpc-edge", "h2", *options) as server:
            client = LoadClient(_ROW, server.address)
            try:
                client.batch(16, requests)
                before = server.cpu_seconds()
                answered = client.batch(16, requests)["answered"]
                used = server.cpu_seconds() - before
            finally:
                client.close()
        what = f"CPU a request, gRPC on the h2 edge, {count:,} further agents"
        figures.append(Figure(what, used / answered * 1e6, "us"))
    return figures
