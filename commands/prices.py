"""`settle prices show|diff|import`: versions of prices, and what the installed price book would change."""

from __future__ import annotations

import getpass
from collections.abc import Sequence
from datetime import date, datetime
from typing import Final

from commands.framework import parse_moment
from commands.output import grouped, print_json, progress, stdout, table
from composition import service_database
from db.billing.prices import StoredVersion, current_prices, list_versions
from domain.billing.price_book import Change, Price, PriceBook, PriceChange
from domain.billing.pricing import units
from domain.errors import Refusal
from gateway.upstreams_file import load_upstreams
from services.answers import ResponseModel
from services.billing.prices import Comparison, compare_installed, nothing_differs
from services.billing.prices import import_installed as write_installed
from settings import Settings

ROWS_MAX: Final = 200
"""Rows for a terminal; --json has all."""


class VersionView(ResponseModel):
    """A version of prices."""

    version: int
    source: str
    counts_from: datetime
    is_current: bool
    models: int
    created_by: str
    created_at: datetime


class RateView(ResponseModel):
    """A rate: US dollars for `per` units, once the input is longer than `above_input_tokens`."""

    unit: str
    above_input_tokens: int
    usd: str
    per: int


class PriceView(ResponseModel):
    """What a model's calls are priced at, before the markup."""

    model: str
    listed_as: str
    provider: str | None
    version: str
    """Of UPSTREAMS_FILE's prices `upstreams-file:` and a digest, as receipts name it."""
    rates: tuple[RateView, ...]
    replaced_version: str | None = None
    """The version in whose place UPSTREAMS_FILE has a price; null where its price counts, or it has none."""
    replaced_rates: tuple[RateView, ...] = ()


class RateChangeView(ResponseModel):
    """A rate that differs; null where there is none, percent also where the first is 0."""

    unit: str
    above_input_tokens: int
    per: int
    before_usd: str | None
    after_usd: str | None
    percent: str | None


class PriceChangeView(ResponseModel):
    """A model whose price differs."""

    model: str
    provider: str
    change: Change
    rates: tuple[RateChangeView, ...]

    @classmethod
    def of(cls, change: PriceChange) -> PriceChangeView:
        """The answer about a model."""
        return cls(
            model=change.model,
            provider=change.provider,
            change=change.change,
            rates=tuple(
                RateChangeView(
                    unit=rate.unit,
                    above_input_tokens=rate.above_input_tokens,
                    per=units()[rate.unit].per,
                    before_usd=None if rate.before_usd is None else format(rate.before_usd, "f"),
                    after_usd=None if rate.after_usd is None else format(rate.after_usd, "f"),
                    percent=None if rate.percent is None else format(rate.percent, "f"),
                )
                for rate in change.rates
            ),
        )


class LaterView(ResponseModel):
    """A day from which the installed price book has another price for a model: to be imported again then."""

    day: date
    model: str


class DiffView(ResponseModel):
    """What the installed price book would change. `imported_version` is null unless it was written."""

    counts_from: datetime
    before_version: str
    installed: str
    added: int
    removed: int
    changed: int
    renamed: int
    changes: tuple[PriceChangeView, ...]
    later: tuple[LaterView, ...]
    imported_version: int | None = None

    @classmethod
    def of(cls, comparison: Comparison, *, provider: str | None = None, imported: int | None = None) -> DiffView:
        """The answer about a comparison, of one provider's models or of all."""
        changes = [change for change in comparison.changes if provider in {None, change.provider}]
        counts = {change: sum(one.change is change for one in changes) for change in Change}
        return cls(
            counts_from=comparison.counts_from,
            before_version=comparison.before.version,
            installed=comparison.source,
            **{change.value: number for change, number in counts.items()},
            changes=tuple(map(PriceChangeView.of, changes)),
            later=tuple(
                LaterView(day=day, model=model)
                for day, model in comparison.later
                if provider is None or model.startswith(f"{provider}/")
            ),
            imported_version=imported,
        )


