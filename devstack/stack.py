"""The embedded parts together: started, watched, started again when they die, and stopped, as one.

async with until_signalled(), Stack(Path(".settle")) as stack:
    await stack.add_process("worker", [sys.executable, "-m", "worker"], env=...)
    await stack.wait()
"""

import asyncio
import contextlib
import fcntl
import os
import signal
import time
from collections import deque
from collections.abc import AsyncGenerator, Awaitable, Callable, Collection, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self, TypeVar

from devstack.chain import LOCAL_CHAIN_ID, SLOTS_IN_AN_EPOCH, LocalChain
from devstack.errors import DevstackError, PartFailedError, StateInUseError
from devstack.postgres import EmbeddedPostgres
from devstack.processes import ProcessService, Service, end_leftovers
from devstack.temporal import EmbeddedTemporal
from devstack.upstream.service import EmbeddedUpstream

_Part = TypeVar("_Part", bound=Service)

PART_NAMES = ("postgres", "temporal", "chain", "upstream")
WATCH_SECONDS = 0.25
# A part that dies is started again at once, then more slowly; one that dies this often within a minute is
# broken, and the stack with it.
RESTART_DELAYS_SECONDS = (0.0, 0.5, 1.0, 2.0, 4.0)
RESTART_WINDOW_SECONDS = 60


