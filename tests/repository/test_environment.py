"""From a fresh clone to a working environment, and from there to a running server."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.repository.trees import ROOT, Tree


def test_fresh_environment_is_left_alone(tree: Tree) -> None:
    first = tree.run([sys.executable, "tools/environment.py", "dev"], timeout=50)
    second = tree.run([sys.executable, "tools/environment.py", "local"], timeout=50)
    assert first.code == 0, first.text
    assert (second.code, second.text) == (0, "")


def test_unknown_kind_is_bad_usage(tree: Tree) -> None:
    assert tree.run([sys.executable, "tools/environment.py", "everything"]).code == 2


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_two_makes_at_once_make_one_environment_that_serves(bare_tree: Tree) -> None:
    base = Path(sys.base_prefix, "bin", "python3")
    command = [str(base), "tools/environment.py", "local"]
    started = [
        subprocess.Popen(
            command,
            cwd=bare_tree.folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for _ in range(2)
    ]
    outputs = [process.communicate(timeout=300)[0] for process in started]
    assert [process.returncode for process in started] == [0, 0], outputs
    assert sum(output.count("making .venv") for output in outputs) == 1
    bin_folder = bare_tree.folder / ".venv" / "bin"
    version = bare_tree.run([bin_folder / "lakemesh", "--version"])
    assert version.code == 0, version.text
    assert "No broken" in bare_tree.run([bin_folder / "python", "-m", "pip", "check"]).text

    # A copy of the source without the project installed is what Databricks Apps has.
    removed = bare_tree.run([bin_folder / "python", "-m", "pip", "uninstall", "-qy", "lakemesh"])
    assert removed.code == 0, removed.text
    assert_app_serves(bare_tree, bin_folder / "python")


def assert_app_serves(bare: Tree, python: Path) -> None:
    """app.py becomes a server that says it is ready and ends well when told to."""
    with subprocess.Popen(
        [str(python), "app.py", "--port", "0", "--data-dir", "data"],
        cwd=bare.folder,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        try:
            ready = process.stdout.readline()
            assert ready.startswith("lakemesh ready on http://127.0.0.1:"), ready
        finally:
            process.send_signal(signal.SIGTERM)
            try:
                code = process.wait(timeout=20)
            except subprocess.TimeoutExpired:
                process.kill()
                raise
        assert code == 0


def test_make_lists_its_targets(tree: Tree) -> None:
    done = tree.run(["make", "help"])
    assert done.code == 0
    listed = {line.split()[0] for line in done.text.splitlines() if line.strip()}
    assert listed >= {
        "run", "test", "bench", "demo", "train", "lint", "types", "generate", "check-generated",
        "contract", "conformance", "package", "lock", "clean", "help",
    }  # fmt: skip


def test_continuous_integration_names_what_was_left_behind(tree: Tree) -> None:
    mark = "LAKEMESH_TEST_LEFTOVER"
    with subprocess.Popen(
        [sys.executable, "-c", "import signal; print(flush=True); signal.pause()"],
        env={mark: "here"},
        stdout=subprocess.PIPE,
        start_new_session=True,
    ) as left:
        assert left.stdout is not None
        left.stdout.readline()
        done = tree.run([sys.executable, str(ROOT / "tools/leftovers.py"), mark, "here"])
        assert left.wait(timeout=5) == -signal.SIGTERM
    assert done.code == 1
    assert f"process {left.pid} was left behind" in done.text
