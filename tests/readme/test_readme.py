"""Every command block of the README, run as printed against a running server.

Only the port differs, and where programs lie: `localhost:8000` becomes the address of the server
under test, whose data directory `lakemesh` is given by its environment variable.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.running import Server

ROOT = Path(__file__).resolve().parents[2]
BLOCK = re.compile(r"```(\w+)\n(.*?)```", re.DOTALL)
BLOCKS = BLOCK.findall((ROOT / "README.md").read_text())
BASH = [text.strip() for language, text in BLOCKS if language == "bash"]
PYTHON = [text for language, text in BLOCKS if language == "python"]
GRPCURL = "github.com/fullstorydev/grpcurl/cmd/grpcurl@v1.9.3"
DECISIONS = ("fraud", "legitimate", "review")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("readme")
    with Server(folder, env={"ZEROBUS_FLUSH_INTERVAL": "0.5"}) as running:
        yield running


@pytest.fixture(scope="module")
def grpcurl() -> Path:
    folder = ROOT / "build" / "bin"
    program = folder / "grpcurl"
    if not program.exists():
        environment = os.environ | {"GOBIN": str(folder)}
        subprocess.run(["go", "install", GRPCURL], check=True, env=environment, timeout=300)
    return program


def shell(text: str, server: Server, path: Path | None = None) -> str:
    """Run a block as printed; its standard output. It must succeed and warn of nothing."""
    programs = [str(path)] if path else []
    programs += [str(Path(sys.executable).parent), os.environ["PATH"]]
    environment = os.environ | {
        "PATH": os.pathsep.join(programs),
        "LAKEMESH_DATA_DIR": str(server.data_dir),
    }
    command = text.replace("localhost:8000", f"localhost:{server.port}")
    command = command.replace(".venv/bin/lakemesh", "lakemesh")
    command = command.replace("lakemesh execute", f"lakemesh execute --target {server.target}")
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", command],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, f"{text}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def only(program: str) -> str:
    """The README's one block that begins with the program."""
    found = [text for text in BASH if text.startswith(program)]
    assert len(found) >= 1, program
    return str(found[0])


def judged(result: dict[str, object]) -> bool:
    score = result["score"]
    assert result["decision"] in DECISIONS
    assert isinstance(score, float)
    assert isinstance(result["reasons"], list)
    assert isinstance(result["similar_cases"], list)
    return 0 <= score <= 1


def test_curl_call_answers_as_the_interfaces_say(server: Server) -> None:
    answer = json.loads(shell(only("curl -s "), server))
    assert answer["success"] is True
    assert answer["agent"] == "fraud_detector"
    assert judged(answer["result"])
    assert re.fullmatch("[0-9a-f]{32}", answer["traceId"])
    assert answer["runId"]


@pytest.mark.go
@pytest.mark.timeout(400)
def test_grpcurl_call_works_by_reflection(server: Server, grpcurl: Path) -> None:
    answer = json.loads(shell(only("grpcurl "), server, grpcurl.parent))
    assert judged(answer["result"])


def test_python_example_prints_decision_and_score(server: Server) -> None:
    program = PYTHON[0].replace("localhost:8000", server.target)
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    decision, score = done.stdout.split()
    assert decision in DECISIONS
    assert 0 <= float(score) <= 1


@pytest.mark.go
@pytest.mark.timeout(400)
def test_go_example_prints_decision_and_score(server: Server) -> None:
    decision, score = shell(only("cd examples/go"), server).split()
    assert decision in DECISIONS
    assert 0 <= float(score) <= 1


def test_stream_example_sends_events_and_the_output(server: Server) -> None:
    text = shell(only("curl -sN"), server)
    events = re.findall(r"^event: (\w+)$", text, re.MULTILINE)
    assert events[0] == "status"
    assert events[-1] == "output"
    assert "tool_call" in events
    last = json.loads(re.findall(r"^data: (.*)$", text, re.MULTILINE)[-1])
    ranked = last["result"]["output"]["result"]["ranked"]
    assert {one["transaction_id"] for one in ranked} == {"a", "b"}


def test_commands_work_as_printed(server: Server) -> None:
    block = next(text for text in BASH if text.startswith(".venv/bin/lakemesh agents"))
    output = shell(block, server)
    assert "fraud_detector" in output
    assert '"hello": "world"' in output
    assert '"calls"' in output


def test_every_block_of_the_readme_is_run_by_a_test() -> None:
    run = ("curl -s ", "curl -sN", "grpcurl ", "cd examples/go", ".venv/bin/lakemesh")
    assert [text for text in BASH if not text.startswith(run)] == []
    assert len(PYTHON) == 2


def test_agent_of_the_readme_is_served_when_its_file_is_named(tmp_path: Path) -> None:
    agent = tmp_path / "your_agent.py"
    agent.write_text(PYTHON[1])
    with Server(tmp_path / "data", "--agents", str(agent)) as running:
        call = f"curl -s {running.url}/api/execute -d "
        answer = json.loads(
            shell(call + """'{"agent_name": "your_custom", "data": {"a": 1}}'""", running)
        )
    assert answer["result"] == {"you_said": {"a": 1}}


def test_spans_of_calls_are_found_by_sql(server: Server) -> None:
    shell(only("curl -s "), server)
    query = next(text for text in BASH if "ORDER BY timestamp" in text)
    for _ in range(40):
        output = shell(query, server)
        if "fraud_detector" in output:
            break
        time.sleep(0.25)
    assert "fraud_detector" in output
    assert "OK" in output
