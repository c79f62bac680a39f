"""What an account spent: reports as JSON and CSV, and recent calls with their receipts."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta
from typing import Any, Final
from uuid import UUID

from pydantic import Field

from db.billing import reports
from db.billing.reports import CallPosition, RecentCall, UsageRow, UsageSums
from db.engine import AnyConnection
from domain.billing.reports import UsageBy, UsagePeriod
from domain.errors import InvalidInput
from domain.money import format_exact, usd_for_credits
from services.answers import ResponseModel
from services.billing.spreadsheets import to_csv

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND: Final = timedelta(microseconds=1)

ROW_FIELDS: Final = {
    UsageBy.KEY: "key_id",
    UsageBy.MODEL: "model",
    UsageBy.DAY: "day",
    UsageBy.MEMBER: "user_id",
    UsageBy.ATTRIBUTED: "attributed_to",
    UsageBy.ACCOUNT: "billing_account_id",
}
"""The field of a row that names it."""

REST_LABEL: Final = "the rest"

_USD: Final = "US dollars, exact"


class UsageTotals(ResponseModel):
    """Sums over calls."""

    calls: int
    charged_credits: int
    provider_cost_usd: str = Field(description=_USD, examples=["0.00125"])
    absorbed_cost_usd: str = Field(description="the part of it for which no price was charged", examples=["0"])
    input_tokens: int = Field(description="including the cached ones")
    cached_input_tokens: int
    output_tokens: int

    @classmethod
    def fields_of(cls, sums: UsageSums) -> dict[str, Any]:
        """Its values."""
        return {
            "calls": sums.calls,
            "charged_credits": sums.charged_credits,
            "provider_cost_usd": format_exact(sums.provider_cost_usd),
            "absorbed_cost_usd": format_exact(sums.absorbed_cost_usd),
            "input_tokens": sums.input_tokens,
            "cached_input_tokens": sums.cached_input_tokens,
            "output_tokens": sums.output_tokens,
        }


class UsageReportRow(UsageTotals):
    """One row of a report; the field that names it depends on what the report is grouped by."""

    key_id: UUID | None = Field(default=None, description="by key")
    model: str | None = Field(default=None, description="by model")
    day: date | None = Field(default=None, description="by day: the UTC day on which the calls were booked")
    user_id: str | None = Field(default=None, description="by member; absent for keys that no member made")
    attributed_to: str | None = Field(default=None, description="by attributed account; absent for the own calls")
    billing_account_id: str | None = Field(default=None, description="by account, for operators")
    label: str | None = Field(default=None, description="a key's label, a member's wallet; absent where not known")
    is_rest: bool = Field(default=False, description="whether it is the sum of all rows that are too many to list")

    @classmethod
    def of(cls, by: UsageBy, row: UsageRow) -> UsageReportRow:
        """The answer for a row."""
        named = {ROW_FIELDS[by]: row.name} if row.name is not None else {}
        label = REST_LABEL if row.is_rest else row.label
        values = {**named, **UsageTotals.fields_of(row.sums), "label": label, "is_rest": row.is_rest}
        return cls.model_validate(values)


class UsageReport(ResponseModel):
    """What was spent in a period; the rows add up to the total."""

    billing_account_id: str | None = Field(default=None, description="the account; absent for all accounts")
    by: UsageBy
    first_day: date = Field(alias="from", description="UTC")
    last_day: date = Field(alias="to", description="UTC, included")
    rows: list[UsageReportRow] = Field(description="the largest first; days in their order")
    total: UsageTotals

    def as_csv(self) -> str:
        """The rows as CSV for spreadsheets."""
        name = ROW_FIELDS[self.by]
        columns = (name, "label", "calls", "charged_credits", "charged_usd", "provider_cost_usd", "absorbed_cost_usd")
        tokens = ("input_tokens", "cached_input_tokens", "output_tokens")
        return to_csv(
            (*columns, *tokens),
            (
                (
                    _text(getattr(row, name)),
                    row.label,
                    row.calls,
                    row.charged_credits,
                    format_exact(usd_for_credits(row.charged_credits)),
                    row.provider_cost_usd,
                    row.absorbed_cost_usd,
                    *(getattr(row, token) for token in tokens),
                )
                for row in self.rows
            ),
        )


class ReceiptLine(ResponseModel):
    """A part of a call's cost: so many units at so much for so many of them."""

    unit: str = Field(examples=["input_tokens"])
    count: int
    usd: str = Field(description=_USD, examples=["2.5"])
    per: int = Field(examples=[1_000_000])


