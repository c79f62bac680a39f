"""Lifecycle steps of a payment attempt, each inside the caller's transaction.

Each locks the attempt, lets `domain` decide, and writes status, audit trail and ledger together. Each is safe to run
twice and concurrently: the second run finds the work done and reports it.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any, Final
from uuid import UUID

from db.engine import (
    AnyConnection,
    ServiceConnection,
    ServiceStatements,
    SettlementConnection,
    SettlementStatements,
    TenantConnection,
)
from db.ledger import entries as ledger
from db.operations.findings import open_finding
from db.payments import attempts, finality
from domain.errors import AttemptNotFound, BookkeepingError
from domain.ledger.entries import Posting, Reason, reversal_posting
from domain.operations.findings import Finding, FindingKind
from domain.payments.attempt import (
    AttemptStatus,
    ErrorCode,
    PaymentAttempt,
    Purpose,
    SubmissionEffect,
    decide_submission,
)
from domain.payments.finality import ReorgedOut
from domain.payments.postings import donation_posting, purchase_posting, revenue_share_posting
from domain.payments.verification import Refused, SettledTransfer
from domain.transfers.matching import renewal_id

RENEWED_INTENT_TTL: Final = timedelta(minutes=30)
"""Long enough to be submitted immediately; a later submission counts by its transfer's mining time."""


@dataclass(frozen=True, slots=True)
class AttemptOutcome:
    """The attempt after a step; `changed` is False where the step had already been done."""

    attempt: PaymentAttempt
    changed: bool

    @property
    def credited_credits(self) -> int:
        """Credits of the attempt for its beneficiary: the full payment, or nothing."""
        credited = self.attempt.status is AttemptStatus.CREDITED
        return self.attempt.credits if credited else 0


async def create_intent(connection: TenantConnection, attempt: PaymentAttempt) -> None:
    """Write a new intent and its first event."""
    await attempts.insert_attempt(connection, attempt)
    await attempts.insert_event(
        connection,
        attempt.id,
        "intent_created",
        from_status=None,
        to_status=attempt.status,
        details={"amountUsdCents": attempt.amount_usd_cents, "purpose": attempt.purpose.value},
    )


async def renew_attempt(connection: ServiceConnection, attempt_id: UUID) -> UUID:
    """Create a replacement for an attempt that has ended without its payment, with the same terms; returns its id.

    The ended one does not change. The id is derived from the ended one's, so that there is one however often this runs.
    Raises `AttemptNotFound`, and `BookkeepingError` where the attempt has not ended this way.
    """
    ended = await lock(connection, attempt_id)
    renewed_id = renewal_id(attempt_id)
    if await attempts.find_attempt(connection, renewed_id) is not None:
        return renewed_id
    if ended.status not in {AttemptStatus.REJECTED, AttemptStatus.FAILED}:
        raise BookkeepingError(f"attempt {attempt_id} is {ended.status}: it cannot be replaced")
    now = datetime.now(UTC)
    renewed = ended.model_copy(
        update={
            "id": renewed_id,
            "status": AttemptStatus.CREATED_INTENT,
            # Its creator submits it, with the time at which its transfer was mined.
            "expires_at": now + RENEWED_INTENT_TTL,
            "created_at": now,
        }
    )
    await attempts.insert_attempt(connection, renewed)
    await attempts.insert_event(
        connection,
        renewed_id,
        "intent_created",
        from_status=None,
        to_status=renewed.status,
        details={
            "amountUsdCents": renewed.amount_usd_cents,
            "purpose": renewed.purpose.value,
            "inPlaceOf": str(attempt_id),
        },
    )
    return renewed_id


