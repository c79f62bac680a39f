"""Child processes that never outlive their use, and the ports they listen on.

A child started here
- dies with its parent, even when the parent is killed with SIGKILL (on Linux by the kernel's parent-death
  signal; elsewhere the next start ends it, by its pid file),
- is a session of its own, so that Ctrl-C at a terminal reaches the supervisor only,
- writes its output to `<state dir>/logs/<name>.log`,
- leaves `<state dir>/run/<name>.pid` with enough in it never to mistake a recycled pid for the child.
"""

import asyncio
import contextlib
import fcntl
import functools
import json
import os
import queue
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from devstack.errors import MissingPartError, PartFailedError, StateInUseError

LAUNCHER = Path(__file__).with_name("_launch.py")
POLL_SECONDS = 0.02
POLL_SECONDS_MAX = 0.1
POLL_GROWTH = 1.25
LOG_BYTES_MAX = 10 * 1024 * 1024
LOG_TEXT_BYTES = 64 * 1024
# A port that was free a moment ago may be taken when the child binds it, for example by a second stack
# that starts at the same time.
START_ATTEMPTS_MAX = 4


# -- waiting -----------------------------------------------------------------------------------------------


async def wait_until(condition: Callable[[], bool | Awaitable[bool]], *, timeout_seconds: float, what: str) -> None:
    """Waits until `condition` holds, asking after 20 ms and then at longer intervals, up to 100 ms.

    Raises PartFailedError naming `what` when it does not hold within `timeout_seconds`.
    """
    deadline = time.monotonic() + timeout_seconds
    intervals = _poll_intervals()
    while True:
        answer = condition()
        if not isinstance(answer, bool):
            answer = await answer
        if answer:
            return
        if time.monotonic() >= deadline:
            raise PartFailedError(f"{what}: not within {timeout_seconds:g} s")
        await asyncio.sleep(next(intervals))


def _poll_intervals() -> Iterator[float]:
    """Seconds to wait before each next question: what takes long is asked less often, and takes the processor less."""
    seconds = POLL_SECONDS
    while True:
        yield seconds
        seconds = min(seconds * POLL_GROWTH, POLL_SECONDS_MAX)


# -- who a process is --------------------------------------------------------------------------------------


@functools.cache
def _boot_id() -> str:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""


def process_identity(pid: int) -> str | None:
    """Names the process that has this pid now; None when there is none, or only a zombie of it.

    Two processes that had the same pid one after the other differ in it.
    """
    if sys.platform == "linux":
        try:
            stat = Path(f"/proc/{pid}/stat").read_text()
        except OSError:
            return None
        # The second field is the program's name in brackets and may itself hold brackets and spaces.
        fields = stat.rpartition(")")[2].split()
        state, start_time_ticks = fields[0], fields[19]
        return None if state in "ZX" else f"{_boot_id()}:{start_time_ticks}"
    found = subprocess.run(
        ["ps", "-o", "stat=,lstart=", "-p", str(pid)], capture_output=True, text=True, check=False
    ).stdout.strip()
    state, _, started = found.partition(" ")
    return None if not started or state.startswith("Z") else started.strip()


def _pid_file(state_dir: Path, name: str) -> Path:
    return state_dir / "run" / f"{name}.pid"


@dataclass(frozen=True)
class _PidRecord:
    """What a pid file says. Pids alone would be useless: they are given out again."""

    name: str
    pid: int
    identity: str
    parent_pid: int
    parent_identity: str
    stop_signal: int

    @property
    def is_alive(self) -> bool:
        return process_identity(self.pid) == self.identity

    @property
    def has_living_parent(self) -> bool:
        return process_identity(self.parent_pid) == self.parent_identity


def _read_pid_record(path: Path) -> _PidRecord | None:
    try:
        return _PidRecord(**json.loads(path.read_text()))
    except (OSError, ValueError, TypeError):
        return None


