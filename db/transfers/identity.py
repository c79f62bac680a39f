"""Which transfers of a transaction have paid, and which the watcher has seen (`domain.transfers.identity`)."""

from __future__ import annotations

from decimal import Decimal
from typing import Any, Final
from uuid import UUID

from sqlalchemy import text

from db.engine import ReadAllConnection
from domain.chain import Transfer, TransferScope
from domain.payments.verification import KnownTransfers
from domain.transfers.identity import PaidTransfer

_PAID: Final = text(
    """
    SELECT attempt_id, status, log_index, block_hash, from_address, value_raw, in_scope
      FROM paid_transfers_of(:chain_id, :tx_hash, :token, :to_address)
    """
)

_OBSERVED: Final = """
    SELECT o.tx_hash, o.log_index, o.block_number, o.block_hash, o.block_time, o.from_address, o.value_raw
      FROM observed_transfers o
     WHERE o.chain_id = :chain_id AND o.tx_hash = :tx_hash
       AND lower(o.token) = lower(:token) AND lower(o.to_address) = lower(:to_address)
"""
_ALL_OBSERVED: Final = text(f"{_OBSERVED} ORDER BY o.log_index")
_ALIKE: Final = text(
    f"{_OBSERVED} AND is_alike(o.from_address, o.value_raw, :from_address, :value_raw) ORDER BY o.log_index"
)


async def find_known_transfers(
    connection: ReadAllConnection,
    scope: TransferScope,
    tx_hash: str,
    *,
    of_others_than: UUID | None = None,
    alike: Transfer | None = None,
) -> KnownTransfers:
    """What is known of a transaction's transfers in this scope; of those observed only the ones `alike` one.

    An attempt's own payment is left out where it asks for itself. What was observed is read only where anything has
    paid: a transaction of thousands of transfers is read for each of them.
    """
    values: dict[str, Any] = {
        "chain_id": scope.chain_id,
        "token": scope.token,
        "to_address": scope.treasury,
        "tx_hash": tx_hash,
    }
    rows = await connection.connection.execute(_PAID, values)
    paid = tuple(
        PaidTransfer.model_validate(row) for row in rows if of_others_than is None or row.attempt_id != of_others_than
    )
    if not paid:
        return KnownTransfers()
    if alike is not None:
        values |= {"value_raw": Decimal(alike.value_raw), "from_address": alike.from_address}
    observed = await connection.connection.execute(_ALIKE if alike is not None else _ALL_OBSERVED, values)
    return KnownTransfers(paid=paid, observed=tuple(Transfer.model_validate(dict(row._mapping)) for row in observed))