class Stack:
    """PostgreSQL, Temporal, a local chain and a local AI provider with all their state in one folder.

    `without` leaves parts out; theirs are then None. `ports` are preferences by name: postgres, temporal,
    temporal-ui, chain, upstream. `on_progress` receives progress messages.

    Entering raises DevstackError, in one line, when the folder is in use or a part does not start; nothing is
    left running then. Everything started here ends with the `async with` block, and, on Linux, when this
    process is killed.
    """

    def __init__(
        self,
        state_dir: Path,
        *,
        without: Collection[str] = (),
        ports: Mapping[str, int] | None = None,
        namespaces: Sequence[str] = ("default",),
        chain_id: int = LOCAL_CHAIN_ID,
        block_time_seconds: float | None = 1,
        postgres_settings: Mapping[str, str] | None = None,
        on_progress: Callable[[str], None] | None = None,
    ) -> None:
        unknown = sorted(set(without) - set(PART_NAMES))
        if unknown:
            raise DevstackError(f"there is no part {unknown[0]!r}; the parts are: {', '.join(PART_NAMES)}")
        self.state_dir = state_dir.absolute()
        wanted = ports or {}
        self._postgres = (
            EmbeddedPostgres(self.state_dir, wanted.get("postgres"), settings=postgres_settings)
            if "postgres" not in without
            else None
        )
        self._temporal = (
            EmbeddedTemporal(self.state_dir, wanted.get("temporal"), wanted.get("temporal-ui"), namespaces=namespaces)
            if "temporal" not in without
            else None
        )
        self._chain = (
            LocalChain(
                self.state_dir,
                wanted.get("chain"),
                chain_id=chain_id,
                block_time_seconds=block_time_seconds,
                slots_in_an_epoch=SLOTS_IN_AN_EPOCH,
            )
            if "chain" not in without
            else None
        )
        self._upstream = EmbeddedUpstream(self.state_dir, wanted.get("upstream")) if "upstream" not in without else None
        self._report = on_progress or (lambda text: None)
        self._processes: dict[str, ProcessService] = {}
        self._watchers: dict[str, asyncio.Task[None]] = {}
        self._failure: DevstackError | None = None
        self._failed = asyncio.Event()
        self._lock: int | None = None

    # -- the parts

    @property
    def postgres(self) -> EmbeddedPostgres:
        """The database server. Raises DevstackError when it was left out."""
        return _present(self._postgres, "postgres")

    @property
    def temporal(self) -> EmbeddedTemporal:
        """The Temporal server. Raises DevstackError when it was left out."""
        return _present(self._temporal, "temporal")

    @property
    def chain(self) -> LocalChain:
        """The chain node. Raises DevstackError when it was left out."""
        return _present(self._chain, "chain")

    @property
    def upstream(self) -> EmbeddedUpstream:
        """The AI provider. Raises DevstackError when it was left out."""
        return _present(self._upstream, "upstream")

    @property
    def processes(self) -> Mapping[str, ProcessService]:
        """What `add_process` started, by name."""
        return self._processes

    def _embedded(self) -> list[Service]:
        parts = (self._postgres, self._temporal, self._chain, self._upstream)
        return [part for part in parts if part is not None]

    # -- life

    async def __aenter__(self) -> Self:
        self._take_lock()
        try:
            ended = await end_leftovers(self.state_dir)
            if ended:
                self._report(f"ended what an earlier run left behind: {', '.join(ended)}")
            # A group would report an ExceptionGroup; people get the first cause, and nothing goes on behind.
            tasks = [asyncio.create_task(self._start(part)) for part in self._embedded()]
            try:
                await asyncio.gather(*tasks)
            finally:
                for task in tasks:
                    if not task.cancelling():  # a second time would interrupt its cleaning up
                        task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)
            for part in self._embedded():
                self._watch(part)
        except BaseException:
            await self._stop_everything()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self._stop_everything()

    async def wait(self) -> None:
        """Waits for as long as all goes well. Raises PartFailedError when a part could not be kept running."""
        await self._failed.wait()
        assert self._failure is not None
        raise self._failure

    async def add_process(
        self,
        name: str,
        argv: Sequence[str],
        env: Mapping[str, str] | None = None,
        *,
        cwd: Path | None = None,
        ready: Callable[[], Awaitable[bool]] | None = None,
        ready_timeout_seconds: float = 30,
        stop_timeout_seconds: float = 5,
    ) -> ProcessService:
        """Starts a program as a part of the stack: watched, started again, stopped before the embedded parts.

        `env` None: this process' environment. `ready` is asked until it says True; without it a program
        counts as ready once it runs. SIGTERM stops it, after `stop_timeout_seconds` SIGKILL.
        Raises PartFailedError when it does not become ready, DevstackError when the name is taken.
        """
        if name in self._processes or name in PART_NAMES:
            raise DevstackError(f"there is a process {name!r} already")
        process = ProcessService(
            name,
            self.state_dir,
            argv,
            env=env,
            cwd=cwd,
            ready=ready,
            ready_timeout_seconds=ready_timeout_seconds,
            stop_timeout_seconds=stop_timeout_seconds,
        )
        await self._start(process)
        self._processes[name] = process
        self._watch(process)
        return process

    async def remove_process(self, name: str) -> None:
        """Stops a process that was added, and forgets it. Raises DevstackError when there is none."""
        process = self._processes.pop(name, None)
        if process is None:
            raise DevstackError(f"there is no process {name!r}")
        await self._unwatch(name)
        await process.stop()

    async def _start(self, part: Service) -> None:
        self._report(f"starting {part.name}")
        started = time.monotonic()
        await part.start()
        self._report(f"{part.name} is running after {time.monotonic() - started:.1f} s")

    async def _stop_everything(self) -> None:
        for name in list(self._watchers):
            await self._unwatch(name)
        # What uses the servers ends before them.
        for parts in (list(self._processes.values()), self._embedded()):
            results = await asyncio.gather(*(part.stop() for part in parts), return_exceptions=True)
            for part, result in zip(parts, results, strict=True):
                if isinstance(result, BaseException):
                    self._report(f"stopping {part.name}: {result}")
        self._release_lock()

    # -- watching

    def _watch(self, part: Service) -> None:
        self._watchers[part.name] = asyncio.create_task(self._supervise(part), name=f"watch {part.name}")

    async def _unwatch(self, name: str) -> None:
        watcher = self._watchers.pop(name)
        watcher.cancel()
        await asyncio.gather(watcher, return_exceptions=True)

    async def _supervise(self, part: Service) -> None:
        restarts: deque[float] = deque()
        while self._failure is None:
            await asyncio.sleep(WATCH_SECONDS)
            if part.should_run and not part.is_busy and not part.is_running:
                await self._restart(part, restarts)
            elif isinstance(part, LocalChain) and part.should_run and not part.is_busy:
                # Fails when the node has just died: the next round finds out.
                with contextlib.suppress(DevstackError, OSError):
                    await part.save_if_advanced()

    async def _restart(self, part: Service, restarts: deque[float]) -> None:
        end = part.describe_end()
        now = time.monotonic()
        while restarts and restarts[0] < now - RESTART_WINDOW_SECONDS:
            restarts.popleft()
        if len(restarts) >= len(RESTART_DELAYS_SECONDS):
            self._fail(f"{part.name} died {len(restarts) + 1} times in a minute; {end}")
            return
        self._report(f"{end}; starting it again")
        await asyncio.sleep(RESTART_DELAYS_SECONDS[len(restarts)])
        restarts.append(now)
        if not part.should_run or part.is_running:
            return  # it was stopped or started in the meantime
        try:
            await self._start(part)
        except DevstackError as error:
            self._report(str(error))  # it is still not running: the next round tries again, more slowly

    def _fail(self, reason: str) -> None:
        self._failure = PartFailedError(reason)
        self._failed.set()

    # -- the folder

    def _take_lock(self) -> None:
        self.state_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        lock = os.open(self.state_dir / "lock", os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.read(lock, 32).decode(errors="replace").strip() or "unknown"
            os.close(lock)
            raise StateInUseError(
                f"{self.state_dir} is in use by another stack (process {holder}); "
                "stop that one or choose another folder"
            ) from None
        os.ftruncate(lock, 0)
        os.pwrite(lock, f"{os.getpid()}\n".encode(), 0)
        self._lock = lock

    def _release_lock(self) -> None:
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None


def _present(part: _Part | None, name: str) -> _Part:
    if part is None:
        raise DevstackError(f"this stack runs without {name}")
    return part


@contextlib.asynccontextmanager
async def until_signalled() -> AsyncGenerator[None, None]:
    """Ends its block, as if it had come to its end, at the first SIGINT, SIGTERM or SIGHUP.

    Later ones are ignored: what the block does to clean up is bounded in time. Main thread only.
    """
    loop = asyncio.get_running_loop()
    task = asyncio.current_task()
    assert task is not None
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    received: list[int] = []

    def on_signal(number: int) -> None:
        if not received:
            task.cancel()
        received.append(number)

    for number in numbers:
        loop.add_signal_handler(number, on_signal, number)
    try:
        yield
    except asyncio.CancelledError:
        if not received:
            raise
        task.uncancel()
    finally:
        for number in numbers:
            loop.remove_signal_handler(number)
