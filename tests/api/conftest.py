"""The HTTP interface with a worker behind it."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from tests.support.api import RunningApi, Visitor, first_wallet, running_api
from tests.support.engine import Engine


@pytest.fixture
async def api(engine: Engine) -> AsyncIterator[RunningApi]:
    """The interface, without a worker."""
    async with running_api(engine) as running:
        yield running


@pytest.fixture
async def payer(api: RunningApi) -> AsyncIterator[Visitor]:
    """A user who is signed in with a wallet that holds test USDC."""
    async with api.visitor(first_wallet()) as visitor:
        yield visitor
