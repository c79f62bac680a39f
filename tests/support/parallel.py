"""`pytest --processes N`: everything is collected once, and N processes are forked of the one that did.

Importing and collecting took each process of pytest-xdist, which starts interpreters, seven seconds of the processor's,
and the parent of its warm processes (`tests.support.warm_process`) two more. A fork takes twenty milliseconds.

Files are dealt out, not single tests, those first that took longest the last time: what a module builds once is built
once, and a run does not end with one process that works and others that wait.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import multiprocessing
import os
import pickle
import signal
import sys
import warnings
from collections import defaultdict, deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from multiprocessing.context import ForkProcess
from pathlib import Path
from typing import Any, Final, Literal

import pytest
from _pytest._io import TerminalWriter

from tests.support import warm_parent, warm_process
from tests.support.postgres import prepared_once
from tests.support.selection import file_of, folder_position

PR_SET_PDEATHSIG: Final = 1
SECONDS_OF_FILES: Final = "settle/seconds-of-files"
"""In pytest's cache, for each choice of tests by their marks: how long those of each file took when they last ran."""
GRACE_SECONDS: Final = 30.0

NAME_PREFIX: Final = "test process "

_fork = multiprocessing.get_context("fork")


def process_number() -> int:
    """Which of several parallel test processes this is; each has its own servers, and ports for them."""
    return int(multiprocessing.current_process().name.removeprefix(NAME_PREFIX).replace("MainProcess", "0"))


@dataclass(slots=True)
class TestProcess:
    """One of the processes, as the one that forked it sees it."""

    number: int
    process: ForkProcess
    connection: Connection
    tests: deque[int] = field(default_factory=deque)
    """Those of its files that it has not run yet, as places in the session's list."""


class ParallelRun:
    """Deals the files out, and reports what the processes do as if this one had done it."""

    def __init__(self, processes: int) -> None:
        self._count = processes
        self._running: list[TestProcess] = []
        self._files: deque[deque[int]] = deque()
        self._seconds: dict[str, float] = defaultdict(float)
        self._prepared = contextlib.ExitStack()

    def pytest_sessionstart(self, session: pytest.Session) -> None:
        """While tests are collected, which keeps one processor busy, a process makes the server that others copy."""
        if self._count > 1 and not session.config.option.collectonly:
            make = self._prepared.enter_context(prepared_once())
            with _no_capturing(session.config):
                process = _fork.Process(target=_make_server, args=(make,), name="maker of a server")
                process.start()
            self._prepared.callback(process.join, GRACE_SECONDS)

    def pytest_sessionfinish(self) -> None:
        """Remove it."""
        self._prepared.close()

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtestloop(self, session: pytest.Session) -> object:
        """In place of pytest's own loop over all tests, where there are to be several processes."""
        self._files = deque(_files(session))
        if session.config.option.collectonly or session.testsfailed:
            return None
        if self._count <= 1 or len(self._files) <= 1:
            with _no_capturing(session.config):
                warm_process.prepare()
            return None
        warm_parent.import_everything()
        gc.freeze()
        session.config._tmp_path_factory.getbasetemp()  # type: ignore[attr-defined]
        try:
            for number in range(min(self._count, len(self._files))):
                self._start(session, number)
            self._listen(session)
        finally:
            for running in self._running:
                running.process.terminate()
            for running in self._running:
                running.process.join(GRACE_SECONDS)
        self._remember(session)
        return True

    def _start(self, session: pytest.Session, number: int) -> None:
        ours, theirs = multiprocessing.Pipe()
        with _no_capturing(session.config):
            process = _fork.Process(target=_serve, args=(session, theirs, ours), name=f"{NAME_PREFIX}{number}")
            process.start()
        theirs.close()
        self._running.append(TestProcess(number, process, ours))

    def _listen(self, session: pytest.Session) -> None:
        while self._running:
            by_connection = {running.connection: running for running in self._running}
            for connection in wait(list(by_connection)):
                assert isinstance(connection, Connection)
                running = by_connection[connection]
                try:
                    kind, *content = connection.recv()
                except EOFError:
                    kind, content = "exit", []
                getattr(self, f"_on_{kind}")(session, running, *content)
                if session.shouldfail:
                    raise session.Failed(session.shouldfail)
                if session.shouldstop:
                    raise session.Interrupted(session.shouldstop)

    def _on_next(self, session: pytest.Session, running: TestProcess) -> None:
        # Files that take long wait a lot, and short ones compute: side by side, they use the processor evenly.
        take = self._files.pop if running.number % 2 else self._files.popleft
        tests = take() if self._files else deque[int]()
        running.tests.extend(tests)
        running.connection.send(list(tests))

    def _on_report(self, session: pytest.Session, running: TestProcess, content: dict[str, Any]) -> None:
        report = session.config.hook.pytest_report_from_serializable(config=session.config, data=content)
        self._seconds[file_of(report.nodeid)] += report.duration
        session.config.hook.pytest_runtest_logreport(report=report)
        session.config.get_terminal_writer().flush()  # also where it is a file, as in CI

    def _on_end(self, session: pytest.Session, running: TestProcess, place: int) -> None:
        running.tests.popleft()
        item = session.items[place]
        session.config.hook.pytest_runtest_logfinish(nodeid=item.nodeid, location=item.location)

    def _on_warning(self, session: pytest.Session, running: TestProcess, content: dict[str, Any]) -> None:
        content["warning_message"] = warnings.WarningMessage(**content["warning_message"])
        session.config.hook.pytest_warning_recorded.call_historic(kwargs=content)

    def _on_exit(self, session: pytest.Session, running: TestProcess) -> None:
        """As it should, or in the middle of a test, which has failed then. Another process runs what was left."""
        running.process.join()
        self._running.remove(running)
        if not running.tests:
            if running.process.exitcode:
                raise RuntimeError(f"a test process ended outside of tests, exit code {running.process.exitcode}")
            return
        item = session.items[running.tests.popleft()]
        report = pytest.TestReport(
            item.nodeid,
            item.location,
            keywords={},
            outcome="failed",
            longrepr=f"its process ended while it ran, with exit code {running.process.exitcode}",
            when="call",
        )
        session.config.hook.pytest_runtest_logreport(report=report)
        session.config.hook.pytest_runtest_logfinish(nodeid=item.nodeid, location=item.location)
        if running.tests:
            self._files.appendleft(running.tests)
        if self._files:
            self._start(session, running.number)

    def _remember(self, session: pytest.Session) -> None:
        if cache := _cache(session):
            cache.set(_key(session), {**cache.get(_key(session), {}), **self._seconds})


