"""Answers about attempts, for programs and for the HTTP interface (camelCase on the wire)."""

from __future__ import annotations

from datetime import datetime
from uuid import UUID

from pydantic import Field

from domain.payments.attempt import AttemptKind, AttemptStatus, ClientStatus, ErrorCode, PaymentAttempt, Purpose
from domain.payments.finality import FinalityLevel, FinalityState
from services.answers import ResponseModel


class Intent(ResponseModel):
    """A new payment attempt: what to send, where, and until when."""

    attempt_id: UUID
    chain_id: int
    token: str
    to: str
    amount_raw: int
    amount_usd_cents: int
    purpose: Purpose
    expires_at: datetime

    @classmethod
    def of(cls, attempt: PaymentAttempt, expires_at: datetime) -> Intent:
        """The answer for a new attempt."""
        return cls(
            attempt_id=attempt.id,
            chain_id=attempt.chain_id,
            token=attempt.token,
            to=attempt.to_address,
            amount_raw=attempt.amount_raw,
            amount_usd_cents=attempt.amount_usd_cents,
            purpose=attempt.purpose,
            expires_at=expires_at,
        )


class AttemptView(ResponseModel):
    """Status of an attempt."""

    attempt_id: UUID
    kind: AttemptKind = Field(
        default=AttemptKind.WALLET,
        description="`wallet`: paid by the wallet that is signed in; `deposit`: a transfer to a deposit address; "
        "`authorization`: paid by a signature",
    )
    status: AttemptStatus
    client_status: ClientStatus
    signed: bool = Field(default=False, description="its payer's signature is there, and is or will be broadcast")
    chain_id: int
    tx_hash: str | None = None
    error_code: ErrorCode | None = None
    amount_usd_cents: int
    amount_credits: int | None = Field(default=None, description="what it buys; a deposit may be worth parts of a cent")
    purpose: Purpose
    created_at: datetime
    expires_at: datetime | None = Field(default=None, description="until when it can be paid, while it is not")
    finality_state: FinalityState | None = Field(
        default=None,
        description="of a credited payment: `pending` while the chain can still drop it, and the credits are reversed. "
        "Null where it was not credited, and in answers to a submission",
    )
    finality_level: FinalityLevel | None = Field(default=None, description="what it waits for, while it is `pending`")
    confirmations: int | None = Field(default=None, description="so far, while the payment waits for the chain")
    confirmations_needed: int | None = None
    waiting_for: str | None = Field(default=None, description="as reported by the last poll of the chain")
    next_look_at: datetime | None = None

    @classmethod
    def of(cls, attempt: PaymentAttempt) -> AttemptView:
        """The answer for an attempt as the database has it."""
        return cls(
            attempt_id=attempt.id,
            kind=attempt.kind,
            status=attempt.status,
            client_status=attempt.client_status,
            signed=attempt.is_claimed,
            chain_id=attempt.chain_id,
            tx_hash=attempt.tx_hash,
            error_code=attempt.error_code,
            amount_usd_cents=attempt.amount_usd_cents,
            amount_credits=attempt.credits,
            purpose=attempt.purpose,
            created_at=attempt.created_at,
            expires_at=attempt.expires_at,
        )
