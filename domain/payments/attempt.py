"""Lifecycle of a payment attempt: its states, the legal transitions, and the effect of a submission."""

from __future__ import annotations

from datetime import datetime
from decimal import Decimal
from enum import StrEnum
from typing import Final, assert_never
from uuid import UUID

from pydantic import BaseModel, ConfigDict

from domain.errors import TooManyReplacements
from domain.identifiers import Address, Recipient, TxHash
from domain.money import credits_for_usd_cents


class Purpose(StrEnum):
    """Purpose of a payment: credits for the payer, or a donation to the system tenant."""

    SELF = "self"
    SYSTEM = "system"


class AttemptKind(StrEnum):
    """What binds a transfer to an attempt."""

    WALLET = "wallet"
    """Its sender: the wallet that signed in."""

    DEPOSIT = "deposit"
    """Its recipient: an address of the account or of a charge."""

    AUTHORIZATION = "authorization"
    """The nonce that its sender has signed."""


class AttemptStatus(StrEnum):
    """Status of an attempt. REVERSED follows CREDITED where the payment was reorged out."""

    CREATED_INTENT = "CREATED_INTENT"
    PENDING_UNVERIFIED = "PENDING_UNVERIFIED"
    CREDITED = "CREDITED"
    REJECTED = "REJECTED"
    FAILED = "FAILED"
    REVERSED = "REVERSED"
    """Credited, then reorged out without coming back: the credits were reversed."""


class ClientStatus(StrEnum):
    """Status as shown to the payer."""

    PENDING_VERIFICATION = "PENDING_VERIFICATION"
    CONFIRMED = "CONFIRMED"
    FAILED = "FAILED"


class ErrorCode(StrEnum):
    """Why an attempt ended without credits."""

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
    AUTHORIZATION_EXPIRED = "AUTHORIZATION_EXPIRED"

    @property
    def for_the_payer(self) -> str:
        """What the code means for the payer, and what to do."""
        return _FOR_THE_PAYER[self]

    @property
    def for_the_operator(self) -> str:
        """What the code means for an operator, and what can be done about it."""
        return _FOR_THE_OPERATOR[self]


KEEP_THE_REFERENCE: Final = "Write to support with the reference below."

_FOR_THE_PAYER: Final[dict[ErrorCode, str]] = {
    ErrorCode.INTENT_EXPIRED: "It was not paid in time. If your wallet shows it as sent, write to support with the "
    "reference below.",
    ErrorCode.TX_REVERTED: "The transaction failed on the chain, so no USDC has left your wallet. You can pay again.",
    ErrorCode.TOKEN_TRANSFER_NOT_FOUND: f"The transaction contains no USDC transfer. {KEEP_THE_REFERENCE}",
    ErrorCode.SENDER_MISMATCH: "The USDC was sent from a different wallet than the one you signed in with. "
    + KEEP_THE_REFERENCE,
    ErrorCode.RECIPIENT_MISMATCH: f"The USDC was sent to a different address than the one shown. {KEEP_THE_REFERENCE}",
    ErrorCode.INVALID_TOKEN: f"A token other than USDC was sent. {KEEP_THE_REFERENCE}",
    ErrorCode.INVALID_CHAIN: f"The payment was made on a different network. {KEEP_THE_REFERENCE}",
    ErrorCode.INSUFFICIENT_AMOUNT: f"The amount sent was too small. {KEEP_THE_REFERENCE}",
    ErrorCode.RECEIPT_NOT_FOUND: "The transaction did not appear on the chain in time. If your wallet shows it as "
    "done, write to support with the reference below.",
    ErrorCode.TX_ALREADY_SETTLED: f"This transfer has already been used for another payment. {KEEP_THE_REFERENCE}",
    ErrorCode.TRANSFER_TOO_OLD: "The transfer was made before this service accepted payments at that address. "
    + KEEP_THE_REFERENCE,
    ErrorCode.AUTHORIZATION_EXPIRED: "Your signature was not used in time and never can be, so no USDC has left your "
    "wallet. You can pay again.",
}

