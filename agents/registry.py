"""The agents of this server, found in folders, modules and files."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import logging
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from lakemesh.agents import schema
from lakemesh.agents.base import CriticalPathAgent, default_name
from lakemesh.agents.errors import AgentNotFound

logger = logging.getLogger(__name__)


class RegistryError(Exception):
    """The agents cannot be loaded; the text names the module, the class and the mend."""


@dataclass(frozen=True, slots=True)
class Registered:
    """One agent, ready to be called."""

    name: str
    description: str
    version: str
    tags: tuple[str, ...]
    time_budget_seconds: float
    isolated: bool
    is_async: bool
    agent: CriticalPathAgent
    input_schema: schema.JsonSchema
    output_schema: schema.JsonSchema
    parse: Callable[[dict[str, Any]], Any]
    dump: Callable[[Any], Mapping[str, Any]]


class AgentRegistry:
    """Agents by name; filled at start, then only read."""

    def __init__(self) -> None:
        self._agents: dict[str, Registered] = {}

    def __len__(self) -> int:
        return len(self._agents)

    def all(self) -> list[Registered]:
        """Every agent, ordered by name."""
        return [self._agents[name] for name in sorted(self._agents)]

    def get(self, name: str) -> Registered:
        """The agent of that name. Raises AgentNotFound."""
        found = self._agents.get(name)
        if found is None:
            raise AgentNotFound(name)
        return found

    def add(self, kind: type[CriticalPathAgent]) -> Registered:
        """Make one instance of an agent class and register it. Raises RegistryError."""
        name = kind.name or default_name(kind.__name__)
        where = f"{kind.__module__}.{kind.__qualname__}"
        if not name or not name.isidentifier() or name != name.lower() or len(name) > 128:
            raise RegistryError(f'{where}: name "{name}" must be snake case, 1 to 128 characters')
        if name in self._agents:
            other = type(self._agents[name].agent)
            taken = f"{other.__module__}.{other.__qualname__}"
            raise RegistryError(f'{where} and {taken} are both named "{name}"; set `name` on one')
        if kind.time_budget_seconds <= 0:
            raise RegistryError(f"{where}: time_budget_seconds must be above 0")
        try:
            given, answered = schema.declared_types(kind)
            registered = Registered(
                name=name,
                description=kind.description or inspect.cleandoc(kind.__doc__ or ""),
                version=kind.version,
                tags=tuple(kind.tags),
                time_budget_seconds=kind.time_budget_seconds,
                isolated=kind.isolated,
                is_async=inspect.iscoroutinefunction(kind.process),
                agent=kind(),
                input_schema=schema.json_schema(given),
                output_schema=schema.json_schema(answered),
                parse=schema.input_parser(given),
                dump=schema.output_dumper(answered),
            )
        except Exception as error:
            raise RegistryError(f"{where} cannot be made an agent: {error}") from error
        self._agents[name] = registered
        return registered

    def load(self, source: str) -> list[Registered]:
        """Register the agents of a module (dotted name) or a file (`path/to/agent.py`).

        Raises RegistryError when it cannot be imported or defines no agent.
        """
        module = _import(source)
        kinds = agent_classes(module)
        if not kinds:
            raise RegistryError(f"{source} defines no subclass of CriticalPathAgent")
        return [self.add(kind) for kind in kinds]

    def load_folder(self, folder: Path, package: str) -> list[Registered]:
        """Register the agents of every file in a folder of `package` that defines some."""
        found: list[Registered] = []
        for path in sorted(folder.glob("*.py")):
            # Most modules of the folder are the machinery; only what can hold an agent is imported.
            if "CriticalPathAgent)" in path.read_text(encoding="utf-8"):
                module = _import(f"{package}.{path.stem}")
                found.extend(self.add(kind) for kind in agent_classes(module))
        return found


def agent_classes(module: ModuleType) -> list[type[CriticalPathAgent]]:
    """The concrete agent classes a module defines itself, in order of definition."""
    return [
        kind
        for kind in vars(module).values()
        if isinstance(kind, type)
        and issubclass(kind, CriticalPathAgent)
        and kind.__module__ == module.__name__
        and not inspect.isabstract(kind)
        and not kind.__name__.startswith("_")
    ]


def load_agents(sources: Iterable[str], *, builtin: bool) -> AgentRegistry:
    """The agents that ship (unless `builtin` is False) and those of `sources`.

    Raises RegistryError.
    """
    registry = AgentRegistry()
    if builtin:
        registry.load_folder(Path(__file__).parent, "lakemesh.agents")
    for source in sources:
        registry.load(source)
    return registry


def _import(source: str) -> ModuleType:
    try:
        if source.endswith(".py"):
            return _import_file(Path(source).resolve())
        return importlib.import_module(source)
    except RegistryError:
        raise
    except Exception as error:
        raise RegistryError(
            f"{source} cannot be imported: {type(error).__name__}: {error}"
        ) from error


def _import_file(path: Path) -> ModuleType:
    if not path.is_file():
        raise RegistryError(f"{path} is not a file")
    name = path.stem
    if name in sys.modules:
        # Two files of one name, or a file named like a library: keep both importable.
        name = f"lakemesh_agent_{name}_{abs(hash(str(path))):x}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise RegistryError(f"{path} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module
