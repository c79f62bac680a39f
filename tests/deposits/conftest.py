"""Deposit addresses on real parts, and a watcher of them that takes one step at a time when a test says so."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, Final
from uuid import UUID

import pytest

from chain.reader import ChainReader
from db.accounts.wallets import Payer
from db.payments import attempts
from db.transfers.identity import find_known_transfers
from devstack.chain import LocalChain, Wallet, payer_wallets
from domain.chain import DepositLane
from domain.errors import TransferAlreadySettled
from domain.payments.verification import Verified, evaluate, terms_of
from services.deposits.crediting import DepositCrediting
from services.deposits.lanes import DepositAddresses
from services.deposits.pricing import DepositPricing, Prices
from services.deposits.scanner import DepositScanner
from services.ports import PaymentResumer
from tests.deposits.given import USDC, Given, add_method, give_address
from tests.support.payments import RolePair
from tests.support.servers import running_chain
from tests.support.sql import query

FIRST_CHAIN_PORT: Final = 28_945
MIN_CONFIRMATIONS: Final = 3
PRICE_LIFETIME: Final = timedelta(minutes=30)


@pytest.fixture(scope="module")
async def chain(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[LocalChain]:
    """A chain of the module's own; it mines only on request."""
    async with running_chain(tmp_path_factory.mktemp("deposits-chain"), first_port=FIRST_CHAIN_PORT) as running:
        yield running


@dataclass
class Settling:
    """Settles as the workflow does, without Temporal; a test may let it be."""

    roles: RolePair
    reader: ChainReader
    is_idle: bool = False
    resumed: list[UUID] = field(default_factory=list)

    async def resume_payment(self, user_id: str, attempt_id: UUID) -> bool:
        """Verify the attempt by the chain and credit it, bonus included."""
        self.resumed.append(attempt_id)
        while not self.is_idle:
            try:
                await self.settle(attempt_id)
                break
            except TransferAlreadySettled:
                # Another attempt was paid by that very transfer just now: the chain is asked again.
                continue
        return True

    async def settle(self, attempt_id: UUID) -> None:
        """Credit an attempt that waits."""
        async with self.roles.service.autocommit() as connection:
            attempt = await attempts.find_attempt(connection, attempt_id)
            assert attempt is not None
            assert attempt.tx_hash is not None
            waiting = await attempts.find_under_verification(connection, attempt_id)
            assert waiting is not None
            terms = terms_of(attempt)
            known = await find_known_transfers(connection, terms.scope, attempt.tx_hash, of_others_than=attempt_id)
        view = await self.reader.payments.look(attempt.tx_hash, coin=terms.scope.is_of_coin)
        verdict = evaluate(
            terms,
            attempt.tx_hash,
            view,
            min_confirmations=MIN_CONFIRMATIONS,
            known=known.model_copy(update={"held_log_indexes": waiting.settled_log_indexes}),
            payer_kind=waiting.payer_kind,
        )
        if isinstance(verdict, Verified):
            await self.roles.credit(attempt, verdict.transfer)
            await self.roles.mint(attempt)


