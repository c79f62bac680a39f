"""`settle usage`: what was spent, and what the platform earned and absorbed, for operators."""

from __future__ import annotations

from datetime import UTC
from decimal import Decimal
from typing import Any, Final

import click

from commands.output import grouped, print_json, stdout, table
from composition import service_database
from db.billing.accounts import find_account
from db.clock import read_clock
from domain.billing.reports import UsageBy, parse_period
from domain.errors import AccountNotFound
from domain.money import format_exact, usd_for_credits
from services.billing.reports import ROW_FIELDS, UsageReport, UsageTotals, read_report
from services.billing.spreadsheets import to_csv
from settings import Settings

_SUMS: Final = ("calls", "charged_credits", "provider_cost_usd", "absorbed_cost_usd")
_TOKENS: Final = ("input_tokens", "cached_input_tokens", "output_tokens")


async def report(
    settings: Settings,
    *,
    account: str | None,
    by: UsageBy | None,
    first: str | None,
    last: str | None,
    as_csv: bool,
    as_json: bool,
) -> None:
    """A report of one account, or of all. Raises `InvalidInput` for days, and `AccountNotFound`."""
    by = by or (UsageBy.ACCOUNT if account is None else UsageBy.MODEL)
    async with service_database(settings) as database, database.snapshot() as connection:
        today = (await read_clock(connection.connection)).astimezone(UTC).date()
        period = parse_period(first, last, today=today)
        if account is not None and await find_account(connection, account) is None:
            raise AccountNotFound(account)
        found = await read_report(connection, by, period, billing_account_id=account)
    if as_json:
        print_json(_with_margins(found))
    elif as_csv:
        click.echo(_to_csv(found), nl=False)
    else:
        _print(found)


def _earned(sums: UsageTotals) -> tuple[Decimal, Decimal]:
    """What was charged, and what is left of it after all that providers take: exact, in US dollars."""
    charged = usd_for_credits(sums.charged_credits)
    return charged, charged - Decimal(sums.provider_cost_usd)


def _with_margins(found: UsageReport) -> dict[str, Any]:
    document = found.model_dump(mode="json", by_alias=True, exclude_none=True)
    parts = zip([*document["rows"], document["total"]], [*found.rows, found.total], strict=True)
    for part, sums in parts:
        part["chargedUsd"], part["marginUsd"] = map(format_exact, _earned(sums))
    return document


def _to_csv(found: UsageReport) -> str:
    name = ROW_FIELDS[found.by]
    return to_csv(
        (name, "label", *_SUMS, "charged_usd", "margin_usd", *_TOKENS),
        (
            (
                None if getattr(row, name) is None else str(getattr(row, name)),
                row.label,
                *(getattr(row, column) for column in _SUMS),
                # As numbers: a text that begins with a minus sign is a formula.
                *(Decimal(format_exact(amount)) for amount in _earned(row)),
                *(getattr(row, column) for column in _TOKENS),
            )
            for row in found.rows
        ),
    )


def _print(found: UsageReport) -> None:
    name = ROW_FIELDS[found.by]
    whose = "all accounts" if found.billing_account_id is None else f"account {found.billing_account_id}"
    columns = ("calls", "credits", "USD", "providers' cost", "absorbed", "margin", "input", "output")
    rows = [(getattr(row, name), row.label, *_cells(row)) for row in found.rows]
    total = ("in all", None, *_cells(found.total))
    title = f"{whose}, {found.first_day} to {found.last_day} (UTC)"
    stdout.print(table(title, (found.by.value, "", *columns), [*rows, total], right=columns))


def _cells(sums: UsageTotals) -> tuple[str, ...]:
    charged, margin = map(format_exact, _earned(sums))
    return (
        grouped(sums.calls),
        grouped(sums.charged_credits),
        charged,
        sums.provider_cost_usd,
        sums.absorbed_cost_usd,
        margin,
        grouped(sums.input_tokens),
        grouped(sums.output_tokens),
    )
