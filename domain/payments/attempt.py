"""A payment attempt's life: its states, the legal steps between them, and what a submission does."""

from __future__ import annotations

from datetime import datetime
from decimal import Decimal
from enum import StrEnum
from typing import Final
from uuid import UUID

from pydantic import BaseModel, ConfigDict

from domain.errors import TooManyReplacements
from domain.identifiers import Address, TxHash


class Purpose(StrEnum):
    """What the payer wants: credits of his own, or to keep the platform's account alive."""

    SELF = "self"
    SYSTEM = "system"


class AttemptStatus(StrEnum):
    """The states of SPEC 3, and what becomes of a credit whose payment the chain takes back."""

    CREATED_INTENT = "CREATED_INTENT"
    PENDING_UNVERIFIED = "PENDING_UNVERIFIED"
    CREDITED = "CREDITED"
    REJECTED = "REJECTED"
    FAILED = "FAILED"
    REVERSED = "REVERSED"
    """It was credited, the chain was reorganised, and the payment did not come back: the credits were taken back."""


class ClientStatus(StrEnum):
    """What the payer sees."""

    PENDING_VERIFICATION = "PENDING_VERIFICATION"
    CONFIRMED = "CONFIRMED"
    FAILED = "FAILED"


class ErrorCode(StrEnum):
    """Why an attempt ended without credits (SPEC 3)."""

    INTENT_EXPIRED = "INTENT_EXPIRED"
    TX_REVERTED = "TX_REVERTED"
    TOKEN_TRANSFER_NOT_FOUND = "TOKEN_TRANSFER_NOT_FOUND"
    SENDER_MISMATCH = "SENDER_MISMATCH"
    RECIPIENT_MISMATCH = "RECIPIENT_MISMATCH"
    INVALID_TOKEN = "INVALID_TOKEN"
    INVALID_CHAIN = "INVALID_CHAIN"
    INSUFFICIENT_AMOUNT = "INSUFFICIENT_AMOUNT"
    RECEIPT_NOT_FOUND = "RECEIPT_NOT_FOUND"
    TX_ALREADY_SETTLED = "TX_ALREADY_SETTLED"
    TRANSFER_TOO_OLD = "TRANSFER_TOO_OLD"

    @property
    def for_the_payer(self) -> str:
        """What it means for who paid, and what to do."""
        return _FOR_THE_PAYER[self]

    @property
    def for_the_operator(self) -> str:
        """What it means, and what can be done about it."""
        return _FOR_THE_OPERATOR[self]


KEEP_THE_REFERENCE: Final = "Write to support with the reference below."

_FOR_THE_PAYER: Final[dict[ErrorCode, str]] = {
    ErrorCode.INTENT_EXPIRED: "It was not paid in time. If your wallet shows it as sent, write to support with the "
    "reference below.",
    ErrorCode.TX_REVERTED: "The chain refused the transaction, so no USDC has left your wallet. You can pay again.",
    ErrorCode.TOKEN_TRANSFER_NOT_FOUND: f"The transaction holds no transfer of USDC. {KEEP_THE_REFERENCE}",
    ErrorCode.SENDER_MISMATCH: "The USDC came from another wallet than the one you signed in with. "
    + KEEP_THE_REFERENCE,
    ErrorCode.RECIPIENT_MISMATCH: f"The USDC went to another address than the one asked for. {KEEP_THE_REFERENCE}",
    ErrorCode.INVALID_TOKEN: f"Another token than USDC was sent. {KEEP_THE_REFERENCE}",
    ErrorCode.INVALID_CHAIN: f"The payment was made on another network. {KEEP_THE_REFERENCE}",
    ErrorCode.INSUFFICIENT_AMOUNT: f"Less was sent than the payment needs. {KEEP_THE_REFERENCE}",
    ErrorCode.RECEIPT_NOT_FOUND: "The transaction did not appear on the chain in time. If your wallet shows it as "
    "done, write to support with the reference below.",
    ErrorCode.TX_ALREADY_SETTLED: f"This transfer has already paid for something else. {KEEP_THE_REFERENCE}",
    ErrorCode.TRANSFER_TOO_OLD: "The transfer is from before this service took payments at that address. "
    + KEEP_THE_REFERENCE,
}

