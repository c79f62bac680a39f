"""Payments in one call: what takes several transactions of the product is one line of a test."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any, Final
from uuid import uuid4

from db.accounts import wallets as accounts
from db.accounts.wallets import Payer
from db.engine import RelayDatabase, ServiceDatabase, SettlementDatabase, TenantDatabase
from db.ledger import entries as ledger
from domain.payments.attempt import AttemptStatus, ErrorCode, PaymentAttempt, Purpose
from domain.payments.finality import FinalityLevel, ReorgedOut
from domain.payments.verification import Refused, SettledTransfer
from services.payments import lifecycle as payments
from tests.support.oracle import check_books
from tests.support.postgres import Database
from tests.support.sql import Connection

CHAIN_ID: Final = 31_337
TOKEN: Final = "0x" + "70" * 20
TREASURY: Final = "0x" + "71" * 20
SHARE: Final = Decimal("0.75")
NOW: Final = datetime(2026, 1, 2, 3, 4, 5, 678_901, tzinfo=UTC)
INTENT_TTL: Final = timedelta(minutes=30)

WRONG_PAYMENT: Final = Refused(
    status=AttemptStatus.REJECTED, error_code=ErrorCode.INSUFFICIENT_AMOUNT, message="too little"
)
REVERTED: Final = Refused(status=AttemptStatus.FAILED, error_code=ErrorCode.TX_REVERTED, message="reverted")


def wallet(number: int) -> str:
    """An address for each number, the same in every case; never the zero address, which cannot be a payer."""
    return f"0x1{number:039d}"


def tx_hash(number: int) -> str:
    """A transaction hash for each number."""
    return f"0x{number:064x}"


def note_former_treasury(service: Connection, address: str) -> None:
    """Some worker once had settings that name this treasury, on another chain: it pays for nothing any more."""
    service.execute(
        "INSERT INTO payment_destinations (chain_id, token, to_address, noted_by) VALUES (1, %s, lower(%s), 'worker')",
        ("0x" + "ee" * 20, address),
    )


def new_attempt(
    payer: Payer, *, cents: int = 10_000, purpose: Purpose = Purpose.SELF, **changes: Any
) -> PaymentAttempt:
    """An intent as it is before it is written."""
    values: dict[str, Any] = {
        "id": uuid4(),
        "billing_account_id": payer.billing_account_id,
        "owner_user_id": payer.user_id,
        "from_address": payer.wallet_address,
        "chain_id": CHAIN_ID,
        "token": TOKEN,
        "to_address": TREASURY,
        "amount_raw": cents * 10_000,
        "amount_usd_cents": cents,
        "purpose": purpose,
        "status": AttemptStatus.CREATED_INTENT,
        "expires_at": NOW + INTENT_TTL,
        "created_at": NOW,
    }
    return PaymentAttempt(**values | changes)


def transfer_for(attempt: PaymentAttempt, **changes: Any) -> SettledTransfer:
    """The transfer that pays an attempt: exactly what was asked, by its own hash."""
    values: dict[str, Any] = {
        "chain_id": attempt.chain_id,
        "tx_hash": attempt.tx_hash,
        "log_index": 0,
        "block_number": 7,
        "block_hash": tx_hash(7),
        "from_address": attempt.from_address,
        "value_raw": attempt.amount_raw,
        "expected_raw": attempt.amount_raw,
    }
    return SettledTransfer(**values | changes)


def gone(attempt: PaymentAttempt) -> ReorgedOut:
    """The verdict that the chain has taken an attempt's transfer back."""
    return ReorgedOut(transfer=transfer_for(attempt), level=FinalityLevel.FINALIZED, message="it was reorganised away")


