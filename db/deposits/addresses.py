"""Queries on deposit addresses, in the scope of the account that they belong to."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final
from uuid import UUID

from sqlalchemy import text

from db.engine import TenantConnection
from domain.deposits.methods import PaymentMethod, Scheme


@dataclass(frozen=True, slots=True)
class NewAddress:
    """An address to write, with what it is derived from: ring and index, or salt and treasury."""

    id: UUID
    chain_id: int
    address: str
    scheme: Scheme
    ring_id: UUID | None
    index: int | None
    salt: str | None
    treasury: str | None
    billing_account_id: str
    charge_id: UUID | None


_INSERT: Final = text(
    "INSERT INTO deposit_addresses (id, chain_id, address, scheme, ring_id, index, salt, treasury, billing_account_id,"
    " charge_id) VALUES (:id, :chain_id, :address, :scheme, :ring_id, :index, :salt, :treasury, :account, :charge_id)"
)

# An address is the account's own for one key, or for one treasury: after a change of either it gets another one.
_OWN: Final = text(
    """
    UPDATE deposit_addresses d SET active_at = clock_timestamp()
     WHERE d.billing_account_id = :account AND d.charge_id IS NULL AND d.chain_id = :chain_id AND d.scheme = :scheme
       AND (d.ring_id = :ring_id OR (d.ring_id IS NULL AND lower(d.treasury) = lower(:treasury)))
    RETURNING d.address
    """
)

# Those that are shown are watched closely.
_ALL_OWN: Final = text(
    """
    WITH own AS (
        SELECT d.id, d.chain_id, d.scheme, d.ring_id, d.treasury, d.address FROM deposit_addresses d
         WHERE d.billing_account_id = :account AND d.charge_id IS NULL
    ), shown AS (
        UPDATE deposit_addresses d SET active_at = clock_timestamp() FROM own
         WHERE d.id = own.id AND d.active_at < clock_timestamp() - interval '1 minute'
    )
    SELECT m.id AS method_id, own.address FROM payment_methods m JOIN own
        ON own.chain_id = m.chain_id AND own.scheme = m.scheme
       AND (own.ring_id = m.ring_id OR (own.ring_id IS NULL AND lower(own.treasury) = lower(:treasury)))
    """
)

_ONE_AT_A_TIME: Final = text("SELECT pg_advisory_xact_lock(hashtextextended('own address:' || :account, 0))")

_ALLOCATE: Final = text("SELECT allocate_index(:ring_id)")

_UNPAID: Final = text("SELECT unpaid_at_the_end(:ring_id)")

_TOUCH: Final = text(
    "UPDATE deposit_addresses d SET active_at = clock_timestamp()"
    " WHERE d.charge_id = :charge_id AND d.active_at < clock_timestamp() - interval '1 minute'"
)


async def insert_address(connection: TenantConnection, new: NewAddress) -> None:
    """Write an address of an account."""
    await connection.connection.execute(
        _INSERT,
        {
            "id": new.id,
            "chain_id": new.chain_id,
            "address": new.address,
            "scheme": new.scheme.value,
            "ring_id": new.ring_id,
            "index": new.index,
            "salt": new.salt,
            "treasury": new.treasury,
            "account": new.billing_account_id,
            "charge_id": new.charge_id,
        },
    )


async def lock_own_addresses(connection: TenantConnection, billing_account_id: str) -> None:
    """Until the transaction ends, no other one may give the account an address of its own: none takes two indices."""
    await connection.connection.execute(_ONE_AT_A_TIME, {"account": billing_account_id})


async def find_own_address(
    connection: TenantConnection, billing_account_id: str, method: PaymentMethod, treasury: str
) -> str | None:
    """The account's own address for payments by a method, closely watched from now on; None before it has one."""
    values = {
        "account": billing_account_id,
        "chain_id": method.chain_id,
        "scheme": method.scheme.value,
        "ring_id": method.ring_id,
        "treasury": treasury if method.scheme is Scheme.CREATE2 else None,
    }
    found = (await connection.connection.execute(_OWN, values)).scalar_one_or_none()
    return None if found is None else str(found)


async def list_own_addresses(connection: TenantConnection, billing_account_id: str, treasury: str) -> dict[str, str]:
    """The account's own addresses by the methods that they are for, closely watched from now on."""
    rows = await connection.connection.execute(_ALL_OWN, {"account": billing_account_id, "treasury": treasury})
    return {row.method_id: row.address for row in rows}


async def allocate_index(connection: TenantConnection, ring_id: UUID) -> int:
    """The next index of a key; the key is locked until the transaction ends, and a rollback takes the index back."""
    return int((await connection.connection.execute(_ALLOCATE, {"ring_id": ring_id})).scalar_one())


async def count_unpaid_at_the_end(connection: TenantConnection, ring_id: UUID) -> int:
    """How many indices of a key come after the last one that was paid to, of all accounts."""
    return int((await connection.connection.execute(_UNPAID, {"ring_id": ring_id})).scalar_one())


async def note_interest(connection: TenantConnection, charge_id: UUID) -> None:
    """A page was opened, or a charge asked for again: its address is watched closely from now on."""
    await connection.connection.execute(_TOUCH, {"charge_id": charge_id})
