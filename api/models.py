"""Request and response bodies (camelCase on the wire); those about attempts are in `starter/models.py`."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any
from uuid import UUID

from pydantic import BaseModel, ConfigDict, Field, StringConstraints
from pydantic.alias_generators import to_camel

from domain.payments.attempt import Purpose
from services.answers import ResponseModel
from starter.models import AttemptView

EXAMPLE_ADDRESS = "0x70997970C51812dc3A010C7d01b50e0d17dc79C8"
EXAMPLE_HASH = "0x" + "5e" * 32

HexAddress = Annotated[str, StringConstraints(pattern=r"^0x[0-9a-fA-F]{40}$", max_length=42)]
HexHash = Annotated[str, StringConstraints(pattern=r"^0x[0-9a-fA-F]{64}$", max_length=66)]


class RequestModel(BaseModel):
    """A request body. Types are strict: a number in quotes is not a number, and true is not 1."""

    model_config = ConfigDict(alias_generator=to_camel, populate_by_name=False, strict=True)


class StrictRequestModel(RequestModel):
    """A request body without unknown fields: a misspelt `purpose` must not silently buy something else."""

    model_config = ConfigDict(extra="forbid")


class ChallengeRequest(RequestModel):
    """The wallet that signs in."""

    address: HexAddress = Field(
        description="with or without EIP-55 checksum; a wrong checksum is refused", examples=[EXAMPLE_ADDRESS]
    )


class ChallengeAnswer(ResponseModel):
    """The message to sign with `personal_sign`, byte for byte."""

    nonce: str
    address: str
    message: str
    chain_id: int
    issued_at: datetime
    expires_at: datetime


class LoginRequest(RequestModel):
    """The wallet's signature over a challenge, which is named by its nonce, its message, or both."""

    nonce: str | None = Field(default=None, min_length=8, max_length=64, pattern=r"^[0-9A-Za-z]+$")
    # PostgreSQL's text type cannot hold NUL.
    message: str | None = Field(default=None, min_length=1, max_length=2000, pattern=r"^[^\x00]*$")
    signature: str = Field(
        min_length=2,
        max_length=20_000,
        pattern=r"^0x[0-9a-fA-F]*$",
        description="of an externally owned account (65 bytes), or of a smart wallet (ERC-1271, ERC-6492); `0x` of a "
        "smart wallet whose owners have signed the message on the chain",
    )


class SessionAnswer(ResponseModel):
    """The authenticated session."""

    user_id: str
    address: str
    billing_account_id: str
    chain_id: int
    expires_at: datetime


class LogoutRequest(RequestModel):
    """The sessions to end."""

    everywhere: bool = Field(default=False, description="all sessions of this wallet, not only this one")


class IntentRequest(StrictRequestModel):
    """What to pay for. The account is the session's."""

    amount_usd_cents: int = Field(
        gt=0, le=2**53 - 1, description="within the service's configured bounds", examples=[2500]
    )
    # Not strict: JSON has no enumerations.
    purpose: Annotated[Purpose, Field(strict=False)] = Field(
        default=Purpose.SELF, description="`self` buys credits, `system` donates all of it to the platform's account"
    )


class SigningOffer(ResponseModel):
    """What to sign: the terms of x402, and the message for a wallet."""

    x402_version: int = Field(alias="x402Version")
    error: str = Field(description="why the answer is no other, as x402 has it")
    resource: dict[str, str] = Field(description="its address names what is paid for")
    accepts: list[dict[str, Any]] = Field(description="one: scheme `exact`, EIP-3009")
    authorization: dict[str, Any] = Field(
        description="the message for `eth_signTypedData_v4`; add the wallet's address as `message.from`. What is paid "
        "for is in what is signed: a top-up's nonce is derived from its attempt, a charge is named by its address"
    )


class TopUpOffer(SigningOffer):
    """What to sign for a top-up."""

    attempt_id: UUID
    expires_at: datetime


class SubmitRequest(StrictRequestModel):
    """The transaction that pays."""

    tx_hash: HexHash = Field(description="32 bytes; a hint, checked on the chain", examples=[EXAMPLE_HASH])


class AttemptPage(ResponseModel):
    """Payments of the session's account, newest first."""

    attempts: list[AttemptView]
    next_cursor: UUID | None = Field(default=None, description="`cursor` of the next page, older ones; null at the end")


class LedgerEntry(ResponseModel):
    """One change of the account's credits."""

    id: UUID
    amount: int = Field(description="credits; negative where they were deducted", examples=[1_000_000_000])
    balance_after: int
    reason: str = Field(examples=["credits_purchase"])
    reference: str | None = Field(description="id of the payment attempt, for a payment's rows")
    tx_hash: str | None = Field(default=None, description="of the transaction that paid", examples=[EXAMPLE_HASH])
    created_at: datetime


class CreditsSummary(ResponseModel):
    """The account's balance and its latest ledger rows."""

    billing_account_id: str
    balance_credits: int = Field(description="10,000,000 credits are worth one US dollar; may be negative")
    held_credits: int = Field(description="set aside for calls in flight; still part of the balance")
    available_credits: int = Field(description="balance less held: what another call may cost at most")
    ledger: list[LedgerEntry] = Field(description="newest first")
    next_cursor: UUID | None = Field(default=None, description="`cursor` of the next page, older ones; null at the end")


class Health(BaseModel):
    """Liveness or readiness of the process."""

    status: str = Field(examples=["ok"])
    checks: dict[str, str] | None = Field(
        default=None,
        examples=[{"database": "ok", "chain": "no answer within 8 s"}],
        description='"ok", or what is wrong',
    )
