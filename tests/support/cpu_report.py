"""Where the processor's time goes: seconds of each test file, of the test process and of every process below it."""

from __future__ import annotations

import os
import time
from collections.abc import Generator
from pathlib import Path
from typing import Final

import pytest

TICKS_PER_SECOND: Final = os.sysconf("SC_CLK_TCK")
PROPERTY: Final = "cpu seconds"
SLOWEST_SHOWN: Final = 60


def tree_seconds(root: int) -> float:
    """User and system time of a process and all its descendants, the ended ones included; Linux only."""
    parents: dict[int, int] = {}
    spent: dict[int, int] = {}
    for entry in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = entry.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        pid = int(entry.parent.name)
        parents[pid] = int(fields[1])
        spent[pid] = sum(map(int, fields[11:15]))
    total = 0
    for pid, ticks in spent.items():
        above = pid
        while above != root and above in parents:
            above = parents[above]
        if above == root:
            total += ticks
    return total / TICKS_PER_SECOND


class CpuReport:
    """Measures each test in the process that runs it, and adds up in the one that reports."""

    def __init__(self) -> None:
        self._tests: dict[str, tuple[float, float]] = {}

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Generator[None, object, object]:
        """From before its fixtures are made until they are gone."""
        started, spent = time.monotonic(), tree_seconds(os.getpid())
        try:
            return (yield)
        finally:
            self._last = (time.monotonic() - started, tree_seconds(os.getpid()) - spent)
            log = os.environ.get("SETTLE_TEST_CPU_LOG")
            if log:
                with open(log, "a") as file:
                    file.write(f"{item.nodeid}\t{self._last[0]:.3f}\t{self._last[1]:.2f}\t{os.getpid()}\n")
