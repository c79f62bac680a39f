"""A gateway before one upstream, for each test that asks for one."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from tests.gateway.support import Served, served
from tests.support.postgres import Database


@pytest.fixture
async def gateway(database: Database) -> AsyncIterator[Served]:
    """In this process, with a key of an account that has 100 cents."""
    async with served(database) as running:
        yield running
