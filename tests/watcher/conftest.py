"""A chain of the module's own, and a watcher that takes one step at a time when a test says so."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, Final
from uuid import UUID, uuid4

import pytest
from psycopg.rows import dict_row

from activities.transfers.watch_chain import Followers, OpenScope, ScopeWatch, ScopeWatches
from chain.reader import ChainReader
from db.accounts import wallets as accounts
from db.payments import attempts
from devstack.chain import LocalChain, Wallet, payer_wallets
from domain.chain import TransferScope
from domain.operations.events import PlatformEvent
from domain.payments.attempt import AttemptStatus, ErrorCode, PaymentAttempt
from domain.payments.verification import Refused, SettledTransfer
from domain.transfers.watching import Promise
from services.payments import lifecycle as payments
from services.transfers.block_scanner import BlockScanner, Step
from services.transfers.matcher import TransferMatcher
from tests.chain.anvil import Clock
from tests.chain.faulty_node import FaultyNode
from tests.support.engine import Engine, open_engine
from tests.support.payments import RolePair
from tests.support.servers import Namespace, running_chain
from tests.support.sql import connect, lent

FIRST_CHAIN_PORT: Final = 28_745
MIN_CONFIRMATIONS: Final = 3
TTL: Final = timedelta(minutes=30)


@pytest.fixture(scope="module")
async def chain(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[LocalChain]:
    """A chain whose time no other test has driven ahead; it mines only on request."""
    async with running_chain(tmp_path_factory.mktemp("watched-chain"), first_port=FIRST_CHAIN_PORT) as running:
        yield running


@dataclass
class Watch:
    """A watcher on real parts, without Temporal: what it submits is recorded as the workflow's first step does."""

    chain: LocalChain
    matcher_of_payers: RolePair
    reader: ChainReader
    scan: BlockScanner
    roles: TransferMatcher
    told: list[PlatformEvent]
    submitted: list[tuple[UUID, str]]
    trouble: dict[UUID, Exception]
    deaf: list[Exception] = field(default_factory=list)
    clock: Clock = field(default_factory=Clock)
    """By which refusals of nodes last; it stands still until a test moves it."""

    open_scope: OpenScope = field(init=False)

    def followers(self, treasury: str | None = None) -> Followers:
        """What follows all that is to be followed, when the settings name this treasury."""
        scope = self.scan.scope.model_copy(update={"treasury": treasury} if treasury else {})
        watches = ScopeWatches(self.matcher_of_payers.service, scope, self.open_scope)
        return Followers(watches, 0.25, clock=self.clock)

    # The watcher ------------------------------------------------------------------------------------------------------

    async def catch_up(self) -> Step:
        """Read until there is nothing more."""
        for _ in range(1_000):
            step = await self.scan.advance()
            if step.is_at_head:
                return step
        raise AssertionError("the watcher does not come to the head")

    async def act(self) -> None:
        """Catch up, and decide about what is confirmed."""
        await self.roles.act((await self.catch_up()).cursor.head_number)

    async def rows(self, statement: str) -> list[dict[str, Any]]:
        """What the database holds, as its superuser sees it."""
        url = self.matcher_of_payers.database.superuser_url
        with lent(url) as connection, connection.cursor(row_factory=dict_row) as cursor:
            return cursor.execute(statement.encode()).fetchall()

    async def change(self, statement: str) -> None:
        """A change that only the superuser may make."""
        with connect(self.matcher_of_payers.database.superuser_url) as connection:
            connection.execute(statement.encode())

    async def seen(self) -> dict[str, int]:
        """Hash and block of each observed transfer."""
        rows = await self.rows("SELECT tx_hash, block_number FROM observed_transfers ORDER BY block_number, log_index")
        return {row["tx_hash"]: row["block_number"] for row in rows}

    async def orphaned(self) -> list[str]:
        """Hashes of the transfers that were taken out."""
        return [row["tx_hash"] for row in await self.rows("SELECT tx_hash FROM orphaned_transfers ORDER BY id")]

    async def findings(self) -> list[tuple[str, str, UUID | None]]:
        """Kind, transaction and attempt of each finding, in the chain's order.

        Not in the order in which they were opened: different senders' are opened at the same time.
        """
        rows = await self.rows(
            """SELECT kind, tx_hash, attempt_id FROM findings f
                ORDER BY (metadata->>'blockNumber')::bigint NULLS FIRST, log_index, created_at"""
        )
        return [(row["kind"], row["tx_hash"], row["attempt_id"]) for row in rows]

    async def cursor(self) -> int:
        """Where the watcher is."""
        rows = await self.rows("SELECT block_number FROM chain_cursors")
        return int(rows[0]["block_number"])

    # The chain --------------------------------------------------------------------------------------------------------

    async def pay(
        self, cents: int = 10_000, *, wallet: Wallet | None = None, blocks: int = 1, treasury: str | None = None
    ) -> str:
        """A transfer to the treasury, mined with that many blocks (0: not yet)."""
        key = (wallet or payer_wallets()[0]).private_key
        sent = await self.chain.pay(key, treasury or self.chain.treasury_address, cents * 10_000)
        if blocks:
            await self.chain.mine(blocks)
            await self.chain.wait_for_receipt(sent)
        return sent

    async def pay_raw(self, value_raw: int) -> str:
        """A transfer of so many raw units to the treasury, mined."""
        sent = await self.chain.pay(payer_wallets()[0].private_key, self.chain.treasury_address, value_raw)
        await self.chain.mine(1)
        await self.chain.wait_for_receipt(sent)
        return sent

    async def now(self) -> datetime:
        """The chain's time: that of its newest block."""
        block = await self.chain.rpc("eth_getBlockByNumber", "latest", False)
        return datetime.fromtimestamp(int(block["timestamp"], 16), UTC)

    async def head(self) -> int:
        """The chain's height."""
        return await self.chain.block_number()

    # Attempts ---------------------------------------------------------------------------------------------------------

    async def intent(
        self,
        cents: int = 10_000,
        *,
        wallet: Wallet | None = None,
        age: timedelta = timedelta(0),
        ttl: timedelta = TTL,
    ) -> PaymentAttempt:
        """An intent made so long ago, by the chain's clock."""
        wallet = wallet or payer_wallets()[0]
        made = await self.now() - age
        async with self.matcher_of_payers.app.unscoped() as connection:
            payer = await accounts.provision_wallet(connection, wallet.address)
        attempt = PaymentAttempt(
            id=uuid4(),
            billing_account_id=payer.billing_account_id,
            owner_user_id=payer.user_id,
            from_address=payer.wallet_address,
            chain_id=self.chain.chain_id,
            token=self.chain.token_address,
            to_address=self.chain.treasury_address,
            amount_raw=cents * 10_000,
            amount_usd_cents=cents,
            purpose="self",
            status=AttemptStatus.CREATED_INTENT,
            expires_at=made + ttl,
            created_at=made,
        )
        async with self.matcher_of_payers.app.transaction(payer.user_id) as connection:
            await payments.create_intent(connection, attempt)
        return attempt

    async def expire(self, attempt: PaymentAttempt) -> None:
        """The intent ends unpaid, as housekeeping ends it."""
        refused = Refused(status=AttemptStatus.FAILED, error_code=ErrorCode.INTENT_EXPIRED, message="expired")
        await self.matcher_of_payers.refuse(attempt, refused)

    async def submit(self, attempt: PaymentAttempt, tx_hash: str) -> None:
        """The payer submits a hash."""
        await self.matcher_of_payers.submit(attempt, tx_hash, at=datetime.now(UTC))

    async def credit(self, attempt: PaymentAttempt, tx_hash: str, **changes: Any) -> SettledTransfer:
        """The attempt is credited with the first log of that transaction."""
        receipt = await self.chain.wait_for_receipt(tx_hash)
        log = receipt["logs"][0]
        values = {
            "chain_id": self.chain.chain_id,
            "tx_hash": tx_hash,
            "log_index": int(log["logIndex"], 16),
            "block_number": int(log["blockNumber"], 16),
            "block_hash": log["blockHash"],
            "from_address": attempt.from_address,
            "value_raw": attempt.amount_raw,
            "expected_raw": attempt.amount_raw,
        }
        current = attempt.model_copy(update={"tx_hash": tx_hash})
        transfer = SettledTransfer(**{**values, **changes})
        await self.matcher_of_payers.credit(current, transfer)
        return transfer

    async def find(self, attempt: PaymentAttempt) -> PaymentAttempt:
        """The attempt as it is."""
        async with self.matcher_of_payers.service.autocommit() as connection:
            found = await attempts.find_attempt(connection, attempt.id)
        assert found is not None
        return found


