"""Database addresses: every form that libpq knows, and a reason for each that is none."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final
from urllib.parse import quote

import pytest
from sqlalchemy import text

from db.address import format_address, normalize_address, parse_address
from db.engine import OperatorDatabase, ServiceDatabase, TenantDatabase, connection_arguments
from db.startup import check_operator_database, check_service_database, check_tenant_database
from domain.errors import ConfigurationError
from settings import load
from tests.support.postgres import ROLE_PASSWORD, Cluster, Database, migrate_database, running_cluster
from tests.support.sql import scalar

SOCKET_SERVER_NUMBER: Final = 60

GOOD: Final = {
    "postgresql://u:p@h:5433/d": {"user": "u", "password": "p", "host": "h", "port": "5433", "dbname": "d"},
    "postgres://u:p@h/d": {"user": "u", "password": "p", "host": "h", "dbname": "d"},
    "postgresql://u:p%40%2F%3A%25@h/d": {"user": "u", "password": "p@/:%", "host": "h", "dbname": "d"},
    "postgresql://u:p@[::1]:5433/d": {"user": "u", "password": "p", "host": "::1", "port": "5433", "dbname": "d"},
    "postgresql://%2Fvar%2Frun/settle": {"host": "/var/run", "dbname": "settle"},
    "postgresql://u:p@/settle?host=/var/run": {"user": "u", "password": "p", "host": "/var/run", "dbname": "settle"},
    "postgresql:///settle?host=/var/run&user=u": {"host": "/var/run", "user": "u", "dbname": "settle"},
    "postgresql://u@a:1,b:2/d?target_session_attrs=primary": {
        "user": "u", "host": "a,b", "port": "1,2", "dbname": "d", "target_session_attrs": "primary",
    },
    "postgresql://u@h/d?sslmode=verify-full&sslrootcert=/ca&connect_timeout=2&options=-c%20a%3Db": {
        "user": "u", "host": "h", "dbname": "d", "sslmode": "verify-full", "sslrootcert": "/ca",
        "connect_timeout": "2", "options": "-c a=b",
    },
}  # fmt: skip

SECRET: Final = "hunter2hunter2"
BAD: Final = {
    f"mysql://u:{SECRET}@h/d": "scheme",
    f"u:{SECRET}@h/d": "scheme",
    f"postgresql://u:{SECRET}@/d": "names no server",
    "postgresql:///d": "names no server",
    f"postgresql://u:{SECRET}@a,,b/d": "names no server",
    f"postgresql://u:{SECRET}@h": "names no database",
    f"postgresql://u:{SECRET}@h:port/d": "port",
    f"postgresql://u:{SECRET}@h:99999/d": "port",
    f"postgresql://u:{SECRET}@h:0/d": "port",
    f"postgresql://u:{SECRET}@a,b,c/d?port=1,2": "numbers of ports",
    f"postgresql://u:{SECRET}@x@h/d": "percent-encoded",
    f"postgresql://u:{SECRET}/x@h/d": "percent-encoded",
    f"postgresql://u:{SECRET}%@h/d": "percent-encoded",
    f"postgresql://u:{SECRET}@h/d?unknown=1": "parameter unknown to libpq",
    f"postgresql://u:{SECRET}@h/d?sslmode=yes": "sslmode",
    f"postgresql://u:{SECRET}@h/d?target_session_attrs=master": "target_session_attrs",
    f"postgresql://u:{SECRET}@h/d?connect_timeout=soon": "connect_timeout",
}


@pytest.mark.parametrize("url", GOOD)
def test_an_address_is_read_as_libpq_reads_it(url: str) -> None:
    assert parse_address(url) == GOOD[url]
    assert parse_address(normalize_address(url)) == GOOD[url]
    assert parse_address(format_address(GOOD[url])) == GOOD[url]
    assert load({"DATABASE_URL": url}).require_database_url().startswith("postgresql://")


@pytest.mark.parametrize("url", BAD)
def test_what_is_none_is_refused_with_the_reason_and_without_the_password(url: str) -> None:
    with pytest.raises(ConfigurationError, match=f"^DATABASE_URL is invalid: got .*{BAD[url]}") as caught:
        load({"DATABASE_URL": url})
    assert SECRET not in caught.value.message
    assert "\n" not in caught.value.message


def test_what_the_address_says_goes_before_what_we_would_say() -> None:
    arguments = connection_arguments(
        "postgresql://h/d?connect_timeout=2&application_name=mine", application_name="ours"
    )
    assert (arguments["connect_timeout"], arguments["application_name"]) == ("2", "mine")
    assert "target_session_attrs" not in arguments


@pytest.mark.parametrize(("own", "used"), [("", "read-write"), ("?target_session_attrs=any", "any")])
def test_of_several_hosts_the_one_that_takes_writes_is_chosen_unless_the_address_says_otherwise(
    own: str, used: str
) -> None:
    arguments = connection_arguments(f"postgresql://a,b/d{own}", application_name="ours")
    assert arguments["target_session_attrs"] == used


# -- a real server on a socket


@pytest.fixture(scope="module")
async def socket_folder() -> AsyncIterator[Path]:
    """Short, because a socket's path may have 107 bytes, and open to whichever user the server is."""
    with TemporaryDirectory(prefix="settle-") as name:
        Path(name).chmod(0o777)
        yield Path(name)


