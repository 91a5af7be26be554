"""h2spec, the conformance suite of HTTP/2 and HPACK, against the terminating edge."""

from __future__ import annotations

import asyncio
import subprocess
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest

from lakemesh.server.services import ServiceTable
from tests.interop.conftest import serve_alone

pytestmark = [pytest.mark.go, pytest.mark.slow, pytest.mark.timeout(300)]

CASES = 145
"""Of h2spec 2.2.1, without its --strict ones."""
EXPLAINED: dict[str, str] = {}
"""Cases that may fail, each with the reason. None does."""


async def _run(program: Path, port: int, report: Path, *options: str) -> ElementTree.Element:
    address = ["-h", "127.0.0.1", "-p", str(port), "-o", "2", "-j", str(report)]
    command = [str(program), *address, *options]

    def run() -> None:
        subprocess.run(command, stdout=subprocess.DEVNULL, timeout=120, check=False)

    # Not uvloop's subprocess, which forks: see test_go_client.py.
    await asyncio.to_thread(run)
    return ElementTree.fromstring(report.read_text())  # noqa: S314


def _failed(report: ElementTree.Element) -> list[str]:
    return [
        f"{case.get('package')} {case.get('classname')}: {' '.join(case.itertext())}"
        for case in report.iter("testcase")
        if case.find("failure") is not None or case.find("error") is not None
    ]


@pytest.mark.parametrize("strict", [False, True])
async def test_every_case_passes(programs: Path, tmp_path: Path, strict: bool) -> None:
    options = ["--strict"] if strict else []
    async with serve_alone(ServiceTable()) as port:
        report = await _run(programs / "h2spec", port, tmp_path / "report.xml", *options)
    unexplained = [case for case in _failed(report) if case not in EXPLAINED]
    assert unexplained == []
    assert len(list(report.iter("testcase"))) >= CASES