Watches = Callable[..., Awaitable[Watch]]


@dataclass
class Submissions:
    """Submits as the starter does, without a workflow."""

    roles: RolePair
    made: list[tuple[UUID, str]]
    trouble: dict[UUID, Exception]

    async def submit(self, user_id: str, attempt_id: UUID, tx_hash: str, *, mined_at: datetime | None = None) -> object:
        """Record the submission, unless `trouble` has an error for the attempt."""
        if attempt_id in self.trouble:
            raise self.trouble[attempt_id]
        # A day late: that it was in time is known from the block alone.
        late = datetime.now(UTC) + timedelta(days=1)
        async with self.roles.app.transaction(user_id) as connection:
            await payments.submit(connection, attempt_id, tx_hash, submitted_at=late, mined_at=mined_at)
        self.made.append((attempt_id, tx_hash))
        return None


@pytest.fixture
async def watches(chain: LocalChain, roles: RolePair) -> AsyncIterator[Watches]:
    """Makes watchers that begin at the next block, through the chain's own node or the given endpoints."""
    begin = await chain.block_number() + 1
    async with AsyncExitStack() as stack:

        async def make(
            *nodes: FaultyNode,
            from_block: int | None = begin,
            look_back_blocks: int = 10,
            dust_below_raw: int = 0,
            **options: Any,
        ) -> Watch:
            urls = [node.url for node in nodes] or [chain.url]
            reader = await stack.enter_async_context(ChainReader(urls, chain.chain_id, timeout_seconds=5.0, **options))
            scope = TransferScope(chain_id=chain.chain_id, token=chain.token_address, treasury=chain.treasury_address)
            told: list[PlatformEvent] = []
            submitted: list[tuple[UUID, str]] = []
            trouble: dict[UUID, Exception] = {}

            async def publish(event: PlatformEvent) -> None:
                if made.deaf:
                    raise made.deaf[0]
                told.append(event)

            clock = Clock()

            def open_scope(scope: TransferScope, promise: Promise | None = None) -> ScopeWatch:
                scan = BlockScanner(
                    reader,
                    roles.service,
                    scope,
                    from_block=from_block,
                    look_back_blocks=look_back_blocks,
                    clock=clock,
                )
                transfers = TransferMatcher(
                    roles.service,
                    scope,
                    Submissions(roles, submitted, trouble),
                    publish,
                    chain=reader,
                    min_confirmations=MIN_CONFIRMATIONS,
                    dust_below_raw=dust_below_raw,
                )
                return ScopeWatch(scan, transfers)

            current = open_scope(scope)
            assert isinstance(current.matcher, TransferMatcher)
            made = Watch(chain, roles, reader, current.scan, current.matcher, told, submitted, trouble, clock=clock)
            made.open_scope = open_scope
            return made

        yield make


