"""Queries on payment methods and rings, which are the installation's: every connection sees them."""

from __future__ import annotations

from typing import Any, Final
from uuid import UUID

from sqlalchemy import text

from db.engine import AnyConnection
from domain.deposits.methods import AddressRing, MethodKind, PaymentMethod, Scheme

_METHODS: Final = text("SELECT m.* FROM payment_methods m ORDER BY m.created_at, m.id")
_METHOD: Final = text("SELECT m.* FROM payment_methods m WHERE m.id = :id")
_RING: Final = text("SELECT r.* FROM address_rings r WHERE r.id = :id")


async def list_methods(connection: AnyConnection) -> list[PaymentMethod]:
    """Every payment method, disabled ones too, the oldest first."""
    return [method_of_row(row) for row in await connection.connection.execute(_METHODS)]


async def find_method(connection: AnyConnection, method_id: str) -> PaymentMethod | None:
    """A payment method, enabled or not."""
    row = (await connection.connection.execute(_METHOD, {"id": method_id})).one_or_none()
    return method_of_row(row) if row else None


async def find_ring(connection: AnyConnection, ring_id: UUID) -> AddressRing | None:
    """An extended public key and its path."""
    row = (await connection.connection.execute(_RING, {"id": ring_id})).one_or_none()
    return ring_of_row(row) if row else None


def method_of_row(row: Any) -> PaymentMethod:
    """A row of `payment_methods` as a value."""
    return PaymentMethod(
        id=row.id,
        chain_id=row.chain_id,
        token=row.token,
        address=row.address,
        decimals=row.decimals,
        kind=MethodKind(row.kind),
        scheme=Scheme(row.scheme),
        ring_id=row.ring_id,
        min_amount_raw=int(row.min_amount_raw),
        confirmations=row.confirmations,
        enabled=row.enabled,
        created_at=row.created_at,
    )


def ring_of_row(row: Any) -> AddressRing:
    """A row of `address_rings` as a value."""
    return AddressRing(
        id=row.id,
        curve=row.curve,
        path=row.path,
        xpub=row.xpub,
        fingerprint=row.fingerprint,
        next_index=row.next_index,
        gap_limit=row.gap_limit,
        created_at=row.created_at,
    )
