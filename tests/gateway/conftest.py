"""A gateway before one upstream, which serves the tests of a file one after another, each as if it were new."""

from __future__ import annotations

from collections.abc import AsyncIterator

import psycopg
import pytest

from devstack.processes import wait_until
from devstack.upstream.records import Records
from tests.gateway.support import PATIENCE_SECONDS, Served, served
from tests.support.database_pool import Content, DatabasePool, Superuser


@pytest.fixture(scope="module")
async def module_gateway(databases: DatabasePool) -> AsyncIterator[tuple[Served, Content, Superuser]]:
    """In this process, with a key of an account that has 100 cents, and what its database holds then."""
    async with (
        databases.database() as roles,
        await psycopg.AsyncConnection.connect(roles.database.superuser_url, autocommit=True) as superuser,
        served(roles.database) as running,
    ):
        yield running, await Content.read(superuser), superuser


@pytest.fixture
async def gateway(module_gateway: tuple[Served, Content, Superuser]) -> AsyncIterator[Served]:
    """The file's, before its first call. A test that needs a policy or upstreams of its own uses `served`."""
    running, content, superuser = module_gateway
    yield running
    await running.is_quiet()

    async def is_back() -> bool:
        return await content.restore(superuser)

    await wait_until(is_back, timeout_seconds=PATIENCE_SECONDS, what="database without open transactions")
    for upstream in running.upstreams.values():
        upstream.records = Records()
        upstream.clear_orders()
