"""The books of `open_books` as a template: each test gets its own copy."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace

import pytest

from tests.reconciliation.books import Books, Helpers, open_books, plant
from tests.support.database_pool import DatabasePool
from tests.support.payments import open_roles
from tests.support.postgres import MIGRATED_TEMPLATE, Cluster


@pytest.fixture(scope="session")
async def books_template(cluster: Cluster) -> Books:
    """The database that `books` copies."""
    database = await cluster.create(template=MIGRATED_TEMPLATE, name="books_template")
    async with open_roles(database) as roles:
        books = await open_books(roles)
        assert await roles.books() == []
    return books


@pytest.fixture(scope="session")
async def copies(cluster: Cluster, books_template: Books) -> AsyncIterator[DatabasePool]:
    """Where `books` comes from."""
    pool = DatabasePool(cluster, books_template.roles.database.name)
    yield pool
    await pool.close()


@pytest.fixture
async def books(copies: DatabasePool, books_template: Books) -> AsyncIterator[Books]:
    """One of everything that is as it should be, in a database of one's own."""
    async with copies.database() as roles:
        # It was made minutes ago, perhaps: since then the chain was followed, nothing happened.
        plant(roles, "UPDATE chain_cursors SET updated_at = now()")
        yield replace(books_template, roles=roles, helpers=Helpers())
