"""Charging a call that an external proxy has made: one function of the database."""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Decimal
from typing import Final
from uuid import UUID

import psycopg
from sqlalchemy.ext.asyncio import AsyncConnection

from db.billing.holds import unit_prices
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
    usage = charge.usage
    values = {
        "source_system": SOURCE_SYSTEM,
        "reference": call.reference,
        "body_hash": call.body_hash,
        "request_id": call.request_id,
        "account": call.billing_account_id,
        "charged": charge.charged_credits,
        "user_cost": charge.user_cost_usd,
        "provider_cost": charge.provider_cost_usd,
        "absorbed_cost": charge.absorbed_cost_usd,
        "reason": call.end.value,
        "model": call.model,
        "provider": call.provider,
        "upstream_id": call.upstream_id,
        "tokens": [
            usage.input_tokens,
            usage.cached_input_tokens,
            usage.cache_write_tokens,
            usage.output_tokens,
            usage.reasoning_tokens,
        ],
        "estimated": charge.is_estimated,
        "doubt": charge.doubt.value if charge.doubt else None,
        "doubt_detail": charge.doubt_detail,
        "price_version": price_version,
        "unit_prices": unit_prices(charge, markup_factor),
        "called_at": call.called_at,
    }
    try:
        row = await fetch_one_by_driver(connection, _INGEST, values)
    except psycopg.errors.ForeignKeyViolation as error:
        raise UnknownAccount(call.billing_account_id) from error
    assert row is not None  # a function's record
    return Ingested(*row)