async def show_versions(settings: Settings, *, as_json: bool) -> None:
    """All versions, in the order in which they take effect. Raises `ConfigurationError`."""
    async with service_database(settings) as database, database.snapshot() as connection:
        current = _with_file(settings, await current_prices(connection.connection))
        versions = await list_versions(connection)
    views = [_version_view(version, current.version) for version in versions]
    if as_json:
        print_json(views)
        return
    stdout.print(
        table(
            "",
            ("version", "counts from", "", "models", "source", "written by"),
            [
                (
                    view.version,
                    f"{view.counts_from:%Y-%m-%d %H:%M:%S} UTC",
                    "counts now" if view.is_current else "",
                    grouped(view.models),
                    view.source,
                    view.created_by,
                )
                for view in views
            ],
            right=("models",),
        )
    )
    if current.overrides:
        stdout.print(
            f"{grouped(len(current.overrides))} models have prices of UPSTREAMS_FILE, which count before the versions: "
            "settle prices show --overrides",
            markup=False,
        )


async def show_overrides(settings: Settings, *, as_json: bool) -> None:
    """The prices of UPSTREAMS_FILE beside those of the version that they replace. Raises `ConfigurationError`."""
    settings.require_upstreams_file()
    async with service_database(settings) as database, database.snapshot() as connection:
        book = _with_file(settings, await current_prices(connection.connection))
    views = [view for model in sorted(book.overrides) if (view := _find(book, model)) is not None]
    if as_json:
        print_json(views)
        return
    columns = ("model", "unit", "USD", "for", f"version {book.version}")
    rows = [
        (view.model if number == 0 else "", rate.unit, rate.usd, grouped(rate.per), _replaced_usd(view, rate))
        for view in views
        for number, rate in enumerate(view.rates)
    ]
    stdout.print(table("", columns, rows, right=columns[2:]))


async def show_model(settings: Settings, *, model: str, as_json: bool) -> None:
    """The price of a model by any of its names, as the gateway has it. Raises `Refusal` where it has none."""
    async with service_database(settings) as database, database.snapshot() as connection:
        book = _with_file(settings, await current_prices(connection.connection))
    view = _find(book, model)
    if view is None:
        also = "" if settings.upstreams_file is None else ", nor in UPSTREAMS_FILE"
        raise Refusal(f"model {model!r:.200} has no price in version {book.version}{also}")
    if as_json:
        print_json(view)
        return
    listed = "" if view.listed_as == model else f", listed as {view.listed_as}"
    stdout.print(f"{model}{listed}: {view.provider or 'no provider'}, prices of version {view.version}", markup=False)
    stdout.print(
        table(
            "",
            ("unit", "above so much input", "USD", "for"),
            [(rate.unit, rate.above_input_tokens or None, rate.usd, grouped(rate.per)) for rate in view.rates],
            right=("above so much input", "USD", "for"),
        )
    )
    if view.replaced_version is not None:
        replaced = ", ".join(f"{rate.unit} {rate.usd}" for rate in view.replaced_rates if not rate.above_input_tokens)
        stdout.print(f"in place of version {view.replaced_version}: {replaced}", markup=False)


async def diff(settings: Settings, *, counts_from: str | None, provider: str | None, as_json: bool) -> None:
    """What an import would change. Raises `InvalidInput` for a time that is over."""
    moment = parse_moment("--counts-from", counts_from)
    async with service_database(settings) as database, database.snapshot() as connection:
        view = DiffView.of(await compare_installed(connection, moment), provider=provider)
    if as_json:
        print_json(view)
    else:
        _print(view)


