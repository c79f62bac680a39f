"""The embedded PostgreSQL keeps what it committed, and lets in who has the password and comes from here."""

import os
import shutil
import socket
import stat
import sys
import tempfile
from collections.abc import AsyncGenerator, Generator
from pathlib import Path

import psycopg
import pytest

from devstack import postgres as module
from devstack.errors import DevstackError
from devstack.postgres import EmbeddedPostgres
from tests.devstack.conftest import UNSAFE_BUT_FAST

root_only = pytest.mark.skipif(os.geteuid() != 0, reason="not root: nothing has to be given up")


@pytest.fixture(scope="module")
async def server(tmp_path_factory: pytest.TempPathFactory) -> AsyncGenerator[EmbeddedPostgres, None]:
    postgres = EmbeddedPostgres(tmp_path_factory.mktemp("postgres"))
    await postgres.start()
    yield postgres
    await postgres.stop()


def status_of(pid: int) -> dict[str, str]:
    """What the kernel says of a process, by the names it uses."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return dict(line.split(":\t", 1) for line in lines if ":\t" in line)


def program_of(pid: int) -> Path:
    """The file a process runs."""
    return Path(f"/proc/{pid}/exe").readlink()


@pytest.fixture
def closed_wheel(tmp_path: Path) -> Path:
    """A copy of PostgreSQL's binaries that root alone can reach."""
    wheel = module._find_binaries()
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o700)
    copied = closed / module.WHEEL_PACKAGE / module.INSTALL_FOLDER
    shutil.copytree(wheel, copied)
    libraries = f"{module.WHEEL_PACKAGE}.libs"
    if (wheel.parents[1] / libraries).exists():
        shutil.copytree(wheel.parents[1] / libraries, closed / libraries)
    return copied


@pytest.fixture
def open_cache() -> Generator[Path, None, None]:
    """A folder that every user can enter."""
    cache = Path(tempfile.mkdtemp(dir="/var/tmp"))
    cache.chmod(0o755)
    yield cache
    shutil.rmtree(cache)


async def query(url: str, statement: str) -> list[tuple[object, ...]]:
    async with await psycopg.AsyncConnection.connect(url, autocommit=True, connect_timeout=5) as connection:
        cursor = await connection.execute(statement.encode())
        return await cursor.fetchall() if cursor.description else []


async def test_what_was_committed_survives_a_kill(server: EmbeddedPostgres) -> None:
    url = server.superuser_url()
    await query(url, "CREATE TABLE survivors AS SELECT generate_series(1, 1000) AS n")
    await server.kill()
    assert not server.is_running
    await server.start()
    assert server.superuser_url() == url
    assert await query(url, "SELECT count(*) FROM survivors") == [(1000,)]


async def test_starting_twice_changes_nothing(server: EmbeddedPostgres) -> None:
    pid = server.pid
    await server.start()
    assert server.pid == pid
    await server.restart()
    assert server.pid != pid
    assert await query(server.superuser_url(), "SELECT 1") == [(1,)]


async def test_a_stale_pid_file_that_names_a_living_process_does_not_stop_it(server: EmbeddedPostgres) -> None:
    await server.kill()
    lock = server.state_dir / "postgres" / "data" / "postmaster.pid"
    lines = lock.read_text().splitlines(keepends=True)
    lock.write_text("".join([f"{os.getpid()}\n", *lines[1:]]))
    await server.start()
    assert await query(server.superuser_url(), "SELECT 1") == [(1,)]


async def test_a_wrong_password_is_refused(server: EmbeddedPostgres) -> None:
    for password in ("wrong", ""):
        url = f"postgresql://postgres:{password}@127.0.0.1:{server.port}/postgres"
        with pytest.raises(psycopg.OperationalError):
            await query(url, "SELECT 1")
    stored = await query(server.superuser_url(), "SELECT rolpassword FROM pg_authid WHERE rolname = 'postgres'")
    assert str(stored[0][0]).startswith("SCRAM-SHA-256$")
    methods = await query(server.superuser_url(), "SELECT DISTINCT auth_method FROM pg_hba_file_rules")
    assert methods == [("scram-sha-256",)]


