"""Answers about payment methods, deposit addresses and charges."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any, Self
from uuid import UUID

from pydantic import Field

from domain.deposits.charges import (
    Charge,
    ChargeStatus,
    Deposit,
    DepositState,
    SignedPayment,
    SignedState,
    state_of,
)
from domain.deposits.methods import MethodKind, PaymentMethod, Scheme
from domain.deposits.prices import PriceSource, Quote
from domain.payments.finality import FinalityState, finality_of
from domain.utxo import SENDERLESS
from services.answers import ResponseModel

EXAMPLE_METHOD = "USDC:base"


class MethodView(ResponseModel):
    """A way to pay that takes new charges."""

    id: str = Field(description="`method` of a charge", examples=[EXAMPLE_METHOD])
    chain_id: int
    token: str = Field(description="symbol", examples=["USDC"])
    address: str | None = Field(description="the token's contract; null for a chain's own coin")
    decimals: int = Field(description="digits of a raw amount after the point", examples=[6])
    kind: MethodKind
    scheme: Scheme = Field(description="`create2`: an address that no key controls; `xpub`: one of a wallet's")
    min_amount_raw: int = Field(description="less is credited as soon as the sum at its address reaches it")
    confirmations: int = Field(description="that a payment needs")

    @classmethod
    def of(cls, method: PaymentMethod, *, min_confirmations: int) -> Self:
        """The answer about a method."""
        return cls(
            id=method.id,
            chain_id=method.chain_id,
            token=method.token,
            address=method.address,
            decimals=method.decimals,
            kind=method.kind,
            scheme=method.scheme,
            min_amount_raw=method.min_amount_raw,
            confirmations=method.confirmations or min_confirmations,
        )


class MethodList(ResponseModel):
    """The payment methods that are open."""

    methods: list[MethodView]


class DepositAddressView(ResponseModel):
    """The account's own address: the same one for good."""

    address: str
    method: str = Field(examples=[EXAMPLE_METHOD])
    chain_id: int
    token: str | None = Field(description="the token's contract; null for a chain's own coin")
    symbol: str = Field(examples=["USDC"])


class QuoteView(ResponseModel):
    """The price that a charge was made at, and where it is from."""

    price_usd: str = Field(description="US dollars for one whole token, an exact decimal", examples=["2534.17"])
    source: str = Field(description="how the price feed names itself", examples=["ETH / USD"])
    feed: str = Field(description="the feed's contract")
    feed_chain_id: int
    round_id: str = Field(description="the feed's round; a number of up to 80 bits")
    updated_at: datetime = Field(description="when the feed was updated")
    read_at: datetime = Field(description="the time of the block at which it was read")

    @classmethod
    def of(cls, quote: Quote, source: PriceSource) -> Self:
        """The answer about a quote."""
        return cls(
            price_usd=quote.price.text,
            source=source.description,
            feed=source.feed,
            feed_chain_id=source.chain_id,
            round_id=str(quote.round_id),
            updated_at=quote.feed_updated_at,
            read_at=quote.block_time,
        )


class DepositView(ResponseModel):
    """A transfer to an address."""

    deposit_id: UUID
    tx_hash: str
    log_index: int
    from_address: str | None = Field(description="null on chains whose transfers have no sender, as Bitcoin's")
    method: str = Field(examples=[EXAMPLE_METHOD])
    symbol: str = Field(examples=["USDC"])
    decimals: int
    value_raw: int
    credits: int | None = Field(
        description="what it is worth, and is credited with; null for a token that is no dollar before it has a price"
    )
    price_usd: str | None = Field(
        default=None,
        description="US dollars for one whole token, as it is credited: the charge's price if it came while that held, "
        "else that of its block. Null for a dollar token, and before it has a price",
    )
    state: DepositState = Field(
        description="`below_minimum`: it is credited when the sum of such transfers at its address reaches the "
        "minimum; `without_price`: when the price of its token is known again"
    )
    finality_state: FinalityState | None = Field(
        default=None, description="of what is credited: `pending` while the chain can still drop it"
    )
    confirmations: int | None = Field(
        description="so far, on another chain as its worker has last seen it; null while that is not known"
    )
    confirmations_needed: int
    attempt_id: UUID | None = Field(description="the payment that it has become; null until it is confirmed")
    block_number: int
    seen_at: datetime

    @classmethod
    def of(cls, deposit: Deposit, *, is_below_minimum: bool, head: int | None, needed: int) -> Self:
        """The answer about a deposit.

        `is_below_minimum`: all at its address that is no payment yet is less than the method's minimum.
        """
        confirmations = None if head is None else max(0, head - deposit.block_number + 1)
        return cls(
            deposit_id=deposit.id,
            tx_hash=deposit.tx_hash,
            log_index=deposit.log_index,
            from_address=None if deposit.from_address in SENDERLESS else deposit.from_address,
            method=deposit.method_id,
            symbol=deposit.token,
            decimals=deposit.decimals,
            value_raw=deposit.value_raw,
            credits=deposit.credits if deposit.is_priced else None,
            price_usd=None if deposit.price is None else deposit.price.text,
            state=state_of(deposit, confirmations=confirmations, needed=needed, is_below_minimum=is_below_minimum),
            finality_state=(
                finality_of(deposit.attempt_status, is_awaited=deposit.is_awaiting_finality)
                if deposit.attempt_status
                else None
            ),
            confirmations=confirmations,
            confirmations_needed=needed,
            attempt_id=deposit.attempt_id,
            block_number=deposit.block_number,
            seen_at=deposit.created_at,
        )


