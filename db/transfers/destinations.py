"""Payment destinations: the tokens and treasuries that workers have been configured with."""

from __future__ import annotations

from typing import Final

from sqlalchemy import text

from db.engine import ReadAllConnection, ServiceConnection
from domain.chain import TransferScope

_NOTE: Final = text(
    """
    INSERT INTO payment_destinations (chain_id, token, to_address, noted_by)
    VALUES (:chain_id, lower(:token), lower(:to_address), 'worker')
    ON CONFLICT DO NOTHING
    """
)

_IS_KNOWN: Final = text(
    """
    SELECT EXISTS (SELECT 1 FROM payment_destinations
                    WHERE chain_id = :chain_id AND token = lower(:token) AND to_address = lower(:to_address))
    """
)


def _of(scope: TransferScope) -> dict[str, object]:
    return {"chain_id": scope.chain_id, "token": scope.token, "to_address": scope.treasury}


async def note_destination(connection: ServiceConnection, scope: TransferScope) -> None:
    """Record this token and treasury as a worker's destination: payments may go there. Safe to repeat.

    Neither is a payer from here on, under later settings either (`non_payer_kind`).
    """
    await connection.connection.execute(_NOTE, _of(scope))


async def is_known_destination(connection: ReadAllConnection, scope: TransferScope) -> bool:
    """Whether some worker has, or had, this destination in its settings."""
    return bool((await connection.connection.execute(_IS_KNOWN, _of(scope))).scalar_one())