async def test_its_settings_are_the_promised_ones(server: EmbeddedPostgres) -> None:
    wanted = {
        "listen_addresses": "127.0.0.1",
        "unix_socket_directories": "",
        "data_checksums": "on",
        "password_encryption": "scram-sha-256",
        "server_encoding": "UTF8",
        "max_connections": "200",
        "fsync": "on",
        "TimeZone": "UTC",
    }
    rows = await query(server.superuser_url(), "SELECT name, setting FROM pg_settings")
    found = {str(name): setting for name, setting in rows}
    assert {name: found[name] for name in wanted} == wanted
    collation = await query(
        server.superuser_url(), "SELECT datlocprovider::text, datlocale FROM pg_database WHERE datname = 'postgres'"
    )
    assert collation == [("b", "C.UTF-8")]


@pytest.mark.skipif(sys.platform != "linux", reason="127.0.0.2 is an address of its own on Linux only")
async def test_it_listens_on_127_0_0_1_only(server: EmbeddedPostgres) -> None:
    socket.create_connection(("127.0.0.1", server.port), timeout=2).close()
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.2", server.port), timeout=2)


def test_no_other_user_reads_the_password(server: EmbeddedPostgres) -> None:
    path = server.state_dir / "postgres-superuser-password"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert not (server.state_dir / "postgres" / "initial-password").exists()
    password = path.read_text()
    assert all(password not in log.read_text() for log in (server.state_dir / "logs").iterdir())


@pytest.mark.slow
@root_only
@pytest.mark.skipif(sys.platform != "linux", reason="only Linux hands over folders that way")
async def test_it_does_not_run_as_root_even_in_a_folder_only_root_can_enter(tmp_path: Path) -> None:
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o700)
    state_dir = closed / "state"
    postgres = EmbeddedPostgres(state_dir, settings=UNSAFE_BUT_FAST)
    await postgres.start()
    try:
        fields = status_of(postgres.pid)
        assert set(fields["Uid"].split()).isdisjoint({"0"})
        assert set(fields["Gid"].split()).isdisjoint({"0"})
        assert fields["Groups"].strip() in ("", fields["Gid"].split()[0])
        assert int(fields["CapEff"], 16) == 0
        assert int(fields["CapPrm"], 16) == 0
        data = state_dir / "postgres" / "data"
        assert data.stat().st_uid == int(fields["Uid"].split()[0])
        await query(postgres.superuser_url(), "CREATE TABLE t AS SELECT 1 AS n")
        await query(postgres.superuser_url(), "CREATE DATABASE another")
        await postgres.kill()
        await postgres.start()
        assert await query(postgres.superuser_url(), "SELECT n FROM t") == [(1,)]
    finally:
        await postgres.stop()


@pytest.mark.slow
@root_only
@pytest.mark.skipif(sys.platform != "linux", reason="only Linux hands over folders that way")
async def test_binaries_only_root_can_reach_are_copied(
    tmp_path: Path, closed_wheel: Path, open_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_find_binaries", lambda: closed_wheel)
    monkeypatch.setattr(module, "CACHE_PARENTS", (open_cache,))
    module._binaries_for_everybody.cache_clear()
    postgres = EmbeddedPostgres(tmp_path / "state", settings=UNSAFE_BUT_FAST)
    try:
        await postgres.start()
        assert program_of(postgres.pid).is_relative_to(open_cache)
        assert await query(postgres.superuser_url(), "SELECT 1") == [(1,)]
    finally:
        await postgres.stop()
        module._binaries_for_everybody.cache_clear()


async def test_data_of_another_version_is_left_alone(tmp_path: Path) -> None:
    data = tmp_path / "postgres" / "data"
    data.mkdir(parents=True)
    (data / "PG_VERSION").write_text("17\n")
    with pytest.raises(DevstackError, match="was made by PostgreSQL 17"):
        await EmbeddedPostgres(tmp_path).start()
    assert [path.name for path in data.iterdir()] == ["PG_VERSION"]


def test_there_is_no_address_before_the_first_start(tmp_path: Path) -> None:
    with pytest.raises(DevstackError, match="has not been started"):
        EmbeddedPostgres(tmp_path).superuser_url()