def write_atomically(path: Path, content: bytes, *, mode: int = 0o600) -> None:
    """Replaces a file in one step: a reader, or a crash at any point, sees the old content or the new."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _group_exists(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True  # macOS answers so for a group of zombies; the caller's deadline decides
    return True


async def end_leftovers(state_dir: Path, *, timeout_seconds: float = 10) -> list[str]:
    """Ends the processes that an earlier run in this folder left behind; gives back their names.

    Polite first, SIGKILL for the whole process group at half of `timeout_seconds`. Raises StateInUseError
    when a process found there belongs to a supervisor that is alive, PartFailedError when one cannot be ended.
    """
    records: list[_PidRecord] = []
    for path in sorted((state_dir / "run").glob("*.pid")):
        record = _read_pid_record(path)
        if record is None or not record.is_alive:
            path.unlink(missing_ok=True)
            continue
        _refuse_if_owned(record)
        records.append(record)
    await asyncio.gather(*(_end_leftover(state_dir, record, timeout_seconds) for record in records))
    return [record.name for record in records]


def _refuse_if_owned(record: _PidRecord) -> None:
    if record.has_living_parent:
        raise StateInUseError(
            f"{record.name} is already running (process {record.pid}, started by process {record.parent_pid})"
        )


async def _end_leftover(state_dir: Path, record: _PidRecord, timeout_seconds: float) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(record.pid, record.stop_signal)
    try:
        await wait_until(lambda: not record.is_alive, timeout_seconds=timeout_seconds / 2, what=record.name)
    except PartFailedError:
        if record.is_alive:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(record.pid, signal.SIGKILL)
        await wait_until(
            lambda: not record.is_alive,
            timeout_seconds=timeout_seconds / 2,
            what=f"end of {record.name} (process {record.pid}), left over from an earlier run",
        )
    _pid_file(state_dir, record.name).unlink(missing_ok=True)


# -- ports -------------------------------------------------------------------------------------------------


def is_port_free(port: int) -> bool:
    """True when nothing listens on this TCP port of 127.0.0.1 and a server could."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        # With the option a port whose old connections are still fading counts as free, as it does for servers.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.settimeout(1)
        return probe.connect_ex(("127.0.0.1", port)) != 0


QUIET_PORTS: Final = range(10_000, 30_000)
"""Below those that systems give away by themselves, to servers that ask for any port and to every outgoing connection:
one of these stays free between the moment that it is picked and the moment that a server listens on it."""


def quiet_port() -> int:
    """A TCP port of 127.0.0.1 that is free now, and that the system assigns to no process."""
    chooser = random.SystemRandom()
    while not is_port_free(port := chooser.choice(QUIET_PORTS)):
        pass
    return port


def _is_accepting(port: int) -> bool:
    """Whether some process accepts connections on a TCP port of 127.0.0.1."""
    with socket.socket() as probe:
        probe.settimeout(POLL_SECONDS)
        return probe.connect_ex(("127.0.0.1", port)) == 0


def _listens_on(pid: int, ports: frozenset[int]) -> bool:
    """True when this very process listens on all of these TCP ports. Only Linux knows whose they are."""
    if not all(map(_is_accepting, ports)):
        return False  # the kernel's table takes it milliseconds, and most of the time there is nothing to find in it
    if sys.platform != "linux":
        return True
    owned: set[str] = set()
    for descriptor in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(OSError):
            owned.add(str(descriptor.readlink()))
    listening: set[int] = set()
    for table in ("tcp", "tcp6"):
        with contextlib.suppress(OSError):
            for line in Path(f"/proc/{pid}/net/{table}").read_text().splitlines()[1:]:
                if " 0A " not in line:  # thousands that are not listening, on a busy host
                    continue
                fields = line.split()
                local, state, inode = fields[1], fields[3], fields[9]
                if state == "0A" and f"socket:[{inode}]" in owned:
                    listening.add(int(local.rpartition(":")[2], 16))
    return ports <= listening


_reserved: dict[int, int] = {}
"""Ports, and the open file whose lock says so."""


