"""Sign-in challenges and sessions.

Every call is a SECURITY DEFINER function (`db/functions/accounts.sql`): no role may read the tables themselves.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from db.accounts.wallets import wallet_of_somebody
from db.engine import ServiceConnection
from domain.accounts.sign_in import Challenge

_OPEN_CHALLENGE: Final = text("SELECT open_login_challenge(:nonce, :wallet, :message, :expires_at)")
_FIND_CHALLENGE: Final = text(
    "SELECT nonce, wallet_address, message FROM find_login_challenge(CAST(:nonce AS text), CAST(:message AS text))"
)
_OPEN_SESSION: Final = text(
    "WITH until AS MATERIALIZED (SELECT clock_timestamp() + CAST(:lifetime AS interval) AS expires_at)"
    " SELECT opened.user_id, opened.billing_account_id, opened.wallet_address, until.expires_at"
    " FROM until, open_session(:nonce, :token_hash, until.expires_at, CAST(:former AS bytea)) opened"
)
_FIND_SESSION: Final = text(
    "SELECT user_id, billing_account_id, wallet_address, expires_at FROM find_session(:token_hash)"
)
_END_SESSION: Final = text("SELECT end_session(:token_hash, :everywhere)")
_END_SESSIONS_OF_WALLET: Final = text("SELECT end_sessions_of_wallet(:wallet)")


@dataclass(frozen=True, slots=True)
class OpenChallenge:
    """A challenge that can still be answered."""

    nonce: str
    wallet_address: str
    message: str


@dataclass(frozen=True, slots=True)
class Session:
    """An authenticated session: the user and account that a request acts for."""

    user_id: str
    billing_account_id: str
    wallet_address: str
    expires_at: datetime


async def open_challenge(connection: AsyncConnection, challenge: Challenge) -> None:
    """Store a challenge, to be answered once."""
    values = {
        "nonce": challenge.nonce,
        "wallet": challenge.address,
        "message": challenge.message,
        "expires_at": challenge.expires_at,
    }
    await connection.execute(_OPEN_CHALLENGE, values)


async def find_challenge(
    connection: AsyncConnection, *, nonce: str | None = None, message: str | None = None
) -> OpenChallenge | None:
    """The challenge of a nonce, or of an exact message, that has neither been used nor expired."""
    row = (await connection.execute(_FIND_CHALLENGE, {"nonce": nonce, "message": message})).one_or_none()
    return OpenChallenge(row.nonce, row.wallet_address, row.message) if row else None


async def open_session(
    connection: AsyncConnection,
    nonce: str,
    token_hash: bytes,
    *,
    lifetime: timedelta,
    former_token_hash: bytes | None,
) -> Session | None:
    """Use the challenge up and sign its wallet in; creates user, account and key where it has none.

    None where the challenge was used or has expired: of two concurrent callers one gets a session. The session of
    `former_token_hash` ends. Call only after the signature was verified. Raises `PayerRefused` for an address that
    cannot have an account.
    """
    values = {"nonce": nonce, "token_hash": token_hash, "lifetime": lifetime, "former": former_token_hash}
    with wallet_of_somebody("the signing address"):
        row = (await connection.execute(_OPEN_SESSION, values)).one_or_none()
    return Session(row.user_id, row.billing_account_id, row.wallet_address, row.expires_at) if row else None


async def find_session(connection: AsyncConnection, token_hash: bytes) -> Session | None:
    """The session of a token that has not expired or ended."""
    row = (await connection.execute(_FIND_SESSION, {"token_hash": token_hash})).one_or_none()
    return Session(row.user_id, row.billing_account_id, row.wallet_address, row.expires_at) if row else None


async def end_session(connection: AsyncConnection, token_hash: bytes, *, everywhere: bool = False) -> int:
    """End the session of a token, or all of its user's; returns how many ended."""
    values = {"token_hash": token_hash, "everywhere": everywhere}
    return int((await connection.execute(_END_SESSION, values)).scalar_one())


async def end_sessions_of_wallet(connection: ServiceConnection, wallet_address: str) -> int:
    """End all sessions of a wallet; returns how many ended."""
    row = await connection.connection.execute(_END_SESSIONS_OF_WALLET, {"wallet": wallet_address})
    return int(row.scalar_one())