def _key(session: pytest.Session) -> str:
    return f"{SECONDS_OF_FILES}-{session.config.option.markexpr.replace(' ', '-') or 'all'}"


def _cache(session: pytest.Session) -> pytest.Cache | None:
    """None with `-p no:cacheprovider`."""
    return getattr(session.config, "cache", None)


def _files(session: pytest.Session) -> Sequence[deque[int]]:
    """The tests of each file, as places in the session's list, in the order in which they are dealt out."""
    files: dict[str, deque[int]] = defaultdict(deque)
    for place, item in enumerate(session.items):
        files[file_of(item.nodeid)].append(place)
    cache = _cache(session)
    known = cache.get(_key(session), {}) if cache else {}

    def rank(name: str) -> tuple[float, int]:
        # A new file is run early: it may take long.
        return -known.get(name, GRACE_SECONDS if known else 0.0), folder_position(name)

    return [files[name] for name in sorted(files, key=rank)]


@contextlib.contextmanager
def _no_capturing(config: pytest.Config) -> Iterator[None]:
    """Or two processes would write to one file of captured output, and each of them truncate it."""
    capturing = config.pluginmanager.getplugin("capturemanager")
    capturing.suspend_global_capture(in_=True)
    capturing.stop_global_capturing()
    try:
        yield
    finally:
        _capture(config)


def _capture(config: pytest.Config) -> None:
    """As between two tests: what is written now is for the terminal."""
    capturing = config.pluginmanager.getplugin("capturemanager")
    capturing.start_global_capturing()
    capturing.suspend_global_capture()


def _make_server(make: Callable[[], object]) -> None:
    os.setpgid(0, 0)  # Ctrl-C is for the process that began the run
    end_with_parent()
    make()


def _serve(session: pytest.Session, connection: Connection, other_end: Connection) -> None:
    """Run files until there are no more. This is a forked process, with all that has been collected."""
    other_end.close()
    os.setpgid(0, 0)  # Ctrl-C is for the process that began the run
    end_with_parent()
    warm_process.prepare()
    config = session.config
    config.workerinput = {"workerid": multiprocessing.current_process().name}  # type: ignore[attr-defined]  # plugins ask for it
    _capture(config)
    config.pluginmanager.unregister(name="terminalreporter")
    config.pluginmanager.register(_Terminal(), "terminalreporter")
    reports = _Reports(config, connection)
    config.pluginmanager.register(reports)
    reports.is_registered = True
    folders = config._tmp_path_factory  # type: ignore[attr-defined]
    folders._basetemp = Path(folders.getbasetemp()) / f"process-{process_number()}-{os.getpid()}"
    folders._basetemp.mkdir(mode=0o700)
    while tests := _next_file(connection):
        for place, following in zip(tests, [*tests[1:], None], strict=True):
            # What a module has built ends with its last test, and what the session has stays for the next file.
            next_item = session if following is None else session.items[following]
            config.hook.pytest_runtest_protocol(item=session.items[place], nextitem=next_item)
            connection.send(("end", place))
    session._setupstate.teardown_exact(None)
    config.pluginmanager.getplugin("capturemanager").stop_global_capturing()
    connection.send(("exit",))  # something that a test has left may keep the connection open


def _next_file(connection: Connection) -> list[int]:
    connection.send(("next",))
    tests: list[int] = connection.recv()
    return tests


class _Terminal:
    """Where a plugin writes that has something to say of a test: its report has it, like the test's own output."""

    def __init__(self) -> None:
        self._tw = TerminalWriter(sys.__stderr__)


class _Reports:
    """Passes on what a test process reports."""

    def __init__(self, config: pytest.Config, connection: Connection) -> None:
        self._config = config
        self._connection = connection
        self.is_registered = False

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        content = self._config.hook.pytest_report_to_serializable(config=self._config, report=report)
        self._connection.send(("report", content))

    def pytest_warning_recorded(
        self,
        warning_message: warnings.WarningMessage,
        when: Literal["config", "collect", "runtest"],
        nodeid: str,
        location: tuple[str, int, str] | None,
    ) -> None:
        if not self.is_registered:
            return  # of processes before this one, repeated
        content = {
            "message": str(warning_message.message),
            "category": warning_message.category,
            "filename": warning_message.filename,
            "lineno": warning_message.lineno,
        }
        with contextlib.suppress(pickle.PicklingError):
            self._connection.send(
                ("warning", {"warning_message": content, "when": when, "nodeid": nodeid, "location": location})
            )


def end_with_parent() -> None:
    """SIGTERM to this process when the one that forked it has ended; its servers are tied to it in the same way."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
