"""Top-ups by signature: an offer with an attempt of its own, and the claim of what a payer has signed for it."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from typing import Final
from uuid import UUID, uuid4

from chain.authorizations import attempt_nonce
from chain.reader import ChainReader
from db.accounts.wallets import find_non_payer_kind
from db.clock import read_clock
from db.engine import TenantDatabase
from db.payments import attempts, authorizations
from db.payments.authorizations import ClaimOutcome, DailyLimits
from domain.errors import AttemptNotFound, AuthorizationInUse, AuthorizationRefused, InvalidInput, RateLimited
from domain.money import check_payment_amount, raw_for_usd_cents
from domain.payments.attempt import AttemptKind, AttemptStatus, PaymentAttempt, Purpose
from domain.payments.authorizations import Price, SignedAuthorization, TokenDomain, check_agrees
from domain.transfers.income import ZERO_ADDRESS, require_payer
from services.payments import lifecycle
from services.payments.signatures import check_executable, is_relay_there

LIMIT_RETRY_SECONDS: Final = 3600.0
"""When to try again where a day's limit is reached: it is counted over the last 24 hours."""


@dataclass(frozen=True, slots=True)
class TopUpPolicy:
    """Terms of new top-ups. `treasury` receives `token` on chain `chain_id`."""

    chain_id: int
    token: str
    treasury: str
    wallet_factories: tuple[str, ...]
    """Those that the relay calls for wallets that are yet to be deployed."""
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
        chain_id=attempt.chain_id, token=attempt.token, pay_to=attempt.to_address, amount_raw=attempt.amount_raw
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

    async def is_relayed(self) -> bool:
        """Whether what is signed now is broadcast soon, as far as is known."""
        return await is_relay_there(self._database, self._policy.chain_id)

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
            executable = await check_executable(
                self._chain,
                offer.price,
                offer.domain,
                signed,
                factories=self._policy.wallet_factories,
                seconds_per_block=self._policy.block_time.total_seconds(),
            )
            signed = executable.signed
            is_contract, from_block = executable.is_contract, executable.from_block
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
