"""What memory is to those who use it: store a text, find texts near in meaning.

The arguments are checked here, before any database or embedder sees them, so that a wrong one is
refused with the same words whatever lies behind the seam.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Protocol

from lakemesh.memory.errors import InvalidMemory

MAX_TEXT_BYTES = 2 * 1024 * 1024
"""Longest text stored, in UTF-8 bytes; below the 4 MiB a message may have."""
MAX_METADATA_BYTES = 256 * 1024
"""Largest metadata of one memory, in UTF-8 bytes of keys and string values."""
MAX_TOP_K = 1000
MAX_AGENT_ID_BYTES = 256
MAX_BATCH = 10_000
_MAX_DEPTH = 32


@dataclass(frozen=True, slots=True)
class Memory:
    """One remembered text."""

    id: str
    text: str
    score: float
    """Cosine similarity of the query and the text, -1..1, higher is nearer; 1.0 when not ranked."""
    metadata: Mapping[str, Any] = field(default_factory=dict)
    agent_id: str = ""
    create_time: datetime | None = None


@dataclass(frozen=True, slots=True)
class NewMemory:
    """A memory to be stored.

    `request_id`, unique per agent, makes the store happen once however often it is sent.
    """

    text: str
    metadata: Mapping[str, Any] = field(default_factory=dict)
    agent_id: str = ""
    request_id: str = ""


class MemoryStore(Protocol):
    """What agents hold: every method raises InvalidMemory or MemoryUnavailable, nothing else."""

    async def store(
        self, text: str, metadata: Mapping[str, Any] | None = None, agent_id: str = ""
    ) -> str:
        """Keep `text` and answer its id; once answered, a SIGKILL does not take it away."""
        ...

    async def retrieve(
        self,
        query: str,
        agent_id: str | None = None,
        top_k: int = 5,
        filter: Mapping[str, Any] | None = None,
    ) -> list[Memory]:
        """The `top_k` memories nearest in meaning to `query`, nearest first.

        `agent_id` None looks at every agent's memories, as the owner of a store may; the store an
        agent holds is bound to that agent. `filter` keeps the memories whose metadata has each of
        its keys with exactly that value.
        """
        ...


class ManagedMemory(MemoryStore, Protocol):
    """What the composition root and jobs hold: the store, and its beginning and end."""

    async def store_many(self, memories: Sequence[NewMemory]) -> list[str]:
        """Keep all of `memories` or none; their ids in order."""
        ...

    async def count(self, agent_id: str | None = None) -> int:
        """How many memories there are."""
        ...

    def problem(self) -> str:
        """Why memory is degraded, in one line, or "" while it works; never blocks."""
        ...

    async def close(self) -> None:
        """Give back connections and, when this process owns it, stop the embedded database."""
        ...


class BoundMemory:
    """A store seen by one agent: it writes and finds that agent's memories only."""

    __slots__ = ("_agent_id", "_store")

    def __init__(self, store: MemoryStore, agent_id: str) -> None:
        self._store = store
        self._agent_id = agent_id

    async def store(
        self, text: str, metadata: Mapping[str, Any] | None = None, agent_id: str = ""
    ) -> str:
        self._check(agent_id)
        return await self._store.store(text, metadata, self._agent_id)

    async def retrieve(
        self,
        query: str,
        agent_id: str | None = None,
        top_k: int = 5,
        filter: Mapping[str, Any] | None = None,
    ) -> list[Memory]:
        self._check(agent_id or "")
        return await self._store.retrieve(query, self._agent_id, top_k, filter)

    def _check(self, agent_id: str) -> None:
        if agent_id and agent_id != self._agent_id:
            raise InvalidMemory(
                "agent_id", f'this memory belongs to "{self._agent_id}"; leave it out or name that'
            )


def check_text(name: str, text: object) -> str:
    """`text` when it can be stored and found again, else InvalidMemory naming `name`."""
    if not isinstance(text, str):
        raise InvalidMemory(name, f"must be a string, not {type(text).__name__}")
    if not text.strip():
        raise InvalidMemory(name, "must not be empty")
    size = _utf8_length(name, text)
    if size > MAX_TEXT_BYTES:
        raise InvalidMemory(
            name, f"has {size} bytes, at most {MAX_TEXT_BYTES} are stored; split it"
        )
    return text


def check_agent_id(agent_id: object) -> str:
    """`agent_id` when it is a usable name ("" is allowed), else InvalidMemory."""
    if not isinstance(agent_id, str):
        raise InvalidMemory("agent_id", f"must be a string, not {type(agent_id).__name__}")
    if agent_id and _utf8_length("agent_id", agent_id) > MAX_AGENT_ID_BYTES:
        raise InvalidMemory("agent_id", f"is longer than {MAX_AGENT_ID_BYTES} bytes; shorten it")
    return agent_id


