"""Queries on signed authorizations: an attempt's own nonce, the claim, and what the relay has sent for it."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Final
from uuid import UUID

from sqlalchemy import Row, text
from sqlalchemy.ext.asyncio import AsyncConnection

from db.engine import ReadAllConnection, TenantConnection
from domain.payments.authorizations import SignedAuthorization


class ClaimOutcome(StrEnum):
    """What `claim_authorization` answers (db/functions/authorizations.sql)."""

    NEW = "new"
    SAME = "same"
    """It was claimed for this attempt before."""
    CLAIMED_ANOTHER = "claimed_another"
    """Another authorization was claimed for this attempt."""
    NOT_FOUND = "not_found"
    EXPIRED = "expired"
    """The attempt is no open intent any more."""
    OF_ANOTHER_ATTEMPT = "of_another_attempt"
    """The nonce is the own one of another attempt."""
    OF_ANOTHER_WALLET = "of_another_wallet"
    """A random nonce, of a wallet that belongs to another account."""
    IN_USE = "in_use"
    """It is claimed for another attempt."""
    LIMIT = "limit"
    """The account has used up its claims of the day, or too many of them have failed."""


@dataclass(frozen=True, slots=True)
class DailyLimits:
    """Per account and day: signatures that are relayed, and transactions of the relay that may revert."""

    relayed: int
    failed: int


_INSERT: Final = text("INSERT INTO payment_authorizations (attempt_id, own_nonce) VALUES (:attempt_id, :own_nonce)")

_CLAIM: Final = text(
    """
    SELECT claim_authorization(:attempt_id, :payer, :nonce, :valid_after, :valid_before, :signature, :is_contract,
                               :from_block, :relayed, :failed)
    """
)

_RELAYED_HASH: Final = text("SELECT relayed_hash(:attempt_id)")

_IS_RELAY_THERE: Final = text("SELECT is_relay_there(:chain_id, :seconds)")

_IS_CLAIMED: Final = text(
    """
    SELECT authorization_nonce FROM payment_attempts
     WHERE authorization_nonce = ANY (CAST(:nonces AS text[])) AND chain_id = :chain_id
       AND lower(token) = lower(:token) AND lower(from_address) = lower(:payer) AND status <> 'FAILED'
    """
)

_CLAIM_OF: Final = text(
    """
    SELECT a.id AS attempt_id, b.owner_user_id, a.token, a.from_address AS payer, a.authorization_nonce AS nonce,
           c.valid_before, c.from_block, clock_timestamp() AS now
      FROM payment_attempts a JOIN payment_authorizations c ON c.attempt_id = a.id
      JOIN billing_accounts b ON b.id = a.billing_account_id
     WHERE a.id = :attempt_id AND c.claimed_at IS NOT NULL
    """
)

# Without a run: what was sent for an attempt is submitted, and its workflow knows what becomes of it.
_OVERDUE: Final = text(
    """
    SELECT a.id AS attempt_id, b.owner_user_id, a.token, a.from_address AS payer, a.authorization_nonce AS nonce,
           c.valid_before, c.from_block, clock_timestamp() AS now
      FROM payment_attempts a JOIN payment_authorizations c ON c.attempt_id = a.id
      JOIN billing_accounts b ON b.id = a.billing_account_id
     WHERE a.status = 'CREATED_INTENT' AND a.chain_id = :chain_id AND c.claimed_at IS NOT NULL
       AND a.expires_at < now()
     ORDER BY a.expires_at LIMIT :limit
    """
)

# Of several transactions that replace each other: the one that was mined, else the newest. One that the payer has
# submitted, or that was found on the chain, is left as it is.
_TO_SUBMIT: Final = text(
    """
    SELECT DISTINCT ON (a.id) a.id AS attempt_id, b.owner_user_id, coalesce(n.mined_tx_hash, t.tx_hash) AS tx_hash
      FROM payment_attempts a
      JOIN billing_accounts b ON b.id = a.billing_account_id
      JOIN relay_nonces n ON n.attempt_id = a.id AND n.outcome IS DISTINCT FROM 'reverted'
                         AND n.outcome IS DISTINCT FROM 'lost'
      JOIN relay_transactions t ON t.chain_id = n.chain_id AND t.relayer = n.relayer AND t.nonce = n.nonce
     WHERE a.status IN ('CREATED_INTENT', 'PENDING_UNVERIFIED') AND a.kind = 'authorization'
       AND a.chain_id = :chain_id AND t.sent_at IS NOT NULL
       AND a.tx_hash IS DISTINCT FROM coalesce(n.mined_tx_hash, t.tx_hash)
       AND (a.tx_hash IS NULL
            OR EXISTS (SELECT FROM relay_transactions o JOIN relay_nonces p
                           ON p.chain_id = o.chain_id AND p.relayer = o.relayer AND p.nonce = o.nonce
                        WHERE o.chain_id = a.chain_id AND o.tx_hash = a.tx_hash AND p.attempt_id = a.id
                          AND (p.nonce <> n.nonce OR o.stored_at < t.stored_at OR n.mined_tx_hash IS NOT NULL)))
     ORDER BY a.id, n.created_at DESC, t.stored_at DESC LIMIT :limit
    """
)


@dataclass(frozen=True, slots=True)
class Claim:
    """A claimed authorization that may still pay its attempt."""

    attempt_id: UUID
    owner_user_id: str
    token: str
    payer: str
    nonce: str
    valid_before: int
    from_block: int
    """It was unused at this block."""
    now: datetime
    """By the database's clock."""


