"""A parent that has imported the product already, and from which processes are forked: each saves two CPU seconds.

It is a fork of the test process, from before that had a thread or an event loop, and runs no test itself. A request
names a module and its arguments, variables, folder and streams; the answer is the pid. What is forked is a child of the
asking process, not of this one: a process with its own pid, session and group, which can be waited for, signalled and
killed like any other.
"""

from __future__ import annotations

import ctypes
import gc
import importlib.util
import io
import json
import logging
import os
import pkgutil
import runpy
import signal
import socket
import sys
import threading
import time
import traceback
import warnings
from typing import Any, Final, NoReturn

import structlog
from sqlalchemy.orm import configure_mappers

from db import functions
from tests.support import huge_pages
from tests.support.cheap_starts import poll_with_few, read_installed_prices_now

PR_SET_PDEATHSIG: Final = 1
CLONE_PARENT: Final = 0x8000
SYS_CLONE3: Final = 435
"""On every architecture."""
HUGE_PAGES_FROM: Final = 10
"""The request from which it pays to move this process to huge pages: that takes what twenty forks do."""
MESSAGE_BYTES_MAX: Final = 2**17
RECURSION_LIMIT: Final = 100_000
"""As a library under eth-account sets it."""
GARBAGE_THRESHOLDS: Final = (700, 10, 10)
"""Python's own."""
PACKAGES: Final = (
    "activities", "api", "chain", "commands", "db", "devstack", "domain", "services", "starter", "telemetry",
    "workflows",
)  # fmt: skip
MODULES: Final = (
    "composition", "settings", "worker", "devstack.serve_chain", "tests.support.faults",
    # Imported by libraries when they are first used.
    "sqlalchemy.dialects.postgresql.psycopg", "uvicorn.lifespan.on", "uvicorn.loops.auto", "encodings.idna",
    "uvicorn.protocols.http.auto", "uvicorn.protocols.websockets.auto", "psycopg_binary.pq", "multipart",
)  # fmt: skip
NOT_IMPORTED: Final = ("db.migrations.env", "devstack._launch", "db.migrations.versions")


def serve(asker: socket.socket) -> NoReturn:
    """Import what is missing at the first request, and fork on request until the asking process has ended."""
    _be_an_interpreter()
    requests = 0
    while True:
        message, descriptors, _, _ = socket.recv_fds(asker, MESSAGE_BYTES_MAX, 3)
        if not message:  # the asker has ended, however it did: no other process has its end of the socket
            os._exit(0)
        if not requests:
            import_everything()
            gc.collect()
            gc.freeze()  # or the first collection of each child would copy all of it
        requests += 1
        if requests == HUGE_PAGES_FROM:
            huge_pages.collapse()
        asker.send(str(_fork(message, descriptors, asker)).encode())
        for descriptor in descriptors:
            os.close(descriptor)


def _be_an_interpreter() -> None:
    """Without what pytest and `tests/conftest.py` have set for the process that runs tests."""
    logging.getLogger().handlers.clear()
    structlog.reset_defaults()
    sys.excepthook, sys.unraisablehook = sys.__excepthook__, sys.__unraisablehook__
    threading.excepthook = threading.__excepthook__
    sys.setrecursionlimit(RECURSION_LIMIT)
    gc.set_threshold(*GARBAGE_THRESHOLDS)


def import_everything() -> None:
    """All modules of the product; what was imported already costs nothing."""
    for package in PACKAGES:
        found = importlib.import_module(package)
        for module in pkgutil.walk_packages(found.__path__, f"{package}."):
            if not module.name.startswith(NOT_IMPORTED) and not module.name.endswith("__main__"):
                importlib.import_module(module.name)
    for name in MODULES:
        if importlib.util.find_spec(name.partition(".")[0]):  # not each of them is needed everywhere
            importlib.import_module(name)
    # Done once by each process, at its first query and its start-up check.
    configure_mappers()
    functions.load()
    read_installed_prices_now()
    poll_with_few()


def _fork(message: bytes, descriptors: list[int], asker: socket.socket) -> int:
    """The pid of a new process, which is a group of its own by now."""
    reading, writing = os.pipe()
    pid = _fork_sibling()
    if pid == 0:
        os.close(reading)
        asker.close()
        _run(json.loads(message), descriptors, writing)
    os.close(writing)
    os.read(reading, 1)  # to the end: the child closes it
    os.close(reading)
    return pid


class _CloneArguments(ctypes.Structure):
    """`struct clone_args` of `man 2 clone`, as far as the first kernel with `clone3` has it."""

    _fields_ = [(name, ctypes.c_uint64) for name in (
        "flags", "pidfd", "child_tid", "parent_tid", "exit_signal", "stack", "stack_size", "tls"
    )]  # fmt: skip


def _fork_sibling() -> int:
    """`os.fork`, but that the new process is a child of this one's parent, which is the asker."""
    arguments = _CloneArguments(flags=CLONE_PARENT)
    python = ctypes.pythonapi
    python.PyOS_BeforeFork()
    pid = int(python.syscall(SYS_CLONE3, ctypes.byref(arguments), ctypes.sizeof(arguments)))
    if pid == 0:
        python.PyOS_AfterFork_Child()
    else:
        python.PyOS_AfterFork_Parent()
    assert pid >= 0, "the kernel has no clone3"
    return pid


def _run(request: dict[str, Any], descriptors: list[int], settled: int) -> NoReturn:
    """Become the process that was asked for."""
    try:
        os.setsid()
        if request["parent_death_signal"]:
            _die_with_parent(request["parent_death_signal"])
        if os.getppid() != request["parent"]:
            os._exit(1)
        os.close(settled)
        for target, descriptor in enumerate(descriptors):
            os.dup2(descriptor, target)
        for descriptor in descriptors:
            if descriptor > 2:
                os.close(descriptor)
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        os.chdir(request["folder"])
        os.environ.clear()
        os.environ.update(request["variables"])
        time.tzset()
        if request["variables"].get("PYTHONWARNINGS") == "error":
            warnings.simplefilter("error")
        sys.argv[:] = [request["module"], *request["arguments"]]
        # A process of `multiprocessing` has another one.
        sys.stdin = sys.__stdin__ = _input()  # type: ignore[misc]
        sys.stdout = sys.__stdout__ = _stream(1, errors="strict")  # type: ignore[misc]
        sys.stderr = sys.__stderr__ = _stream(2, errors="backslashreplace")  # type: ignore[misc]
        exit_code = _run_module(request["module"])
        sys.stdout.flush()
        sys.stderr.flush()
    except BaseException:
        exit_code = 1
        traceback.print_exc()
    os._exit(exit_code)


def _run_module(name: str) -> int:
    sys.modules.pop(name, None)  # a test may have imported it
    try:
        runpy.run_module(name, run_name="__main__", alter_sys=True)
    except SystemExit as end:
        if isinstance(end.code, str):
            sys.stderr.write(f"{end.code}\n")
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    return 0


def _input() -> io.TextIOWrapper:
    return io.TextIOWrapper(open(0, "rb", closefd=False), encoding="utf-8")


def _stream(descriptor: int, *, errors: str) -> io.TextIOWrapper:
    return io.TextIOWrapper(
        open(descriptor, "wb", closefd=False), encoding="utf-8", errors=errors, line_buffering=descriptor == 2
    )


def _die_with_parent(number: int) -> None:
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, number, 0, 0, 0)
