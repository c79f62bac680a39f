"""Which tokens and treasuries attempts name, whatever the settings say today."""

from __future__ import annotations

from typing import Final

from sqlalchemy import text

from db.engine import ReadAllConnection
from domain.chain import TransferScope
from domain.watching import FOLLOWED_AFTER, Promise

# Open ones by their own index, those that have ended lately by the time of their last change. An expired intent keeps
# its time; one that housekeeping has not ended yet is as good as ended.
_PROMISED: Final = text(
    """
    WITH promised AS (
        SELECT a.token, a.to_address, a.created_at,
               CASE WHEN a.status = 'CREATED_INTENT' AND a.expires_at <= now()
                    THEN a.expires_at + CAST(:after AS interval) END AS until
          FROM payment_attempts a
         WHERE a.chain_id = :chain_id AND a.status IN ('CREATED_INTENT', 'PENDING_UNVERIFIED')
         UNION ALL
        SELECT a.token, a.to_address, a.created_at, a.updated_at + CAST(:after AS interval)
          FROM payment_attempts a
         WHERE a.chain_id = :chain_id AND a.status NOT IN ('CREATED_INTENT', 'PENDING_UNVERIFIED')
           AND a.updated_at > now() - CAST(:after AS interval)
    )
    SELECT min(token) AS token, min(to_address) AS to_address, min(created_at) AS since,
           CASE WHEN bool_and(until IS NOT NULL) THEN max(until) END AS until,
           EXISTS (SELECT FROM chain_cursors c
                    WHERE c.chain_id = :chain_id AND c.token = min(p.token) AND c.to_address = min(p.to_address))
             AS is_known
      FROM promised p GROUP BY lower(token), lower(to_address)
    HAVING bool_or(until IS NULL) OR max(until) > now()
     ORDER BY since
    """
)


async def list_promises(connection: ReadAllConnection, chain_id: int) -> list[Promise]:
    """Every token and treasury that an attempt of this chain names, or named until at most a day ago; oldest first."""
    values = {"chain_id": chain_id, "after": FOLLOWED_AFTER}
    return [
        Promise(
            scope=TransferScope(chain_id=chain_id, token=row.token, treasury=row.to_address),
            until=row.until,
            since=row.since,
            is_known=row.is_known,
        )
        for row in await connection.connection.execute(_PROMISED, values)
    ]
