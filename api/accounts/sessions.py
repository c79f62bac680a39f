"""Sign-in with a wallet, and sessions: challenges, tokens, cookies."""

from __future__ import annotations

import hashlib
import secrets
import string
from typing import Final

from fastapi import Request, Response

from api.http.rate_limits import take
from api.resources import ApiSettings, Services
from chain.addresses import checksum_address
from chain.signatures import signed_by
from db.accounts import sessions
from db.accounts.rate_limits import Bucket
from db.accounts.sessions import Session
from db.clock import read_clock
from domain.accounts.sign_in import Challenge, new_challenge
from domain.errors import InvalidInput, SignInRefused
from domain.identifiers import same_address
from domain.transfers.income import ZERO_ADDRESS
from telemetry.metrics.api import LOGINS

NONCE_LENGTH: Final = 24
"""Letters and digits, 142 bits."""

TOKEN_BYTES: Final = 32
TOKEN_LENGTH_MAX: Final = 200
"""Longer cookies are not ours: they are not even hashed."""

_ALPHABET: Final = string.ascii_letters + string.digits


async def challenge(services: Services, address: str) -> Challenge:
    """A new message for the wallet `address` to sign. Raises `InvalidInput`."""
    settings = services.settings
    wallet = checksum_address(address, field="address")
    if same_address(wallet, ZERO_ADDRESS):
        raise InvalidInput("address", "is the zero address: expected the wallet that signs")
    async with services.database.unscoped_statement() as connection:
        made = new_challenge(
            nonce="".join(secrets.choice(_ALPHABET) for _ in range(NONCE_LENGTH)),
            address=wallet,
            origin=settings.origin,
            chain_id=settings.chain_id,
            platform=settings.platform_name,
            issued_at=await read_clock(connection),
            lifetime=settings.challenge_lifetime,
        )
        await sessions.open_challenge(connection, made)
    return made


async def log_in(
    services: Services, request: Request, response: Response, *, nonce: str | None, message: str | None, signature: str
) -> Session:
    """Verify the signature over the stored message, use the challenge up, and set the cookie of a new session.

    Raises `SignInRefused`, `InvalidInput`, `RateLimited`, and `ChainUnavailable` where a smart wallet cannot be asked;
    the challenge stays valid then.
    """
    if nonce is None and message is None:
        raise InvalidInput("nonce", "expected the challenge's nonce, or its message")
    async with services.database.unscoped_statement() as connection:
        found = await sessions.find_challenge(connection, nonce=nonce, message=message)
    if found is None:
        LOGINS.labels(outcome="no_challenge").inc()
        raise SignInRefused("the challenge is unknown, expired or already used: request a new one")
    if not await signed_by(services.chain, found.wallet_address, found.message, signature):
        LOGINS.labels(outcome="wrong_signature").inc()
        raise SignInRefused(f"the signature is not that of wallet {found.wallet_address}")
    # Counted only after the signature was verified: before, a stranger could use up another wallet's logins.
    per_minute = services.settings.rate_limits.logins_per_account
    await take(services, "logins", [Bucket(f"logins:account:{found.wallet_address}", per_minute)])
    token = secrets.token_urlsafe(TOKEN_BYTES)
    async with services.database.unscoped() as connection:
        session = await sessions.open_session(
            connection,
            found.nonce,
            _hash(token),
            lifetime=services.settings.session_lifetime,
            former_token_hash=_token_hash(services.settings, request),
        )
    if session is None:
        LOGINS.labels(outcome="used_meanwhile").inc()
        raise SignInRefused("the challenge was already used: request a new one")
    LOGINS.labels(outcome="signed_in").inc()
    _set_cookie(services.settings, response, token)
    return session


async def find_session(services: Services, request: Request) -> Session | None:
    """The session of the request's cookie, if any."""
    token_hash = _token_hash(services.settings, request)
    if token_hash is None:
        return None
    async with services.database.unscoped_statement() as connection:
        return await sessions.find_session(connection, token_hash)


async def sign_out(services: Services, request: Request, response: Response, *, everywhere: bool = False) -> None:
    """End the session, or all sessions of the same user, and delete the cookie. Succeeds without a session."""
    token_hash = _token_hash(services.settings, request)
    if token_hash is not None:
        async with services.database.unscoped_statement() as connection:
            await sessions.end_session(connection, token_hash, everywhere=everywhere)
    settings = services.settings
    response.delete_cookie(settings.cookie_name, path="/", secure=settings.is_secure, httponly=True, samesite="lax")


def _set_cookie(settings: ApiSettings, response: Response, token: str) -> None:
    response.set_cookie(
        settings.cookie_name,
        token,
        max_age=int(settings.session_lifetime.total_seconds()),
        path="/",
        secure=settings.is_secure,
        httponly=True,
        # Not "strict": after following a link to the page, a user would seem to be signed out. Changes are guarded by
        # `api.http.middleware.SameOriginOnly` as well.
        samesite="lax",
    )


def _token_hash(settings: ApiSettings, request: Request) -> bytes | None:
    token = request.cookies.get(settings.cookie_name)
    return _hash(token) if token and len(token) <= TOKEN_LENGTH_MAX else None


def _hash(token: str) -> bytes:
    return hashlib.sha256(token.encode()).digest()
