"""What was spent: sums from `usage_by_day`, and recent calls with their receipts.

A report never reads receipts, of which there are as many as calls.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from datetime import datetime
from decimal import Decimal
from typing import Any, Final, NamedTuple
from uuid import UUID

from sqlalchemy import select, text, tuple_

from db.engine import AnyConnection
from db.tables.accounts import VirtualKey
from db.tables.billing import ChargeReceipt
from domain.billing.reports import UsageBy, UsagePeriod

REPORT_ROWS_MAX: Final = 10_000


@dataclass(frozen=True, slots=True)
class UsageSums:
    """Sums over calls. Credits are what was charged; costs are US dollars, exact."""

    calls: int = 0
    charged_credits: int = 0
    provider_cost_usd: Decimal = Decimal(0)
    absorbed_cost_usd: Decimal = Decimal(0)
    input_tokens: int = 0
    cached_input_tokens: int = 0
    output_tokens: int = 0


@dataclass(frozen=True, slots=True)
class UsageRow:
    """One row of a report.

    `name` is the key's id, the model, the day (`YYYY-MM-DD`), the user's id or the account's id. It is None for keys
    without a member, and for calls that are attributed to no other account. `label` is what people know it by: a
    key's label, a member's wallet, an account's name. `is_rest` marks the sum of all rows beyond `REPORT_ROWS_MAX`.
    """

    name: str | None
    label: str | None
    is_rest: bool
    sums: UsageSums


@dataclass(frozen=True, slots=True)
class CallPosition:
    """Where a page of calls ends: the time and id of its last receipt."""

    created_at: datetime
    receipt_id: UUID


@dataclass(frozen=True, slots=True)
class RecentCall:
    """A call with its receipt. `key_label` is None for a key of an account that the connection does not see."""

    receipt_id: UUID
    request_id: str
    virtual_key_id: UUID
    key_label: str | None
    model: str
    provider: str
    charged_credits: int
    provider_cost_usd: Decimal
    user_cost_usd: Decimal
    absorbed_cost_usd: Decimal
    source_system: str
    charge_reason: str
    input_tokens: int
    cached_input_tokens: int
    cache_write_tokens: int
    output_tokens: int
    reasoning_tokens: int
    estimated: bool
    price_version: str | None
    unit_prices: dict[str, Any]
    attributed_to: str | None
    called_at: datetime
    created_at: datetime
    """When it was booked."""

    @property
    def position(self) -> CallPosition:
        """For the page after it."""
        return CallPosition(self.created_at, self.receipt_id)


class _Grouping(NamedTuple):
    name: str
    """Of a row of `usage_by_day u` (and of `keys k`, where they are joined)."""
    label: str = "NULL"
    join_keys: bool = False
    join_labels: str = ""
    order: str = "charged_credits DESC, calls DESC, name"


_GROUPINGS: Final = {
    UsageBy.KEY: _Grouping(
        "u.virtual_key_id", "l.label", join_labels="LEFT JOIN virtual_keys l ON l.id::text = r.name"
    ),
    UsageBy.MODEL: _Grouping("u.model"),
    UsageBy.DAY: _Grouping("u.day", order="name"),
    UsageBy.MEMBER: _Grouping(
        "k.created_by_user_id",
        "coalesce(l.wallet_address, m.wallet_address)",
        join_keys=True,
        # A tenant sees no user but its own; the members of an account it manages through the function.
        join_labels="LEFT JOIN users l ON l.id = r.name LEFT JOIN members_of_account(:account) m ON m.user_id = r.name",
    ),
    UsageBy.ATTRIBUTED: _Grouping("u.attributed_to"),
    UsageBy.ACCOUNT: _Grouping(
        "u.billing_account_id", "l.name", join_labels="LEFT JOIN billing_accounts l ON l.id = r.name"
    ),
}

_SUMS: Final = ", ".join(
    f"sum({{0}}.{column})::{kind} AS {column}"
    for column, kind in (
        ("calls", "bigint"),
        ("charged_credits", "bigint"),
        ("provider_cost_usd", "numeric"),
        ("absorbed_cost_usd", "numeric"),
        ("input_tokens", "bigint"),
        ("cached_input_tokens", "bigint"),
        ("output_tokens", "bigint"),
    )
)


def report_sql(by: UsageBy, *, of_account: bool) -> str:
    """The query of a report, with parameters `account`, `first`, `last` and `limit`."""
    grouping = _GROUPINGS[by]
    keys = "LEFT JOIN virtual_keys k ON k.id = u.virtual_key_id" if grouping.join_keys else ""
    account = "AND u.billing_account_id = :account" if of_account else ""
    return f"""
        WITH found AS (
            SELECT {grouping.name} AS name, {_SUMS.format("u")}
              FROM usage_by_day u {keys}
             WHERE u.day BETWEEN :first AND :last {account}
             GROUP BY 1
        ), ranked AS (
            SELECT f.*, nullif(f.name::text, '') AS known_as, row_number() OVER (ORDER BY {grouping.order}) AS place
              FROM found f
        ), cut AS (
            SELECT CASE WHEN f.place <= :limit THEN f.known_as END AS name, f.place > :limit AS is_rest,
                   min(f.place) AS place, {_SUMS.format("f")}
              FROM ranked f GROUP BY 1, 2
        )
        SELECT {grouping.label} AS label, r.* FROM cut r {grouping.join_labels} ORDER BY r.place
    """  # noqa: S608 - of the constants above


async def usage_report(
    connection: AnyConnection,
    by: UsageBy,
    period: UsagePeriod,
    *,
    billing_account_id: str | None,
    rows_max: int = REPORT_ROWS_MAX,
) -> list[UsageRow]:
    """What an account spent in a period (None: all accounts that the connection sees), the largest row first, days in
    their order.

    The rows add up to the whole: what is beyond `rows_max` is one more row.
    """
    values = {"account": billing_account_id, "first": period.first, "last": period.last, "limit": rows_max}
    query = text(report_sql(by, of_account=billing_account_id is not None))
    return [_to_row(row) for row in await connection.connection.execute(query, values)]


def total_of(rows: list[UsageRow]) -> UsageSums:
    """The sum of a report's rows."""
    sums = [row.sums for row in rows]
    return UsageSums(
        calls=sum(row.calls for row in sums),
        charged_credits=sum(row.charged_credits for row in sums),
        provider_cost_usd=sum((row.provider_cost_usd for row in sums), Decimal(0)),
        absorbed_cost_usd=sum((row.absorbed_cost_usd for row in sums), Decimal(0)),
        input_tokens=sum(row.input_tokens for row in sums),
        cached_input_tokens=sum(row.cached_input_tokens for row in sums),
        output_tokens=sum(row.output_tokens for row in sums),
    )


