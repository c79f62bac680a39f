"""What a payer has signed, checked on the chain before it is kept: nothing is kept that the token would refuse now."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from datetime import timedelta
from typing import Final

from chain.authorizations import (
    AuthorizationKey,
    PayerView,
    authorization_digest,
    domain_separator,
    execution_of,
)
from chain.reader import ChainReader
from chain.signatures import is_accepted_by_contract, recover_signer
from db.engine import TenantDatabase
from db.payments import authorizations
from domain.errors import AuthorizationInUse, AuthorizationRefused
from domain.identifiers import same_address
from domain.payments.authorizations import (
    WINDOW_MAX,
    Price,
    SignedAuthorization,
    TokenDomain,
    check_window,
    normal_signature,
)

RELAY_SEEN_WITHIN: Final = timedelta(minutes=5)
"""A page offers to sign only where a relay has worked lately: other ways to pay are on it."""


@dataclass(frozen=True, slots=True)
class Executable:
    """An authorization that the token would execute at block `from_block`, with its signature as the token takes it."""

    signed: SignedAuthorization
    is_contract: bool
    from_block: int


async def is_relay_there(database: TenantDatabase, chain_id: int) -> bool:
    """Whether a relay of the chain has worked lately: what is signed is broadcast soon."""
    async with database.unscoped_statement() as connection:
        return await authorizations.is_relay_there(connection, chain_id, within=RELAY_SEEN_WITHIN)


async def check_executable(
    chain: ChainReader,
    price: Price,
    domain: TokenDomain,
    signed: SignedAuthorization,
    *,
    factories: Collection[str],
    seconds_per_block: float,
    longest: timedelta = WINDOW_MAX,
) -> Executable:
    """Check window, balance, signature, and that the token would execute it now. `longest`: how long it may be valid.

    A wallet that is yet to be deployed is accepted where its factory is one of `factories`. That it pays what is asked
    for is checked before (`check_agrees`). Raises `AuthorizationRefused`, `AuthorizationInUse` where its nonce is used,
    and `ChainUnavailable`.
    """
    authorization = signed.authorization
    view = await chain.authorizations.payer_view(
        AuthorizationKey(price.token, authorization.payer, authorization.nonce)
    )
    if view.is_used:
        raise AuthorizationInUse("its nonce was used or cancelled on the chain: sign one with a new nonce")
    check_window(authorization, block_time=view.block_time, seconds_per_block=seconds_per_block, longest=longest)
    if view.balance_raw < authorization.value_raw:
        raise AuthorizationRefused(
            f"{authorization.payer} holds {view.balance_raw} raw units: expected {authorization.value_raw}"
        )
    signed = signed.model_copy(update={"signature": normal_signature(signed.signature, is_contract=view.is_contract)})
    execution = execution_of(price.token, signed, is_contract=view.is_contract, factories=factories)
    if execution.to is not None:
        await _check_signature(chain, price, domain, signed, view)
    # Before it is deployed, a wallet's signature is checked by the token, in this simulation.
    refusal = await chain.authorizations.refusal(execution)
    if refusal is not None:
        raise AuthorizationRefused(f"the token would not execute it: {refusal}")
    return Executable(signed, is_contract=view.is_contract or execution.to is None, from_block=view.head_number)


async def _check_signature(
    chain: ChainReader, price: Price, domain: TokenDomain, signed: SignedAuthorization, view: PayerView
) -> None:
    """The payer has signed it. Raises `AuthorizationRefused`."""
    authorization = signed.authorization
    separator = domain_separator(domain, chain_id=price.chain_id, token=price.token)
    digest = authorization_digest(authorization, separator)
    if view.is_contract:
        accepted = await is_accepted_by_contract(chain, authorization.payer, digest, signed.signature)
    else:
        signer = recover_signer(digest, signed.signature)
        accepted = signer is not None and same_address(signer, authorization.payer)
    if not accepted:
        raise AuthorizationRefused(f"the signature is not that of {authorization.payer}")