async def submit(
    connection: TenantConnection,
    attempt_id: UUID,
    tx_hash: str,
    *,
    submitted_at: datetime,
    mined_at: datetime | None = None,
) -> AttemptOutcome:
    """Record that the payer, or the chain watcher on their behalf, submitted `tx_hash` for this attempt.

    `mined_at` is when its transfer was mined, where the watcher has seen it: before the intent's expiry it was in time.
    Raises `AttemptNotFound`, `HashInUse` and `TooManyReplacements`. An intent that has expired ends here.
    """
    attempt = await lock(connection, attempt_id)
    return await submit_locked(connection, attempt, tx_hash, submitted_at=submitted_at, mined_at=mined_at)


async def submit_locked(
    connection: TenantConnection,
    attempt: PaymentAttempt,
    tx_hash: str,
    *,
    submitted_at: datetime,
    mined_at: datetime | None,
) -> AttemptOutcome:
    """The same for an attempt that this transaction has locked."""
    match decide_submission(attempt, tx_hash, submitted_at=submitted_at, mined_at=mined_at):
        case SubmissionEffect.NOTHING:
            return AttemptOutcome(attempt, changed=False)
        case SubmissionEffect.EXPIRE:
            await _refuse(
                connection, attempt, AttemptStatus.FAILED, ErrorCode.INTENT_EXPIRED, {"submittedTxHash": tx_hash}
            )
        case SubmissionEffect.RECORD:
            recorded = await attempts.record_submission(
                connection,
                attempt,
                tx_hash,
                submitted_at,
                event_type="hash_replaced" if attempt.tx_hash else "submitted",
                details={
                    "txHash": tx_hash,
                    **({"replacedTxHash": attempt.tx_hash} if attempt.tx_hash else {}),
                    **({"minedAt": mined_at.isoformat()} if mined_at else {}),
                },
            )
            return AttemptOutcome(recorded, changed=True)
    return AttemptOutcome(await _reread(connection, attempt.id), changed=True)


async def credit_buyer(
    connection: SettlementConnection | SettlementStatements,
    attempt_id: UUID,
    transfer: SettledTransfer,
    *,
    revenue_share: Decimal,
) -> AttemptOutcome:
    """The buyer's credit: ledger entry, balance, CREDITED, event and settled transfer, all or nothing.

    `revenue_share` is that of the bonus that follows: fixed here, so that no later setting changes it. Raises
    `TransferAlreadySettled` when the transfer has paid another attempt.
    """
    attempt = await _own(connection, attempt_id)
    posting = purchase_posting(attempt)
    # Two statements, and no lock between them: the second does nothing where the status has changed since the first.
    while not attempt.is_final:
        entry = await attempts.credit_purchase(
            connection,
            attempt,
            transfer,
            posting,
            revenue_share=revenue_share,
            facts=_facts(transfer),
            details=_details_of_credit(transfer, posting),
        )
        if entry is not None:
            return AttemptOutcome(_credited(attempt, transfer, revenue_share), changed=True)
        before, attempt = attempt, await _own(connection, attempt_id)
        if attempt.status is before.status:
            raise BookkeepingError(f"attempt {attempt_id} is {attempt.status}, and the database does not credit it")
    return AttemptOutcome(attempt, changed=False)


async def credit_donation(connection: ServiceConnection, attempt_id: UUID, transfer: SettledTransfer) -> AttemptOutcome:
    """A donation: the system tenant gets the full amount, in the one transaction that ends the donor's attempt.

    Raises `TransferAlreadySettled` when the transfer has paid another attempt.
    """
    attempt = await lock(connection, attempt_id)
    posting = donation_posting(attempt)
    if attempt.is_final:
        return AttemptOutcome(attempt, changed=False)
    await attempts.insert_settled_transfer(connection, attempt.id, transfer)
    await attempts.update_credited(connection, attempt.id, transfer.tx_hash, None)
    await attempts.insert_event(
        connection,
        attempt.id,
        "credited",
        from_status=attempt.status,
        to_status=AttemptStatus.CREDITED,
        details=_details_of_credit(transfer, posting),
    )
    # Last, because the system tenant's row stays locked from here to the commit and every settlement needs it.
    await ledger.post(connection, posting, _facts(transfer))
    return AttemptOutcome(_credited(attempt, transfer, None), changed=True)


