"""Comparing what providers say that they billed with receipts, ledger and holds; each difference is a finding."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import date, timedelta
from decimal import Decimal

import structlog

from db.billing.provider_costs import read_booked_day
from db.engine import ServiceDatabase
from db.operations.findings import open_finding, settle_finding
from domain.billing.cost_comparison import DayOfProvider
from domain.billing.upstreams import Upstream
from domain.errors import ProviderUnavailable
from services.billing.provider_api import Providers
from services.billing.provider_costs import cost_source
from telemetry.metrics.worker import FINDINGS_OPENED

log = structlog.get_logger(__name__)


@dataclass(slots=True)
class Reconciled:
    """What was compared, and what of it differs."""

    days: list[DayOfProvider] = field(default_factory=list)
    unread: dict[str, str] = field(default_factory=dict)
    """Upstreams whose bill could not be read, and why."""


class ProviderReconciliation:
    """Safe to repeat: a day's finding is one, and closes itself when the day agrees."""

    def __init__(self, database: ServiceDatabase, providers: Providers) -> None:
        self._database = database
        self._providers = providers

    async def run(self, first: date, until: date, *, on_progress: Callable[[], object]) -> Reconciled:
        """Compare each UTC day from `first` to before `until`. One provider that does not answer stops no other."""
        done = Reconciled()
        for upstream in self._providers.upstreams:
            if upstream.costs is None:
                continue
            try:
                done.days += await self._compare(upstream, first, until)
            except ProviderUnavailable as error:
                log.warning("a provider's bill is not read", upstream=upstream.name, error=error.message)
                done.unread[upstream.name] = error.message
            on_progress()
        return done

    async def _compare(self, upstream: Upstream, first: date, until: date) -> list[DayOfProvider]:
        assert upstream.costs is not None
        billed = await cost_source(upstream, self._providers.admin_keys[upstream.name]).read(first, until)
        days = []
        for number in range((until - first).days):
            day = first + timedelta(days=number)
            async with self._database.transaction() as connection:
                booked = await read_booked_day(connection, upstream.name, day)
                compared = DayOfProvider(
                    upstream=upstream.name,
                    day=day,
                    billed_usd=billed.get(day, Decimal(0)),
                    receipts=booked.receipts,
                    receipts_usd=booked.receipts_usd,
                    receipts_credits=booked.receipts_credits,
                    ledger_credits=booked.ledger_credits,
                    open_holds=booked.open_holds,
                    tolerance_usd=upstream.costs.tolerance_usd,
                    tolerance_percent=upstream.costs.tolerance_percent,
                )
                finding = compared.finding()
                if not compared.problems:
                    await settle_finding(connection, finding.key)
                elif await open_finding(connection, finding):
                    FINDINGS_OPENED.labels(finding.kind.value).inc()
            days.append(compared)
        return days
