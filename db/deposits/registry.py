"""Queries of operators and jobs on methods, extended keys and all deposit addresses."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any, Final
from uuid import UUID

from sqlalchemy import text

from db.deposits.methods import ring_of_row
from db.engine import ServiceConnection
from domain.deposits.methods import AddressRing, DepositAddress, PaymentMethod, Scheme

PAGE: Final = 5_000

_ONE_AT_A_TIME: Final = text("SELECT pg_advisory_xact_lock(hashtextextended('payment methods', 0))")

_INSERT_METHOD: Final = text(
    "INSERT INTO payment_methods (id, chain_id, token, address, decimals, kind, scheme, ring_id, min_amount_raw,"
    " confirmations) VALUES (:id, :chain_id, :token, :address, :decimals, :kind, :scheme, :ring_id, :min_amount_raw,"
    " :confirmations)"
)

_CHANGE_METHOD: Final = text(
    "UPDATE payment_methods SET min_amount_raw = :min_amount_raw, confirmations = :confirmations, enabled = true,"
    " updated_at = now() WHERE id = :id"
)

_DISABLE_METHOD: Final = text("UPDATE payment_methods SET enabled = false, updated_at = now() WHERE id = :id")

_INSERT_RING: Final = text(
    "INSERT INTO address_rings (path, xpub, fingerprint, gap_limit) VALUES (:path, :xpub, :fingerprint, :gap_limit)"
    " RETURNING *"
)

_RINGS: Final = text("SELECT r.* FROM address_rings r ORDER BY r.created_at, r.id")

# By the order of the primary key: a page begins after the last id of the one before.
_ADDRESSES: Final = text(
    """
    SELECT a.* FROM deposit_addresses a
     WHERE a.id > :after AND (cast(:account AS text) IS NULL OR a.billing_account_id = :account)
       AND (cast(:chain_id AS bigint) IS NULL OR a.chain_id = :chain_id)
     ORDER BY a.id LIMIT :limit
    """
)

_LONG_ENDS: Final = text(
    "SELECT r.path, r.fingerprint, r.gap_limit, unpaid_at_the_end(r.id) AS unpaid FROM address_rings r"
    " WHERE unpaid_at_the_end(r.id) > r.gap_limit ORDER BY r.created_at, r.id"
)

# Of every key or of one method's; the last index is the highest that was stored with an address.
_RINGS_IN_USE: Final = text(
    """
    SELECT r.*, m.methods, m.is_utxo,
           (SELECT max(a.index) FROM deposit_addresses a WHERE a.ring_id = r.id) AS last_index
      FROM address_rings r
      JOIN (SELECT ring_id, array_agg(id ORDER BY created_at, id) AS methods, bool_or(kind = 'utxo') AS is_utxo
              FROM payment_methods GROUP BY ring_id) m ON m.ring_id = r.id
     WHERE cast(:method_id AS text) IS NULL OR :method_id = ANY (m.methods)
     ORDER BY r.created_at, r.id
    """
)

_SKIP: Final = text("SELECT next_index, gap_limit FROM skip_indices(:ring_id, :count)")

_TREASURIES: Final = text("SELECT to_address FROM treasuries()")

_CASH_ACCOUNTS: Final = text("SELECT code FROM ledger_accounts WHERE code LIKE 'cash:%'")


async def lock_registry(connection: ServiceConnection) -> None:
    """Until the transaction ends, no other one may add a method: what was checked about the others stays true."""
    await connection.connection.execute(_ONE_AT_A_TIME)


async def insert_method(connection: ServiceConnection, method: PaymentMethod) -> None:
    """Write a method; a trigger opens the ledger accounts of its token."""
    await connection.connection.execute(
        _INSERT_METHOD,
        {
            "id": method.id,
            "chain_id": method.chain_id,
            "token": method.token,
            "address": method.address,
            "decimals": method.decimals,
            "kind": method.kind.value,
            "scheme": method.scheme.value,
            "ring_id": method.ring_id,
            "min_amount_raw": method.min_amount_raw,
            "confirmations": method.confirmations,
        },
    )


async def change_method(connection: ServiceConnection, method: PaymentMethod) -> None:
    """Enable a method, with the minimum and the confirmations of `method`."""
    await connection.connection.execute(
        _CHANGE_METHOD,
        {"id": method.id, "min_amount_raw": method.min_amount_raw, "confirmations": method.confirmations},
    )


async def disable_method(connection: ServiceConnection, method_id: str) -> None:
    """From now on the method takes no new charge or address. Safe to repeat."""
    await connection.connection.execute(_DISABLE_METHOD, {"id": method_id})


async def insert_ring(
    connection: ServiceConnection, *, path: str, xpub: str, fingerprint: str, gap_limit: int
) -> AddressRing:
    """Write an extended public key, whose first index is 0."""
    values = {"path": path, "xpub": xpub, "fingerprint": fingerprint, "gap_limit": gap_limit}
    return ring_of_row((await connection.connection.execute(_INSERT_RING, values)).one())


async def list_rings(connection: ServiceConnection) -> list[AddressRing]:
    """Every extended public key, the oldest first."""
    return [ring_of_row(row) for row in await connection.connection.execute(_RINGS)]


@dataclass(frozen=True, slots=True)
class RingInUse:
    """A key with the methods that share it."""

    ring: AddressRing
    methods: tuple[str, ...]
    is_utxo: bool
    """Whether one of them is of a chain like Bitcoin, whose wallets search as far as the gap limit."""
    last_index: int | None
    """The highest index that an address is stored with."""


async def list_rings_in_use(connection: ServiceConnection, method_id: str | None = None) -> list[RingInUse]:
    """The keys of all methods, or of one, the oldest first."""
    rows = await connection.connection.execute(_RINGS_IN_USE, {"method_id": method_id})
    return [RingInUse(ring_of_row(row), tuple(row.methods), row.is_utxo, row.last_index) for row in rows]


async def skip_indices(connection: ServiceConnection, ring_id: UUID, count: int) -> tuple[int, int]:
    """Give out so many indices of a key to no one; its next index and gap limit from now on."""
    row = (await connection.connection.execute(_SKIP, {"ring_id": ring_id, "count": count})).one()
    return int(row.next_index), int(row.gap_limit)


async def list_keys_past_their_gap(connection: ServiceConnection) -> list[str]:
    """Keys with more addresses without a payment at their end than a restored wallet searches, a line each."""
    return [
        f"{row.unpaid} addresses at the end of {row.path} ({row.fingerprint}) unpaid, wallets search {row.gap_limit}"
        for row in await connection.connection.execute(_LONG_ENDS)
    ]


async def list_treasuries(connection: ServiceConnection) -> list[str]:
    """Every treasury that a worker has, or had, in its settings; lower case."""
    return [str(row.to_address) for row in await connection.connection.execute(_TREASURIES)]


async def list_cash_accounts(connection: ServiceConnection) -> set[str]:
    """The codes of all ledger accounts of cash."""
    return {str(row.code) for row in await connection.connection.execute(_CASH_ACCOUNTS)}


async def page_addresses(
    connection: ServiceConnection, *, account: str | None = None, chain_id: int | None = None
) -> AsyncIterator[list[DepositAddress]]:
    """All deposit addresses in pages, of all accounts and chains, or of one. Within one transaction."""
    after = UUID(int=0)
    while True:
        values = {"after": after, "account": account, "chain_id": chain_id, "limit": PAGE}
        rows = (await connection.connection.execute(_ADDRESSES, values)).all()
        if rows:
            yield [address_of_row(row) for row in rows]
            after = rows[-1].id
        if len(rows) < PAGE:
            return


def address_of_row(row: Any) -> DepositAddress:
    """A row of `deposit_addresses` as a value."""
    return DepositAddress(
        id=row.id,
        chain_id=row.chain_id,
        address=row.address,
        scheme=Scheme(row.scheme),
        ring_id=row.ring_id,
        index=row.index,
        salt=row.salt,
        treasury=row.treasury,
        billing_account_id=row.billing_account_id,
        charge_id=row.charge_id,
        active_at=row.active_at,
        created_at=row.created_at,
    )
