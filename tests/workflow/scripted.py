"""Activities that answer from a script, under the names of the real ones, for what real parts rarely do."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any
from typing import Final as Constant
from uuid import UUID

from temporalio import activity
from temporalio.client import Client
from temporalio.exceptions import ApplicationError, ApplicationErrorCategory
from temporalio.worker import Worker

from activities.interceptors import DomainErrors
from activities.messages import (
    AttemptOutcomeMessage,
    AttemptRef,
    BonusToMint,
    CreditedPayment,
    MintedBonus,
    PaymentToCredit,
    PaymentToRefuse,
    PaymentToReverse,
    PaymentToVerify,
    RecordedSubmission,
    ReversedBonus,
    Settlement,
    Submission,
)
from activities.payments.finality import NOT_FINAL_YET
from activities.payments.verification import STILL_WAITING
from domain.operations.events import PlatformEvent
from domain.payments.attempt import AttemptStatus, ErrorCode, Purpose
from domain.payments.finality import Final, FinalityLevel, NotFinal, ReorgedOut
from domain.payments.verification import PaymentTerms, Refused, SettledTransfer, Verified, Waiting, WaitReason
from workflows.verify_and_settle import VerifyAndSettle

A: Constant = "0x" + "aa" * 32
B: Constant = "0x" + "bb" * 32
CENTS: Constant = 10_000
CREDITS: Constant = 1_000_000_000
BONUS: Constant = 750_000_000
TIMEOUT: Constant = timedelta(hours=24)

TERMS: Constant = PaymentTerms(
    chain_id=31_337,
    token="0x" + "70" * 20,
    payer="0x" + "72" * 20,
    treasury="0x" + "71" * 20,
    amount_raw=100_000_000,
)


def verified(tx_hash: str = A) -> Verified:
    """The right payment, by this transaction."""
    return Verified(
        transfer=SettledTransfer(
            chain_id=TERMS.chain_id,
            tx_hash=tx_hash,
            log_index=3,
            block_number=17,
            block_hash="0x" + "cc" * 32,
            from_address=TERMS.payer,
            value_raw=TERMS.amount_raw,
            expected_raw=TERMS.amount_raw,
        ),
        confirmations=5,
    )


def refused(
    status: AttemptStatus = AttemptStatus.REJECTED,
    error_code: ErrorCode = ErrorCode.INSUFFICIENT_AMOUNT,
    tx_hash: str | None = A,
) -> Refused:
    """A payment that is wrong."""
    return Refused.model_validate(
        {"status": status, "error_code": error_code, "message": "as the script says", "tx_hash": tx_hash}
    )


def final() -> Final:
    """The payment is there for good."""
    return Final(transfer=verified().transfer, level=FinalityLevel.FINALIZED)


def gone() -> ReorgedOut:
    """The chain has taken the payment back."""
    return ReorgedOut(transfer=verified().transfer, level=FinalityLevel.FINALIZED, message="as the script says")


def not_final_yet(
    message: str = "in block 17; finalized is block 9, 8 to go", *, again_in: timedelta
) -> ApplicationError:
    """What a poll that finds a payment not final yet fails with, as the product's activity does."""
    return ApplicationError(
        message,
        NotFinal(message=message, missing_blocks=8),
        type=NOT_FINAL_YET,
        category=ApplicationErrorCategory.BENIGN,
        next_retry_delay=again_in,
    )


NOT_FOUND_IN_TIME: Constant = refused(AttemptStatus.FAILED, ErrorCode.RECEIPT_NOT_FOUND)


def not_yet(message: str = "1 of 5 confirmations", *, again_in: timedelta) -> ApplicationError:
    """What a poll without a final result fails with, as the product's activity does."""
    return ApplicationError(
        message,
        Waiting(reason=WaitReason.CONFIRMATIONS, message=message, confirmations=1, confirmations_needed=5),
        type=STILL_WAITING,
        category=ApplicationErrorCategory.BENIGN,
        next_retry_delay=again_in,
    )


def no(code: str) -> ApplicationError:
    """A domain error's "no", as it leaves an activity."""
    return ApplicationError(f"the script says {code}", type=code, non_retryable=True)


def settlement(
    attempt_id: UUID,
    *,
    tx_hash: str = A,
    purpose: Purpose = Purpose.SELF,
    submitted_at: datetime,
    recorded: RecordedSubmission | None = None,
) -> Settlement:
    """A workflow's input: the hash is submitted, and recorded, but by a starter up to schema revision 0006."""
    return Settlement(
        submission=submission(attempt_id, tx_hash, submitted_at),
        purpose=purpose,
        amount_usd_cents=CENTS,
        terms=TERMS,
        recorded=recorded,
    )


def submission(attempt_id: UUID, tx_hash: str, submitted_at: datetime) -> Submission:
    """One submitted hash."""
    return Submission(
        attempt_id=attempt_id,
        owner_user_id="user",
        billing_account_id="account",
        tx_hash=tx_hash,
        submitted_at=submitted_at,
    )


