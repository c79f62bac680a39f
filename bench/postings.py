"""Ledger postings: through the product's code, and the same statement by the same driver with nothing around it."""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import Final
from uuid import UUID, uuid4

import psycopg
from psycopg.rows import TupleRow
from psycopg.types.json import Jsonb

from bench.rounds import Side, Work, at_once
from db.accounts.wallets import Payer, provision_wallet
from db.engine import SESSION_SETTINGS, ServiceDatabase, SettlementDatabase, TenantDatabase
from db.ledger import entries as ledger
from domain.identifiers import SYSTEM_TENANT_ACCOUNT_ID
from domain.ledger.entries import Posting, Reason
from domain.money import DEFAULT_REVENUE_SHARE, raw_for_usd_cents
from domain.payments.attempt import AttemptStatus, PaymentAttempt, Purpose
from domain.payments.verification import SettledTransfer
from services.payments import lifecycle as payments
from worker import DATABASE_CONNECTIONS

CONNECTIONS: Final = DATABASE_CONNECTIONS
"""As many as a worker has for each role, on both sides."""

ACCOUNTS: Final = 200
"""Accounts over which the spread postings are distributed."""

POSTED_CREDITS: Final = 1_000

DETAILS: Final[dict[str, object]] = {"share": "0.75", "amountUsdCents": 10_000}
"""As large as what a bonus carries."""

CREDITED_CENTS: Final = 10_000

TOKEN: Final = f"0x2{1:039d}"
TREASURY: Final = f"0x2{2:039d}"
"""On no chain; only they differ from every payer."""


async def open_accounts(tenants: TenantDatabase) -> list[Payer]:
    """Accounts of wallets without an owner."""
    payers = []
    async with tenants.unscoped() as connection:
        for number in range(ACCOUNTS):
            payers.append(await provision_wallet(connection, f"0x1{number:039d}"))  # noqa: PERF401 - one at a time
    return payers


class Postings:
    """The work of both sides on the same accounts. Every posting has a reference of its own."""

    def __init__(self, service: ServiceDatabase, raw: Sequence[RawConnection]) -> None:
        self._service = service
        self._raw = raw
        self._queue: list[Posting] = []
        self._run = uuid4().hex[:8]
        self._numbers = itertools.count()
        self.posted = 0

    def sides(self, account_ids: Sequence[str], reason: Reason) -> tuple[Side, Side]:
        """The product and the raw driver, posting to `account_ids` alternately."""

        async def prepare(count: int) -> None:
            self._queue = [
                Posting(
                    billing_account_id=account_ids[number % len(account_ids)],
                    amount_credits=POSTED_CREDITS,
                    reason=reason,
                    reference=f"bench-{self._run}-{next(self._numbers)}",
                )
                for number in range(count)
            ]

        return (
            Side("ledger.post", prepare, self._on_all_connections([self._post_by_product] * CONNECTIONS)),
            Side("the same statement, raw", prepare, self._on_all_connections([raw.post for raw in self._raw])),
        )

    async def _post_by_product(self, posting: Posting) -> None:
        async with self._service.autocommit() as connection:
            await ledger.post(connection, posting, DETAILS)

    def _on_all_connections(self, posts: Sequence[Callable[[Posting], Awaitable[None]]]) -> Work:
        async def run(post: Callable[[Posting], Awaitable[None]]) -> None:
            while self._queue:
                await post(self._queue.pop())
                self.posted += 1

        async def work(_count: int) -> None:
            await at_once(run(post) for post in posts)

        return work