def check_request_id(request_id: object) -> str:
    """`request_id` when usable ("" means none), else InvalidMemory."""
    if not isinstance(request_id, str):
        raise InvalidMemory("request_id", f"must be a string, not {type(request_id).__name__}")
    if request_id and _utf8_length("request_id", request_id) > MAX_AGENT_ID_BYTES:
        raise InvalidMemory("request_id", f"is longer than {MAX_AGENT_ID_BYTES} bytes; shorten it")
    return request_id


def check_top_k(top_k: object) -> int:
    """`top_k` when it is between 1 and MAX_TOP_K, else InvalidMemory."""
    if isinstance(top_k, bool) or not isinstance(top_k, int):
        raise InvalidMemory("top_k", f"must be a whole number, not {type(top_k).__name__}")
    if not 1 <= top_k <= MAX_TOP_K:
        raise InvalidMemory("top_k", f"is {top_k}, must be between 1 and {MAX_TOP_K}")
    return top_k


def check_metadata(metadata: object) -> dict[str, Any]:
    """`metadata` when it is a JSON map that Postgres can keep unchanged, else InvalidMemory."""
    if metadata is None:
        return {}
    if not isinstance(metadata, Mapping):
        raise InvalidMemory("metadata", f"must be a map, not {type(metadata).__name__}")
    size = _check_json("metadata", metadata, 0)
    if size > MAX_METADATA_BYTES:
        raise InvalidMemory(
            "metadata", f"has {size} bytes, at most {MAX_METADATA_BYTES} are stored; put it in text"
        )
    return dict(metadata)


def check_filter(filter: object) -> dict[str, Any]:
    """`filter` when every value is a string, number, boolean or null, else InvalidMemory."""
    if filter is None:
        return {}
    if not isinstance(filter, Mapping):
        raise InvalidMemory("filter", f"must be a map, not {type(filter).__name__}")
    for key, value in filter.items():
        if isinstance(value, (Mapping, list, tuple)):
            raise InvalidMemory(
                f"filter.{key}", "must be a string, number, boolean or null to compare with"
            )
    _check_json("filter", filter, 0)
    return dict(filter)


def check_new(memory: NewMemory, prefix: str = "") -> NewMemory:
    """`memory` with all its parts checked; errors name the field after `prefix`."""
    try:
        return NewMemory(
            check_text("text", memory.text),
            check_metadata(memory.metadata),
            check_agent_id(memory.agent_id),
            check_request_id(memory.request_id),
        )
    except InvalidMemory as error:
        if not prefix:
            raise
        wrong = error.fields[0]
        raise InvalidMemory(prefix + wrong.field, wrong.description) from None


def _utf8_length(name: str, text: str) -> int:
    """Bytes of `text` in UTF-8; refuses what Postgres cannot hold in a text value."""
    if "\x00" in text:
        raise InvalidMemory(name, "contains a NUL character, which cannot be stored; remove it")
    try:
        return len(text.encode())
    except UnicodeEncodeError as error:
        raise InvalidMemory(
            name, f"has half of a surrogate pair at position {error.start}; it is not valid Unicode"
        ) from None


def _check_json(path: str, value: object, depth: int) -> int:
    """Size of `value` in bytes, roughly; refuses what JSON or Postgres' jsonb cannot keep."""
    if depth > _MAX_DEPTH:
        raise InvalidMemory(path, f"is nested deeper than {_MAX_DEPTH}; flatten it")
    if value is None or isinstance(value, bool):
        return 4
    if isinstance(value, str):
        return _utf8_length(path, value)
    if isinstance(value, int):
        # jsonb keeps numbers as numeric; a reader's 64 bits are the honest limit for a whole one.
        if not -(2**63) <= value < 2**63:
            raise InvalidMemory(path, "does not fit in 64 bits; store it as a string")
        return 8
    if isinstance(value, float):
        if not math.isfinite(value):
            raise InvalidMemory(path, f"is {value}, which JSON cannot express; leave it out")
        return 8
    if isinstance(value, Mapping):
        size = 0
        for key, item in value.items():
            if not isinstance(key, str):
                raise InvalidMemory(path, f"has a key that is a {type(key).__name__}; use a string")
            size += _utf8_length(path, key) + _check_json(f"{path}.{key}", item, depth + 1)
        return size
    if isinstance(value, (list, tuple)):
        return sum(_check_json(f"{path}[{i}]", v, depth + 1) for i, v in enumerate(value))
    raise InvalidMemory(path, f"is a {type(value).__name__}, which JSON cannot express")
