"""`pytest --cpu`: seconds of the processor's by file and by test, of the test process and of every process below it."""

from __future__ import annotations

import os
import time
from collections import defaultdict
from collections.abc import Generator
from typing import Any, Final, cast

import pytest

TICKS_PER_SECOND: Final = os.sysconf("SC_CLK_TCK")
PROPERTY: Final = "cpu seconds"
STAT_BYTES_MAX: Final = 1024
DEAR_SECONDS_MIN: Final = 0.2


def tree_seconds(root: int) -> float:
    """User and system time of a process and all its descendants, the ended ones included; Linux only."""
    parents: dict[int, int] = {}
    spent: dict[int, int] = {}
    for name in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{name}/stat", "rb", buffering=0) as file:
                fields = file.read(STAT_BYTES_MAX).rpartition(b")")[2].split()
        except OSError:
            continue
        pid = int(name)
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
    """Measures each test in the process that runs it, and adds up by file in the one that reports."""

    def __init__(self, config: pytest.Config) -> None:
        self._config = config
        self._files: dict[str, list[float]] = defaultdict(lambda: [0, 0.0, 0.0])
        self._tests: dict[str, float] = {}

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Generator[None, object, object]:
        """From before a test's fixtures are made until they are torn down: its final report carries what it took."""
        self._started, self._before = time.monotonic(), tree_seconds(os.getpid())
        return (yield)

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_makereport(self, item: pytest.Item, call: pytest.CallInfo[None]) -> Generator[None, Any, Any]:
        """Write it there."""
        report = yield
        if call.when == "teardown":
            spent = tree_seconds(os.getpid()) - self._before
            report.user_properties.append((PROPERTY, (time.monotonic() - self._started, spent)))
        return report

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Add it up."""
        for name, measured in report.user_properties:
            if name == PROPERTY and report.when == "teardown" and not hasattr(self._config, "workerinput"):
                file = self._files[report.nodeid.partition("::")[0]]
                self._tests[report.nodeid] = cast("tuple[float, float]", measured)[1]
                for place, value in enumerate([1.0, *cast("tuple[float, float]", measured)]):
                    file[place] += value

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        """Files and single tests, dearest first."""
        terminalreporter.section(f"tests that took {DEAR_SECONDS_MIN} seconds of the processor's and more")
        for name, spent in sorted(self._tests.items(), key=lambda entry: -entry[1]):
            if spent >= DEAR_SECONDS_MIN:
                terminalreporter.write_line(f"{spent:8.2f} s  {name}")
        terminalreporter.section("seconds of the processor's, of each file's tests and all that they start")
        for name, (tests, wall, spent) in sorted(self._files.items(), key=lambda entry: -entry[1][2]):
            terminalreporter.write_line(f"{spent:8.1f} s  in {wall:8.1f} s  {tests:5.0f} tests  {name}")
        total = sum(spent for _, _, spent in self._files.values())
        terminalreporter.write_line(f"{total:8.1f} s in all, and what collecting took")
