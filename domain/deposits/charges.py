"""Charges: a quote and a page. What is credited is each deposit, for what it is worth, and never the charge.

So short, over and late are words here, and no money is lost by any of them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import datetime
from enum import StrEnum
from math import isfinite
from typing import Any, Final, assert_never
from uuid import UUID

from domain.deposits.methods import DepositValue, PaymentMethod
from domain.deposits.prices import PriceSource, Quote
from domain.deposits.worth import UnitPrice, is_dollar_token, price_in_raw
from domain.errors import AddressBudgetExhausted, InvalidInput, MethodDisabled
from domain.money import check_payment_amount
from domain.payments.attempt import AttemptStatus

METADATA_BYTES_MAX: Final = 4096
METADATA_DEPTH_MAX: Final = 8
NUMBER_BITS_MAX: Final = 1024

GAP_RESERVED: Final = 5
"""How many addresses short of the gap limit a key stops: wallets differ in whether they count the last one."""


class ChargeStatus(StrEnum):
    """How far a charge is paid. `refresh_charge` keeps it in the database, by the rule of `status_of`."""

    NEW = "new"
    PARTIAL = "partial"
    """Something has come, less than the quote; what has come is credited all the same."""

    CONFIRMING = "confirming"
    """All of it has been seen, and not all of it is confirmed."""

    PAID = "paid"
    EXPIRED = "expired"
    """The price has run out and nothing has come. The address stays good: money that comes is credited."""


class DepositState(StrEnum):
    """What has become of one transfer to an address."""

    CONFIRMING = "confirming"
    BELOW_MINIMUM = "below_minimum"
    """Confirmed, and too small by itself: it is credited as soon as the sum at its address reaches the minimum."""

    WITHOUT_PRICE = "without_price"
    """Confirmed, and of a token whose price is not known now: it is credited when there is one."""

    CREDITED = "credited"
    NOT_CREDITED = "not_credited"
    REVERSED = "reversed"
    """Credited, until the chain took the transfer back."""


class Deposit(DepositValue):
    """A transfer that was seen at an address. `credits` is what it is worth, 0 before it has a price."""

    id: UUID
    tx_hash: str
    log_index: int
    method_id: str
    token: str
    decimals: int
    is_of_charge: bool
    """Whether it is of the charge's token: another one is credited as well, and does not pay the quote."""

    from_address: str
    value_raw: int
    credits: int
    block_number: int
    block_time: datetime
    attempt_id: UUID | None
    attempt_status: AttemptStatus | None
    is_awaiting_finality: bool = False
    """Credited, and the chain can still drop it."""
    created_at: datetime
    price: UnitPrice | None = None
    """Of one token, that it is credited at; None of a dollar token, and of any other one before it has a price."""

    @property
    def is_priced(self) -> bool:
        """Whether it is known what it is worth."""
        return self.price is not None or is_dollar_token(self.token)


class SignedState(StrEnum):
    """What is known of a payment that was signed (EIP-3009), until its transfer is seen: then it is a deposit."""

    CLAIMED = "claimed"
    """Kept, and to be broadcast."""

    SENT = "sent"
    SUCCEEDED = "succeeded"
    """Its transaction is confirmed."""

    REVERTED = "reverted"
    """Its transaction was refused on the chain. What was signed may still be executed until it expires."""

    EXECUTED = "executed"
    """Found on the chain, of whosever transaction."""

    EXPIRED = "expired"
    """Proved: it was not executed, and never can be."""


class SignedPayment(DepositValue):
    """What a payer has signed to a charge's address."""

    id: UUID
    payer: str
    nonce: str
    value_raw: int
    valid_before: int
    """Unix seconds on the chain."""
    state: SignedState
    tx_hash: str | None
    is_on_its_way: bool
    """It may arrive any moment: another payer is asked to wait for it."""
    is_seen: bool
    """Its transfer is among the charge's deposits."""


class Received(DepositValue):
    """What has come to a charge's address: raw units of its token, and credits of all tokens."""

    seen_raw: int = 0
    """What was refused or reversed counts for nothing."""

    credited_raw: int = 0
    waiting_raw: int = 0
    """What has no attempt yet: it waits for confirmations, or for the method's minimum."""

    credits: int = 0

    @property
    def confirming_raw(self) -> int:
        """What has been seen and is not credited yet."""
        return self.seen_raw - self.credited_raw


class Charge(DepositValue):
    """A charge with its method, its address and what has come to it, the last deposits first."""

    id: UUID
    billing_account_id: str
    method: PaymentMethod
    address: str
    amount_usd_cents: int
    quoted_amount_raw: int
    status: ChargeStatus
    """As of now, by what has come to it; what is stored may be older, as of a price that has just run out."""

    price_expires_at: datetime
    details: dict[str, Any]
    created_at: datetime
    read_at: datetime
    """By the database's clock, which decides whether the price has run out."""

    received: Received
    deposits: tuple[Deposit, ...]
    signed: tuple[SignedPayment, ...] = ()
    """The newest first."""

    quote: Quote | None = None
    """The price that it was made at; None of a dollar token."""

    source: PriceSource | None = None
    """Where that price is from."""

    @property
    def is_payment_on_its_way(self) -> bool:
        """Whether something that was signed may arrive any moment."""
        return any(payment.is_on_its_way for payment in self.signed)

    @property
    def missing_raw(self) -> int:
        """How much is still to be sent."""
        return max(0, self.quoted_amount_raw - self.received.seen_raw)