_FOR_THE_OPERATOR: Final[dict[ErrorCode, str]] = {
    ErrorCode.INTENT_EXPIRED: "no transfer was mined before `expires_at`; one that was mined in time still pays it",
    ErrorCode.TX_REVERTED: "the transaction reverted: nothing was paid",
    ErrorCode.TOKEN_TRANSFER_NOT_FOUND: "the transaction contains no token transfer: nothing arrived",
    ErrorCode.SENDER_MISMATCH: "a wallet other than the signed-in one paid: a finding, unless it claims it. Or "
    "a current or former treasury paid itself: no money came in",
    ErrorCode.RECIPIENT_MISMATCH: "the money went to another address: nothing arrived",
    ErrorCode.INVALID_TOKEN: "a token other than the attempt's arrived: send it back by hand",
    ErrorCode.INVALID_CHAIN: "the transaction is on another chain than the attempt",
    ErrorCode.INSUFFICIENT_AMOUNT: "too little arrived: a finding; a new intent of at most that amount and the same "
    "hash credits it",
    ErrorCode.RECEIPT_NOT_FOUND: "not confirmed within `VERIFICATION_TIMEOUT_SECONDS`; if mined later, a new intent "
    "and the same hash credit it",
    ErrorCode.TX_ALREADY_SETTLED: "its transfer has paid another attempt, or was credited by an operator",
    ErrorCode.TRANSFER_TOO_OLD: "its transfer was mined before the first accepted block "
    "(`CHAIN_WATCH_FROM_BLOCK`, or the watcher's first block): an operator cannot credit it either",
    ErrorCode.AUTHORIZATION_EXPIRED: "a finalized block is later than `validBefore` and the authorization is unused, "
    "or its payer has cancelled it: it can never pay. The relay was down, out of gas or at a limit, or the payer moved "
    "the balance",
}


LEGAL_TRANSITIONS: Final[dict[AttemptStatus, frozenset[AttemptStatus]]] = {
    AttemptStatus.CREATED_INTENT: frozenset({AttemptStatus.PENDING_UNVERIFIED, AttemptStatus.FAILED}),
    AttemptStatus.PENDING_UNVERIFIED: frozenset({AttemptStatus.CREDITED, AttemptStatus.REJECTED, AttemptStatus.FAILED}),
    AttemptStatus.CREDITED: frozenset({AttemptStatus.REVERSED}),
    AttemptStatus.REJECTED: frozenset(),
    # Only of an expired intent whose transfer turns out to have been mined before the expiry (`was_paid_in_time`).
    AttemptStatus.FAILED: frozenset({AttemptStatus.PENDING_UNVERIFIED}),
    AttemptStatus.REVERSED: frozenset(),
}
"""A trigger of the database holds the same table; a test compares the two."""

FINAL_STATUSES: Final = frozenset(
    {AttemptStatus.CREDITED, AttemptStatus.REJECTED, AttemptStatus.FAILED, AttemptStatus.REVERSED}
)
"""Statuses that no action of the payer changes. The chain still may: a credit is reversed, or an expired intent turns
out to have been paid in time.
"""

OPEN_STATUSES: Final = frozenset(LEGAL_TRANSITIONS) - FINAL_STATUSES
"""Statuses in which the payer can act, or waits."""

HOLDING_STATUSES: Final = frozenset({AttemptStatus.PENDING_UNVERIFIED, AttemptStatus.CREDITED})
"""Statuses that hold the attempt's hash: while it waits and once it was paid. A refused payment releases its hash."""

MAX_SUBMISSIONS: Final = 50
"""More than a wallet ever needs; without a bound, one attempt could grow its history indefinitely."""


