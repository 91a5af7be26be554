"""Lay the .proto files ours import, from the packages that own them, into build/third_party.

Nobody else's .proto is copied into the repository. google/api, google/rpc and google/type come
from the googleapis-common-protos wheel; buf/validate/validate.proto, which no wheel carries as
text, from protovalidate's Go module. buf sees the folder as a second module (buf.yaml).
"""

from __future__ import annotations

import json
import shutil
import subprocess
from importlib import metadata
from pathlib import Path

PROTOVALIDATE = "github.com/bufbuild/protovalidate"
PROTOVALIDATE_VERSION = "v1.2.2"
VALIDATE_PROTO = "buf/validate/validate.proto"
WHEEL = "googleapis-common-protos"


def lay(folder: Path) -> None:
    """Fill `folder`; nothing is done when it holds the versions wanted.

    Raises SystemExit when Go, which fetches protovalidate's module, is not there.
    """
    versions = f"{WHEEL} {metadata.version(WHEEL)}\n{PROTOVALIDATE} {PROTOVALIDATE_VERSION}\n"
    stamp = folder.with_name(f"{folder.name}.versions")
    if stamp.exists() and stamp.read_text() == versions and (folder / VALIDATE_PROTO).exists():
        return
    # Made beside and moved, so that a linter running meanwhile never sees half of it.
    fresh = folder.with_name(f"{folder.name}.new")
    shutil.rmtree(fresh, ignore_errors=True)
    for file in metadata.files(WHEEL) or []:
        if file.suffix == ".proto":
            copy(Path(str(file.locate())), fresh / file)
    copy(module_folder() / "proto/protovalidate" / VALIDATE_PROTO, fresh / VALIDATE_PROTO)
    shutil.rmtree(folder, ignore_errors=True)
    fresh.rename(folder)
    stamp.write_text(versions)


def copy(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_bytes(source.read_bytes())


def module_folder() -> Path:
    """Where Go's module cache has protovalidate, fetched when it is not there yet."""
    go = shutil.which("go")
    if go is None:
        raise SystemExit(f"third_party_protos: Go is needed to fetch {PROTOVALIDATE}")
    command = [go, "mod", "download", "-json", f"{PROTOVALIDATE}@{PROTOVALIDATE_VERSION}"]
    answer = subprocess.run(command, stdout=subprocess.PIPE, check=False)
    told = json.loads(answer.stdout or b"{}")
    if answer.returncode or "Dir" not in told:
        raise SystemExit(f"third_party_protos: {told.get('Error', 'go mod download failed')}")
    return Path(told["Dir"])


if __name__ == "__main__":
    lay(Path(__file__).resolve().parent.parent / "build" / "third_party")
