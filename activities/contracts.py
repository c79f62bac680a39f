"""What travels through Temporal between starter, workflow and activities. New fields get defaults."""

from __future__ import annotations

from datetime import datetime
from uuid import UUID

from pydantic import BaseModel, ConfigDict

from domain.attempt import AttemptStatus, ErrorCode, Purpose
from domain.identifiers import TxHash
from domain.verdict import PaymentTerms, Refused, SettledTransfer


class Message(BaseModel):
    """Immutable payload."""

    model_config = ConfigDict(frozen=True)


class AttemptRef(Message):
    """Which attempt, and in whose scope. Every activity's input carries these; log lines take them from here."""

    attempt_id: UUID
    owner_user_id: str
    billing_account_id: str
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


class PaymentToRefuse(AttemptRef):
    """A payment that is wrong, or not there."""

    refused: Refused


class BonusToMint(AttemptRef):
    """A credited purchase whose bonus is due."""


class AttemptEnding(Message):
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
    system_tenant_credits: int = 0
