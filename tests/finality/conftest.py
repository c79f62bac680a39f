"""A chain of one's own: its reorganisations disturb no other test's payments."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from devstack.chain import LocalChain
from tests.support.engine import Engine, open_engine
from tests.support.payments import RolePair
from tests.support.servers import Namespace, running_chain

FINAL_AFTER = 12
"""Confirmations that make a payment final here; it is credited after two."""


@pytest.fixture(scope="module")
async def chain(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[LocalChain]:
    """It mines only on request; `safe` trails by 8 blocks, `finalized` by 16."""
    async with running_chain(tmp_path_factory.mktemp("own-chain"), slots_in_an_epoch=8) as running:
        yield running


@pytest.fixture
async def engine(namespace: Namespace, roles: RolePair, chain: LocalChain) -> AsyncIterator[Engine]:
    """An engine that tracks a payment for some blocks."""
    async with open_engine(
        namespace, roles, chain, FINALITY="confirmations", FINALITY_CONFIRMATIONS=str(FINAL_AFTER)
    ) as opened:
        yield opened
