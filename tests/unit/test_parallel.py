"""What `pytest --processes` does when a test, or the process that runs it, does not do as it should."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.parallel import GRACE_SECONDS

ROOT = Path(__file__).resolve().parents[2]
TIMEOUT_SECONDS = 60 + GRACE_SECONDS

pytestmark = pytest.mark.slow  # each starts an interpreter that imports the whole product

CONFTEST = """
from tests.support.parallel import ParallelRun

def pytest_configure(config):
    config.pluginmanager.register(ParallelRun(2))
"""

DIES = """
import os
import pytest

@pytest.mark.parametrize("number", range(5))
def test_number(number):
    print("before", number)
    if number == 1:
        os._exit(3)
    assert number != 3
"""

WARNS = """
import warnings

def test_output_is_its_own(capfd, tmp_path):
    print("hello")
    assert capfd.readouterr().out == "hello\\n"
    assert not list(tmp_path.iterdir())

def test_warning():
    warnings.warn("something is old", DeprecationWarning, stacklevel=1)
"""

WAITS = """
import threading

def test_that_never_ends():
    print("waits", flush=True)
    threading.Event().wait()
"""

Run = Callable[..., subprocess.Popen[str]]


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """Start pytest in two processes on files with these texts."""

    def start(*texts: str, options: tuple[str, ...] = ()) -> subprocess.Popen[str]:
        folder = tmp_path / "suite"
        folder.mkdir()
        (folder / "conftest.py").write_text(CONFTEST)
        for number, text in enumerate(texts):
            (folder / f"test_{number}.py").write_text(text)
        return subprocess.Popen(
            [sys.executable, "-m", "pytest", "-q", f"--rootdir={tmp_path}", "-c/dev/null", *options, str(folder)],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            # Where the run itself was started in the background, it is ignored.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),  # noqa: PLW1509 - no thread yet
        )

    return start


def counts(output: str) -> dict[str, int]:
    """What pytest's last line says."""
    return {word: int(number) for number, word in re.findall(r"(\d+) (passed|failed|warning)", output.splitlines()[-1])}


def test_a_test_whose_process_ends_has_failed_and_the_others_run(run: Run) -> None:
    process = run(DIES, WARNS)
    output, _ = process.communicate(timeout=TIMEOUT_SECONDS)
    assert counts(output) == {"failed": 2, "passed": 5, "warning": 1}
    assert process.returncode == pytest.ExitCode.TESTS_FAILED
    assert "suite/test_0.py::test_number[1]" in output
    assert "exit code 3" in output
    assert "before 3" in output  # what a test that failed wrote
    assert "DeprecationWarning" in output


def test_the_first_failure_ends_all_processes_on_request(run: Run) -> None:
    output, _ = run(DIES, WAITS, options=("-x",)).communicate(timeout=TIMEOUT_SECONDS)
    assert counts(output)["failed"] == 1


def test_a_test_that_hangs_fails_by_its_name_and_the_others_run(run: Run) -> None:
    output, _ = run(WAITS, DIES, options=("--timeout=2",)).communicate(timeout=TIMEOUT_SECONDS)
    assert counts(output) == {"failed": 3, "passed": 3}
    assert "suite/test_0.py::test_that_never_ends" in output
    assert "Failed: Timeout (>2.0s)" in output


def test_an_interrupt_ends_all_processes(run: Run) -> None:
    process = run(WAITS, WAITS, options=("--capture=no",))
    assert process.stdout is not None
    for _ in range(2):
        while "waits" not in process.stdout.readline():
            pass
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=TIMEOUT_SECONDS)  # until the last one has closed the stream
    assert process.returncode == pytest.ExitCode.INTERRUPTED
