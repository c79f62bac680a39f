"""What `settle doctor` checks of the gateway: its readiness, upstreams and prices, lapsed holds, months of receipts."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from composition import service_database
from db.billing.health import count_lapsed, list_missing_months
from db.billing.prices import current_prices
from domain.billing.upstreams import Upstreams, UsageLookup
from domain.errors import ApiNotReady, ConfigurationError, HoldsNotResolved, StartupCheckFailed
from gateway.upstream_client import UpstreamFailed, upstream_client
from gateway.upstreams_file import load_upstreams, upstream_keys
from services.billing.resolution import RESOLVED_WITHIN
from settings import Settings

MONTHS_AHEAD: Final = 1
SHOWN_MAX: Final = 5
ANSWER_SECONDS_MAX: Final = 10.0


async def check_upstreams(settings: Settings, variables: Mapping[str, str], path: Path) -> str:
    """The file can be read, the models that it names have prices, and an upstream answers. Raises `SettleError`."""
    upstreams = load_upstreams(path)
    keys = upstream_keys(upstreams.upstreams, variables)
    unpriced = await _unpriced_models(settings, upstreams)
    if unpriced:
        more = f" and {len(unpriced) - SHOWN_MAX} more" if len(unpriced) > SHOWN_MAX else ""
        raise ConfigurationError(
            f"UPSTREAMS_FILE: {', '.join(unpriced[:SHOWN_MAX])}{more} without a price: calls are refused; "
            "add prices to the file, or: settle prices import"
        )
    async with upstream_client(keys, read_timeout_seconds=ANSWER_SECONDS_MAX) as client:
        answers = await asyncio.gather(
            *(client.models(upstream) for upstream in upstreams.upstreams), return_exceptions=True
        )
    silent = [
        upstream.name
        for upstream, answer in zip(upstreams.upstreams, answers, strict=True)
        if isinstance(answer, UpstreamFailed)
    ]
    if len(silent) == len(answers):
        raise ApiNotReady(f"no upstream lists its models: {', '.join(silent)}")
    words = f"{len(answers) - len(silent)} of {len(answers)} upstreams answer"
    return f"{words}; none from {', '.join(silent)}" if silent else words


async def _unpriced_models(settings: Settings, upstreams: Upstreams) -> list[str]:
    async with service_database(settings) as database, database.transaction() as connection:
        book = (await current_prices(connection.connection)).with_overrides(upstreams.prices)
    return sorted(
        {
            model
            for upstream in upstreams.upstreams
            if upstream.usage_lookup is UsageLookup.NONE
            for model in upstream.named_models
            if book.find(model) is None
        }
    )


async def check_spending(settings: Settings) -> str:
    """Lapsed holds are resolved, and the coming months of receipts are prepared. Raises `SettleError`."""
    async with service_database(settings) as database, database.transaction() as connection:
        lapsed = await count_lapsed(connection, since=RESOLVED_WITHIN)
        missing = await list_missing_months(connection, ahead=MONTHS_AHEAD)
    minutes = int(RESOLVED_WITHIN.total_seconds()) // 60
    if lapsed:
        raise HoldsNotResolved(
            f"{lapsed} holds lapsed more than {minutes} min ago and are not resolved: the job BillingHousekeeping "
            "starts their workflows; see: settle schedules list"
        )
    if missing:
        raise StartupCheckFailed(
            f"receipts of {', '.join(missing)} have no partition: the job BillingHousekeeping prepares them; "
            "see: settle schedules list"
        )
    return "lapsed holds are resolved, receipts of this month and the next have a partition"
