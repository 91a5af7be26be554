"""What an agent has at hand while it works on one call."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

from lakemesh.agents.events import Event, Status, Token, ToolCall, ToolResult
from lakemesh.memory.store import BoundMemory, Memory, MemoryStore

if TYPE_CHECKING:
    from lakemesh.agents.runtime import AgentRuntime

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Caller:
    """On whose behalf the work is done."""

    subject: str = ""
    """Empty for an anonymous caller."""


@dataclass(slots=True)
class AgentContext:
    """Caller, ids, deadline, memory and the other agents, for one call.

    Usable from the coroutine or thread `process` runs in; a `process` that is a plain function
    awaits nothing and goes through `run`.
    """

    agent: str
    run_id: str
    trace_id: str
    caller: Caller
    deadline: float
    """When the call ends, in seconds on the server loop's clock."""
    _runtime: AgentRuntime
    _emit: Callable[[Event], Awaitable[None]] | None = None
    _path: tuple[str, ...] = ()
    _calls: int = field(default=0)
    _home: asyncio.AbstractEventLoop | None = None
    """The server's loop when `process` runs in a thread, else None."""

    @property
    def memory(self) -> BoundMemory:
        """This agent's memory: `store(text, metadata)`, `retrieve(query, top_k=5)`."""
        store = self._runtime.memory
        return BoundMemory(_HomeStore(store, self._home) if self._home else store, self.agent)

    def remaining(self) -> float:
        """Seconds left before the call is cancelled."""
        return self.deadline - self._runtime.loop.time()

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Await something of this context from a `process` that is a plain function."""
        if self._home is None:
            work.close()
            raise RuntimeError("context.run is for a plain `def process`; here, use await")
        return asyncio.run_coroutine_threadsafe(work, self._home).result(max(0, self.remaining()))

    async def status(self, message: str) -> None:
        """Tell a streaming caller what is being done."""
        await self._send(Status("working", message))

    async def token(self, text: str) -> None:
        """Give a streaming caller the next piece of text."""
        await self._send(Token(text))

    async def call_agent(self, name: str, data: Mapping[str, Any]) -> dict[str, Any]:
        """Have another agent of this server work within what is left of this call's time.

        Gives its result. Raises what `lakemesh.agents.errors` says: AgentNotFound, InvalidInput,
        AgentFailed, BudgetExceeded, and CallLoop where agents have called one another too deep.
        """
        self._calls += 1
        call_id = f"{self.run_id}.{self._calls}"
        await self._send(ToolCall(call_id, name, dict(data)))
        try:
            result = await self._at_home(self._runtime.call_from(self, name, dict(data)))
        except Exception:
            await self._send(ToolResult(call_id, name, {}, is_error=True))
            raise
        await self._send(ToolResult(call_id, name, result))
        return result

    @property
    def path(self) -> tuple[str, ...]:
        """The agents that led here, the first caller's first, this one last."""
        return self._path

    async def _send(self, event: Event) -> None:
        if self._emit is not None:
            await self._at_home(self._emit(event))

    async def _at_home(self, work: Awaitable[T]) -> T:
        return await _at_home(work, self._home)


async def _at_home(work: Awaitable[T], home: asyncio.AbstractEventLoop | None) -> T:
    """Await on the loop the server's parts live on, from whichever loop this is."""
    if home is None or asyncio.get_running_loop() is home:
        return await work

    async def there() -> T:
        return await work

    return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(there(), home))


@dataclass(frozen=True, slots=True)
class _HomeStore:
    store_at_home: MemoryStore
    home: asyncio.AbstractEventLoop

    async def store(
        self, text: str, metadata: Mapping[str, Any] | None = None, agent_id: str = ""
    ) -> str:
        return await _at_home(self.store_at_home.store(text, metadata, agent_id), self.home)

    async def retrieve(
        self,
        query: str,
        agent_id: str | None = None,
        top_k: int = 5,
        filter: Mapping[str, Any] | None = None,
    ) -> list[Memory]:
        found = self.store_at_home.retrieve(query, agent_id, top_k, filter)
        return await _at_home(found, self.home)
