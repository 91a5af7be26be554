"""`lakemesh serve`: the server on one port."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = subparsers.add_parser(
        "serve",
        help="start the server",
        epilog="Every option has an environment variable LAKEMESH_<OPTION>.",
    )
    parser.add_argument("--host", help="default 127.0.0.1")
    parser.add_argument("--port", help="default 8000; 0 lets the system choose")
    parser.add_argument("--workers", help="processes that share the port; default 1")
    parser.add_argument(
        "--grpc-edge", metavar="{grpcio,h2}", help="who serves direct gRPC connections"
    )
    parser.add_argument("--data-dir", type=Path, help="default .lakemesh")
    parser.add_argument("--config", type=Path, metavar="FILE", help="YAML with the same names")
    parser.add_argument(
        "--agents",
        action="append",
        metavar="MODULE_OR_FILE",
        help="repeatable; added to those that ship",
    )
    parser.add_argument("--tls-cert", type=Path, metavar="PEM")
    parser.add_argument("--tls-key", type=Path, metavar="PEM")
    parser.add_argument("--concurrent-calls", help="calls at work at once; default 4096")
    parser.add_argument("--log-level", metavar="{debug,info,warning,error}")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    from lakemesh.config.settings import SettingError, Settings

    names = (
        "host port workers grpc_edge data_dir agents tls_cert tls_key concurrent_calls log_level"
    )
    given = {name: getattr(options, name) for name in names.split()}
    try:
        settings = Settings.load(given, file=options.config)
    except SettingError as error:
        print(f"lakemesh serve: {error}", file=sys.stderr)
        return 2
    from lakemesh.server.serve import serve

    return serve(settings)
