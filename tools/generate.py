"""Make gen/ from proto/, or say where it is stale.

    .venv/bin/python tools/generate.py            writes gen/
    .venv/bin/python tools/generate.py --check    changes nothing, exit code 1 when gen/ is stale

Everything is made in a folder of its own first and then compared with, or moved into, gen/; so a
deleted message leaves no module behind, and who imports from gen/ meanwhile sees whole files.
buf.gen.yaml says what is generated; the Go module's go.mod and the OpenAPI document are added here.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, cast

import third_party_protos
import type_tree
import yaml

ROOT = Path(__file__).resolve().parent.parent
GEN = ROOT / "gen"
BUILD = ROOT / "build"
BUF = ROOT / ".venv" / "bin" / "buf"

# The Go plugins, by the package that is built; protoc-gen-go's release is also the runtime's.
GO_PLUGINS = {
    "google.golang.org/protobuf/cmd/protoc-gen-go": "v1.36.12",
    "google.golang.org/grpc/cmd/protoc-gen-go-grpc": "v1.6.2",
}
# What the generated Go code imports. The google/api and buf/validate packages are their owners'.
GO_REQUIRES = {
    "buf.build/gen/go/bufbuild/protovalidate/protocolbuffers/go": (
        "v1.36.12-20260825204119-511051f7f437.2"
    ),
    "google.golang.org/genproto/googleapis/api": "v0.0.0-20261104224025-d1e00e9f33ab",
    "google.golang.org/grpc": "v1.85.0",
    "google.golang.org/protobuf": "v1.36.12",
}
# The oldest Go that can build it: what these modules ask for.
GO_LANGUAGE = "1.26.0"
OPENAPI = "openapi/lakemesh.json"


def run(*command: str | Path, cwd: Path = ROOT, **environment: str) -> None:
    """Run a program to its end; SystemExit naming it when it fails."""
    done = subprocess.run(
        [str(part) for part in command], cwd=cwd, env=os.environ | environment, check=False
    )
    if done.returncode:
        raise SystemExit(f"generate: {Path(command[0]).name} {command[1]} failed")


def go_module() -> str:
    """The Go module's path: the prefix buf.gen.yaml gives all generated Go packages."""
    config = cast(dict[str, Any], yaml.safe_load((ROOT / "buf.gen.yaml").read_text()))
    for override in config["managed"]["override"]:
        if override["file_option"] == "go_package_prefix":
            return str(override["value"])
    raise SystemExit("generate: buf.gen.yaml overrides no go_package_prefix")


def go_plugins() -> None:
    """Build the Go plugins into build/bin, once per release."""
    for package, version in GO_PLUGINS.items():
        name = package.rsplit("/", 1)[1]
        stamp = BUILD / "bin" / f"{name}.version"
        if stamp.exists() and stamp.read_text() == version and stamp.with_suffix("").exists():
            continue
        print(f"generate: building {name} {version}", flush=True)
        stamp.parent.mkdir(parents=True, exist_ok=True)
        run("go", "install", f"{package}@{version}", GOBIN=str(stamp.parent), GOFLAGS="")
        stamp.write_text(version)


def complete_go(folder: Path) -> None:
    """Add go.mod and go.sum: from those there are, with the requirements above, tidied."""
    for name in ("go.mod", "go.sum"):
        if (GEN / "go" / name).exists():
            shutil.copy(GEN / "go" / name, folder / name)
    if not (folder / "go.mod").exists():
        run("go", "mod", "init", go_module(), cwd=folder)
    edits = [f"-require={path}@{version}" for path, version in GO_REQUIRES.items()]
    settings = [f"-module={go_module()}", f"-go={GO_LANGUAGE}"]
    run("go", "mod", "edit", *settings, *edits, cwd=folder)
    run("go", "mod", "tidy", cwd=folder)


def make(out: Path) -> None:
    """Generate all of gen/ into `out`/gen."""
    third_party_protos.lay(BUILD / "third_party")
    go_plugins()
    run(BUF, "generate", "--output", out)
    gen = out / "gen"
    # A type checker reads py.typed in the package it finds first below the namespace.
    for package in (gen / "python" / "lakemesh" / "api").rglob("*_pb2.py"):
        (package.parent / "py.typed").touch()
    (gen / "python" / "lakemesh" / "api" / "py.typed").touch()
    complete_go(gen / "go")
    openapi(out)


def openapi(out: Path) -> None:
    """Write the OpenAPI document, with the server's own code as it lies in this checkout."""
    types = BUILD / "types"
    type_tree.build(types)
    descriptors = out / "files.binpb"
    run(BUF, "build", "proto", "--output", descriptors)
    program = ROOT / "tools" / "write_openapi.py"
    run(sys.executable, program, descriptors, out / "gen" / OPENAPI, PYTHONPATH=str(types))


def files(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and "__pycache__" not in path.parts
    }


def write(fresh: dict[str, bytes]) -> int:
    """Bring gen/ to what `fresh` says; how many files changed."""
    present = files(GEN) if GEN.exists() else {}
    changed = [name for name, content in fresh.items() if present.get(name) != content]
    for name in changed:
        path = GEN / name
        path.parent.mkdir(parents=True, exist_ok=True)
        beside = path.with_name(f".{path.name}.new")
        beside.write_bytes(fresh[name])
        beside.replace(path)
    gone = present.keys() - fresh.keys()
    for name in gone:
        (GEN / name).unlink()
    return len(changed) + len(gone)


def stale(fresh: dict[str, bytes]) -> list[str]:
    """What is wrong with gen/, one line each."""
    present = files(GEN) if GEN.exists() else {}
    lines = [f"gen/{name} is missing" for name in sorted(fresh.keys() - present.keys())]
    lines += [f"gen/{name} is left over" for name in sorted(present.keys() - fresh.keys())]
    both = sorted(fresh.keys() & present.keys())
    lines += [f"gen/{name} differs" for name in both if fresh[name] != present[name]]
    return lines


def main() -> int:
    parser = argparse.ArgumentParser(description="Make gen/ from proto/.")
    parser.add_argument("--check", action="store_true", help="only say where gen/ is stale")
    check = parser.parse_args().check
    BUILD.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=BUILD) as folder:
        make(Path(folder))
        fresh = files(Path(folder, "gen"))
    if not check:
        print(f"generate: {write(fresh)} of {len(fresh)} files in gen/ changed")
        return 0
    wrong = stale(fresh)
    for line in wrong:
        print(f"check-generated: {line}")
    print("check-generated: run `make generate`" if wrong else "check-generated: gen/ is fresh")
    return 1 if wrong else 0


if __name__ == "__main__":
    raise SystemExit(main())