async def mint_revenue_share(
    connection: ServiceConnection | ServiceStatements, attempt_id: UUID
) -> ledger.PostedEntry | None:
    """The system tenant's bonus on a credited purchase, or None where its share mints nothing.

    Raises `BookkeepingError` when the purchase is not, or no longer, credited: there is no bonus without one.
    """
    attempt = await attempts.find_attempt(connection, attempt_id)
    if attempt is None:
        raise AttemptNotFound(attempt_id)
    if attempt.status is not AttemptStatus.CREDITED:
        raise BookkeepingError(f"attempt {attempt_id} is {attempt.status}: a bonus follows a credited purchase only")
    posting = revenue_share_posting(attempt)
    if posting is None:
        return None
    details = {"share": str(attempt.revenue_share), "amountUsdCents": attempt.amount_usd_cents}
    return await ledger.post_bonus(connection, attempt_id, posting, details)


async def reverse_payment(connection: ServiceConnection, attempt_id: UUID, gone: ReorgedOut) -> AttemptOutcome:
    """Reverse the credit of a payment that was reorged out: entry, REVERSED, event and finding, or nothing.

    Of a purchase the buyer's credit (`reverse_bonus` follows), of a donation the system tenant's. The balance may
    become negative. Raises `BookkeepingError` when the attempt is not credited, or recorded as final.
    """
    attempt = await lock(connection, attempt_id)
    if attempt.status is AttemptStatus.REVERSED:
        return AttemptOutcome(attempt, changed=False)
    if attempt.status is not AttemptStatus.CREDITED:
        raise BookkeepingError(f"attempt {attempt_id} is {attempt.status}: only a credited one can be reversed")
    if not await finality.insert_finality(connection, attempt_id, gone.transfer, gone.level, outcome="reversed"):
        raise BookkeepingError(f"the payment of attempt {attempt_id} is recorded as final")
    posted = purchase_posting(attempt) if attempt.purpose is Purpose.SELF else donation_posting(attempt)
    reversal = reversal_posting(
        posted.billing_account_id, posted.reference, posted.reason, posted.amount_credits, posted.cash_account
    )
    await attempts.update_reversed(connection, attempt_id)
    await attempts.insert_event(
        connection,
        attempt_id,
        "reversed",
        from_status=attempt.status,
        to_status=AttemptStatus.REVERSED,
        details={**_facts(gone.transfer), "message": gone.message, "amountCredits": reversal.amount_credits},
    )
    await open_finding(
        connection,
        Finding(
            kind=FindingKind.PAYMENT_REVERSED,
            detail=f"{gone.message}; {posted.amount_credits} credits of {posted.billing_account_id} were reversed",
            chain_id=gone.transfer.chain_id,
            tx_hash=gone.transfer.tx_hash,
            log_index=gone.transfer.log_index,
            attempt_id=attempt_id,
            billing_account_id=attempt.billing_account_id,
            sender=gone.transfer.from_address,
            value_raw=gone.transfer.value_raw,
        ),
    )
    # Last, because of a donation the system tenant's row stays locked from here to the commit.
    await ledger.post(connection, reversal, _facts(gone.transfer))
    return AttemptOutcome(await _reread(connection, attempt_id), changed=True)


async def reverse_bonus(connection: ServiceConnection, attempt_id: UUID) -> ledger.PostedEntry | None:
    """Reverse the bonus of a reversed purchase; None where there was none.

    No bonus can follow: minting one locks the attempt and requires it to be CREDITED (`ledger.post_bonus`). Raises
    `BookkeepingError` when the purchase is not reversed.
    """
    attempt = await lock(connection, attempt_id)
    if attempt.status is not AttemptStatus.REVERSED:
        raise BookkeepingError(f"attempt {attempt_id} is {attempt.status}: only a reversed purchase loses its bonus")
    for row in await ledger.list_entries(connection, reference=str(attempt_id)):
        if row.reason == Reason.PLATFORM_REVENUE_SHARE:
            reversal = reversal_posting(
                row.billing_account_id, str(attempt_id), Reason.PLATFORM_REVENUE_SHARE, row.amount
            )
            return await ledger.post(connection, reversal, {"reverses": str(row.id)})
    return None