class SignedPaymentView(ResponseModel):
    """What a payer has signed for a charge, to be broadcast by the relay, until its transfer is seen."""

    payer: str
    nonce: str
    amount_raw: int
    valid_before: datetime = Field(description="by the chain's time; later it is not executed any more")
    state: SignedState = Field(
        description="`reverted`: its transaction was refused, and it may still be executed until it expires; "
        "`expired`: proved never to be executed"
    )
    tx_hash: str | None = Field(default=None, description="null until it is sent")

    @classmethod
    def of(cls, payment: SignedPayment) -> Self:
        """The answer about what was signed."""
        return cls(
            payer=payment.payer,
            nonce=payment.nonce,
            amount_raw=payment.value_raw,
            valid_before=datetime.fromtimestamp(payment.valid_before, UTC),
            state=payment.state,
            tx_hash=payment.tx_hash,
        )


class ChargeView(ResponseModel):
    """A charge. Amounts ending in `Raw` are whole units of the token; of 18 decimals they may exceed 2^53."""

    charge_id: UUID
    status: ChargeStatus = Field(
        description="`expired`: the price has run out and nothing has come; money that comes later is credited as well"
    )
    method: str = Field(examples=[EXAMPLE_METHOD])
    address: str = Field(description="where to pay; it belongs to this charge for good")
    chain_id: int
    token: str | None = Field(description="the token's contract; null for a chain's own coin")
    symbol: str = Field(examples=["USDC"])
    decimals: int
    amount_usd_cents: int
    amount_raw: int = Field(description="what to send")
    price_expires_at: datetime = Field(description="until when `amountRaw` is the price; the address does not expire")
    quote: QuoteView | None = Field(default=None, description="null for a dollar token")
    pay_url: str = Field(description="a page for the payer, who needs no account")
    received_raw: int = Field(description="seen so far, confirmed or not")
    confirming_raw: int = Field(description="the part of it that is not credited yet")
    credited_raw: int
    missing_raw: int = Field(description="what is still to be sent")
    credited_credits: int = Field(description="what the account has got for it")
    metadata: dict[str, Any] = Field(description="as given")
    created_at: datetime
    deposits: list[DepositView] = Field(description="the last ones first, at most 50")
    signed_payments: list[SignedPaymentView] = Field(
        default=[], description="signed by payers on the charge's page, and not among the deposits yet"
    )

    @classmethod
    def of(cls, charge: Charge, *, pay_url: str, head: int | None, min_confirmations: int) -> Self:
        """The answer about a charge. `head`: the height of its chain, where it is known."""
        method, received = charge.method, charge.received
        needed = method.confirmations or min_confirmations
        is_below_minimum = received.waiting_raw < method.min_amount_raw
        return cls(
            charge_id=charge.id,
            status=charge.status,
            method=method.id,
            address=charge.address,
            chain_id=method.chain_id,
            token=method.address,
            symbol=method.token,
            decimals=method.decimals,
            amount_usd_cents=charge.amount_usd_cents,
            amount_raw=charge.quoted_amount_raw,
            price_expires_at=charge.price_expires_at,
            quote=None if charge.quote is None or charge.source is None else QuoteView.of(charge.quote, charge.source),
            pay_url=pay_url,
            received_raw=received.seen_raw,
            confirming_raw=received.confirming_raw,
            credited_raw=received.credited_raw,
            missing_raw=charge.missing_raw,
            credited_credits=received.credits,
            metadata=charge.details,
            created_at=charge.created_at,
            deposits=[
                DepositView.of(deposit, is_below_minimum=is_below_minimum, head=head, needed=needed)
                for deposit in charge.deposits
            ],
            signed_payments=[SignedPaymentView.of(payment) for payment in charge.signed if not payment.is_seen],
        )