def _reserve(port: int) -> bool:
    """Whether no other stack of this user has picked the port, which it may not listen on yet. Held as long as we live.

    Two that start at the same moment would otherwise both find it free, and each take the other for itself.
    """
    if port in _reserved:
        return True
    folder = Path(tempfile.gettempdir()) / f"settle-ports-{os.getuid()}"
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
        if folder.stat().st_uid != os.getuid():
            return True
        lock = os.open(folder / str(port), os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
    except OSError:
        return True  # nowhere to record it: what is left is to check whether it is free
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(lock)
        return False
    _reserved[port] = lock
    return True


class PortBook:
    """The port of each part, stored in the state folder so that addresses survive a restart."""

    def __init__(self, state_dir: Path) -> None:
        self._path = state_dir / "ports.json"

    def pick(self, name: str, preferred: int | None = None, *, avoid: frozenset[int] = frozenset()) -> int:
        """The stored port of `name`, else the preferred one, else any: the first that is free now."""
        book = self._read()
        others = {port for other, port in book.items() if other != name}
        for candidate in (book.get(name), preferred):
            if candidate and candidate not in avoid | others and _reserve(candidate) and is_port_free(candidate):
                port = candidate
                break
        else:
            port = quiet_port()
            while port in avoid | others or not _reserve(port):
                port = quiet_port()
        if book.get(name) != port:
            write_atomically(self._path, json.dumps(self._read() | {name: port}, indent=1).encode())
        return port

    def _read(self) -> dict[str, int]:
        try:
            found = json.loads(self._path.read_text())
        except (OSError, ValueError):
            return {}
        return {str(name): int(port) for name, port in found.items()} if isinstance(found, dict) else {}


# -- one child ---------------------------------------------------------------------------------------------


class _Spawner:
    """One thread, alive as long as the process, from which all children are started.

    The kernel sends the parent-death signal when the *thread* that forked ends, not the process. A child
    started from a thread of a pool would be killed when the pool shrinks.
    """

    def __init__(self) -> None:
        self._jobs: queue.SimpleQueue[tuple[Callable[[], subprocess.Popen[bytes]], Future[subprocess.Popen[bytes]]]]
        self._jobs = queue.SimpleQueue()
        threading.Thread(target=self._run, name="devstack-spawner", daemon=True).start()

    def spawn(self, job: Callable[[], subprocess.Popen[bytes]]) -> subprocess.Popen[bytes]:
        future: Future[subprocess.Popen[bytes]] = Future()
        self._jobs.put((job, future))
        return future.result()

    def _run(self) -> None:
        while True:
            job, future = self._jobs.get()
            try:
                future.set_result(job())
            except BaseException as error:
                future.set_exception(error)


@functools.cache
def _spawner() -> _Spawner:
    return _Spawner()


# A forked copy of this process has the object but not its thread.
os.register_at_fork(after_in_child=_spawner.cache_clear)


@dataclass(frozen=True)
class ProcessSpec:
    """How to run one child. `env` None: the parent's environment. `uid`/`gid`: whom to become, needs root."""

    name: str
    argv: Sequence[str]
    state_dir: Path
    env: Mapping[str, str] | None = None
    cwd: Path | None = None
    stop_signal: signal.Signals = signal.SIGTERM
    parent_death_signal: signal.Signals = signal.SIGTERM
    stop_timeout_seconds: float = 4
    uid: int | None = None
    gid: int | None = None
    pass_fds: Sequence[int] = field(default=())


class ChildProcess:
    """One running child. Made by `start_process`."""

    def __init__(self, spec: ProcessSpec, popen: subprocess.Popen[bytes], log_path: Path) -> None:
        self.spec = spec
        self.log_path = log_path
        self._popen = popen

    @property
    def pid(self) -> int:
        return self._popen.pid

    @property
    def is_running(self) -> bool:
        return self._popen.poll() is None

    @property
    def exit_code(self) -> int | None:
        """None while it runs; negative for the signal that ended it."""
        return self._popen.poll()

    def signal(self, number: signal.Signals) -> None:
        """Sends a signal to the process itself; nothing happens when it has ended."""
        if self.is_running:  # Popen keeps the pid reserved until it has seen the end, so this cannot hit another
            self._popen.send_signal(number)

    async def stop(self) -> None:
        """Ends it politely, and after `stop_timeout_seconds` with SIGKILL, group and all."""
        self.signal(self.spec.stop_signal)
        try:
            await wait_until(
                lambda: not self.is_running, timeout_seconds=self.spec.stop_timeout_seconds, what=self.spec.name
            )
        except PartFailedError:
            await self.kill()
        await self._end_group()
        self._forget()

    async def kill(self) -> None:
        """SIGKILL, as a crash would; returns once it has ended."""
        if self.is_running:
            self._popen.send_signal(signal.SIGKILL)
        await wait_until(lambda: not self.is_running, timeout_seconds=5, what=f"end of {self.spec.name}")

    async def _end_group(self) -> None:
        # The pid may be given out again after the end was seen, the group id only when the group is empty.
        if _group_exists(self.pid) and process_identity(self.pid) is None:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self.pid, signal.SIGKILL)
            with contextlib.suppress(PartFailedError):
                # Not for long: dead ones stay in the group until their parent has collected them.
                await wait_until(lambda: not _group_exists(self.pid), timeout_seconds=0.5, what=self.spec.name)

    def _forget(self) -> None:
        path = _pid_file(self.spec.state_dir, self.spec.name)
        record = _read_pid_record(path)
        if record is not None and record.pid == self.pid:
            path.unlink(missing_ok=True)

    def log_text(self) -> str:
        """The end of what it wrote, at most `LOG_TEXT_BYTES`; '' when there is nothing."""
        return _end_of(self.log_path, LOG_TEXT_BYTES)

    def last_log_line(self) -> str:
        """The last line it wrote that is not blank, for a message of one line; '' when there is none."""
        lines = _end_of(self.log_path, 8192).splitlines()
        return next((line.strip() for line in reversed(lines) if line.strip()), "")


