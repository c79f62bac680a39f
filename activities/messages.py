"""What travels through Temporal between starter, workflow and activities. New fields get defaults."""

from __future__ import annotations

from datetime import datetime, timedelta
from uuid import UUID

from pydantic import BaseModel, ConfigDict, Field

from domain.identifiers import TxHash
from domain.payments.attempt import AttemptStatus, ErrorCode, Purpose
from domain.payments.finality import ReorgedOut
from domain.payments.verification import PaymentTerms, Refused, SettledTransfer


class Message(BaseModel):
    """Immutable payload."""

    model_config = ConfigDict(frozen=True)


class AttemptRef(Message):
    """Which attempt, and in whose scope. Every activity's input carries these; log lines take them from here."""

    attempt_id: UUID
    owner_user_id: str
    billing_account_id: str
    chain_id: int | None = None
    """Which chain the attempt belongs to. None in what was started up to schema revision 0003: its row says so."""
    request_id: str | None = None
    """Of the HTTP request that submitted the hash, so that its log lines and these are found together."""


class Submission(AttemptRef):
    """The payer says that `tx_hash` pays the attempt."""

    tx_hash: TxHash
    submitted_at: datetime
    mined_at: datetime | None = None
    """Time of the block in which the chain watcher has seen the transfer, where it has."""


class RecordedSubmission(Message):
    """How the attempt stands after a submission."""

    status: AttemptStatus
    tx_hash: TxHash | None
    error_code: ErrorCode | None = None
    verify_until: datetime | None = None
    """When the wait for the chain ends; None where there is nothing to wait for."""


class PaymentToVerify(AttemptRef):
    """What a look at the chain needs. The hash itself is read from the database, where the last one stands."""

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
    """A payment that is wrong, or not there."""

    refused: Refused


class BonusToMint(AttemptRef):
    """A credited purchase whose bonus is due."""


class CreditedPayment(AttemptRef):
    """A credited payment that the chain may still take back."""

    terms: PaymentTerms


class PaymentToReverse(AttemptRef):
    """A credited payment that the chain has taken back."""

    gone: ReorgedOut


class ReversedBonus(Message):
    """What the system tenant gave back for a reversed purchase; 0 where it had got nothing."""

    amount_credits: int


class AttemptOutcomeMessage(Message):
    """How an attempt stands after a settling step."""

    status: AttemptStatus
    error_code: ErrorCode | None = None
    tx_hash: TxHash | None = None
    amount_credits: int = 0


class MintedBonus(Message):
    """What the system tenant got for a purchase; 0 where the share mints nothing."""

    amount_credits: int


class Settlement(Message):
    """A payment workflow's input."""

    submission: Submission
    purpose: Purpose
    amount_usd_cents: int
    terms: PaymentTerms


class SettlementResult(Message):
    """A payment workflow's result."""

    attempt_id: UUID
    status: AttemptStatus
    error_code: ErrorCode | None = None
    tx_hash: TxHash | None = None
    buyer_credits: int = 0
    """What the payment brought; taken back where the status is REVERSED."""
    system_tenant_credits: int = 0
    final_block: int | None = None
    """Where the payment is for good, once it is."""


class WatchedChain(Message):
    """Which chain is followed."""

    chain_id: int
    follow_seconds: float = 1_200.0
    """After so long the workflow begins anew, so that its history stays short."""
    last_words: str = ""
    """How far the run before this one came."""

    @property
    def follow_time(self) -> timedelta:
        """The same as a time."""
        return timedelta(seconds=self.follow_seconds)


class Followed(Message):
    """How far a chain was followed."""

    block_number: int | None
    words: str


class Rescan(Message):
    """How much of the chain is read again, with every endpoint."""

    blocks: int = Field(default=600, ge=1, le=100_000)
    chain_id: int | None = None
    """None is the chain of the worker that takes it."""
