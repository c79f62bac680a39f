"""A regtest node for all files, which mines on request, and what reads and credits deposits there."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any, Final
from uuid import UUID

import pytest

from chain.reader import ChainReader
from devstack.bitcoin_chain import BitcoinChain, BitcoinPayment
from domain.chain import DepositLane
from services.deposits.crediting import DepositCrediting
from services.deposits.lanes import DepositAddresses
from services.deposits.pricing import DepositPricing, Prices
from services.deposits.scanner import DepositScanner
from tests.bitcoin.given import METHOD, REGTEST, give, register
from tests.bitcoin.scripts import script_of
from tests.deposits.conftest import MIN_CONFIRMATIONS, PRICE_LIFETIME, Settling
from tests.deposits.given import Given
from tests.support.parallel import process_number
from tests.support.payments import TREASURY, RolePair
from tests.support.sql import query

FIRST_PORT: Final = 29_443


@pytest.fixture(scope="session")
async def bitcoin(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[BitcoinChain]:
    """A node with coins to pay with."""
    running = BitcoinChain(tmp_path_factory.mktemp("bitcoin"), FIRST_PORT + process_number())
    await running.start()
    yield running
    await running.stop()


@pytest.fixture
async def reader(bitcoin: BitcoinChain) -> AsyncIterator[ChainReader]:
    """Asks that node."""
    async with ChainReader([bitcoin.url], REGTEST.chain_id) as opened:
        yield opened


@dataclass
class BitcoinDeposits:
    """Addresses of a key, transfers to them, and what reads them: a step at a time, when a test says so."""

    bitcoin: BitcoinChain
    roles: RolePair
    scan: DepositScanner
    crediting: DepositCrediting
    settling: Settling
    ring_id: UUID

    async def give(self, number: int = 1) -> Given:
        """The own address of an account whose wallet never pays."""
        account = await self.roles.open_account(number)
        return give(self.roles.database, account, self.ring_id, index=number)

    async def pay(self, given: Given, *satoshis: int, blocks: int = MIN_CONFIRMATIONS) -> BitcoinPayment:
        """One transaction with an output to the address for each amount, with that many blocks (0: not yet)."""
        payment = await self.bitcoin.pay(*((script_of(given.address), one) for one in satoshis))
        if blocks:
            await self.bitcoin.mine(blocks)
        return payment

    async def act(self) -> None:
        """Read up to the head, and credit what is confirmed."""
        for _ in range(1_000):
            step = await self.scan.advance()
            if step.is_at_head:
                return await self.crediting.act(step.cursor.head_number)
        raise AssertionError("the scanner does not come to the head")

    def rows(self, statement: str) -> list[tuple[Any, ...]]:
        """What the database holds."""
        return query(self.roles.database.superuser_url, statement)

    def deposits(self) -> list[tuple[str, int, int, str | None]]:
        """Transaction, output, satoshis and attempt's status of each deposit, in the chain's order."""
        return self.rows(
            "SELECT d.tx_hash, d.log_index, d.value_raw::bigint, a.status FROM deposits d"
            "  LEFT JOIN payment_attempts a ON a.id = d.attempt_id ORDER BY d.block_number, d.log_index"
        )

    def statuses(self) -> list[str | None]:
        """Of the deposits' attempts."""
        return [status for *_, status in self.deposits()]

    async def balance(self, given: Given) -> int:
        """Credits of the address's account."""
        return await self.roles.balance(given.account.billing_account_id)


@pytest.fixture
async def deposits(bitcoin: BitcoinChain, roles: RolePair, reader: ChainReader) -> AsyncIterator[BitcoinDeposits]:
    """A harness that reads from the next block on, with one method. The books are right at its end."""
    made = open_deposits(bitcoin, roles, reader)
    await made.act()
    yield made
    assert await roles.books() == []


def open_deposits(
    bitcoin: BitcoinChain, roles: RolePair, reader: ChainReader, *, method: str = METHOD, prices: Prices | None = None
) -> BitcoinDeposits:
    """The same, not begun."""
    ring_id = register(roles.database, method)
    scan = DepositScanner(
        reader,
        roles.service,
        DepositAddresses(roles.service, REGTEST.chain_id, TREASURY),
        DepositLane.BUSY,
        chain_id=REGTEST.chain_id,
        look_back_blocks=0,
    )
    settling = Settling(roles, reader)
    of_chain: dict[str, Any] = {"chain_id": REGTEST.chain_id, "min_confirmations": MIN_CONFIRMATIONS}
    pricing = DepositPricing(roles.service, prices or Prices({}), price_lifetime=PRICE_LIFETIME, **of_chain)
    crediting = DepositCrediting(roles.service, settling, pricing, **of_chain)
    return BitcoinDeposits(bitcoin, roles, scan, crediting, settling, ring_id)
