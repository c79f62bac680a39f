"""A ledger with one of everything in it that is as it should be, and reconciliations of it."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

from db.accounts.wallets import Payer
from db.operations import findings
from domain.errors import TemporalUnavailable
from domain.operations.findings import Finding, FindingKind, Remedy
from domain.operations.reconciliation.report import Report
from domain.operations.resolutions import RemedyRequest
from domain.payments.attempt import PaymentAttempt, Purpose
from services.operations.reconciliation import Reconciliation
from tests.reconciliation.planting import find_transfer, mint, observe_payment, take
from tests.support.payments import CHAIN_ID, TOKEN, TREASURY, RolePair, transfer_for, tx_hash
from tests.support.sql import connect

HOUR = timedelta(hours=1)


@dataclass
class Helpers:
    """Stand in for Temporal: what was asked for, and which attempts have a workflow."""

    is_silent: bool = False
    running: set[UUID] = field(default_factory=set)
    picked_up: list[UUID] = field(default_factory=list)
    carried: list[RemedyRequest] = field(default_factory=list)

    async def resume_payment(self, _: str, attempt_id: UUID) -> bool:
        """As `PaymentsClient.resume_payment` answers."""
        if self.is_silent:
            raise TemporalUnavailable(f"no answer about {attempt_id}")
        if attempt_id in self.running:
            return False
        self.picked_up.append(attempt_id)
        return True

    async def start_resolution(self, request: RemedyRequest) -> None:
        """As `start_remedy` is called."""
        self.carried.append(request)


@dataclass
class Books:
    """Payments made through the payments helper, and the helpers of their reconciliations."""

    roles: RolePair
    payer: Payer
    helpers: Helpers = field(default_factory=Helpers)
    dust_below_raw: int = 0

    async def reconcile(
        self,
        from_time: datetime | None = None,
        to_time: datetime | None = None,
        *,
        csv_file: Path | None = None,
    ) -> Report:
        """Reconcile the hours around now."""
        now = datetime.now(UTC)
        reconciliation = self.reconciliation()
        return await reconciliation.run(
            from_time or now - 6 * HOUR, to_time or now + HOUR, csv_file=csv_file, on_progress=lambda _: None
        )

    def reconciliation(self) -> Reconciliation:
        """What `settle reconcile` runs."""
        return Reconciliation(
            self.roles.service,
            chain_id=CHAIN_ID,
            block_time=timedelta(seconds=2),
            starter=self.helpers,
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
        attempt = await self.roles.create_submitted(payer or self.payer, number, **values)
        transfer = transfer_for(attempt, value_raw=attempt.amount_raw + surplus_raw)
        ending = await self.roles.credit(attempt, transfer)
        if attempt.purpose is Purpose.SELF:
            await self.roles.mint(attempt)
        await observe_payment(self.roles, attempt, value_raw=transfer.value_raw, at=at or ago(2 * HOUR))
        finalise(self.roles, attempt)
        return ending.attempt


def ago(time: timedelta) -> datetime:
    """That long before now."""
    return datetime.now(UTC) - time


def plant(roles: RolePair, statement: str, *values: Any) -> None:
    """What the database would refuse, with its triggers off."""
    with connect(roles.database.superuser_url, triggers=False) as owner:
        owner.execute(statement, values or None)


def finalise(roles: RolePair, attempt: PaymentAttempt) -> None:
    """The payment is there for good."""
    with connect(roles.database.service_url) as service:
        service.execute(
            "INSERT INTO transfer_finality (attempt_id, outcome, chain_id, tx_hash, log_index, block_number,"
            " block_hash, level) SELECT attempt_id, 'final', chain_id, tx_hash, log_index, block_number, block_hash,"
            " 'finalized' FROM settled_transfers WHERE attempt_id = %s",
            (attempt.id,),
        )


def watch(roles: RolePair, *, first_block: int = 1, block_number: int = 1_000, head_number: int = 1_000) -> None:
    """The chain has been followed up to now."""
    with connect(roles.database.service_url) as service:
        service.execute(
            "INSERT INTO chain_cursors (chain_id, token, to_address, first_block, block_number, head_number)"
            " VALUES (%s, %s, %s, %s, %s, %s)",
            (CHAIN_ID, TOKEN, TREASURY, first_block, block_number, head_number),
        )


def spend(roles: RolePair, account: str, amount_credits: int) -> None:
    """Usage, which has nothing to do with the treasury."""
    with connect(roles.database.service_url) as service:
        service.execute("SELECT post_entry(%s, %s, 'usage', NULL, 'revenue:usage', '{}')", (account, -amount_credits))


async def open_books(roles: RolePair) -> Books:
    """One of everything that is as it should be."""
    watch(roles)
    payer = await roles.open_account(1)
    early = ago(2 * HOUR)
    books = Books(roles, payer)
    await books.settle(1)
    await books.settle(2, purpose=Purpose.SYSTEM, cents=500)
    credited = await find_transfer(roles.service, 3, at=early)
    await take(roles.service, credited, Remedy.CREDIT)
    await mint(roles.service, credited)
    await take(roles.service, await find_transfer(roles.service, 4, value_raw=40, at=early), Remedy.REFUND_RECORDED)
    await take(roles.service, await find_transfer(roles.service, 5, value_raw=50, at=early), Remedy.WRITE_OFF)
    await _overpayment(books, 6, 60, Remedy.CREDIT)
    await _overpayment(books, 7, 70, Remedy.REFUND_RECORDED)
    spend(roles, payer.billing_account_id, 1_000)
    return books


async def _overpayment(books: Books, number: int, surplus_raw: int, remedy: Remedy) -> None:
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
    async with books.roles.service.transaction() as connection:
        finding_id = (await findings.write_finding(connection, finding)).finding_id
    await take(books.roles.service, finding_id, remedy)
    if remedy is Remedy.CREDIT:
        await mint(books.roles.service, finding_id)
