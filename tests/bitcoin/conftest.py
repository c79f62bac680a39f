"""A regtest node of one's own for each file, which mines on request."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Final

import pytest

from chain.reader import ChainReader
from devstack.bitcoin_chain import BitcoinChain
from domain.utxo import UTXO_CHAINS
from tests.support.servers import xdist_number

FIRST_PORT: Final = 29_443
SECOND_PORT: Final = 29_543

REGTEST: Final = next(chain for chain in UTXO_CHAINS.values() if chain.name == "Bitcoin regtest")


@pytest.fixture(scope="module")
async def bitcoin(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[BitcoinChain]:
    """A node with coins to pay with."""
    running = BitcoinChain(tmp_path_factory.mktemp("bitcoin"), FIRST_PORT + xdist_number())
    await running.start()
    yield running
    await running.stop()


@pytest.fixture
async def reader(bitcoin: BitcoinChain) -> AsyncIterator[ChainReader]:
    """Asks that node."""
    async with ChainReader([bitcoin.url], REGTEST.chain_id) as opened:
        yield opened