async def refuse(connection: SettlementConnection, attempt_id: UUID, refused: Refused) -> AttemptOutcome:
    """End the attempt without credits, unless its hash was replaced since the chain was polled for it."""
    attempt = await lock(connection, attempt_id)
    if attempt.is_final or refused.tx_hash not in {None, attempt.tx_hash}:
        return AttemptOutcome(attempt, changed=False)
    await _refuse(connection, attempt, refused.status, refused.error_code, {"message": refused.message})
    return AttemptOutcome(await _reread(connection, attempt_id), changed=True)


async def end_unpaid(connection: ServiceConnection, attempt: PaymentAttempt, refused: Refused) -> None:
    """End a locked attempt that waits for no transaction, and whose payment can never come."""
    details = {"message": refused.message}
    await _refuse(connection, attempt, refused.status, refused.error_code, details)


def _details_of_credit(transfer: SettledTransfer, posting: Posting) -> dict[str, Any]:
    return {
        **_facts(transfer),
        "billingAccountId": posting.billing_account_id,
        "amountCredits": posting.amount_credits,
    }


def _credited(attempt: PaymentAttempt, transfer: SettledTransfer, revenue_share: Decimal | None) -> PaymentAttempt:
    return attempt.model_copy(
        update={"status": AttemptStatus.CREDITED, "tx_hash": transfer.tx_hash, "revenue_share": revenue_share}
    )


async def _refuse(
    connection: AnyConnection,
    attempt: PaymentAttempt,
    status: AttemptStatus,
    error_code: ErrorCode,
    details: dict[str, Any],
) -> None:
    await attempts.update_refused(connection, attempt.id, status, error_code)
    await attempts.insert_event(
        connection,
        attempt.id,
        status.value.lower(),
        from_status=attempt.status,
        to_status=status,
        error_code=error_code,
        details=details,
    )


def _facts(transfer: SettledTransfer) -> dict[str, Any]:
    """The transfer in the audit trail. Token amounts are text: a uint256 does not fit a JSON number."""
    facts: dict[str, Any] = {
        "chainId": transfer.chain_id,
        "txHash": transfer.tx_hash,
        "logIndex": transfer.log_index,
        "blockNumber": transfer.block_number,
        "blockHash": transfer.block_hash,
        "valueRaw": str(transfer.value_raw),
    }
    if transfer.surplus_raw:
        facts["surplusRaw"] = str(transfer.surplus_raw)
    if transfer.unapplied_raw:
        facts["unappliedRaw"] = str(transfer.unapplied_raw)
    return facts


async def lock(connection: AnyConnection, attempt_id: UUID) -> PaymentAttempt:
    """The attempt, locked until the transaction ends. Raises `AttemptNotFound`, also for another account's."""
    attempt = await attempts.lock_attempt(connection, attempt_id)
    if attempt is None:
        raise AttemptNotFound(attempt_id)
    return attempt


async def _own(connection: SettlementConnection | SettlementStatements, attempt_id: UUID) -> PaymentAttempt:
    attempt = await attempts.find_own_attempt(connection, attempt_id)
    if attempt is None:
        raise AttemptNotFound(attempt_id)
    return attempt


async def _reread(connection: AnyConnection, attempt_id: UUID) -> PaymentAttempt:
    attempt = await attempts.find_attempt(connection, attempt_id)
    if attempt is None:
        raise BookkeepingError(f"attempt {attempt_id} vanished inside its own transaction")
    return attempt