@dataclass(frozen=True, slots=True)
class RelayedHash:
    """A transaction that the relay has sent, which its attempt does not wait for yet."""

    attempt_id: UUID
    owner_user_id: str
    tx_hash: str


async def insert_own_nonce(connection: TenantConnection, attempt_id: UUID, own_nonce: str) -> None:
    """Write the own nonce of a new attempt of kind `authorization`."""
    await connection.connection.execute(_INSERT, {"attempt_id": attempt_id, "own_nonce": own_nonce})


async def claim(
    connection: TenantConnection,
    attempt_id: UUID,
    signed: SignedAuthorization,
    *,
    is_contract: bool,
    from_block: int,
    limits: DailyLimits,
) -> ClaimOutcome:
    """Claim the authorization for the tenant's own attempt, once: nothing is sent before it is claimed."""
    authorization = signed.authorization
    values = {
        "attempt_id": attempt_id,
        "payer": authorization.payer,
        "nonce": authorization.nonce,
        "valid_after": authorization.valid_after,
        "valid_before": authorization.valid_before,
        "signature": signed.signature,
        "is_contract": is_contract,
        "from_block": from_block,
        "relayed": limits.relayed,
        "failed": limits.failed,
    }
    return ClaimOutcome((await connection.connection.execute(_CLAIM, values)).scalar_one())


async def find_relayed_hash(connection: TenantConnection, attempt_id: UUID) -> str | None:
    """The transaction that was last sent for the tenant's own attempt; None before the first."""
    found: str | None = (await connection.connection.execute(_RELAYED_HASH, {"attempt_id": attempt_id})).scalar_one()
    return found


async def is_relay_there(connection: AsyncConnection, chain_id: int, *, within: timedelta) -> bool:
    """Whether a relay of the chain has completed a pass lately."""
    values = {"chain_id": chain_id, "seconds": int(within.total_seconds())}
    return bool((await connection.execute(_IS_RELAY_THERE, values)).scalar_one())


async def find_claimed_nonces(
    connection: ReadAllConnection, *, chain_id: int, token: str, payer: str, nonces: frozenset[str]
) -> frozenset[str]:
    """Those of the nonces that authorizations of this payer have which are claimed for attempts."""
    values = {"nonces": sorted(nonces), "chain_id": chain_id, "token": token, "payer": payer}
    rows = await connection.connection.execute(_IS_CLAIMED, values)
    return frozenset(row.authorization_nonce for row in rows)


async def find_claim(connection: ReadAllConnection, attempt_id: UUID) -> Claim | None:
    """The attempt's claim; None before there is one."""
    row = (await connection.connection.execute(_CLAIM_OF, {"attempt_id": attempt_id})).one_or_none()
    return None if row is None else _claim(row)


async def list_overdue(connection: ReadAllConnection, chain_id: int, *, limit: int) -> list[Claim]:
    """Claims whose time is up and for which nothing was submitted, the oldest first."""
    rows = await connection.connection.execute(_OVERDUE, {"chain_id": chain_id, "limit": limit})
    return [_claim(row) for row in rows]


async def list_to_submit(connection: ReadAllConnection, chain_id: int, *, limit: int) -> list[RelayedHash]:
    """What the relay has sent and the attempts do not know yet."""
    rows = await connection.connection.execute(_TO_SUBMIT, {"chain_id": chain_id, "limit": limit})
    return [RelayedHash(row.attempt_id, row.owner_user_id, row.tx_hash) for row in rows]


def _claim(row: Row[tuple[object, ...]]) -> Claim:
    return Claim(**row._mapping)