_FOR_THE_OPERATOR: Final[dict[ErrorCode, str]] = {
    ErrorCode.INTENT_EXPIRED: "no transfer was mined before `expires_at`; one that was pays it whenever it is found",
    ErrorCode.TX_REVERTED: "the transaction failed on the chain: nothing was paid",
    ErrorCode.TOKEN_TRANSFER_NOT_FOUND: "the transaction has no transfer of a token: nothing arrived",
    ErrorCode.SENDER_MISMATCH: "another wallet paid than the one that signed in: a finding, unless it claims it. Or "
    "the treasury paid itself, of now or of earlier settings: no money came in",
    ErrorCode.RECIPIENT_MISMATCH: "the money went to another address: nothing arrived",
    ErrorCode.INVALID_TOKEN: "another token arrived than the attempt's: it can be sent back by hand",
    ErrorCode.INVALID_CHAIN: "the transaction is on another chain than the attempt",
    ErrorCode.INSUFFICIENT_AMOUNT: "too little arrived: a finding; a new intent of at most that amount and the same "
    "hash credits it",
    ErrorCode.RECEIPT_NOT_FOUND: "not confirmed within `VERIFICATION_TIMEOUT_SECONDS`; mined later, a new intent and "
    "the same hash credit it",
    ErrorCode.TX_ALREADY_SETTLED: "its transfer has paid another attempt, or an operator has credited it",
    ErrorCode.TRANSFER_TOO_OLD: "its transfer was mined before the first block that settle answers for "
    "(`CHAIN_WATCH_FROM_BLOCK`, or where the watcher began): an operator cannot credit it either",
}


LEGAL_TRANSITIONS: Final[dict[AttemptStatus, frozenset[AttemptStatus]]] = {
    AttemptStatus.CREATED_INTENT: frozenset({AttemptStatus.PENDING_UNVERIFIED, AttemptStatus.FAILED}),
    AttemptStatus.PENDING_UNVERIFIED: frozenset({AttemptStatus.CREDITED, AttemptStatus.REJECTED, AttemptStatus.FAILED}),
    AttemptStatus.CREDITED: frozenset({AttemptStatus.REVERSED}),
    AttemptStatus.REJECTED: frozenset(),
    # Only an intent that expired, when it turns out that its transfer was mined before (`was_paid_in_time`).
    AttemptStatus.FAILED: frozenset({AttemptStatus.PENDING_UNVERIFIED}),
    AttemptStatus.REVERSED: frozenset(),
}
"""The database holds the same table in a trigger; a test compares the two."""

FINAL_STATUSES: Final = frozenset(
    {AttemptStatus.CREDITED, AttemptStatus.REJECTED, AttemptStatus.FAILED, AttemptStatus.REVERSED}
)
"""Nothing that the payer does changes these any more. What the chain shows later still may: a credit is reversed, an
intent that expired turns out to have been paid in time."""

OPEN_STATUSES: Final = frozenset(LEGAL_TRANSITIONS) - FINAL_STATUSES
"""What the payer may still do something about, or waits for."""

HOLDING_STATUSES: Final = frozenset({AttemptStatus.PENDING_UNVERIFIED, AttemptStatus.CREDITED})
"""An attempt holds its hash while it waits and once it was paid with it; a refused payment lets go of it."""

MAX_SUBMISSIONS: Final = 50
"""No wallet replaces a transaction this often; without a bound one attempt could grow its history for ever."""


