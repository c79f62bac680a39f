"""Top-ups by signature: an offer with an attempt of its own, and the claim of what a payer has signed for it."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from typing import Final
from uuid import UUID, uuid4

from chain.authorizations import (
    AuthorizationKey,
    PayerView,
    attempt_nonce,
    authorization_digest,
    domain_separator,
    transfer_calldata,
)
from chain.reader import ChainReader
from chain.signatures import is_accepted_by_contract, recover_signer
from db.accounts.wallets import find_non_payer_kind
from db.clock import read_clock
from db.engine import TenantDatabase
from db.payments import attempts, authorizations
from db.payments.authorizations import ClaimOutcome, DailyLimits
from domain.errors import AttemptNotFound, AuthorizationInUse, AuthorizationRefused, InvalidInput, RateLimited
from domain.identifiers import same_address
from domain.money import check_payment_amount, raw_for_usd_cents
from domain.payments.attempt import AttemptKind, AttemptStatus, PaymentAttempt, Purpose
from domain.payments.authorizations import (
    Price,
    SignedAuthorization,
    TokenDomain,
    check_agrees,
    check_window,
    normal_signature,
)
from domain.transfers.income import ZERO_ADDRESS, require_payer
from services.payments import lifecycle

LIMIT_RETRY_SECONDS: Final = 3600.0
"""When to try again where a day's limit is reached: it is counted over the last 24 hours."""


@dataclass(frozen=True, slots=True)
class TopUpPolicy:
    """Terms of new top-ups. `treasury` receives `token` on chain `chain_id`."""

    chain_id: int
    token: str
    treasury: str
    intent_ttl: timedelta
    min_usd_cents: int
    max_usd_cents: int
    block_time: timedelta
    limits: DailyLimits


@dataclass(frozen=True, slots=True)
class Payee:
    """The account that a top-up is for, and the user in whose scope its rows are."""

    user_id: str
    billing_account_id: str


@dataclass(frozen=True, slots=True)
class Offer:
    """An attempt that a signature pays, and what is to be signed."""

    attempt: PaymentAttempt
    price: Price
    domain: TokenDomain
    own_nonce: str


def price_of(attempt: PaymentAttempt) -> Price:
    """What an attempt of kind `authorization` asks for."""
    return Price(
        chain_id=attempt.chain_id, token=attempt.token, treasury=attempt.to_address, amount_raw=attempt.amount_raw
    )


