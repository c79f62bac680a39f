"""Which deposit addresses the chain watcher reads, how often, and for which tokens."""

from __future__ import annotations

from collections.abc import Collection
from datetime import timedelta
from typing import Final, NamedTuple
from uuid import UUID

from sqlalchemy import text

from db.deposits.registry import address_of_row
from db.engine import ReadAllConnection
from domain.deposits.methods import DepositAddress, Scheme

_TOKENS: Final = text(
    """
    SELECT DISTINCT address FROM payment_methods WHERE chain_id = :chain_id AND address IS NOT NULL ORDER BY address
    """
)

_HAS_COIN: Final = text("SELECT EXISTS (SELECT FROM payment_methods WHERE chain_id = :chain_id AND kind = 'native')")

_ACTIVE: Final = text(
    """
    SELECT a.id, a.address, a.billing_account_id FROM deposit_addresses a
     WHERE a.chain_id = :chain_id AND a.active_at > now() - CAST(:within AS interval)
       AND (CAST(:scheme AS text) IS NULL OR a.scheme = :scheme)
     ORDER BY a.created_at, a.id
    """
)

_THESE: Final = text("SELECT a.* FROM deposit_addresses a WHERE a.id = ANY (CAST(:ids AS uuid[]))")

_ANY: Final = text("SELECT EXISTS (SELECT FROM deposit_addresses WHERE chain_id = :chain_id)")


async def list_tokens(connection: ReadAllConnection, chain_id: int) -> list[str]:
    """The contracts of all methods, of disabled ones too: what was given out stays read."""
    return list((await connection.connection.execute(_TOKENS, {"chain_id": chain_id})).scalars())


async def has_coin_method(connection: ReadAllConnection, chain_id: int) -> bool:
    """Whether an EVM chain's own coin is, or was, a payment method: what was given out stays read."""
    return bool((await connection.connection.execute(_HAS_COIN, {"chain_id": chain_id})).scalar_one())


class ActiveAddress(NamedTuple):
    """What of an address decides what it derives as. Of many thousands, with each block."""

    id: UUID
    address: str
    billing_account_id: str


async def list_active_addresses(
    connection: ReadAllConnection, chain_id: int, *, within: timedelta, scheme: Scheme | None = None
) -> list[ActiveAddress]:
    """Addresses that were asked for or paid within that time; of one scheme, or of all."""
    values = {"chain_id": chain_id, "within": within, "scheme": scheme and scheme.value}
    rows = await connection.connection.execute(_ACTIVE, values)
    return [ActiveAddress(*row) for row in rows]


async def list_addresses(connection: ReadAllConnection, ids: Collection[UUID]) -> list[DepositAddress]:
    """These addresses, with all that they are derived from."""
    rows = await connection.connection.execute(_THESE, {"ids": list(ids)})
    return [address_of_row(row) for row in rows]


async def has_addresses(connection: ReadAllConnection, chain_id: int) -> bool:
    """Whether any address has been given out on the chain."""
    return bool((await connection.connection.execute(_ANY, {"chain_id": chain_id})).scalar_one())
