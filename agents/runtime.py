"""Runs agents: input in, answer out, and whatever an agent does wrong hurts only its own call."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import logging
import threading
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from types import CodeType
from typing import Any

from lakemesh.agents.blocking import Block, LoopWatch
from lakemesh.agents.context import AgentContext, Caller
from lakemesh.agents.deadlines import Deadlines
from lakemesh.agents.errors import (
    AgentError,
    AgentFailed,
    BudgetExceeded,
    CallLoop,
    InvalidInput,
    Overloaded,
)
from lakemesh.agents.events import Event, Status
from lakemesh.agents.random_ids import RandomIds
from lakemesh.agents.registry import AgentRegistry, Registered
from lakemesh.agents.schemas import AgentInput, AgentOutput
from lakemesh.memory.store import MemoryStore
from lakemesh.telemetry.tracing import Tracer, current_span

logger = logging.getLogger(__name__)

MAX_AGENT_HOPS = 8
"""How many agents may stand in a row, each calling the next."""

STREAM_EVENTS = 16
"""Events of one stream that its caller has not read yet; then the agent waits."""

MAX_THREADS = 64
"""Calls of synchronous and isolated agents at work at once; one more is refused."""


@dataclass(slots=True)
class Answer:
    """What an agent answered, checked: `result` is plain Python."""

    agent: str
    run_id: str
    trace_id: str
    result: Mapping[str, Any]
    confidence: float
    metadata: dict[str, str]


class AgentRuntime:
    """The agents of one server process at work, on the loop `start` was called on."""

    def __init__(
        self,
        registry: AgentRegistry,
        memory: MemoryStore,
        tracer: Tracer,
        on_block: Callable[[Block], None] = lambda block: None,
    ) -> None:
        self.registry = registry
        self.memory = memory
        self.loop: asyncio.AbstractEventLoop
        self.deadlines = Deadlines()
        self._new_id = RandomIds().new
        self._tracer = tracer
        self._on_block = on_block
        self._quarantined: set[str] = set()
        self._threads = ThreadPoolExecutor(MAX_THREADS, thread_name_prefix="agent")
        self._threads_busy = 0
        self._agents_by_code: dict[CodeType, str] = {}
        self.watch = LoopWatch(self._agents_by_code.get, self._blocked)

    def start(self) -> None:
        """Begin on the running loop."""
        self.loop = asyncio.get_running_loop()
        for one in self.registry.all():
            code = getattr(type(one.agent).process, "__code__", None)
            if code is not None:
                self._agents_by_code[code] = one.name
        self.watch.start(self.loop)

    def close(self) -> None:
        """End the watch; threads that an agent still holds are not waited for."""
        self.watch.stop()
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def execute(
        self,
        name: str,
        data: dict[str, Any],
        metadata: dict[str, str],
        caller: Caller,
        emit: Callable[[Event], Awaitable[None]] | None = None,
        run_id: str = "",
    ) -> Answer:
        """Have one agent work on one input.

        Raises AgentNotFound, InvalidInput, AgentFailed, BudgetExceeded, Overloaded, CallLoop.
        """
        one = self.registry.get(name)
        span = current_span()
        trace_id = ""
        run_id = run_id or self._new_id()
        if span is not None:
            trace_id = span.trace_id
            # The call's own span tells of the agent: one span a call, not two.
            span.agent_id = name
            attributes = span.attributes
            attributes["gen_ai.operation.name"] = "invoke_agent"
            attributes["gen_ai.agent.name"] = name
            attributes["lakemesh.run_id"] = run_id
        deadline = self.loop.time() + one.time_budget_seconds
        context = AgentContext(name, run_id, trace_id, caller, deadline, self, emit, (name,))
        return await self._work(one, data, metadata, context)

    async def stream(
        self, name: str, data: dict[str, Any], metadata: dict[str, str], caller: Caller
    ) -> AsyncGenerator[tuple[str, Event | Answer], None]:
        """The same, giving (run id, event) as the agent goes, the Answer last.

        The agent waits when its caller does not read: at most
        `STREAM_EVENTS` lie between them.
        """
        self.registry.get(name)
        run_id = self._new_id()
        events: asyncio.Queue[Event | None] = asyncio.Queue()
        room = asyncio.Semaphore(STREAM_EVENTS)

        async def emit(event: Event) -> None:
            await room.acquire()
            events.put_nowait(event)

        work = asyncio.create_task(
            self.execute(name, data, metadata, caller, emit, run_id), name=f"run {run_id}"
        )
        work.add_done_callback(lambda _: events.put_nowait(None))
        try:
            yield run_id, Status("started")
            while (event := await events.get()) is not None:
                room.release()
                yield run_id, event
            answer = await work
            yield run_id, Status("completed")
            yield run_id, answer
        finally:
            if not work.done():
                work.cancel()
                with contextlib.suppress(asyncio.CancelledError, AgentError):
                    await work

    async def call_from(
        self, outer: AgentContext, name: str, data: dict[str, Any]
    ) -> dict[str, Any]:
        """One agent calls another, within the time the first has left."""
        if len(outer.path) >= MAX_AGENT_HOPS:
            way = " -> ".join((*outer.path, name))
            raise CallLoop(f"agents called one another more than {MAX_AGENT_HOPS} deep: {way}")
        one = self.registry.get(name)
        with self._tracer.span(f"invoke_agent {name}") as span:
            span.agent_id = name
            span.attributes["gen_ai.operation.name"] = "invoke_agent"
            span.attributes["gen_ai.agent.name"] = name
            span.attributes["lakemesh.run_id"] = outer.run_id
            deadline = min(outer.deadline, self.loop.time() + one.time_budget_seconds)
            inner = AgentContext(
                name,
                outer.run_id,
                outer.trace_id,
                outer.caller,
                deadline,
                self,
                None,
                (*outer.path, name),
            )
            answer = await self._work(one, data, {}, inner)
        return dict(answer.result)

    async def _work(
        self,
        one: Registered,
        data: dict[str, Any],
        metadata: dict[str, str],
        context: AgentContext,
    ) -> Answer:
        request = AgentInput(one.parse(data), metadata, context)
        limit = self.deadlines.limit(context.deadline)
        try:
            with limit:
                if one.is_async and not one.isolated and one.name not in self._quarantined:
                    output = await one.agent.process(request)
                else:
                    output = await self._in_thread(one, request)
        except InvalidInput:
            raise
        except TimeoutError:
            if limit.expired:
                raise BudgetExceeded(one.name, one.time_budget_seconds) from None
            self._log_failure(one, context)
            raise AgentFailed(one.name, context.run_id) from None
        except AgentError:
            raise
        except BaseExceptionGroup as group:
            raise self._from_group(group, one, context) from None
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                raise
            # Nobody cancelled this call: the agent let a cancellation of its own escape.
            self._log_failure(one, context)
            raise AgentFailed(one.name, context.run_id) from None
        except (Exception, SystemExit, KeyboardInterrupt):
            # An agent that calls sys.exit() ends its call, not the server.
            self._log_failure(one, context)
            raise AgentFailed(one.name, context.run_id) from None
        try:
            if not isinstance(output, AgentOutput):
                raise TypeError(f"process answered {type(output).__name__}, not AgentOutput")
            confidence = output.confidence
            if not 0 <= confidence <= 1:
                raise ValueError(f"confidence is {confidence!r}, it must be 0 to 1")
            return Answer(
                one.name,
                context.run_id,
                context.trace_id,
                one.dump(output.result),
                confidence,
                output.metadata,
            )
        except Exception:
            self._log_failure(one, context)
            raise AgentFailed(one.name, context.run_id) from None

    def failed(self, answer: Answer, error: Exception) -> AgentFailed:
        """The failure of an agent whose answer could not be encoded; logged here."""
        logger.error("agent %s answered what no transport carries: %s", answer.agent, error)
        return AgentFailed(answer.agent, answer.run_id)

    def _from_group(
        self, group: BaseExceptionGroup[BaseException], one: Registered, context: AgentContext
    ) -> BaseException:
        """What a TaskGroup in an agent really failed of: the first error that has words."""
        domain, _ = group.split(AgentError)
        leaf: BaseException | None = domain
        while isinstance(leaf, BaseExceptionGroup):
            leaf = leaf.exceptions[0]
        if leaf is not None:
            return leaf
        self._log_failure(one, context)
        return AgentFailed(one.name, context.run_id)

    def _log_failure(self, one: Registered, context: AgentContext) -> None:
        logger.exception("agent %s failed, run %s", one.name, context.run_id)

    async def _in_thread(self, one: Registered, request: AgentInput[Any]) -> Any:
        """`process` in a thread: a plain function as it is, a coroutine on a loop of its own."""
        if self._threads_busy >= MAX_THREADS:
            raise Overloaded(f"all {MAX_THREADS} threads for agents that block are busy")
        request.context._home = self.loop
        cancel: list[Callable[[], None]] = []
        gone = threading.Event()

        def work() -> Any:
            try:
                if one.is_async:
                    return asyncio.run(_cancellable(one.agent.process(request), cancel, gone))
                return one.agent.process(request)
            finally:
                with contextlib.suppress(RuntimeError):  # the server's loop is gone at shutdown
                    self.loop.call_soon_threadsafe(self._thread_free)

        self._threads_busy += 1
        inside = contextvars.copy_context()
        running = self.loop.run_in_executor(self._threads, inside.run, work)
        try:
            return await asyncio.shield(running)
        except asyncio.CancelledError:
            # A thread cannot be stopped; what can be is told, and the caller does not wait for it.
            gone.set()
            for each in cancel:
                each()
            running.add_done_callback(lambda done: done.cancelled() or done.exception())
            raise

    def _thread_free(self) -> None:
        self._threads_busy -= 1

    def _blocked(self, block: Block) -> None:
        """Called from the watch's thread while the loop stands still."""
        if block.agent:
            logger.warning(
                "agent %s blocks the event loop (%.2f s so far) at %s; its next calls run in "
                "threads of their own. Set `isolated = True` or await instead.",
                block.agent,
                block.seconds,
                block.where,
            )
            self._quarantined.add(block.agent)
        else:
            logger.warning(
                "the event loop stood still for %.2f s at %s", block.seconds, block.where
            )
        self._on_block(block)


async def _cancellable(
    work: Awaitable[Any], cancel: list[Callable[[], None]], gone: threading.Event
) -> Any:
    task = asyncio.current_task()
    loop = asyncio.get_running_loop()

    def stop() -> None:
        with contextlib.suppress(RuntimeError):  # it ended by itself meanwhile
            loop.call_soon_threadsafe(task.cancel)  # type: ignore[union-attr]

    cancel.append(stop)
    if gone.is_set():
        stop()
    return await work
