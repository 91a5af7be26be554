"""`lakemesh agents`: a table of the agents a server started here would serve."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = subparsers.add_parser("agents", help="a table of agents and their schemas")
    parser.add_argument(
        "--agents", action="append", metavar="MODULE_OR_FILE", help="agents beside those that ship"
    )
    parser.add_argument("--format", choices=("table", "json"), default="table")
    parser.add_argument("--config", type=Path)
    parser.add_argument("--data-dir", type=Path)
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    from lakemesh.agents.registry import RegistryError, load_agents
    from lakemesh.config.settings import SettingError, Settings

    try:
        settings = Settings.load(
            {"agents": options.agents, "data_dir": options.data_dir}, file=options.config
        )
        registry = load_agents(settings.agents, builtin=settings.builtin_agents)
    except (SettingError, RegistryError) as error:
        print(f"lakemesh agents: {error}", file=sys.stderr)
        return 2
    found = registry.all()
    if options.format == "json":
        rows = [
            {
                "name": one.name,
                "description": one.description,
                "input_schema": one.input_schema,
                "output_schema": one.output_schema,
            }
            for one in found
        ]
        print(json.dumps(rows, indent=2))
        return 0
    header = ("NAME", "TAKES", "GIVES", "DESCRIPTION")
    table = [header] + [
        (one.name, _fields(one.input_schema), _fields(one.output_schema), _first_line(one))
        for one in found
    ]
    widths = [min(48, max(len(row[column]) for row in table)) for column in range(3)]
    for row in table:
        cells = [cell.ljust(width) for cell, width in zip(row[:3], widths, strict=True)]
        print("  ".join([*cells, row[3]]).rstrip())
    return 0


def _fields(schema: dict[str, Any]) -> str:
    """`name*: type` for each property, `*` for one that is required."""
    properties = schema.get("properties")
    if not properties:
        return "any object"
    required = set(schema.get("required", ()))
    parts = [
        f"{name}{'*' if name in required else ''}: {_type(one)}" for name, one in properties.items()
    ]
    text = ", ".join(parts)
    return text if len(text) <= 48 else text[:45] + "..."


def _type(schema: dict[str, Any]) -> str:
    if "$ref" in schema:
        return str(schema["$ref"]).rpartition("/")[2]
    if "anyOf" in schema:
        kinds = [_type(one) for one in schema["anyOf"]]
        return "|".join(kind for kind in kinds if kind != "null")
    kind = schema.get("type", "any")
    return "|".join(kind) if isinstance(kind, list) else str(kind)


def _first_line(one: Any) -> str:
    lines = one.description.splitlines()
    return lines[0] if lines else ""