def quote(
    method: PaymentMethod, amount_usd_cents: object, *, minimum: int, maximum: int, price: UnitPrice | None = None
) -> tuple[int, int]:
    """The amount in US cents, checked, and how many raw units of the method's token it takes.

    `price` is of a token that is no dollar. Raises `InvalidInput` naming `amountUsdCents`, and `PriceUnavailable`.
    """
    cents = check_payment_amount(amount_usd_cents, minimum=minimum, maximum=maximum)
    raw = price_in_raw(method, cents, price)
    if raw < method.min_amount_raw:
        raise InvalidInput(
            "amountUsdCents",
            f"{cents} US cents are {raw} raw units of {method.token}: expected at least {method.min_amount_raw}",
        )
    return cents, raw


def require_enabled(method: PaymentMethod) -> None:
    """Refuse a new charge or address of a method that is disabled. Raises `MethodDisabled`."""
    if not method.enabled:
        raise MethodDisabled(method.id)


def check_address_budget(method: PaymentMethod, *, gap_limit: int, unpaid_at_the_end: int) -> None:
    """Refuse one more address where so many of its key's last ones are unpaid that wallets stop to search there.

    `unpaid_at_the_end` counts the addresses after the last paid one, with the new one. For keys of UTXO chains: on EVM
    chains no wallet searches. Raises `AddressBudgetExhausted`.
    """
    if unpaid_at_the_end > gap_limit - GAP_RESERVED:
        raise AddressBudgetExhausted(
            f"the last {unpaid_at_the_end - 1} addresses of {method.id} are unpaid, and a wallet that restores the key "
            f"stops after {gap_limit}: the next one can be given out when one of them is paid"
        )


def status_of(quoted_amount_raw: int, received: Received, *, price_expires_at: datetime, now: datetime) -> ChargeStatus:
    """The status of a charge. `refresh_charge` has the same rule in SQL; a test compares the two."""
    if received.credited_raw >= quoted_amount_raw:
        return ChargeStatus.PAID
    if received.seen_raw >= quoted_amount_raw:
        return ChargeStatus.CONFIRMING
    if received.seen_raw > 0:
        return ChargeStatus.PARTIAL
    return ChargeStatus.EXPIRED if price_expires_at <= now else ChargeStatus.NEW


def state_of(deposit: Deposit, *, confirmations: int | None, needed: int, is_below_minimum: bool) -> DepositState:
    """What has become of a deposit. `confirmations` is None while the chain cannot be read.

    `is_below_minimum`: all that has come to its address without being credited is less than the method's minimum.
    """
    status = deposit.attempt_status
    if status is None:
        is_confirmed = confirmations is not None and confirmations >= needed
        if is_confirmed and is_below_minimum:
            return DepositState.BELOW_MINIMUM
        return DepositState.WITHOUT_PRICE if is_confirmed and not deposit.is_priced else DepositState.CONFIRMING
    match status:
        case AttemptStatus.CREATED_INTENT | AttemptStatus.PENDING_UNVERIFIED:
            return DepositState.CONFIRMING
        case AttemptStatus.CREDITED:
            return DepositState.CREDITED
        case AttemptStatus.REVERSED:
            return DepositState.REVERSED
        case AttemptStatus.REJECTED | AttemptStatus.FAILED:
            return DepositState.NOT_CREDITED
    assert_never(status)


def check_metadata(metadata: Mapping[str, Any] | None) -> dict[str, Any]:
    """A charge's metadata, as it is stored: a JSON object of a few kilobytes. Raises `InvalidInput`."""
    found = dict(metadata or {})
    if not _is_shallow(found, METADATA_DEPTH_MAX):
        raise InvalidInput("metadata", f"expected at most {METADATA_DEPTH_MAX} levels")
    if not _is_storable(found):
        raise InvalidInput("metadata", "expected text without NUL and unpaired surrogates, and numbers below 2^1024")
    size = len(json.dumps(found, ensure_ascii=False).encode())
    if size > METADATA_BYTES_MAX:
        raise InvalidInput("metadata", f"expected at most {METADATA_BYTES_MAX} bytes of JSON, got {size}")
    return found


def _is_shallow(value: Any, levels: int) -> bool:
    if not isinstance(value, dict | list):
        return True
    within = value.values() if isinstance(value, dict) else value
    return levels > 0 and all(_is_shallow(found, levels - 1) for found in within)


def _is_storable(value: Any) -> bool:
    """Whether PostgreSQL's jsonb takes it."""
    match value:
        case str():
            return "\0" not in value and not any("\ud800" <= character <= "\udfff" for character in value)
        case float():
            return isfinite(value)
        case int():
            return value.bit_length() <= NUMBER_BITS_MAX
        case dict():
            return all(_is_storable(part) for pair in value.items() for part in pair)
        case list():
            return all(_is_storable(part) for part in value)
        case _:
            return True