@dataclass
class Script:
    """What the activities answer. By default the payment is there at once.

    Each function may raise, wait, or answer; `calls` is what was asked, in order.
    """

    record: Callable[[Submission], Awaitable[RecordedSubmission]] | None = None
    look: Callable[[PaymentToVerify], Awaitable[Verified | Refused]] | None = None
    credit: Callable[[PaymentToCredit], Awaitable[AttemptOutcomeMessage]] | None = None
    bonus: Callable[[BonusToMint], Awaitable[MintedBonus]] | None = None
    refuse: Callable[[PaymentToRefuse], Awaitable[AttemptOutcomeMessage]] | None = None
    finality: Callable[[CreditedPayment], Awaitable[Final | ReorgedOut]] | None = None
    announcement: Callable[[PlatformEvent], Awaitable[None]] | None = None
    calls: list[tuple[str, Any]] = field(default_factory=list)
    timeout: timedelta = TIMEOUT

    def named(self, name: str) -> list[Any]:
        """The inputs of every call of one activity."""
        return [message for called, message in self.calls if called == name]

    def pending(self, message: Submission) -> RecordedSubmission:
        """The usual answer to a submission."""
        return RecordedSubmission(
            status=AttemptStatus.PENDING_UNVERIFIED,
            tx_hash=message.tx_hash,
            verify_until=message.submitted_at + self.timeout,
        )

    @activity.defn(name="record_submission")
    async def record_submission(self, message: Submission) -> RecordedSubmission:
        """As the script says."""
        self.calls.append(("record_submission", message))
        return await self.record(message) if self.record else self.pending(message)

    @activity.defn(name="await_confirmation")
    async def await_confirmation(self, message: PaymentToVerify) -> Verified | Refused:
        """As the script says."""
        self.calls.append(("await_confirmation", message))
        return await self.look(message) if self.look else verified()

    @activity.defn(name="credit_buyer")
    async def credit_buyer(self, message: PaymentToCredit) -> AttemptOutcomeMessage:
        """As the script says."""
        self.calls.append(("credit_buyer", message))
        return await self.credit(message) if self.credit else credited(message)

    @activity.defn(name="credit_donation")
    async def credit_donation(self, message: PaymentToCredit) -> AttemptOutcomeMessage:
        """As the script says."""
        self.calls.append(("credit_donation", message))
        return await self.credit(message) if self.credit else credited(message)

    @activity.defn(name="mint_bonus")
    async def mint_bonus(self, message: BonusToMint) -> MintedBonus:
        """Three quarters."""
        self.calls.append(("mint_bonus", message))
        return await self.bonus(message) if self.bonus else MintedBonus(amount_credits=BONUS)

    @activity.defn(name="end_without_credits")
    async def end_without_credits(self, message: PaymentToRefuse) -> AttemptOutcomeMessage:
        """As the script says."""
        self.calls.append(("end_without_credits", message))
        return await self.refuse(message) if self.refuse else ended(message)

    @activity.defn(name="await_finality")
    async def await_finality(self, message: CreditedPayment) -> Final | ReorgedOut:
        """As the script says."""
        self.calls.append(("await_finality", message))
        return await self.finality(message) if self.finality else final()

    @activity.defn(name="reverse_payment")
    async def reverse_payment(self, message: PaymentToReverse) -> AttemptOutcomeMessage:
        """Reversed."""
        self.calls.append(("reverse_payment", message))
        return AttemptOutcomeMessage(status=AttemptStatus.REVERSED, tx_hash=message.gone.transfer.tx_hash)

    @activity.defn(name="reverse_bonus")
    async def reverse_bonus(self, message: AttemptRef) -> ReversedBonus:
        """All of it."""
        self.calls.append(("reverse_bonus", message))
        return ReversedBonus(amount_credits=BONUS)

    @activity.defn(name="announce")
    async def announce(self, event: PlatformEvent) -> None:
        """As the script says."""
        self.calls.append(("announce", event))
        if self.announcement:
            await self.announcement(event)


def credited(message: PaymentToCredit) -> AttemptOutcomeMessage:
    """The usual answer to a credit."""
    return AttemptOutcomeMessage(
        status=AttemptStatus.CREDITED, tx_hash=message.transfer.tx_hash, amount_credits=CREDITS
    )


def ended(message: PaymentToRefuse) -> AttemptOutcomeMessage:
    """The usual answer to a refusal."""
    return AttemptOutcomeMessage(
        status=message.refused.status, error_code=message.refused.error_code, tx_hash=message.refused.tx_hash
    )


def now() -> datetime:
    """The wall clock; the time-skipping server has its own."""
    return datetime.now(UTC)


@asynccontextmanager
async def scripted_worker(
    client: Client,
    script: Script,
    task_queue: str,
    *,
    workflow: type[Any] = VerifyAndSettle,
    identity: str | None = None,
) -> AsyncIterator[Worker]:
    """A worker of the product's workflow with the script's activities."""
    worker = Worker(
        client,
        task_queue=task_queue,
        workflows=[workflow],
        activities=[
            script.record_submission,
            script.await_confirmation,
            script.credit_buyer,
            script.credit_donation,
            script.mint_bonus,
            script.end_without_credits,
            script.await_finality,
            script.reverse_payment,
            script.reverse_bonus,
            script.announce,
        ],
        interceptors=[DomainErrors()],
        identity=identity,
    )
    async with worker:
        yield worker


class Gate:
    """Holds an activity until the test lets it go on."""

    def __init__(self) -> None:
        self._reached = asyncio.Event()
        self._open = asyncio.Event()

    async def passed(self) -> None:
        """Called by the activity: says that it is here, and waits."""
        self._reached.set()
        await asyncio.wait_for(self._open.wait(), 30)

    async def reached(self) -> None:
        """Called by the test: waits until the activity is here."""
        await asyncio.wait_for(self._reached.wait(), 30)

    def open(self) -> None:
        """Let it go on."""
        self._open.set()