@pytest.fixture(scope="module")
async def on_socket(socket_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Cluster]:
    """A server that listens on a socket."""
    settings = {"unix_socket_directories": str(socket_folder)}
    folder = tmp_path_factory.mktemp("on-socket")
    async with running_cluster(folder, worker_number=SOCKET_SERVER_NUMBER, settings=settings) as running:
        yield running


class OnSocket(Database):
    """The addresses of a database by way of the socket, in one of libpq's forms."""

    __slots__ = ()

    def url_as(self, role: str, password: str = ROLE_PASSWORD) -> str:
        """The address under which `role` reaches this database."""
        folder, _, port = self.host.partition(":")
        if folder.startswith("%2F"):
            return f"postgresql://{role}:{password}@{folder}:{port}/{self.name}"
        return f"postgresql:///{self.name}?host={folder}&port={port}&user={role}&password={password}"


@pytest.mark.slow
@pytest.mark.parametrize("form", ["host", "query"])
async def test_everything_works_on_a_socket(on_socket: Cluster, socket_folder: Path, form: str) -> None:
    async with on_socket.temporary() as by_tcp:
        folder = quote(str(socket_folder), safe="") if form == "host" else str(socket_folder)
        database = OnSocket(by_tcp.name, f"{folder}:{on_socket.server.port}", by_tcp.superuser_url)
        await migrate_database(database)
        settings = load({"DATABASE_URL": database.app_url, "SERVICE_DATABASE_URL": database.service_url})
        tenants = TenantDatabase(settings.require_database_url())
        service = ServiceDatabase(settings.require_service_database_url())
        operators = OperatorDatabase(database.operator_url)
        try:
            await check_tenant_database(tenants)
            await check_service_database(service)
            await check_operator_database(operators)
            async with tenants.unscoped() as connection:
                assert (await connection.execute(text("SELECT inet_server_addr()"))).scalar_one() is None
        finally:
            for opened in (tenants, service, operators):
                await opened.dispose()


async def test_a_role_is_made_with_the_password_of_an_address_on_a_socket(
    on_socket: Cluster, socket_folder: Path
) -> None:
    """With characters that have a meaning in an address."""
    from tests.database.test_migrate import _make_role

    password = "p@ss/w:rd%?#&"
    async with on_socket.temporary() as by_tcp:
        place = f"{quote(str(socket_folder), safe='')}:{on_socket.server.port}/{by_tcp.name}"
        url = f"postgresql://settle_spare:{quote(password, safe='')}@{place}"
        assert _make_role(by_tcp.migration_url, "settle_spare", url)
        assert scalar(url, "SELECT current_user::text") == "settle_spare"
