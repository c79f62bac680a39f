"""Confirmed deposits become payment attempts, each on its own, and run through the same settlement as any payment."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Final, assert_never
from uuid import UUID

import structlog

from db.deposits.deposits import ConfirmedDeposit, assign_attempt, list_confirmed, lock_deposit, mark_deposit_handled
from db.engine import ServiceConnection, ServiceDatabase
from db.operations.findings import open_finding
from db.payments import attempts
from domain.errors import Refusal, Unavailable
from domain.ledger.entries import deposits_account
from domain.money import CREDITS_PER_USD_CENT
from domain.operations.findings import Finding, FindingKind
from domain.payments.attempt import AttemptKind, AttemptStatus, ErrorCode, PaymentAttempt, Purpose
from domain.transfers.income import MOVES_OWN_MONEY, NON_PAYER_DESCRIPTIONS
from domain.transfers.matching import renewal_id
from services.deposits.pricing import DepositPricing
from services.ports import PaymentResumer
from telemetry.metrics.worker import FINDINGS_OPENED

log = structlog.get_logger(__name__)

PAGE: Final = 100
"""Deposits per query."""

STARTED_AT_ONCE_MAX: Final = 4
"""Concurrent starts of workflows."""

ACT_SECONDS_MAX: Final = 10.0
"""Time limit of a pass, after which the chain is read again; the rest follows in the next pass."""

INTENT_TTL: Final = timedelta(minutes=30)
"""An attempt begins as an intent, in the transaction that submits it."""

AMOUNT_RAW_MAX: Final = 2**63 - 1
"""What `payment_attempts.amount_raw` holds; `value_raw` is exact."""


class DepositCrediting:
    """Decides about confirmed deposits. Two that run concurrently decide the same and apply it once."""

    def __init__(
        self,
        database: ServiceDatabase,
        starter: PaymentResumer,
        pricing: DepositPricing,
        *,
        chain_id: int,
        min_confirmations: int,
    ) -> None:
        self._pricing = pricing
        self._database = database
        self._starter = starter
        self._chain_id = chain_id
        self._min_confirmations = min_confirmations

    async def act(self, head: int) -> None:
        """Decide about every deposit that is confirmed at this height.

        An attempt that was written and whose workflow could not be started is started by housekeeping, and by the
        watcher's own check of recent submissions (`services.payments.recovery`). Raises `Unavailable`.
        """
        await self._pricing.price(head)
        until = time.monotonic() + ACT_SECONDS_MAX
        last: ConfirmedDeposit | None = None
        while page := await self._page(head, after=last):
            decided = [await self._decide_unhindered(deposit) for deposit in page]
            await self._start([attempt for attempt in decided if isinstance(attempt, PaymentAttempt)])
            if len(page) < PAGE or time.monotonic() > until:
                return
            # Not the first page again: what of it could not be decided about stops nothing behind it.
            last = page[-1]

    async def _page(self, head: int, *, after: ConfirmedDeposit | None = None) -> list[ConfirmedDeposit]:
        async with self._database.autocommit() as connection:
            return await list_confirmed(
                connection,
                self._chain_id,
                head=head,
                min_confirmations=self._min_confirmations,
                limit=PAGE,
                after=after,
            )

    async def _decide_unhindered(self, deposit: ConfirmedDeposit) -> PaymentAttempt | bool:
        """The attempt that was made, or whether anything was decided. An error in one deposit does not stop others."""
        try:
            async with self._database.transaction() as connection:
                return await self._decide(connection, deposit)
        except Unavailable:
            raise
        except _Moved:
            return False
        except Exception:
            log.exception("could not decide about the deposit", tx_hash=deposit.tx_hash, log_index=deposit.log_index)
            return False

    async def _decide(self, connection: ServiceConnection, deposit: ConfirmedDeposit) -> PaymentAttempt | bool:
        if deposit.sender_kind in MOVES_OWN_MONEY:
            return await mark_deposit_handled(connection, deposit, None)
        if deposit.sender_kind is not None:
            return await self._open(connection, deposit, _from_no_payer(deposit))
        match deposit.attempt_status:
            case None:
                return await self._make_attempt(connection, deposit, deposit.id)
            case AttemptStatus.FAILED if deposit.attempt_error_code == ErrorCode.RECEIPT_NOT_FOUND:
                assert deposit.attempt_id is not None, "it has a status"
                return await self._make_attempt(connection, deposit, renewal_id(deposit.attempt_id))
            case AttemptStatus.REVERSED:
                return await self._open(connection, deposit, _returned(deposit))
            case AttemptStatus.REJECTED | AttemptStatus.FAILED:
                return await self._open(connection, deposit, _refused(deposit))
            case AttemptStatus.CREATED_INTENT | AttemptStatus.PENDING_UNVERIFIED | AttemptStatus.CREDITED:
                return await mark_deposit_handled(connection, deposit, deposit.attempt_id)
            case _:
                assert_never(deposit.attempt_status)

    async def _make_attempt(
        self, connection: ServiceConnection, deposit: ConfirmedDeposit, attempt_id: UUID
    ) -> PaymentAttempt | bool:
        """Write the attempt as submitted, and with it what it is paid by; nothing where another pass was faster."""
        await lock_deposit(connection, deposit)
        if await attempts.find_attempt(connection, attempt_id) is not None:
            return False
        intent = attempt_of(deposit, attempt_id)
        await attempts.insert_attempt(connection, intent)
        await attempts.insert_event(
            connection,
            intent.id,
            "intent_created",
            from_status=None,
            to_status=intent.status,
            details={
                "depositAddress": deposit.address,
                "method": deposit.method_id,
                "valueRaw": str(deposit.value_raw),
            },
        )
        recorded = await attempts.record_submission(
            connection,
            intent,
            deposit.tx_hash,
            datetime.now(UTC),
            event_type="submitted",
            details={"txHash": deposit.tx_hash, "minedAt": deposit.block_time.isoformat()},
        )
        is_assigned = await assign_attempt(connection, deposit, intent.id)
        if not (is_assigned and await mark_deposit_handled(connection, deposit, intent.id)):
            raise _Moved
        return recorded

    async def _open(self, connection: ServiceConnection, deposit: ConfirmedDeposit, finding: Finding) -> bool:
        if not await mark_deposit_handled(connection, deposit, None):
            return False
        if await open_finding(connection, finding):
            FINDINGS_OPENED.labels(finding.kind.value).inc()
        return True

    async def _start(self, made: Sequence[PaymentAttempt]) -> None:
        turns = asyncio.Semaphore(STARTED_AT_ONCE_MAX)

        async def start(attempt: PaymentAttempt) -> None:
            async with turns:
                try:
                    await self._starter.resume_payment(attempt.owner_user_id, attempt.id)
                except Refusal as refusal:
                    log.warning("deposit not settled yet", attempt_id=str(attempt.id), error=refusal.message)

        try:
            async with asyncio.TaskGroup() as group:
                for attempt in made:
                    group.create_task(start(attempt))
        except ExceptionGroup as failed:
            raise failed.exceptions[0] from None


class _Moved(Exception):
    """The deposit is in another block by now, or has been decided about: nothing is written."""


def attempt_of(deposit: ConfirmedDeposit, attempt_id: UUID) -> PaymentAttempt:
    """The intent of a deposit: what came, from whom, to which address, and what it is worth."""
    now = datetime.now(UTC)
    return PaymentAttempt(
        id=attempt_id,
        billing_account_id=deposit.billing_account_id,
        owner_user_id=deposit.owner_user_id,
        from_address=deposit.from_address,
        chain_id=deposit.chain_id,
        token=deposit.contract,
        to_address=deposit.address,
        amount_raw=min(deposit.value_raw, AMOUNT_RAW_MAX),
        amount_usd_cents=deposit.credits // CREDITS_PER_USD_CENT,
        purpose=Purpose.SELF,
        status=AttemptStatus.CREATED_INTENT,
        expires_at=now + INTENT_TTL,
        created_at=now,
        kind=AttemptKind.DEPOSIT,
        amount_credits=deposit.credits,
        value_raw=deposit.value_raw,
        cash_account=deposits_account(deposit.token),
    )


def _from_no_payer(deposit: ConfirmedDeposit) -> Finding:
    assert deposit.sender_kind is not None
    return _finding(
        FindingKind.TRANSFER_WITHOUT_INTENT,
        deposit,
        f"is from {NON_PAYER_DESCRIPTIONS[deposit.sender_kind]}: credited only to an account that an operator names",
        None,
    )


def _returned(deposit: ConfirmedDeposit) -> Finding:
    return _finding(
        FindingKind.RETURNED_AFTER_REVERSAL,
        deposit,
        f"was credited as attempt {deposit.attempt_id}, was reversed as reorged out, and is on the chain again",
        deposit.attempt_id,
    )


def _refused(deposit: ConfirmedDeposit) -> Finding:
    return _finding(
        FindingKind.TRANSFER_WITHOUT_INTENT,
        deposit,
        f"was refused as attempt {deposit.attempt_id} with {deposit.attempt_error_code}",
        deposit.attempt_id,
    )


def _finding(kind: FindingKind, deposit: ConfirmedDeposit, words: str, attempt_id: UUID | None) -> Finding:
    return Finding(
        kind=kind,
        detail=f"deposit of {deposit.value_raw} raw {deposit.token} at {deposit.address}, of account "
        f"{deposit.billing_account_id}, {words}",
        chain_id=deposit.chain_id,
        tx_hash=deposit.tx_hash,
        log_index=deposit.log_index,
        attempt_id=attempt_id,
        billing_account_id=deposit.billing_account_id,
        sender=deposit.from_address,
        value_raw=deposit.value_raw,
        details={
            "blockNumber": deposit.block_number,
            "blockHash": deposit.block_hash,
            "minedAt": deposit.block_time.isoformat(),
            "depositId": str(deposit.id),
            "depositAddress": deposit.address,
            "method": deposit.method_id,
        },
    )
