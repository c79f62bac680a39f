"""Messages between starter, workflow and activities. New fields get defaults."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Self
from uuid import UUID

from pydantic import BaseModel, ConfigDict, Field

from domain.identifiers import TxHash
from domain.payments.attempt import AttemptStatus, ErrorCode, PaymentAttempt, Purpose
from domain.payments.finality import ReorgedOut
from domain.payments.verification import PaymentTerms, Refused, SettledTransfer


class Message(BaseModel):
    """Immutable payload."""

    model_config = ConfigDict(frozen=True)


class AttemptRef(Message):
    """The attempt, and its owner's scope. Every activity's input has these; log lines take them from here."""

    attempt_id: UUID
    owner_user_id: str
    billing_account_id: str
    chain_id: int | None = None
    """The attempt's chain. None in messages from before schema revision 0004: the row has it."""
    request_id: str | None = None
    """Id of the HTTP request that submitted the hash, which links its log lines to these."""


class Submission(AttemptRef):
    """The payer says that `tx_hash` pays the attempt."""

    tx_hash: TxHash
    submitted_at: datetime
    mined_at: datetime | None = None
    """Time of the block in which the chain watcher has seen the transfer, if it has."""


class RecordedSubmission(Message):
    """The attempt after a submission."""

    status: AttemptStatus
    tx_hash: TxHash | None
    error_code: ErrorCode | None = None
    verify_until: datetime | None = None
    """When the wait for the chain ends; None where there is nothing to wait for."""

    @classmethod
    def of(cls, attempt: PaymentAttempt, verification_timeout: timedelta) -> Self:
        """The attempt as it is recorded, whose hash is waited for so long."""
        waits_since = attempt.submitted_at if attempt.status is AttemptStatus.PENDING_UNVERIFIED else None
        return cls(
            status=attempt.status,
            tx_hash=attempt.tx_hash,
            error_code=attempt.error_code,
            verify_until=waits_since + verification_timeout if waits_since else None,
        )


class PaymentToVerify(AttemptRef):
    """Input of a poll of the chain. The hash itself is read from the database, which has the latest one."""

    terms: PaymentTerms
    submitted_at: datetime
    verify_until: datetime
    is_last_look: bool = False
    """Answer "refused: not found in time" instead of asking to be called again."""


class PaymentToCredit(AttemptRef):
    """A verified payment."""

    transfer: SettledTransfer
    confirmed_at: datetime | None = None


class PaymentToRefuse(AttemptRef):
    """A payment that is wrong or missing."""

    refused: Refused


class BonusToMint(AttemptRef):
    """A credited purchase whose bonus is due."""


class CreditedPayment(AttemptRef):
    """A credited payment that may still be reorged out."""

    terms: PaymentTerms


class TrackedPayment(AttemptRef):
    """A credited payment whose finality a workflow decides: its input."""

    terms: PaymentTerms
    purpose: Purpose
    amount_usd_cents: int
    tx_hash: TxHash


class ReversalResult(Message):
    """How that workflow ended: REVERSED, or CREDITED and final in a block."""

    attempt_id: UUID
    status: AttemptStatus
    final_block: int | None = None


class PaymentToReverse(AttemptRef):
    """A credited payment that was reorged out."""

    gone: ReorgedOut


class ReversedBonus(Message):
    """The reversed bonus; 0 where there was none."""

    amount_credits: int


class AttemptOutcomeMessage(Message):
    """The attempt after a settling step."""

    status: AttemptStatus
    error_code: ErrorCode | None = None
    tx_hash: TxHash | None = None
    amount_credits: int = 0


class MintedBonus(Message):
    """The system tenant's bonus for a purchase; 0 where the share mints nothing."""

    amount_credits: int


class ReplacedHash(Message):
    """The payer has replaced the hash, which is recorded."""

    tx_hash: TxHash
    submitted_at: datetime
    verify_until: datetime


class Settlement(Message):
    """A payment workflow's input."""

    submission: Submission
    purpose: Purpose
    amount_usd_cents: int
    terms: PaymentTerms
    recorded: RecordedSubmission | None = None
    """The attempt once the submission was recorded; None from a starter up to schema revision 0006, which left the
    recording to the run.
    """


class SettlementResult(Message):
    """A payment workflow's result."""

    attempt_id: UUID
    status: AttemptStatus
    error_code: ErrorCode | None = None
    tx_hash: TxHash | None = None
    buyer_credits: int = 0
    """Credits of the payment; reversed where the status is REVERSED."""
    system_tenant_credits: int = 0
    final_block: int | None = None
    """The payment's final position, once it is final."""


class WatchedChain(Message):
    """The chain to follow."""

    chain_id: int
    follow_seconds: float = 1_200.0
    """After this time the workflow continues as new, so that its history stays short."""
    last_words: str = ""
    """Progress of the previous run."""

    @property
    def follow_time(self) -> timedelta:
        """The same as a time."""
        return timedelta(seconds=self.follow_seconds)


class Followed(Message):
    """Progress on a chain."""

    block_number: int | None
    words: str


class Rescan(Message):
    """How much of the chain to read again, with every endpoint."""

    blocks: int = Field(default=600, ge=1, le=100_000)
    chain_id: int | None = None
    """None is the chain of the worker that runs it."""


class SweepRef(Message):
    """A sweep, of that chain."""

    sweep_id: UUID
    chain_id: int


class HoldRef(Message):
    """A hold whose lease is over, and the call that it is for."""

    hold_id: UUID
    billing_account_id: str
    model: str
    upstream: str


class WebhookDelivery(Message):
    """An event for an endpoint."""

    event_id: UUID
    endpoint_id: UUID
    billing_account_id: str
