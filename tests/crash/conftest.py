"""A whole payment system for each test, and as many more as it asks for."""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from devstack.chain import LocalChain
from tests.support.database_pool import DatabasePool
from tests.support.servers import Namespaces
from tests.support.system import PaymentSystem, open_system

Systems = Callable[..., Awaitable[PaymentSystem]]
"""`await systems(SYSTEM_TENANT_REVENUE_SHARE="0", ...)`: a system with these settings."""


@pytest.fixture
async def systems(
    databases: DatabasePool, namespaces: Namespaces, chain: LocalChain, tmp_path: Path
) -> AsyncIterator[Systems]:
    """Makes systems, each with a database and a Temporal namespace of its own, on the session's servers."""
    numbers = itertools.count(1)
    async with AsyncExitStack() as stack:

        async def make(**changes: str) -> PaymentSystem:
            roles = await stack.enter_async_context(databases.database())
            namespace = await stack.enter_async_context(namespaces.lent())
            folder = tmp_path / f"system-{next(numbers)}"
            return await stack.enter_async_context(open_system(namespace, roles, chain, folder, changes))

        yield make


@pytest.fixture
async def system(systems: Systems) -> PaymentSystem:
    """A system without a worker."""
    return await systems()
