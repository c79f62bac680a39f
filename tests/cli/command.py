"""`settle` as a shell runs it."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from tests.support.service_process import clean_environment, entry_module

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


def settle(arguments: Sequence[str], variables: Mapping[str, str], folder: Path) -> ResponseModel:
    """Run a command in `folder`, with these settings and no others."""
    run = subprocess.run(
        [sys.executable, "-m", entry_module(variables), *arguments],
        cwd=folder,
        env=clean_environment(variables),
        capture_output=True,
        text=True,
        timeout=SECONDS_MAX,
        check=False,
    )
    assert "Traceback" not in run.stderr, run.stderr
    return ResponseModel(run.returncode, run.stdout, run.stderr)
