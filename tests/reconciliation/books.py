"""A ledger with one of everything in it that is as it should be, and reconciliations of it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

from activities.operations.reconciliation import Reconciliation
from db.accounts.wallets import Payer
from db.operations import findings
from domain.operations.findings import Finding, FindingKind, Remedy
from domain.operations.reconciliation import Report
from domain.operations.resolutions import RemedyRequest
from domain.payments.attempt import PaymentAttempt, Purpose
from tests.reconciliation.planting import find_transfer, mint, observe_payment, take
from tests.support.payments import CHAIN_ID, TOKEN, TREASURY, Desk, transfer_for, tx_hash
from tests.support.sql import connect

HOUR = timedelta(hours=1)


@dataclass
class Helpers:
    """Stand in for Temporal: what was asked for, and which attempts have a workflow."""

    running: set[UUID] = field(default_factory=set)
    picked_up: list[UUID] = field(default_factory=list)
    carried: list[RemedyRequest] = field(default_factory=list)

    async def pick_up(self, _: str, attempt_id: UUID) -> bool:
        """As `PaymentsClient.pick_up` answers."""
        if attempt_id in self.running:
            return False
        self.picked_up.append(attempt_id)
        return True

    async def carry(self, request: RemedyRequest) -> None:
        """As `start_remedy` is called."""
        self.carried.append(request)


@dataclass
class Books:
    """A desk, the payments that were made at it, and the helpers of its reconciliations."""

    desk: Desk
    payer: Payer
    helpers: Helpers = field(default_factory=Helpers)
    dust_below_raw: int = 0

    async def reconcile(
        self,
        from_time: datetime | None = None,
        to_time: datetime | None = None,
        *,
        csv_file: Path | None = None,
        pick_up: Callable[[str, UUID], Awaitable[bool]] | None = None,
    ) -> Report:
        """Reconcile the hours around now."""
        now = datetime.now(UTC)
        reconciliation = self.reconciliation(pick_up=pick_up)
        return await reconciliation.run(
            from_time or now - 6 * HOUR, to_time or now + HOUR, csv_file=csv_file, on_progress=lambda _: None
        )

    def reconciliation(self, *, pick_up: Callable[[str, UUID], Awaitable[bool]] | None = None) -> Reconciliation:
        """What `settle reconcile` runs."""
        return Reconciliation(
            self.desk.service,
            chain_id=CHAIN_ID,
            block_time=timedelta(seconds=2),
            pick_up=pick_up or self.helpers.pick_up,
            carry=self.helpers.carry,
            dust_below_raw=self.dust_below_raw,
        )

    async def settle(
        self,
        number: int,
        *,
        surplus_raw: int = 0,
        at: datetime | None = None,
        payer: Payer | None = None,
        **values: Any,
    ) -> PaymentAttempt:
        """One more payment, observed, credited and final."""
        attempt = await self.desk.create_submitted(payer or self.payer, number, **values)
        transfer = transfer_for(attempt, value_raw=attempt.amount_raw + surplus_raw)
        ending = await self.desk.credit(attempt, transfer)
        if attempt.purpose is Purpose.SELF:
            await self.desk.mint(attempt)
        await observe_payment(self.desk, attempt, value_raw=transfer.value_raw, at=at or ago(2 * HOUR))
        finalise(self.desk, attempt)
        return ending.attempt


def ago(time: timedelta) -> datetime:
    """That long before now."""
    return datetime.now(UTC) - time


def plant(desk: Desk, statement: str, *values: Any) -> None:
    """What the database would refuse, with its triggers off."""
    with connect(desk.database.superuser_url, triggers=False) as owner:
        owner.execute(statement, values or None)


def finalise(desk: Desk, attempt: PaymentAttempt) -> None:
    """The payment is there for good."""
    with connect(desk.database.service_url) as service:
        service.execute(
            "INSERT INTO transfer_finality (attempt_id, outcome, chain_id, tx_hash, log_index, block_number,"
            " block_hash, level) SELECT attempt_id, 'final', chain_id, tx_hash, log_index, block_number, block_hash,"
            " 'finalized' FROM settled_transfers WHERE attempt_id = %s",
            (attempt.id,),
        )


def watch(desk: Desk, *, first_block: int = 1, block_number: int = 1_000, head_number: int = 1_000) -> None:
    """The chain has been followed up to now."""
    with connect(desk.database.service_url) as service:
        service.execute(
            "INSERT INTO chain_cursors (chain_id, token, to_address, first_block, block_number, head_number)"
            " VALUES (%s, %s, %s, %s, %s, %s)",
            (CHAIN_ID, TOKEN, TREASURY, first_block, block_number, head_number),
        )


def spend(desk: Desk, account: str, amount_credits: int) -> None:
    """Usage, which has nothing to do with the treasury."""
    with connect(desk.database.service_url) as service:
        service.execute("SELECT post_entry(%s, %s, 'usage', NULL, 'revenue:usage', '{}')", (account, -amount_credits))


async def open_books(desk: Desk) -> Books:
    """One of everything that is as it should be."""
    watch(desk)
    payer = await desk.open_account(1)
    early = ago(2 * HOUR)
    books = Books(desk, payer)
    await books.settle(1)
    await books.settle(2, purpose=Purpose.SYSTEM, cents=500)
    credited = await find_transfer(desk.service, 3, at=early)
    await take(desk.service, credited, Remedy.CREDIT)
    await mint(desk.service, credited)
    await take(desk.service, await find_transfer(desk.service, 4, value_raw=40, at=early), Remedy.REFUND_RECORDED)
    await take(desk.service, await find_transfer(desk.service, 5, value_raw=50, at=early), Remedy.WRITE_OFF)
    await _surplus(books, 6, 60, Remedy.CREDIT)
    await _surplus(books, 7, 70, Remedy.REFUND_RECORDED)
    spend(desk, payer.billing_account_id, 1_000)
    return books


async def _surplus(books: Books, number: int, surplus_raw: int, remedy: Remedy) -> None:
    attempt = await books.settle(number, surplus_raw=surplus_raw)
    finding = Finding(
        kind=FindingKind.SURPLUS,
        detail="more came",
        chain_id=CHAIN_ID,
        tx_hash=tx_hash(number),
        log_index=0,
        attempt_id=attempt.id,
        sender=attempt.from_address,
        value_raw=surplus_raw,
    )
    async with books.desk.service.transaction() as connection:
        finding_id = (await findings.write_finding(connection, finding)).finding_id
    await take(books.desk.service, finding_id, remedy)
    if remedy is Remedy.CREDIT:
        await mint(books.desk.service, finding_id)
