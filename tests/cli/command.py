"""`settle` as a shell runs it."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO, Any, Final

from tests.support.service_process import clean_environment, start_settle

SECONDS_MAX: Final = 60


@dataclass(frozen=True, slots=True)
class ResponseModel:
    """What a command said, and how it ended."""

    exit_code: int
    stdout: str
    stderr: str

    def json(self) -> Any:
        """The one document on standard output."""
        assert "Traceback" not in self.stderr
        return json.loads(self.stdout)


def settle(arguments: Sequence[str], variables: Mapping[str, str], folder: Path, *, stdin: str = "") -> ResponseModel:
    """Run a command in `folder`, with these settings and no others, and with this to read."""
    with TemporaryFile() as said, TemporaryFile() as stdout, TemporaryFile() as stderr:
        said.write(stdin.encode())
        said.seek(0)
        process = start_settle(
            arguments,
            variables,
            folder,
            stdin=said.fileno(),
            stdout=stdout.fileno(),
            stderr=stderr.fileno(),
        )
        try:
            exit_code = process.wait(SECONDS_MAX)
        finally:
            process.kill()
            process.wait()
        answers = [_all_of(stream) for stream in (stdout, stderr)]
    assert "Traceback" not in answers[1], answers[1]
    return ResponseModel(exit_code, *answers)


def settle_from_a_shell(arguments: Sequence[str], variables: Mapping[str, str], folder: Path) -> ResponseModel:
    """The same by an interpreter of its own, as a shell starts it."""
    run = subprocess.run(
        [sys.executable, "-m", "cli", *arguments],
        cwd=folder,
        env=clean_environment(variables),
        capture_output=True,
        text=True,
        timeout=SECONDS_MAX,
        check=False,
    )
    assert "Traceback" not in run.stderr, run.stderr
    return ResponseModel(run.returncode, run.stdout, run.stderr)


def _all_of(stream: IO[bytes]) -> str:
    stream.seek(0)
    return stream.read().decode()