def _end_of(path: Path, size_bytes: int) -> str:
    try:
        with path.open("rb") as file:
            file.seek(0, os.SEEK_END)
            file.seek(max(0, file.tell() - size_bytes))
            return file.read().decode(errors="replace")
    except OSError:
        return ""


def start_process(spec: ProcessSpec) -> ChildProcess:
    """Starts a child as described at the top of this module; it may fail a moment later, see `is_running`.

    Raises StateInUseError when the folder names a living process of another living supervisor under the
    same name (a leftover without a supervisor is for `end_leftovers`).
    """
    pid_file = _pid_file(spec.state_dir, spec.name)
    logs = spec.state_dir / "logs"
    for folder in (pid_file.parent, logs):
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    record = _read_pid_record(pid_file)
    if record is not None and record.is_alive:
        _refuse_if_owned(record)
    log_path = logs / f"{spec.name}.log"
    if log_path.exists() and log_path.stat().st_size > LOG_BYTES_MAX:
        log_path.replace(log_path.with_suffix(".log.1"))
    plan = {
        "parent_pid": os.getpid(),
        "parent_death_signal": int(spec.parent_death_signal),
        "uid": spec.uid,
        "gid": spec.gid,
        "cwd": None if spec.cwd is None else str(spec.cwd),
    }
    command = [sys.executable, "-I", "-S", str(LAUNCHER), json.dumps(plan), *spec.argv]

    def spawn() -> subprocess.Popen[bytes]:
        with os.fdopen(os.open(log_path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600), "ab") as log:
            return subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=None if spec.env is None else dict(spec.env),
                pass_fds=tuple(spec.pass_fds),
                start_new_session=True,
            )

    popen = _spawner().spawn(spawn)
    written = _PidRecord(
        name=spec.name,
        pid=popen.pid,
        identity=process_identity(popen.pid) or "",
        parent_pid=os.getpid(),
        parent_identity=process_identity(os.getpid()) or "",
        stop_signal=int(spec.stop_signal),
    )
    write_atomically(pid_file, json.dumps(written.__dict__).encode())
    return ChildProcess(spec, popen, log_path)


# -- a service: a child that is meant to run -----------------------------------------------------------------