class CallView(ResponseModel):
    """A call with its receipt."""

    receipt_id: UUID
    request_id: str
    key_id: UUID
    key_label: str | None = Field(default=None, description="null for a key of another account that bills this one")
    model: str
    provider: str
    charged_credits: int
    user_cost_usd: str = Field(description=_USD)
    provider_cost_usd: str = Field(description=_USD)
    absorbed_cost_usd: str = Field(description="the part of the provider's cost for which no price was charged")
    charge_reason: str
    source_system: str
    input_tokens: int = Field(description="including the cached ones")
    cached_input_tokens: int
    cache_write_tokens: int
    output_tokens: int = Field(description="including those of reasoning")
    reasoning_tokens: int
    estimated: bool = Field(description="whether the usage is an estimate, because the provider reported none")
    price_version: str | None = None
    markup_factor: str | None = Field(default=None, description="price over cost", examples=["2"])
    lines: list[ReceiptLine] = Field(description="what the cost is computed from")
    attributed_to: str | None = None
    called_at: datetime
    created_at: datetime = Field(description="when it was booked")

    @classmethod
    def of(cls, call: RecentCall) -> CallView:
        """The answer about a call."""
        return cls(
            receipt_id=call.receipt_id,
            request_id=call.request_id,
            key_id=call.virtual_key_id,
            key_label=call.key_label,
            model=call.model,
            provider=call.provider,
            charged_credits=call.charged_credits,
            user_cost_usd=format_exact(call.user_cost_usd),
            provider_cost_usd=format_exact(call.provider_cost_usd),
            absorbed_cost_usd=format_exact(call.absorbed_cost_usd),
            charge_reason=call.charge_reason,
            source_system=call.source_system,
            input_tokens=call.input_tokens,
            cached_input_tokens=call.cached_input_tokens,
            cache_write_tokens=call.cache_write_tokens,
            output_tokens=call.output_tokens,
            reasoning_tokens=call.reasoning_tokens,
            estimated=call.estimated,
            price_version=call.price_version,
            markup_factor=call.unit_prices.get("markup_factor"),
            lines=[ReceiptLine.model_validate(line) for line in call.unit_prices.get("lines", [])],
            attributed_to=call.attributed_to,
            called_at=call.called_at,
            created_at=call.created_at,
        )


async def read_report(
    connection: AnyConnection, by: UsageBy, period: UsagePeriod, *, billing_account_id: str | None
) -> UsageReport:
    """The report of an account, or (None) of all accounts that the connection sees."""
    rows = await reports.usage_report(connection, by, period, billing_account_id=billing_account_id)
    return UsageReport(
        billing_account_id=billing_account_id,
        by=by,
        first_day=period.first,
        last_day=period.last,
        rows=[UsageReportRow.of(by, row) for row in rows],
        total=UsageTotals(**UsageTotals.fields_of(reports.total_of(rows))),
    )


def cursor_of(position: CallPosition) -> str:
    """A page's end as text: microseconds since 1970, and the receipt's id."""
    return f"{(position.created_at - _EPOCH) // _MICROSECOND}.{position.receipt_id.hex}"


def parse_cursor(text: str) -> CallPosition:
    """The position that `cursor_of` made the text of. Raises `InvalidInput` naming `cursor`."""
    microseconds, _, receipt_id = text.partition(".")
    try:
        if not (microseconds.isascii() and microseconds.isdecimal()):
            raise ValueError
        return CallPosition(_EPOCH + timedelta(microseconds=int(microseconds)), UUID(hex=receipt_id))
    except (ValueError, OverflowError):
        raise InvalidInput("cursor", f"expected `nextCursor` of a page, got {text!r:.80}") from None


def _text(value: object) -> str | None:
    return None if value is None else str(value)
