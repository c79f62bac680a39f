"""Processes of the product that are forked of a parent which has imported it already (`tests.support.warm_parent`)."""

from __future__ import annotations

import atexit
import contextlib
import functools
import json
import os
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from tests.support import warm_parent

POLL_SECONDS: Final = 0.005


class WarmProcess:
    """A child of this process, with what `subprocess.Popen` has of it."""

    def __init__(self, pid: int, arguments: Sequence[str]) -> None:
        self.pid = pid
        self.args = arguments
        self.returncode: int | None = None
        self._lock = threading.Lock()

    def poll(self) -> int | None:
        """The exit code, negative for the signal that ended it; None while it runs."""
        with self._lock:
            if self.returncode is None:
                pid, status = os.waitpid(self.pid, os.WNOHANG)
                if pid:
                    self.returncode = os.waitstatus_to_exitcode(status)
            return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """The exit code, once it has ended. Raises `subprocess.TimeoutExpired`."""
        deadline = None if timeout is None else time.monotonic() + timeout
        while (code := self.poll()) is None:
            if deadline is not None and time.monotonic() >= deadline:
                raise subprocess.TimeoutExpired(list(self.args), timeout or 0)
            time.sleep(POLL_SECONDS)
        return code

    def send_signal(self, number: int) -> None:
        """Nothing happens when it has ended: until that was seen, the pid is not reused."""
        if self.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def kill(self) -> None:
        """SIGKILL."""
        self.send_signal(signal.SIGKILL)


class _WarmParent:
    def __init__(self) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._socket = ours
        self._lock = threading.Lock()
        self._pid = os.fork()
        if self._pid == 0:
            ours.close()
            warm_parent.serve(theirs)
        theirs.close()
        atexit.register(self._close)

    def fork(
        self,
        module: str,
        arguments: Sequence[str],
        *,
        variables: Mapping[str, str],
        folder: Path,
        stdin: int | None,
        stdout: int,
        stderr: int,
        parent_death_signal: int,
    ) -> WarmProcess:
        request = {
            "module": module,
            "arguments": list(arguments),
            "variables": dict(variables),
            "folder": str(folder),
            "parent": os.getpid(),
            "parent_death_signal": int(parent_death_signal),
        }
        with self._lock, open(os.devnull, "rb") as nothing:
            message = json.dumps(request).encode()
            said = nothing.fileno() if stdin is None else stdin
            socket.send_fds(self._socket, [message], [said, stdout, stderr])
            answer = self._socket.recv(1024)
        assert answer, "the warm parent has ended"
        return WarmProcess(int(answer), [module, *arguments])

    def _close(self) -> None:
        self._socket.close()
        os.waitpid(self._pid, 0)


@functools.cache
def prepare() -> _WarmParent:
    """Fork the warm parent of this process, which must not have had a thread yet, nor a test."""
    assert len(os.listdir("/proc/self/task")) == 1, "a library has started a thread, which no fork would have"
    return _WarmParent()


def fork(
    module: str,
    arguments: Sequence[str],
    *,
    variables: Mapping[str, str],
    folder: Path,
    stdin: int | None = None,
    stdout: int,
    stderr: int,
    parent_death_signal: int = signal.SIGKILL,
) -> WarmProcess:
    """`python -m MODULE ARGUMENTS` with these variables and no others, in this folder; it reads nothing, or `stdin`."""
    return prepare().fork(
        module,
        arguments,
        variables=variables,
        folder=folder,
        stdin=stdin,
        stdout=stdout,
        stderr=stderr,
        parent_death_signal=parent_death_signal,
    )
