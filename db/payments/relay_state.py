"""What `settle doctor` reads of the relay, by role settle_service: its accounts, what waits, what is open."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from sqlalchemy import text

from db.engine import ReadAllConnection

# An account whose key was replaced is not seen any more; it matters as long as something of it is open.
_ACCOUNTS: Final = text(
    """
    SELECT r.address, extract(epoch FROM clock_timestamp() - r.seen_at)::double precision AS seen_seconds_ago,
           (SELECT count(*) FROM relay_nonces n
             WHERE n.chain_id = r.chain_id AND n.relayer = r.address AND n.outcome IS NULL) AS open_nonces,
           (SELECT extract(epoch FROM clock_timestamp() - min(n.created_at))::double precision FROM relay_nonces n
             WHERE n.chain_id = r.chain_id AND n.relayer = r.address AND n.outcome IS NULL) AS oldest_open_seconds,
           (SELECT min(n.nonce) FROM relay_nonces n
             WHERE n.chain_id = r.chain_id AND n.relayer = r.address AND n.outcome IS NULL) AS first_open_nonce
      FROM relayers r WHERE r.chain_id = :chain_id ORDER BY r.seen_at DESC NULLS LAST, r.created_at DESC
    """
)

# Those that are still valid: what has expired waits for its proof, not for the relay.
_WAITING: Final = text(
    """
    SELECT count(*) AS number,
           coalesce(extract(epoch FROM clock_timestamp() - min(w.claimed_at)), 0)::double precision AS oldest_seconds
      FROM (SELECT c.claimed_at FROM payment_authorizations c JOIN payment_attempts a ON a.id = c.attempt_id
             WHERE a.chain_id = :chain_id AND a.status = 'CREATED_INTENT' AND a.kind = 'authorization'
               AND c.claimed_at IS NOT NULL AND to_timestamp(c.valid_before) > now()
               AND NOT EXISTS (SELECT FROM relay_nonces n WHERE n.attempt_id = a.id)
            UNION ALL
            SELECT c.claimed_at FROM charge_authorizations c
             WHERE c.chain_id = :chain_id AND c.outcome IS NULL AND to_timestamp(c.valid_before) > now()
               AND NOT EXISTS (SELECT FROM relay_nonces n WHERE n.charge_authorization_id = c.id)) w
    """
)


@dataclass(frozen=True, slots=True)
class RelayAccount:
    """An account of the relay. Ages in seconds, by the database's clock."""

    address: str
    seen_seconds_ago: float | None
    """Since its relay last completed a pass; None where it never said so."""
    open_nonces: int
    oldest_open_seconds: float | None
    first_open_nonce: int | None


@dataclass(frozen=True, slots=True)
class WaitingClaims:
    """What was signed, is valid, and was never sent."""

    number: int
    oldest_seconds: float


async def list_accounts(connection: ReadAllConnection, chain_id: int) -> list[RelayAccount]:
    """The relay's accounts on a chain, the one that worked last first."""
    rows = await connection.connection.execute(_ACCOUNTS, {"chain_id": chain_id})
    return [RelayAccount(**row._mapping) for row in rows]


async def count_waiting(connection: ReadAllConnection, chain_id: int) -> WaitingClaims:
    """How much was signed and never sent, and for how long the oldest waits."""
    row = (await connection.connection.execute(_WAITING, {"chain_id": chain_id})).one()
    return WaitingClaims(row.number, row.oldest_seconds)
