"""`settle provider-costs`: compares what providers billed with receipts, ledger and holds, day by day."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, date, timedelta
from typing import Final

from commands.output import grouped, print_json, progress, stdout, table
from composition import service_database
from db.clock import read_clock
from domain.billing.cost_comparison import DayOfProvider
from domain.billing.reports import UsagePeriod, parse_period
from domain.billing.upstreams import Upstream
from domain.errors import ConfigurationError, InvalidInput
from domain.money import format_exact
from gateway.upstreams_file import admin_keys, load_upstreams
from services.answers import ResponseModel
from services.billing.provider_api import Providers
from services.billing.provider_reconciliation import ProviderReconciliation, Reconciled
from settings import Settings

USUAL_DAYS: Final = 3
"""As the job's."""
DAYS_MAX: Final = 28


class ProviderDayView(ResponseModel):
    """One UTC day of an upstream. Amounts in US dollars are exact decimals."""

    upstream: str
    day: date
    billed_usd: str
    booked_usd: str
    """The provider's cost by the receipts of that day's calls."""
    difference_usd: str
    """Billed less booked."""
    receipts: int
    receipts_credits: int
    ledger_credits: int
    open_holds: int
    agrees: bool
    problems: tuple[str, ...]

    @classmethod
    def of(cls, found: DayOfProvider) -> ProviderDayView:
        """The answer about a day."""
        return cls(
            upstream=found.upstream,
            day=found.day,
            billed_usd=format_exact(found.billed_usd),
            booked_usd=format_exact(found.receipts_usd),
            difference_usd=format_exact(found.difference_usd),
            receipts=found.receipts,
            receipts_credits=found.receipts_credits,
            ledger_credits=found.ledger_credits,
            open_holds=found.open_holds,
            agrees=not found.problems,
            problems=found.problems,
        )


class UnreadView(ResponseModel):
    """An upstream whose bill could not be read, and why."""

    upstream: str
    reason: str


class ProviderCostsView(ResponseModel):
    """What was compared."""

    first_day: date
    last_day: date
    agrees: bool
    days: tuple[ProviderDayView, ...]
    unread: tuple[UnreadView, ...]

    @classmethod
    def of(cls, period: UsagePeriod, done: Reconciled) -> ProviderCostsView:
        """The answer about a comparison."""
        days = tuple(map(ProviderDayView.of, done.days))
        unread = tuple(UnreadView(upstream=name, reason=why) for name, why in done.unread.items())
        agrees = all(day.agrees for day in days) and not unread
        return cls(first_day=period.first, last_day=period.last, agrees=agrees, days=days, unread=unread)


async def compare_costs(
    settings: Settings,
    variables: Mapping[str, str],
    *,
    first_day: str | None,
    last_day: str | None,
    upstream: str | None,
    as_json: bool,
) -> bool:
    """Compare completed UTC days, as the scheduled job does; whether all agree and every bill could be read.

    Raises `InvalidInput`, and `ConfigurationError` where no upstream, or not the one asked for, has `costs:`.
    """
    found = _with_costs(load_upstreams(settings.require_upstreams_file()).upstreams, upstream)
    providers = Providers(found, admin_keys=admin_keys(found, variables))
    async with service_database(settings) as database:
        async with database.transaction() as connection:
            today = (await read_clock(connection.connection)).astimezone(UTC).date()
        period = _period(first_day, last_day, today=today)
        done = await ProviderReconciliation(database, providers).run(
            period.first, period.last + timedelta(days=1), on_progress=lambda: None
        )
    view = ProviderCostsView.of(period, done)
    if as_json:
        print_json(view)
    else:
        _print(view)
    return view.agrees


def _with_costs(upstreams: tuple[Upstream, ...], name: str | None) -> tuple[Upstream, ...]:
    found = tuple(one for one in upstreams if one.costs is not None and name in {None, one.name})
    if not found:
        which = "no upstream has" if name is None else f"there is no upstream {name!r:.60} with"
        raise ConfigurationError(f"UPSTREAMS_FILE: {which} costs: expected where its provider reports what it billed")
    return found


def _period(first: str | None, last: str | None, *, today: date) -> UsagePeriod:
    yesterday = today - timedelta(days=1)
    until = last or (yesterday.isoformat() if first is None or first <= yesterday.isoformat() else first)
    period = parse_period(first, until, today=today)
    if period.last >= today:
        raise InvalidInput("to", f"expected a UTC day that is over, {yesterday} at the latest, got {period.last}")
    if first is None:
        return UsagePeriod(period.last - timedelta(days=USUAL_DAYS - 1), period.last)
    if period.days > DAYS_MAX:
        raise InvalidInput("from", f"expected at most {DAYS_MAX} days up to {period.last}, got {period.days}")
    return period


def _print(view: ProviderCostsView) -> None:
    columns = ("upstream", "day (UTC)", "billed USD", "booked USD", "difference", "receipts", "")
    rows = [
        (
            day.upstream,
            day.day,
            day.billed_usd,
            day.booked_usd,
            day.difference_usd,
            grouped(day.receipts),
            "agrees" if day.agrees else "; ".join(day.problems),
        )
        for day in view.days
    ]
    if rows:
        stdout.print(table("", columns, rows, right=columns[2:6]))
    for one in view.unread:
        stdout.print(f"{one.upstream}: its bill could not be read: {one.reason}", markup=False)
    differing = sum(not day.agrees for day in view.days)
    if differing:
        progress(f"{differing} days differ: findings provider_cost_differs; see: settle findings list")