@dataclass
class Deposits:
    """Addresses, transfers to them, and what reads them."""

    chain: LocalChain
    roles: RolePair
    reader: ChainReader
    scan: DepositScanner
    crediting: DepositCrediting
    settling: Settling
    tokens: dict[str, str] = field(default_factory=dict)

    # What is given out ------------------------------------------------------------------------------------------------

    def method(self, method_id: str, contract: str | None, **columns: Any) -> None:
        """A payment method, registered by an operator."""
        add_method(self.roles.database, self.chain, method_id, contract, **columns)
        if contract is not None:
            self.tokens[method_id] = contract

    async def account(self, number: int = 1) -> Payer:
        """An account of someone with a wallet that never pays."""
        return await self.roles.open_account(number)

    async def give(self, number: int = 1, **options: Any) -> Given:
        """The account's own address, or that of a new charge (`charge_cents`)."""
        return give_address(self.roles.database, self.chain, await self.account(number), **options)

    # The chain --------------------------------------------------------------------------------------------------------

    async def pay(
        self, given: Given, value_raw: int, *, blocks: int = MIN_CONFIRMATIONS, method: str = USDC, payer: int = 0
    ) -> str:
        """A transfer to the address from any wallet, mined with that many blocks (0: not yet)."""
        key = payer_wallets()[payer].private_key
        sent = await self.chain.pay(key, given.address, value_raw, token=self.tokens.get(method))
        if blocks:
            await self.chain.mine(blocks)
            await self.chain.wait_for_receipt(sent)
        return sent

    def payer(self, number: int = 0) -> Wallet:
        """A funded wallet."""
        return payer_wallets()[number]

    async def read(self) -> int:
        """Read until there is nothing more; the head."""
        for _ in range(1_000):
            step = await self.scan.advance()
            if step.is_at_head:
                return step.cursor.head_number
        raise AssertionError("the scanner does not come to the head")

    async def act(self) -> None:
        """Read, and credit what is confirmed."""
        await self.crediting.act(await self.read())

    # What is there ----------------------------------------------------------------------------------------------------

    def rows(self, statement: str) -> list[tuple[Any, ...]]:
        """What the database holds."""
        return query(self.roles.database.superuser_url, statement)

    def deposits(self) -> list[tuple[str, int, int, str | None]]:
        """Transaction, log index, value and attempt's status of each deposit, in the chain's order."""
        return self.rows(
            "SELECT d.tx_hash, d.log_index, d.value_raw::bigint, a.status FROM deposits d"
            "  LEFT JOIN payment_attempts a ON a.id = d.attempt_id ORDER BY d.block_number, d.log_index"
        )

    def status_of(self, given: Given) -> str:
        """Of the address's charge."""
        [(status,)] = self.rows(f"SELECT status FROM charges WHERE id = '{given.charge_id}'")
        return str(status)

    def findings(self) -> list[tuple[str, str | None]]:
        """Kind and transaction of each finding."""
        return self.rows("SELECT kind, tx_hash FROM findings ORDER BY created_at, log_index")

    async def balance(self, given: Given) -> int:
        """Credits of the address's account."""
        return await self.roles.balance(given.account.billing_account_id)


def crediting_of(chain: LocalChain, roles: RolePair, reader: ChainReader, starter: PaymentResumer) -> DepositCrediting:
    """What decides about the chain's deposits, their prices included."""
    of_chain = {"chain_id": chain.chain_id, "min_confirmations": MIN_CONFIRMATIONS}
    prices = Prices({chain.chain_id: reader.prices})
    pricing = DepositPricing(roles.service, prices, price_lifetime=PRICE_LIFETIME, **of_chain)
    return DepositCrediting(roles.service, starter, pricing, **of_chain)


async def open_deposits(chain: LocalChain, roles: RolePair, reader: ChainReader, **options: Any) -> Deposits:
    """A harness that reads from the next block on."""
    addresses = DepositAddresses(roles.service, chain.chain_id, chain.treasury_address)
    scan = DepositScanner(
        reader,
        roles.service,
        addresses,
        options.pop("lane", DepositLane.BUSY),
        chain_id=chain.chain_id,
        look_back_blocks=0,
    )
    settling = Settling(roles, reader)
    return Deposits(chain, roles, reader, scan, crediting_of(chain, roles, reader, settling), settling)


@pytest.fixture
async def deposits(chain: LocalChain, roles: RolePair) -> AsyncIterator[Deposits]:
    """Addresses for the local chain's USDC."""
    async with ChainReader([chain.url], chain.chain_id, timeout_seconds=5.0) as reader:
        made = await open_deposits(chain, roles, reader)
        made.method(USDC, chain.token_address)
        await made.read()
        yield made
        assert await roles.books() == []