async def import_installed(
    settings: Settings, *, counts_from: str | None, operator: str | None, confirmed: bool, as_json: bool
) -> None:
    """Write the installed price book as a version; without `confirmed` only a preview.

    Raises `InvalidInput`, and `Refusal` where nothing differs.
    """
    moment = parse_moment("--counts-from", counts_from)
    async with service_database(settings) as database, database.transaction() as connection:
        if confirmed:
            written_by = operator or getpass.getuser()
            comparison, version = await write_installed(connection, moment, created_by=written_by)
            view = DiffView.of(comparison, imported=version)
        else:
            comparison = await compare_installed(connection, moment)
            if not comparison.changes:
                raise Refusal(nothing_differs(comparison))
            view = DiffView.of(comparison)
    if as_json:
        print_json(view)
    else:
        _print(view)
        if view.imported_version is not None:
            stdout.print(
                f"version {view.imported_version} is written and counts from {view.counts_from:%Y-%m-%d %H:%M:%S} UTC",
                markup=False,
            )
    if not confirmed:
        progress("nothing was written; to write it, repeat with --yes")


def _version_view(version: StoredVersion, current: str) -> VersionView:
    return VersionView(
        version=version.id,
        source=version.source,
        counts_from=version.counts_from,
        is_current=str(version.id) == current,
        models=version.models,
        created_by=version.created_by,
        created_at=version.created_at,
    )


def _with_file(settings: Settings, book: PriceBook) -> PriceBook:
    """The version with the prices of UPSTREAMS_FILE, where there is one, as the gateway has them."""
    if settings.upstreams_file is None:
        return book
    return book.with_overrides(load_upstreams(settings.upstreams_file).prices)


def _find(book: PriceBook, model: str) -> PriceView | None:
    price, listed = book.find(model), book.without_overrides().find(model)
    if price is None:
        return None
    replaced = listed if listed is not None and listed.version != price.version else None
    return PriceView(
        model=model,
        listed_as=price.model,
        provider=price.provider,
        version=price.version,
        rates=_rate_views(price),
        replaced_version=replaced.version if replaced else None,
        replaced_rates=_rate_views(replaced) if replaced else (),
    )


def _rate_views(price: Price) -> tuple[RateView, ...]:
    return tuple(
        RateView(unit=unit, above_input_tokens=above, usd=format(usd, "f"), per=units()[unit].per)
        for unit, rate in sorted(price.rates.rates.items())
        for above, usd in ((0, rate.usd), *((tier.above_input_tokens, tier.usd) for tier in rate.tiers))
    )


def _replaced_usd(view: PriceView, rate: RateView) -> str | None:
    """What the version that is replaced takes for the same unit."""
    return next((one.usd for one in view.replaced_rates if one.unit == rate.unit and not one.above_input_tokens), None)


def _print(view: DiffView) -> None:
    stdout.print(
        f"version {view.before_version} against {view.installed}, at {view.counts_from:%Y-%m-%d %H:%M:%S} UTC: "
        f"{grouped(view.added)} models added, {grouped(view.removed)} removed, {grouped(view.changed)} with other "
        f"prices, {grouped(view.renamed)} with other names",
        style="bold",
        markup=False,
    )
    rows = [row for change in view.changes for row in _rows(change)]
    if rows:
        columns = ("model", "change", "unit", "above", "before", "after", "for", "percent")
        stdout.print(table("", columns, rows[:ROWS_MAX], right=columns[3:]))
    if len(rows) > ROWS_MAX:
        progress(f"{ROWS_MAX} of {grouped(len(rows))} rows shown; --json has all, --provider narrows them")
    if view.later:
        first = view.later[0]
        stdout.print(
            f"the price of {first.model} changes again on {first.day}"
            + (f", of {len(view.later) - 1} others later" if len(view.later) > 1 else "")
            + ": import again then, or ahead with --counts-from",
            markup=False,
        )


def _rows(change: PriceChangeView) -> Sequence[tuple[object, ...]]:
    head = (change.model, change.change.value)
    if not change.rates:
        return [(*head, *(None,) * 6)]
    return [
        (
            *head,
            rate.unit,
            rate.above_input_tokens or None,
            rate.before_usd,
            rate.after_usd,
            grouped(rate.per),
            rate.percent,
        )
        for rate in change.rates
    ]