class TopUps:
    """Offers and claims. It uses a database of role settle_app and the chain's nodes, and owns neither."""

    def __init__(self, database: TenantDatabase, chain: ChainReader, policy: TopUpPolicy) -> None:
        self._database = database
        self._chain = chain
        self._policy = policy

    async def offer(self, payee: Payee, amount_usd_cents: int, purpose: Purpose = Purpose.SELF) -> Offer:
        """Make an attempt that waits for a signature. Raises `InvalidInput` for an amount out of bounds,
        `ChainUnavailable` and `DatabaseUnavailable`.
        """
        policy = self._policy
        amount = check_payment_amount(amount_usd_cents, minimum=policy.min_usd_cents, maximum=policy.max_usd_cents)
        domain = await self._chain.authorizations.token_domain(policy.token)
        async with self._database.transaction(payee.user_id) as connection:
            now = await read_clock(connection.connection)
            attempt = PaymentAttempt(
                id=uuid4(),
                billing_account_id=payee.billing_account_id,
                owner_user_id=payee.user_id,
                # Its payer is who signs, and known by then.
                from_address=ZERO_ADDRESS,
                chain_id=policy.chain_id,
                token=policy.token,
                to_address=policy.treasury,
                amount_raw=raw_for_usd_cents(amount),
                amount_usd_cents=amount,
                purpose=purpose,
                status=AttemptStatus.CREATED_INTENT,
                expires_at=now + policy.intent_ttl,
                created_at=now,
                kind=AttemptKind.AUTHORIZATION,
            )
            own_nonce = attempt_nonce(policy.chain_id, attempt.id)
            await lifecycle.create_intent(connection, attempt)
            await authorizations.insert_own_nonce(connection, attempt.id, own_nonce)
        return Offer(attempt, price_of(attempt), domain, own_nonce)

    async def find(self, payee: Payee, attempt_id: UUID) -> Offer:
        """The offer of an attempt. Raises `AttemptNotFound`, also for another account's, or of another kind."""
        async with self._database.transaction(payee.user_id) as connection:
            attempt = await attempts.find_attempt(connection, attempt_id)
        if (
            attempt is None
            or attempt.kind is not AttemptKind.AUTHORIZATION
            or attempt.billing_account_id != payee.billing_account_id
        ):
            raise AttemptNotFound(attempt_id)
        domain = await self._chain.authorizations.token_domain(attempt.token)
        return Offer(attempt, price_of(attempt), domain, attempt_nonce(attempt.chain_id, attempt.id))

    async def relayed_hash(self, payee: Payee, attempt_id: UUID) -> str | None:
        """The transaction that was last sent for it; None before the first."""
        async with self._database.transaction(payee.user_id) as connection:
            return await authorizations.find_relayed_hash(connection, attempt_id)

    async def claim(self, offer: Offer, signed: SignedAuthorization) -> None:
        """Claim what was signed for the offer's attempt; the same again changes nothing.

        Nothing is sent before it is claimed, and nothing is claimed that the token would not execute now. Raises
        `AuthorizationRefused` where it does not pay this attempt, `AuthorizationInUse` where it is another's or used,
        `PayerRefused`, `RateLimited` where a limit of the day is reached, and `ChainUnavailable`.
        """
        attempt = offer.attempt
        check_agrees(signed.authorization, offer.price)
        if not attempt.is_claimed:
            if attempt.status is not AttemptStatus.CREATED_INTENT:
                raise AuthorizationRefused("the offer has expired: ask for a new one")
            view = await self._check_on_chain(offer, signed)
            signed = signed.model_copy(
                update={"signature": normal_signature(signed.signature, is_contract=view.is_contract)}
            )
            await self._check_signature(offer, signed, view)
            is_contract, from_block = view.is_contract, view.head_number
        else:
            is_contract, from_block = False, 0  # nothing is written: it is only compared
        async with self._database.transaction(attempt.owner_user_id) as connection:
            if not attempt.is_claimed:
                known = await find_non_payer_kind(connection.connection, signed.authorization.payer)
                policy = self._policy
                require_payer(signed.authorization.payer, treasury=policy.treasury, token=policy.token, known=known)
            outcome = await authorizations.claim(
                connection,
                attempt.id,
                signed,
                is_contract=is_contract,
                from_block=from_block,
                limits=self._policy.limits,
            )
        _require_claimed(outcome, attempt.id)

    async def _check_on_chain(self, offer: Offer, signed: SignedAuthorization) -> PayerView:
        authorization = signed.authorization
        key = AuthorizationKey(offer.price.token, authorization.payer, authorization.nonce)
        view = await self._chain.authorizations.payer_view(key)
        if view.is_used:
            raise AuthorizationInUse("its nonce was used or cancelled on the chain: sign one with a new nonce")
        check_window(
            authorization, block_time=view.block_time, seconds_per_block=self._policy.block_time.total_seconds()
        )
        if view.balance_raw < authorization.value_raw:
            raise AuthorizationRefused(
                f"{authorization.payer} holds {view.balance_raw} raw units: expected {authorization.value_raw}"
            )
        return view

    async def _check_signature(self, offer: Offer, signed: SignedAuthorization, view: PayerView) -> None:
        """The payer has signed it, and the token would execute it now. Raises `AuthorizationRefused`."""
        authorization = signed.authorization
        separator = domain_separator(offer.domain, chain_id=offer.price.chain_id, token=offer.price.token)
        digest = authorization_digest(authorization, separator)
        if view.is_contract:
            accepted = await is_accepted_by_contract(self._chain, authorization.payer, digest, signed.signature)
        else:
            signer = recover_signer(digest, signed.signature)
            accepted = signer is not None and same_address(signer, authorization.payer)
        if not accepted:
            raise AuthorizationRefused(f"the signature is not that of {authorization.payer}")
        calldata = transfer_calldata(signed, is_contract=view.is_contract)
        refusal = await self._chain.authorizations.refusal(offer.price.token, calldata)
        if refusal is not None:
            raise AuthorizationRefused(f"the token would not execute it: {refusal}")


def check_same_request(attempt: PaymentAttempt, amount_usd_cents: int, purpose: Purpose) -> None:
    """A signature comes with the request that it was asked for. Raises `InvalidInput`."""
    if attempt.amount_usd_cents != amount_usd_cents:
        expected = attempt.amount_usd_cents
        raise InvalidInput("amountUsdCents", f"payment {attempt.id} is of {expected} US cents, got {amount_usd_cents}")
    if attempt.purpose is not purpose:
        raise InvalidInput("purpose", f"payment {attempt.id} has purpose {attempt.purpose.value}, got {purpose.value}")


def _require_claimed(outcome: ClaimOutcome, attempt_id: UUID) -> None:
    match outcome:
        case ClaimOutcome.NEW | ClaimOutcome.SAME:
            return
        case ClaimOutcome.NOT_FOUND:
            raise AttemptNotFound(attempt_id)
        case ClaimOutcome.EXPIRED:
            raise AuthorizationRefused("the offer has expired: ask for a new one")
        case ClaimOutcome.CLAIMED_ANOTHER:
            raise AuthorizationInUse("another one pays this payment already: it is not needed")
        case ClaimOutcome.OF_ANOTHER_ATTEMPT:
            raise AuthorizationInUse("its nonce is that of another payment, which it pays and no other")
        case ClaimOutcome.OF_ANOTHER_WALLET:
            raise AuthorizationInUse(
                "its wallet belongs to another account: sign the message of this payment, whose nonce is its own"
            )
        case ClaimOutcome.IN_USE:
            raise AuthorizationInUse("it pays another payment already")
        case ClaimOutcome.LIMIT:
            raise RateLimited(LIMIT_RETRY_SECONDS, "signed top-ups in a day")