class RolePair:
    """All roles on one database, each step in a transaction of its own as the activities open it."""

    def __init__(self, database: Database, *, pool_size: int = 20, application_name: str = "settle tests") -> None:
        self.database = database
        options: dict[str, Any] = {"pool_size": pool_size, "application_name": application_name}
        self.app = TenantDatabase(database.app_url, **options)
        self.settlement = SettlementDatabase(database.settlement_url, **options)
        self.service = ServiceDatabase(database.service_url, **options)
        self.relay = RelayDatabase(database.relay_url, **options)

    async def open_account(self, number: int) -> Payer:
        """The payer of wallet `number`."""
        async with self.app.unscoped() as connection:
            return await accounts.provision_wallet(connection, wallet(number))

    async def create(self, payer: Payer, **values: Any) -> PaymentAttempt:
        """A written intent."""
        attempt = new_attempt(payer, **values)
        async with self.app.transaction(payer.user_id) as connection:
            await payments.create_intent(connection, attempt)
        return attempt

    async def submit(self, attempt: PaymentAttempt, hash_: str, *, at: datetime = NOW) -> payments.AttemptOutcome:
        """The payer submits a hash."""
        async with self.app.transaction(attempt.owner_user_id) as connection:
            return await payments.submit(connection, attempt.id, hash_, submitted_at=at)

    async def create_submitted(self, payer: Payer, number: int, **values: Any) -> PaymentAttempt:
        """An attempt that waits for hash `number`."""
        return (await self.submit(await self.create(payer, **values), tx_hash(number))).attempt

    async def credit(
        self, attempt: PaymentAttempt, transfer: SettledTransfer | None = None, *, share: Decimal = SHARE
    ) -> payments.AttemptOutcome:
        """The credit of the account that the attempt's purpose names."""
        transfer = transfer or transfer_for(attempt)
        if attempt.purpose is Purpose.SELF:
            async with self.settlement.statements(attempt.owner_user_id) as connection:
                return await payments.credit_buyer(connection, attempt.id, transfer, revenue_share=share)
        async with self.service.transaction() as service:
            return await payments.credit_donation(service, attempt.id, transfer)

    async def mint(self, attempt: PaymentAttempt) -> ledger.PostedEntry | None:
        """The system tenant's bonus for an attempt."""
        async with self.service.statements() as connection:
            return await payments.mint_revenue_share(connection, attempt.id)

    async def reverse(self, attempt: PaymentAttempt) -> payments.AttemptOutcome:
        """Reverse a payment that was reorged out."""
        async with self.service.transaction() as connection:
            return await payments.reverse_payment(connection, attempt.id, gone(attempt))

    async def reverse_bonus(self, attempt: PaymentAttempt) -> ledger.PostedEntry | None:
        """Reverse the bonus of a reversed purchase."""
        async with self.service.transaction() as connection:
            return await payments.reverse_bonus(connection, attempt.id)

    async def refuse(self, attempt: PaymentAttempt, refused: Refused = WRONG_PAYMENT) -> payments.AttemptOutcome:
        """The attempt ends without credits."""
        async with self.settlement.transaction(attempt.owner_user_id) as connection:
            return await payments.refuse(connection, attempt.id, refused)

    async def settle(self, payer: Payer, number: int, **values: Any) -> PaymentAttempt:
        """An attempt from intent to the last credit."""
        attempt = await self.create_submitted(payer, number, **values)
        ending = await self.credit(attempt)
        if attempt.purpose is Purpose.SELF:
            await self.mint(attempt)
        return ending.attempt

    async def balance(self, billing_account_id: str) -> int:
        """Credits that an account is owed."""
        async with self.service.transaction() as connection:
            return (await accounts.balances(connection))[billing_account_id]

    async def entries(self, attempt: PaymentAttempt) -> list[ledger.LedgerRow]:
        """Ledger rows of one attempt."""
        async with self.service.transaction() as connection:
            return await ledger.list_entries(connection, str(attempt.id))

    async def books(self, **options: Any) -> list[str]:
        """What the oracle has to complain about."""
        return await check_books(self.database.service_url, **options)

    async def dispose(self) -> None:
        """Close all connections."""
        await self.app.dispose()
        await self.settlement.dispose()
        await self.service.dispose()
        await self.relay.dispose()


@asynccontextmanager
async def open_roles(database: Database, *, pool_size: int = 20) -> AsyncIterator[RolePair]:
    """A payments helper for the length of a block."""
    roles = RolePair(database, pool_size=pool_size)
    try:
        yield roles
    finally:
        await roles.dispose()