_RECEIPT: Final = [
    ChargeReceipt.id.label("receipt_id"),
    VirtualKey.label.label("key_label"),
    *(
        getattr(ChargeReceipt, found.name)
        for found in fields(RecentCall)
        if found.name not in {"receipt_id", "key_label"}
    ),
]


async def page_calls(
    connection: AnyConnection, billing_account_id: str, *, limit: int, before: CallPosition | None = None
) -> list[RecentCall]:
    """An account's calls with their receipts, the last booked first, at most `limit`; older than `before`."""
    query = (
        select(*_RECEIPT)
        .outerjoin(VirtualKey, VirtualKey.id == ChargeReceipt.virtual_key_id)
        .where(ChargeReceipt.billing_account_id == billing_account_id)
        .order_by(ChargeReceipt.created_at.desc(), ChargeReceipt.id.desc())
        .limit(limit)
    )
    if before is not None:
        query = query.where(
            # The first condition is implied by the second, and is what months and the index are chosen by.
            ChargeReceipt.created_at <= before.created_at,
            tuple_(ChargeReceipt.created_at, ChargeReceipt.id) < tuple_(before.created_at, before.receipt_id),
        )
    return [RecentCall(**row._mapping) for row in await connection.connection.execute(query)]


def _to_row(row: Any) -> UsageRow:
    return UsageRow(
        name=row.name,
        label=row.label,
        is_rest=row.is_rest,
        sums=UsageSums(
            calls=row.calls,
            charged_credits=row.charged_credits,
            provider_cost_usd=row.provider_cost_usd,
            absorbed_cost_usd=row.absorbed_cost_usd,
            input_tokens=row.input_tokens,
            cached_input_tokens=row.cached_input_tokens,
            output_tokens=row.output_tokens,
        ),
    )