@pytest.fixture
async def watch(watches: Watches) -> Watch:
    """A watcher on the chain's own node."""
    return await watches()


@pytest.fixture
async def watched(namespace: Namespace, roles: RolePair, chain: LocalChain) -> AsyncIterator[Engine]:
    """The whole engine without a worker, whose watcher begins at the next block. Intents live long: mining at will
    drives the chain's time ahead."""
    begin = await chain.block_number() + 1
    settings = {"CHAIN_WATCH_FROM_BLOCK": str(begin), "PAYMENT_INTENT_TTL_SECONDS": "864000"}
    async with open_engine(namespace, roles, chain, **settings) as opened:
        yield opened


FaultyNodes = Callable[[int], Awaitable[list[FaultyNode]]]


@pytest.fixture
async def faulty_nodes(chain: LocalChain) -> AsyncIterator[FaultyNodes]:
    """Makes faulty nodes in front of the chain."""
    async with AsyncExitStack() as stack:

        async def make(count: int) -> list[FaultyNode]:
            return [await stack.enter_async_context(FaultyNode.in_front_of(chain.url)) for _ in range(count)]

        yield make


@pytest.fixture
async def faulty(faulty_nodes: FaultyNodes) -> FaultyNode:
    """One of them."""
    return (await faulty_nodes(1))[0]
