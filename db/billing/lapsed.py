"""Queries on holds whose owner has not been heard of: who died, and what was known of the call until then."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from typing import Any, Final
from uuid import UUID

from sqlalchemy import text

from db.engine import ServiceConnection

_LAPSED: Final = """
    SELECT h.id, h.billing_account_id, h.model, h.upstream, h.lease_until FROM credit_holds h
     WHERE h.state = 'held' AND h.lease_until < clock_timestamp() {after}
     ORDER BY h.lease_until, h.id LIMIT :limit
"""
_FIRST_LAPSED: Final = text(_LAPSED.format(after=""))
_NEXT_LAPSED: Final = text(_LAPSED.format(after="AND (h.lease_until, h.id) > (:lease_until, :id)"))

_FIND: Final = text(
    """
    SELECT h.state, h.lease_until < clock_timestamp() AS has_lapsed, h.billing_account_id, h.model, h.upstream,
           h.upstream_id, h.amount_credits, h.markup_factor, h.rates, h.input_tokens_estimate, h.output_tokens_limit,
           h.output_bytes, h.dialect
      FROM credit_holds h WHERE h.id = :id
    """
)


@dataclass(frozen=True, slots=True)
class LapsedHold:
    """A hold whose lease is over."""

    id: UUID
    billing_account_id: str
    model: str
    upstream: str
    lease_until: datetime


@dataclass(frozen=True, slots=True)
class StoredHold:
    """What is known of a call by its hold: the terms, and how far it was at its gateway's last heartbeat."""

    state: str
    has_lapsed: bool
    billing_account_id: str
    model: str
    upstream: str
    upstream_id: str | None
    amount_credits: int
    markup_factor: Decimal
    rates: Mapping[str, Any] | None
    """`domain.billing.pricing.ModelRates.rates` as JSON; None where only the upstream states what a call costs."""
    input_tokens_estimate: int
    output_tokens_limit: int | None
    output_bytes: int
    dialect: str

    @property
    def is_due(self) -> bool:
        """It is open, and its owner has not renewed it in time."""
        return self.state == "held" and self.has_lapsed


async def page_lapsed(
    connection: ServiceConnection, *, after: LapsedHold | None = None, limit: int
) -> list[LapsedHold]:
    """Holds whose lease is over, the longest lapsed first; the page `after` the last one of the page before."""
    values: dict[str, Any] = {"limit": limit}
    if after is not None:
        values |= {"lease_until": after.lease_until, "id": after.id}
    rows = await connection.connection.execute(_FIRST_LAPSED if after is None else _NEXT_LAPSED, values)
    return [LapsedHold(*row) for row in rows]


async def find_hold(connection: ServiceConnection, hold_id: UUID) -> StoredHold | None:
    """A hold as it is now; None where there is none."""
    row = (await connection.connection.execute(_FIND, {"id": hold_id})).one_or_none()
    return None if row is None else StoredHold(*row)
