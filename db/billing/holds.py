"""Holds of the gateway's calls, and their charges: each function is one transaction and one round trip.

They are called for every call, so past SQLAlchemy: on connections of `TenantDatabase.hot_statement`.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from typing import Any, Final, LiteralString
from uuid import UUID

from db.statements import Connection
from domain.billing.charges import CallEnd, Charge

_HOLD: Final = """
    SELECT outcome, limit_source, account_id, key_id, held, balance, available, all_held, retry_after_seconds,
           rate_remaining
      FROM hold_credits(%(hold_id)s::uuid, %(key_hash)s, %(request_id)s, %(amount)s::bigint, %(amount_min)s::bigint,
                        %(dialect)s, %(model)s, %(upstream)s, %(is_streamed)s, %(attribute_to)s, %(bill_to)s, %(owner)s,
                        %(lease_seconds)s::float8, %(rate_bucket)s, %(rate_per_minute)s::integer,
                        %(markup_factor)s::numeric, %(price_version)s, %(rates)s::jsonb, %(input_tokens)s::bigint,
                        %(output_tokens_limit)s::bigint)
"""

_CAPTURE: Final = """
    SELECT outcome, charged, uncollected, balance
      FROM capture_hold(%(hold_id)s::uuid, %(only_lapsed)s, %(charged)s::bigint, %(grace)s::bigint,
                        %(user_cost)s::numeric, %(provider_cost)s::numeric, %(absorbed_cost)s::numeric, %(reason)s,
                        %(provider)s, %(upstream_id)s, %(tokens)s::bigint[], %(estimated)s, %(doubt)s, %(doubt_detail)s,
                        %(unit_prices)s::jsonb)
"""

_VOID: Final = "SELECT void_hold(%(hold_id)s::uuid)"

_RENEW: Final = """
    SELECT array_agg(h.id) FILTER (
               WHERE NOT renew_hold(h.id, %(owner)s, %(lease_seconds)s::float8, h.output_bytes, h.upstream_id))
      FROM unnest(%(ids)s::uuid[], %(output_bytes)s::bigint[], %(upstream_ids)s::text[])
           AS h (id, output_bytes, upstream_id)
"""

_MOVE: Final = "SELECT move_hold(%(hold_id)s::uuid, %(owner)s, %(upstream)s)"

_FIND_KEY: Final = """
    SELECT key_id, account_id, owner_user_id, state, models, balance, held
      FROM find_key(%(key_hash)s) WHERE key_id IS NOT NULL
"""

_USAGE: Final = """
    SELECT status, model, charged_credits, held_credits, input_tokens, cached_input_tokens, output_tokens,
           reasoning_tokens, estimated, provider_cost_usd, user_cost_usd, created_at
      FROM usage_of_request(%(key_hash)s, %(request_id)s)
"""


@dataclass(frozen=True, slots=True)
class HoldRequest:
    """What to set aside, and for which call."""

    hold_id: UUID
    key_hash: str
    request_id: str
    amount_credits: int
    amount_min_credits: int | None
    """Hold less where less is available, down to this; None: all or nothing."""
    dialect: str
    model: str
    upstream: str
    is_streamed: bool
    attribute_to: str | None
    bill_to: str | None
    owner: str
    lease_seconds: float
    rate_bucket: str
    rate_per_minute: int
    markup_factor: Decimal
    price_version: str | None
    rates: str | None
    """The model's rates as JSON; None where only the upstream states what a call costs."""
    input_tokens: int
    output_tokens_limit: int | None


@dataclass(frozen=True, slots=True)
class HoldAnswer:
    """What `hold_credits` says. Amounts are credits."""

    outcome: str
    """`held`, or why not (db/functions/billing.sql)."""
    limit_source: str | None
    account_id: str | None
    key_id: UUID | None
    held: int
    balance: int | None
    available: int | None
    all_held: int | None
    retry_after_seconds: float | None
    rate_remaining: int | None


@dataclass(frozen=True, slots=True)
class Captured:
    """What a call was charged, now or before. Amounts are credits."""

    outcome: str
    """`captured`, `repeated`, `not_lapsed`, `voided` or `unknown_hold`."""
    charged: int | None
    uncollected: int | None
    balance: int | None


@dataclass(frozen=True, slots=True)
class Progress:
    """How far an open call is, for its hold."""

    hold_id: UUID
    output_bytes: int
    upstream_id: str | None


@dataclass(frozen=True, slots=True)
class KeyState:
    """A key and its account. Amounts are credits."""

    key_id: UUID
    account_id: str
    owner_user_id: str
    """Whose scope its account is read in."""
    state: str
    """`active`, `unknown_key`, `key_revoked` or `key_expired`."""
    models: Sequence[str] | None
    """The models that it is for; None: all."""
    balance: int
    held: int


