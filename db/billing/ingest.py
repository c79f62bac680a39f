"""Charging a call that an external proxy has made: one function of the database."""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Decimal
from typing import Final
from uuid import UUID

import psycopg
from sqlalchemy.ext.asyncio import AsyncConnection

from db.billing.holds import charge_values
from db.driver import fetch_one_by_driver
from domain.billing.charges import Charge
from domain.billing.ingested import SOURCE_SYSTEM, IngestedCall

_INGEST: Final = """
    SELECT outcome, receipt_id, charged
      FROM ingest_charge(%(source_system)s, %(reference)s, %(body_hash)s, %(request_id)s, %(account)s,
                         %(charged)s::bigint, %(user_cost)s::numeric, %(provider_cost)s::numeric,
                         %(absorbed_cost)s::numeric, %(reason)s, %(model)s, %(provider)s, %(upstream_id)s,
                         %(tokens)s::bigint[], %(estimated)s, %(doubt)s, %(doubt_detail)s, %(price_version)s,
                         %(unit_prices)s::jsonb, coalesce(%(called_at)s::timestamptz, now()))
"""


@dataclass(frozen=True, slots=True)
class Ingested:
    """What was charged, now or before. `outcome` is `charged`, `repeated` (the same body) or `conflict` (another)."""

    outcome: str
    receipt_id: UUID | None = None
    charged_credits: int | None = None


class UnknownAccount(Exception):
    """There is no such billing account."""


async def ingest_charge(
    connection: AsyncConnection,
    call: IngestedCall,
    charge: Charge,
    *,
    markup_factor: Decimal,
    price_version: str | None,
) -> Ingested:
    """Charge a call once; of the same reference and body the same answer. Raises `UnknownAccount`."""
    of_call = charge_values(
        charge, end=call.end, provider=call.provider, upstream_id=call.upstream_id, markup_factor=markup_factor
    )
    values = {
        **of_call,
        "source_system": SOURCE_SYSTEM,
        "reference": call.reference,
        "body_hash": call.body_hash,
        "request_id": call.request_id,
        "account": call.billing_account_id,
        "model": call.model,
        "price_version": price_version,
        "called_at": call.called_at,
    }
    try:
        row = await fetch_one_by_driver(connection, _INGEST, values)
    except psycopg.errors.ForeignKeyViolation as error:
        raise UnknownAccount(call.billing_account_id) from error
    assert row is not None  # a function's record
    return Ingested(*row)
