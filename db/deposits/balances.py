"""What deposit addresses should hold: what came to them, less what was swept."""

from __future__ import annotations

from collections.abc import Collection
from typing import Final
from uuid import UUID

from sqlalchemy import text

from db.engine import ReadAllConnection
from domain.chain import DEPOSITS_TOKEN, DepositLane
from domain.coin import NATIVE_COIN

_EXPECTED: Final = text(
    """
    SELECT a.id,
           coalesce((SELECT sum(d.value_raw) FROM deposits d
                      WHERE d.address_id = a.id AND lower(d.token) = lower(:token) AND d.block_number <= :block
                        AND d.log_index >= 0), 0)
         - coalesce((SELECT sum(s.value_raw) FROM swept_transfers s JOIN payment_methods m ON m.id = s.method_id
                      WHERE s.address_id = a.id AND lower(coalesce(m.address, :coin)) = lower(:token)
                        AND s.block_number <= :block), 0)
      FROM unnest(CAST(:ids AS uuid[])) a (id)
    """
)

# Of both lanes, or of the coin's own, and of what books sweeps: a block is compared when all have passed it.
_READ_TO: Final = text(
    """
    SELECT min(c.block_number) FROM (
        SELECT block_number FROM chain_cursors
         WHERE chain_id = :chain_id AND token = :lanes AND retired_at IS NULL
           AND (to_address = :coins_lane) = CAST(:is_coin AS boolean)
         UNION ALL
        SELECT block_number FROM sweep_cursors
         WHERE chain_id = :chain_id AND (token = lower(:coin)) = CAST(:is_coin AS boolean)) c
     WHERE NOT CAST(:is_coin AS boolean) OR EXISTS (
               SELECT FROM chain_cursors
                WHERE chain_id = :chain_id AND token = :lanes AND to_address = :coins_lane AND retired_at IS NULL)
    """
)


async def expected_balances(
    connection: ReadAllConnection, token: str, ids: Collection[UUID], *, block: int
) -> dict[UUID, int]:
    """Raw units of the token that each of these addresses should hold in a block."""
    values = {"token": token, "ids": list(ids), "block": block, "coin": NATIVE_COIN}
    return {id_: int(raw) for id_, raw in await connection.connection.execute(_EXPECTED, values)}


async def find_block_read_to(connection: ReadAllConnection, chain_id: int, *, is_coin: bool) -> int | None:
    """The last block up to which deposits and sweeps are known, of tokens or of an EVM chain's own coin.

    None where nothing has been read yet, and where the coin is not read now.
    """
    values = {
        "chain_id": chain_id,
        "lanes": DEPOSITS_TOKEN,
        "coins_lane": DepositLane.COIN.value,
        "coin": NATIVE_COIN,
        "is_coin": is_coin,
    }
    found: int | None = (await connection.connection.execute(_READ_TO, values)).scalar_one()
    return found
