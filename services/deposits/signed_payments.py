"""Charges paid by signature: anyone with a charge's page may sign (EIP-3009) what it lacks, to its address.

The relay broadcasts it, and what arrives is a deposit like any other: nothing here credits, or decides what pays.
"""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from datetime import timedelta
from typing import Final
from uuid import UUID

from chain.derivation.addresses import address_of_charge
from chain.reader import ChainReader
from db.accounts.wallets import find_non_payer_kind
from db.deposits import addresses, authorizations
from db.deposits.authorizations import ChargeClaimOutcome, ChargeLimits
from db.engine import TenantDatabase
from domain.deposits.charges import Charge, SignedPayment
from domain.deposits.methods import MethodKind, Scheme
from domain.errors import AuthorizationInUse, AuthorizationRefused, ChargeNotFound, RateLimited
from domain.identifiers import same_address
from domain.money import raw_for_usd_cents
from domain.payments.authorizations import SIGNING_TIME, Price, SignedAuthorization, TokenDomain, check_agrees
from domain.transfers.income import require_payer
from services.deposits.charges import Owner
from services.payments.signatures import check_executable, is_relay_there
from services.payments.topups import LIMIT_RETRY_SECONDS

WINDOW_MAX: Final = 2 * SIGNING_TIME
"""How far ahead it may be valid: as long as one may arrive, no other payer is asked to sign."""


@dataclass(frozen=True, slots=True)
class SignedPaymentPolicy:
    """`token` on chain `chain_id` is what can be signed, to addresses whose contracts send it to `treasury`."""

    chain_id: int
    token: str
    treasury: str
    wallet_factories: tuple[str, ...]
    """Those that the relay calls for wallets that are yet to be deployed."""
    min_usd_cents: int
    """Less is not worth the relay's gas."""
    block_time: timedelta
    limits: ChargeLimits


@dataclass(frozen=True, slots=True)
class ChargeTerms:
    """What a payer is asked to sign: what the charge lacks, to its address."""

    price: Price
    domain: TokenDomain
    nonce: str
    """A new one each time: the address says what is paid for."""


class SignedPayments:
    """Uses a database of role settle_app and the chain's nodes, and owns neither."""

    def __init__(self, database: TenantDatabase, chain: ChainReader, policy: SignedPaymentPolicy) -> None:
        self._database = database
        self._chain = chain
        self._policy = policy

    def why_not(self, charge: Charge) -> str | None:
        """Why nothing can be signed for the charge; None where a payer may sign."""
        policy, method = self._policy, charge.method
        token = method.address or ""
        if method.kind is not MethodKind.ERC20 or method.chain_id != policy.chain_id:
            return f"payments by {method.id} cannot be signed"
        if not same_address(token, policy.token):
            return f"{method.token} cannot be paid by signature"
        # Of a key's address the relay cannot know whose it is: it would broadcast to anyone's.
        if method.scheme is not Scheme.CREATE2 or charge.address != address_of_charge(charge.id, policy.treasury):
            return "its address is not that of a contract which pays the treasury"
        least = max(method.min_amount_raw, raw_for_usd_cents(policy.min_usd_cents))
        if charge.missing_raw < least:
            return f"it lacks {charge.missing_raw} raw units: expected at least {least}"
        return None

    async def is_offered(self, charge: Charge) -> bool:
        """Whether its page offers to sign: it may be signed, nothing is on its way, and a relay is there."""
        if charge.is_payment_on_its_way or self.why_not(charge) is not None:
            return False
        return await is_relay_there(self._database, self._policy.chain_id)

    async def terms(self, charge: Charge) -> ChargeTerms:
        """What is to be signed. Raises `AuthorizationRefused` where nothing can be, and `ChainUnavailable`."""
        if (reason := self.why_not(charge)) is not None:
            raise AuthorizationRefused(reason)
        domain = await self._chain.authorizations.token_domain(self._policy.token)
        price = Price(
            chain_id=charge.method.chain_id,
            token=self._policy.token,
            pay_to=charge.address,
            amount_raw=charge.missing_raw,
        )
        return ChargeTerms(price, domain, "0x" + secrets.token_hex(32))

    async def claim(self, owner: Owner, charge: Charge, terms: ChargeTerms, signed: SignedAuthorization) -> None:
        """Keep what was signed for the charge; the same again changes nothing.

        Nothing is sent before it is kept, and nothing is kept that the token would not execute now. Raises
        `AuthorizationRefused`, `AuthorizationInUse`, `PayerRefused`, `RateLimited`, `ChargeNotFound`, and
        `ChainUnavailable`.
        """
        policy, price = self._policy, terms.price
        check_agrees(signed.authorization, price)
        executable = await check_executable(
            *(self._chain, price, terms.domain, signed),
            factories=policy.wallet_factories,
            seconds_per_block=policy.block_time.total_seconds(),
            longest=WINDOW_MAX,
        )
        payer = signed.authorization.payer
        async with self._database.transaction(owner.user_id) as connection:
            known = await find_non_payer_kind(connection.connection, payer)
            require_payer(payer, treasury=policy.treasury, token=policy.token, known=known)
            outcome = await authorizations.claim(
                *(connection, charge.id, executable.signed),
                chain_id=price.chain_id,
                token=price.token,
                is_contract=executable.is_contract,
                from_block=executable.from_block,
                limits=policy.limits,
            )
            await addresses.note_interest(connection, charge.id)
        _require_kept(outcome, charge.id)


def find_signed(charge: Charge, signed: SignedAuthorization) -> SignedPayment | None:
    """What was kept of the same payer and nonce."""
    payer, nonce = signed.authorization.payer, signed.authorization.nonce
    return next((one for one in charge.signed if same_address(one.payer, payer) and one.nonce == nonce), None)


def _require_kept(outcome: ChargeClaimOutcome, charge_id: UUID) -> None:
    match outcome:
        case ChargeClaimOutcome.NEW | ChargeClaimOutcome.SAME:
            return
        case ChargeClaimOutcome.NOT_FOUND:
            raise ChargeNotFound(charge_id)
        case ChargeClaimOutcome.IN_USE:
            raise AuthorizationInUse("its nonce is that of another one of this payer: sign one with a new nonce")
        case ChargeClaimOutcome.ON_ITS_WAY:
            raise AuthorizationInUse("a signed payment of this charge is on its way: wait for it")
        case ChargeClaimOutcome.ANOTHER_AMOUNT:
            raise AuthorizationRefused("the charge lacks another amount by now: ask for new terms")
        case ChargeClaimOutcome.LIMIT:
            raise RateLimited(LIMIT_RETRY_SECONDS, "signed payments in a day")