class RawConnection:
    """One connection of the driver, used for one statement after another."""

    def __init__(self, connection: psycopg.AsyncConnection[TupleRow]) -> None:
        self._connection = connection

    async def post(self, posting: Posting) -> None:
        """What `ledger.post` asks of the database."""
        cursor = await self._connection.execute(
            ledger.POST_ENTRY,
            {
                "billing_account_id": posting.billing_account_id,
                "amount": posting.amount_credits,
                "reason": posting.reason.value,
                "reference": posting.reference,
                "contra_account": posting.contra_account,
                "metadata": Jsonb(DETAILS),
            },
        )
        row = await cursor.fetchone()
        if row is None or not row[3]:
            raise AssertionError(f"{posting.reference} was not posted")


@asynccontextmanager
async def raw_connections(service_url: str) -> AsyncIterator[list[RawConnection]]:
    """As many connections as a worker has, with a worker's session settings."""
    options = " ".join(f"-c {name}={value}" for name, value in SESSION_SETTINGS.items())
    async with AsyncExitStack() as stack:
        opened = []
        for _ in range(CONNECTIONS):
            connection = await psycopg.AsyncConnection.connect(
                service_url, autocommit=True, options=options, application_name="settle bench"
            )
            stack.push_async_callback(connection.close)
            opened.append(RawConnection(connection))
        yield opened


class BuyerCredits:
    """The buyer's credit, the one transaction of several statements, on attempts that were submitted before."""

    def __init__(
        self, tenants: TenantDatabase, settlement: SettlementDatabase, payers: Sequence[Payer], *, chain_id: int
    ) -> None:
        self._tenants = tenants
        self._settlement = settlement
        self._payers = payers
        self._chain_id = chain_id
        self._queue: list[PaymentAttempt] = []
        self.credited = 0

    def side(self) -> Side:
        """The product; there is nothing that it is compared with."""
        return Side("payments.credit_buyer", self._prepare, self._work)

    async def _prepare(self, count: int) -> None:
        numbers = iter(range(count))

        async def run() -> None:
            for number in numbers:
                self._queue.append(await self._submitted(self._payers[number % len(self._payers)]))

        await at_once(run() for _ in range(CONNECTIONS))

    async def _submitted(self, payer: Payer) -> PaymentAttempt:
        now = datetime.now(UTC)
        attempt = PaymentAttempt(
            id=uuid4(),
            billing_account_id=payer.billing_account_id,
            owner_user_id=payer.user_id,
            from_address=payer.wallet_address,
            chain_id=self._chain_id,
            token=TOKEN,
            to_address=TREASURY,
            amount_raw=raw_for_usd_cents(CREDITED_CENTS),
            amount_usd_cents=CREDITED_CENTS,
            purpose=Purpose.SELF,
            status=AttemptStatus.CREATED_INTENT,
            expires_at=now + timedelta(minutes=30),
            created_at=now,
        )
        async with self._tenants.transaction(payer.user_id) as connection:
            await payments.create_intent(connection, attempt)
            return (
                await payments.submit(connection, attempt.id, _hash_of(attempt.id), submitted_at=datetime.now(UTC))
            ).attempt

    async def _work(self, _count: int) -> None:
        async def run() -> None:
            while self._queue:
                attempt = self._queue.pop()
                async with self._settlement.statements(attempt.owner_user_id) as connection:
                    await payments.credit_buyer(
                        connection, attempt.id, _transfer(attempt), revenue_share=DEFAULT_REVENUE_SHARE
                    )
                self.credited += 1

        await at_once(run() for _ in range(CONNECTIONS))


def _hash_of(attempt_id: UUID) -> str:
    return f"0x{attempt_id.hex:0>64}"


def _transfer(attempt: PaymentAttempt) -> SettledTransfer:
    tx_hash = _hash_of(attempt.id)
    return SettledTransfer(
        chain_id=attempt.chain_id,
        tx_hash=tx_hash,
        log_index=0,
        block_number=1,
        block_hash=tx_hash,
        from_address=attempt.from_address,
        value_raw=attempt.amount_raw,
        expected_raw=attempt.amount_raw,
    )


SYSTEM_TENANT: Final = (SYSTEM_TENANT_ACCOUNT_ID,)
