"""The `lakemesh` command: finds the subcommand and turns what it raises into an exit code."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from importlib import metadata

from lakemesh.cli import agents, execute, serve, sql


def build_parser() -> argparse.ArgumentParser:
    """Every subcommand brings its own options; importing one imports none of its work."""
    parser = argparse.ArgumentParser(prog="lakemesh", description="The agent server.")
    parser.add_argument(
        "--version", action="version", version=f"lakemesh {metadata.version('lakemesh')}"
    )
    subparsers = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for command in (serve, agents, execute, sql):
        command.add_parser(subparsers)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command. Gives its exit code: 0 done, 1 the work failed, 2 bad usage."""
    options = build_parser().parse_args(arguments)
    try:
        code: int = options.run(options)
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        # Whoever read our output (head, less) has seen enough.
        sys.stderr.close()
        return 0
    return code