class PaymentAttempt(BaseModel):
    """One row of `payment_attempts`."""

    model_config = ConfigDict(frozen=True, from_attributes=True)

    id: UUID
    billing_account_id: str
    owner_user_id: str
    from_address: Address
    chain_id: int
    token: Address
    to_address: Address
    amount_raw: int
    amount_usd_cents: int
    purpose: Purpose
    status: AttemptStatus
    tx_hash: TxHash | None = None
    error_code: ErrorCode | None = None
    expires_at: datetime | None = None
    submitted_at: datetime | None = None
    submission_count: int = 0
    revenue_share: Decimal | None = None
    created_at: datetime

    @property
    def is_final(self) -> bool:
        """Whether nothing that the payer does changes it any more."""
        return self.status in FINAL_STATUSES

    @property
    def may_have_been_paid_in_time(self) -> bool:
        """Whether it is an intent without a payment, expired or not: a transfer mined before its expiry pays it."""
        expired = self.status is AttemptStatus.FAILED and self.error_code is ErrorCode.INTENT_EXPIRED
        return (expired or self.status is AttemptStatus.CREATED_INTENT) and self.expires_at is not None

    def was_paid_in_time(self, mined_at: datetime | None) -> bool:
        """Whether a transfer mined at that time pays it, whatever the hour of its discovery or submission."""
        if mined_at is None or self.expires_at is None:
            return False
        return self.may_have_been_paid_in_time and mined_at < self.expires_at

    def was_submitted_in_time(self, submitted_at: datetime) -> bool:
        """Whether a submission of that time counts although the intent has been ended as expired since."""
        return self.may_have_been_paid_in_time and self.expires_at is not None and submitted_at < self.expires_at

    @property
    def client_status(self) -> ClientStatus:
        """The status in the payer's words."""
        return client_status(self.status)


def client_status(status: AttemptStatus) -> ClientStatus:
    """The payer's word for a status: pending, confirmed or failed."""
    match status:
        case AttemptStatus.CREDITED:
            return ClientStatus.CONFIRMED
        case AttemptStatus.REJECTED | AttemptStatus.FAILED | AttemptStatus.REVERSED:
            return ClientStatus.FAILED
        case _:
            return ClientStatus.PENDING_VERIFICATION


class SubmissionEffect(StrEnum):
    """What submitting a hash does to an attempt."""

    RECORD = "record"
    """The first hash, or another one that replaces it: the attempt (again) waits for this hash."""

    NOTHING = "nothing"
    """The same hash again, one older than what is recorded, or the attempt has ended: the answer is what it is."""

    EXPIRE = "expire"
    """Too late: the intent ends FAILED / INTENT_EXPIRED; the hash is kept in the audit trail."""


def decide_submission(
    attempt: PaymentAttempt, tx_hash: str, *, submitted_at: datetime, mined_at: datetime | None = None
) -> SubmissionEffect:
    """What a submission of `tx_hash` at `submitted_at` does (SPEC 3, rules "intent" and "submit").

    `mined_at` is the time of the block in which the chain watcher has seen the transfer, if it has. Mined before the
    intent's expiry it was paid in time, also when the intent has ended by then. The same holds for what was submitted
    before it and is recorded late, behind the housekeeping that ends expired intents.
    Raises `TooManyReplacements` when one attempt's hash was replaced `MAX_SUBMISSIONS` times.
    """
    if attempt.was_paid_in_time(mined_at) or attempt.was_submitted_in_time(submitted_at):
        return SubmissionEffect.RECORD
    if attempt.is_final or attempt.tx_hash == tx_hash:
        return SubmissionEffect.NOTHING
    if attempt.status is AttemptStatus.CREATED_INTENT:
        expired = attempt.expires_at is not None and submitted_at >= attempt.expires_at
        return SubmissionEffect.EXPIRE if expired else SubmissionEffect.RECORD
    if attempt.submitted_at is not None and submitted_at < attempt.submitted_at:
        # An earlier submission that comes late, from a process that was paused or a queue: the later one counts.
        return SubmissionEffect.NOTHING
    if attempt.submission_count >= MAX_SUBMISSIONS:
        raise TooManyReplacements(MAX_SUBMISSIONS)
    return SubmissionEffect.RECORD
