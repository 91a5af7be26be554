"""`lakemesh execute`: one call of one agent, over gRPC."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

DEFAULT_TARGET = "127.0.0.1:8000"


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = subparsers.add_parser("execute", help="have an agent work on one input")
    parser.add_argument("agent", metavar="AGENT")
    parser.add_argument("data", metavar="JSON_OR_@FILE", help="the input, a JSON object")
    parser.add_argument("--stream", action="store_true", help="print events as they come")
    parser.add_argument("--target", default=DEFAULT_TARGET, metavar="HOST:PORT")
    parser.add_argument(
        "--metadata", action="append", default=[], metavar="KEY=VALUE", help="repeatable"
    )
    parser.add_argument("--timeout", type=float, default=60.0, metavar="SECONDS")
    parser.add_argument("--data-dir", type=Path, help=argparse.SUPPRESS)
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    try:
        data = _input(options.data)
        metadata = dict(_pair(entry) for entry in options.metadata)
    except ValueError as error:
        print(f"lakemesh execute: {error}", file=sys.stderr)
        return 2
    return _call(options, data, metadata)


def _call(options: argparse.Namespace, data: dict[str, Any], metadata: dict[str, str]) -> int:
    import grpc
    from google.protobuf import json_format

    from lakemesh.api.agent.v1 import request_response_pb2, service_pb2_grpc

    fields = {"agent_name": options.agent, "data": data, "metadata": metadata}
    with grpc.insecure_channel(options.target) as channel:
        stub = service_pb2_grpc.AgentServiceStub(channel)
        try:
            if options.stream:
                streamed = json_format.ParseDict(
                    fields, request_response_pb2.ExecuteStreamRequest()
                )
                for event in stub.ExecuteStream(streamed, timeout=options.timeout):
                    print(json_format.MessageToJson(event, indent=None), flush=True)
            else:
                request = json_format.ParseDict(fields, request_response_pb2.ExecuteRequest())
                answer = stub.Execute(request, timeout=options.timeout)
                print(json_format.MessageToJson(answer))
        except grpc.RpcError as error:
            print(f"lakemesh execute: {_words(error)}", file=sys.stderr)
            return 1
    return 0


def _words(error: Any) -> str:
    return f"{error.code().name}: {error.details()}"


def _input(text: str) -> dict[str, Any]:
    if text.startswith("@"):
        path = Path(text[1:])
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeError) as error:
            raise ValueError(f"{path} cannot be read: {error}") from None
    try:
        data = json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"the input is not JSON: {error}") from None
    if not isinstance(data, dict):
        raise ValueError("the input must be a JSON object, as in '{\"amount\": 5000}'")
    return data


def _pair(entry: str) -> tuple[str, str]:
    key, separator, value = entry.partition("=")
    if not key or not separator:
        raise ValueError(f"--metadata {entry!r} must be KEY=VALUE")
    return key, value