@dataclass(frozen=True, slots=True)
class RequestUsage:
    """What became of one request."""

    status: str
    model: str
    charged_credits: int
    held_credits: int
    input_tokens: int
    cached_input_tokens: int
    output_tokens: int
    reasoning_tokens: int
    estimated: bool
    provider_cost_usd: Decimal
    user_cost_usd: Decimal
    created_at: datetime


async def hold(connection: Connection, asked: HoldRequest) -> HoldAnswer:
    """Set credits aside for a call, or say why not."""
    values = {
        "hold_id": str(asked.hold_id),
        "key_hash": asked.key_hash,
        "request_id": asked.request_id,
        "amount": asked.amount_credits,
        "amount_min": asked.amount_min_credits,
        "dialect": asked.dialect,
        "model": asked.model,
        "upstream": asked.upstream,
        "is_streamed": asked.is_streamed,
        "attribute_to": asked.attribute_to,
        "bill_to": asked.bill_to,
        "owner": asked.owner,
        "lease_seconds": asked.lease_seconds,
        "rate_bucket": asked.rate_bucket,
        "rate_per_minute": asked.rate_per_minute,
        "markup_factor": asked.markup_factor,
        "price_version": asked.price_version,
        "rates": asked.rates,
        "input_tokens": asked.input_tokens,
        "output_tokens_limit": asked.output_tokens_limit,
    }
    return HoldAnswer(*await _row(connection, _HOLD, values))


async def capture(
    connection: Connection,
    hold_id: UUID,
    charge: Charge,
    *,
    end: CallEnd,
    markup_factor: Decimal,
    provider: str,
    upstream_id: str | None,
    grace_credits: int,
    only_lapsed: bool = False,
) -> Captured:
    """Charge a call: entry, receipt and the hold's end in one transaction; once, however often it is asked for."""
    values = {
        **charge_values(charge, end=end, provider=provider, upstream_id=upstream_id, markup_factor=markup_factor),
        "hold_id": str(hold_id),
        "only_lapsed": only_lapsed,
        "grace": grace_credits,
    }
    return Captured(*await _row(connection, _CAPTURE, values))


def charge_values(
    charge: Charge, *, end: CallEnd, provider: str, upstream_id: str | None, markup_factor: Decimal
) -> dict[str, Any]:
    """What a function that charges a call is given of the call itself, by the statements' names."""
    usage = charge.usage
    return {
        "charged": charge.charged_credits,
        "user_cost": charge.user_cost_usd,
        "provider_cost": charge.provider_cost_usd,
        "absorbed_cost": charge.absorbed_cost_usd,
        "reason": end.value,
        "provider": provider,
        "upstream_id": upstream_id,
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
        "unit_prices": unit_prices(charge, markup_factor),
    }


def unit_prices(charge: Charge, markup_factor: Decimal) -> str:
    """What a receipt needs to be computed again, as JSON with decimals as text."""
    lines = [
        {"unit": line.unit, "count": line.count, "usd": format(line.usd, "f"), "per": line.per} for line in charge.lines
    ]
    return json.dumps({"markup_factor": format(markup_factor, "f"), "lines": lines})


async def void(connection: Connection, hold_id: UUID) -> bool:
    """Release the hold of a call that cost nothing to anyone. False where it is resolved already, or unknown."""
    [voided] = await _row(connection, _VOID, {"hold_id": str(hold_id)})
    return bool(voided)


async def renew(
    connection: Connection, progress: Sequence[Progress], *, owner: str, lease_seconds: float
) -> list[UUID]:
    """Extend the leases of open calls, and note how far they are. The holds that are resolved, or another's."""
    values = {
        "owner": owner,
        "lease_seconds": lease_seconds,
        "ids": [str(call.hold_id) for call in progress],
        "output_bytes": [call.output_bytes for call in progress],
        "upstream_ids": [call.upstream_id for call in progress],
    }
    [lost] = await _row(connection, _RENEW, values)
    return list(lost or ())


async def move(connection: Connection, hold_id: UUID, *, owner: str, upstream: str) -> bool:
    """Another upstream is tried with the call. False where the hold is resolved, or another's."""
    [moved] = await _row(connection, _MOVE, {"hold_id": str(hold_id), "owner": owner, "upstream": upstream})
    return bool(moved)


async def find_key(connection: Connection, key_hash: str) -> KeyState | None:
    """A key by its hash, and what its account has; None where there is none."""
    row = await (await connection.execute(_FIND_KEY, {"key_hash": key_hash})).fetchone()
    return None if row is None else KeyState(*row)


async def usage_of_request(connection: Connection, key_hash: str, request_id: str) -> RequestUsage | None:
    """What became of a request of the key's account; None where that has none by this id."""
    row = await (await connection.execute(_USAGE, {"key_hash": key_hash, "request_id": request_id})).fetchone()
    return None if row is None else RequestUsage(*row)


async def _row(connection: Connection, statement: LiteralString, values: dict[str, Any]) -> tuple[Any, ...]:
    row = await (await connection.execute(statement, values)).fetchone()
    assert row is not None  # a function's record
    return row