class PaymentAttempt(BaseModel):
    """One row of `payment_attempts`."""

    model_config = ConfigDict(frozen=True, from_attributes=True)

    id: UUID
    billing_account_id: str
    owner_user_id: str
    from_address: Address
    chain_id: int
    token: Address
    to_address: Recipient
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
    kind: AttemptKind = AttemptKind.WALLET
    amount_credits: int | None = None
    """Of a deposit: what it is worth."""
    value_raw: int | None = None
    """Of a deposit: exactly what was sent. `amount_raw` holds no more than a bigint."""
    cash_account: str | None = None
    """Of a deposit: the ledger account on which its money is; None for that of the treasury's USDC."""
    authorization_nonce: str | None = None
    """Of an authorization: the nonce that its payer signed, once it is claimed. Until then `from_address` is zero."""

    @property
    def is_claimed(self) -> bool:
        """Whether a signed authorization pays it: it ends by what becomes of that, not by its expiry."""
        return self.authorization_nonce is not None

    @property
    def credits(self) -> int:
        """What it buys; `credits_of_attempt` in `db/functions/ledger.sql` is the same rule."""
        return credits_for_usd_cents(self.amount_usd_cents) if self.amount_credits is None else self.amount_credits

    @property
    def expected_raw(self) -> int:
        """Raw token units that pay it."""
        return self.amount_raw if self.value_raw is None else self.value_raw

    def takes_hash(self, tx_hash: str) -> bool:
        """Whether that hash can be its payment's: not where nothing is signed for it, and of a deposit only its own."""
        match self.kind:
            case AttemptKind.WALLET:
                return True
            case AttemptKind.DEPOSIT:
                return self.tx_hash in (None, tx_hash)
            case AttemptKind.AUTHORIZATION:
                return self.is_claimed
        assert_never(self.kind)

    @property
    def is_final(self) -> bool:
        """Whether no action of the payer changes it any more."""
        return self.status in FINAL_STATUSES

    @property
    def may_have_been_paid_in_time(self) -> bool:
        """Whether it is an unpaid intent, expired or not: a transfer mined before its expiry pays it."""
        expired = self.status is AttemptStatus.FAILED and self.error_code is ErrorCode.INTENT_EXPIRED
        return (expired or self.status is AttemptStatus.CREATED_INTENT) and self.expires_at is not None

    def was_paid_in_time(self, mined_at: datetime | None) -> bool:
        """Whether a transfer mined at that time pays it, whenever it is discovered or submitted."""
        if mined_at is None or self.expires_at is None:
            return False
        return self.may_have_been_paid_in_time and mined_at < self.expires_at

    def was_submitted_in_time(self, submitted_at: datetime) -> bool:
        """Whether a submission at that time counts although the intent was ended as expired since."""
        return self.may_have_been_paid_in_time and self.expires_at is not None and submitted_at < self.expires_at

    @property
    def client_status(self) -> ClientStatus:
        """The status as shown to the payer."""
        return client_status(self.status)


def client_status(status: AttemptStatus) -> ClientStatus:
    """A status as shown to the payer: pending, confirmed or failed."""
    match status:
        case AttemptStatus.CREDITED:
            return ClientStatus.CONFIRMED
        case AttemptStatus.REJECTED | AttemptStatus.FAILED | AttemptStatus.REVERSED:
            return ClientStatus.FAILED
        case AttemptStatus.CREATED_INTENT | AttemptStatus.PENDING_UNVERIFIED:
            return ClientStatus.PENDING_VERIFICATION
    assert_never(status)


class SubmissionEffect(StrEnum):
    """Effect of submitting a hash."""

    RECORD = "record"
    """A first or replacing hash: the attempt (again) waits for this hash."""

    NOTHING = "nothing"
    """A repeated or outdated hash, or an ended attempt: nothing changes."""

    EXPIRE = "expire"
    """Too late: the intent ends FAILED / INTENT_EXPIRED; the audit trail keeps the hash."""


def decide_submission(
    attempt: PaymentAttempt, tx_hash: str, *, submitted_at: datetime, mined_at: datetime | None = None
) -> SubmissionEffect:
    """Decide the effect of submitting `tx_hash` at `submitted_at`.

    `mined_at` is the time of the block in which the chain watcher has seen the transfer, if it has. A transfer mined
    before the intent's expiry is in time, even when the intent has ended since. The same holds for a submission made
    before the expiry and recorded after housekeeping ended the intent. Raises `TooManyReplacements` when one attempt's
    hash was replaced `MAX_SUBMISSIONS` times.
    """
    if not attempt.takes_hash(tx_hash):
        return SubmissionEffect.NOTHING
    if attempt.was_paid_in_time(mined_at) or attempt.was_submitted_in_time(submitted_at):
        return SubmissionEffect.RECORD
    if attempt.is_final or attempt.tx_hash == tx_hash:
        return SubmissionEffect.NOTHING
    if attempt.status is AttemptStatus.CREATED_INTENT:
        expired = attempt.expires_at is not None and submitted_at >= attempt.expires_at and not attempt.is_claimed
        return SubmissionEffect.EXPIRE if expired else SubmissionEffect.RECORD
    if attempt.submitted_at is not None and submitted_at < attempt.submitted_at:
        # An earlier submission that arrives late, from a queue or a paused process: the later one counts.
        return SubmissionEffect.NOTHING
    if attempt.submission_count >= MAX_SUBMISSIONS:
        raise TooManyReplacements(MAX_SUBMISSIONS)
    return SubmissionEffect.RECORD