class Service(ABC):
    """A part of the stack: one child process, how to start it, and how to check that it answers.

    `should_run` is what was asked for, `is_running` what is; a supervisor acts on the difference. It is set
    by `start`, cleared by `stop`, and left alone by `kill`, which plays a crash.
    """

    ready_timeout_seconds: float = 30

    def __init__(self, name: str, state_dir: Path) -> None:
        self.name = name
        self.state_dir = state_dir.absolute()
        self.should_run = False
        self.is_busy = False
        self._one_start_at_a_time = asyncio.Lock()
        self._child: ChildProcess | None = None

    @property
    def is_running(self) -> bool:
        return self._child is not None and self._child.is_running

    @property
    def pid(self) -> int:
        """The child's process id. Raises PartFailedError when it was never started."""
        if self._child is None:
            raise PartFailedError(f"{self.name} has not been started")
        return self._child.pid

    @property
    def log_path(self) -> Path:
        return self.state_dir / "logs" / f"{self.name}.log"

    async def start(self) -> None:
        """Starts it and returns when it answers; at once when it runs already.

        A start that is under way, as a supervisor's after a crash, is waited for.
        Raises PartFailedError with the last line of its log when it ends or does not answer in time.
        """
        async with self._one_start_at_a_time:
            if not self.is_running:
                await self._start()

    async def _start(self) -> None:
        self.is_busy = True
        try:
            self.state_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
            await self._end_own_leftover()
            avoid: frozenset[int] = frozenset()
            for attempts_left in reversed(range(START_ATTEMPTS_MAX)):
                ports = self._pick_ports(avoid)
                await self._before_start()
                self._child = self._spawn()
                if await self._becomes_ready(self._child, ports, may_retry=attempts_left > 0):
                    break
                avoid |= ports
            await self._after_start()
            self.should_run = True
        except BaseException:
            if self._child is not None:
                await self._child.stop()
            raise
        finally:
            self.is_busy = False

    async def stop(self) -> None:
        """Ends it politely, within a bound; nothing happens when it does not run."""
        self.should_run = False
        child = self._child
        if child is not None:
            await self._before_stop()
            await child.stop()

    async def kill(self) -> None:
        """SIGKILL to the process, as a crash would. A supervisor starts it again."""
        if self._child is not None:
            await self._child.kill()

    async def restart(self) -> None:
        """Stops it politely and starts it on the same state and, where they are still free, ports."""
        await self.stop()
        await self.start()

    def describe_end(self) -> str:
        """One line: how the process ended, and the last thing it wrote."""
        child = self._child
        if child is None or child.exit_code is None:
            return f"{self.name} is not running"
        code = child.exit_code
        how = f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
        return f"{self.name} {how}: {child.last_log_line() or 'it wrote nothing'} (log: {child.log_path})"

    async def _end_own_leftover(self) -> None:
        path = _pid_file(self.state_dir, self.name)
        record = _read_pid_record(path)
        if record is None or not record.is_alive:
            return
        _refuse_if_owned(record)
        await _end_leftover(self.state_dir, record, 10)

    async def _becomes_ready(self, child: ChildProcess, ports: frozenset[int], *, may_retry: bool) -> bool:
        deadline = time.monotonic() + self.ready_timeout_seconds
        intervals = _poll_intervals()
        while True:
            if not child.is_running:
                if may_retry and any(not is_port_free(port) for port in ports):
                    return False
                raise PartFailedError(self.describe_end())
            # On a port that another server was quicker to take, that one would answer.
            if _listens_on(child.pid, ports) and await self._is_ready() and child.is_running:
                return True
            if time.monotonic() >= deadline:
                raise PartFailedError(
                    f"{self.name} did not answer within {self.ready_timeout_seconds:g} s: "
                    f"{child.last_log_line() or 'it wrote nothing'} (log: {child.log_path})"
                )
            await asyncio.sleep(next(intervals))

    def _pick_ports(self, avoid: frozenset[int]) -> frozenset[int]:
        """Settles the ports of the coming start and gives them back; none by default."""
        return frozenset()

    async def _before_start(self) -> None:  # noqa: B027 - optional
        """Prepares the state folder."""

    @abstractmethod
    def _spawn(self) -> ChildProcess:
        """Starts the child."""

    @abstractmethod
    async def _is_ready(self) -> bool:
        """True when the child really answers."""

    async def _after_start(self) -> None:  # noqa: B027 - optional
        """What has to happen once it answers."""

    async def _before_stop(self) -> None:  # noqa: B027 - optional
        """What has to happen while it still runs."""


class ProcessService(Service):
    """Any program as a part: a worker, an API."""

    def __init__(
        self,
        name: str,
        state_dir: Path,
        argv: Sequence[str],
        *,
        env: Mapping[str, str] | None = None,
        cwd: Path | None = None,
        ready: Callable[[], Awaitable[bool]] | None = None,
        ready_timeout_seconds: float = 30,
        stop_timeout_seconds: float = 5,
    ) -> None:
        super().__init__(name, state_dir)
        program = shutil.which(argv[0])
        if program is None:
            raise MissingPartError(f"{name}: there is no program {argv[0]}")
        self.ready_timeout_seconds = ready_timeout_seconds
        self._spec = ProcessSpec(
            name=name,
            argv=(program, *argv[1:]),
            state_dir=self.state_dir,
            env=env,
            cwd=cwd,
            stop_timeout_seconds=stop_timeout_seconds,
        )
        self._ready = ready

    def _spawn(self) -> ChildProcess:
        return start_process(self._spec)

    async def _is_ready(self) -> bool:
        return self._ready is None or await self._ready()
