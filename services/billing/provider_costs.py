"""What providers say that they billed, by UTC day: one interface, an adapter for each kind of report."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal, InvalidOperation
from typing import Any, Final, Protocol

from domain.billing.upstreams import CostKind, Upstream
from domain.errors import ProviderUnavailable
from domain.money import usd_of_cents
from services.billing.provider_api import bearer, get_json

DAY: Final = timedelta(days=1)
PAGES_MAX: Final = 100
ANTHROPIC_VERSION: Final = "2023-06-01"


class CostSource(Protocol):
    """A provider's own sums. Raises `ProviderUnavailable`."""

    async def read(self, first: date, until: date) -> Mapping[date, Decimal]:
        """US dollars billed for each UTC day from `first` to before `until`; a day that is missing cost nothing."""


@dataclass(frozen=True, slots=True)
class _Report:
    """Where a report is, and who asks."""

    base_url: str
    key: str = field(repr=False)
    who: str

    async def get(self, path: str, parameters: Mapping[str, str], headers: Mapping[str, str] | None = None) -> Any:
        """The JSON of one answer. Raises `ProviderUnavailable`, also where there is no such report."""
        answer = await get_json(
            f"{self.base_url}/{path}", parameters, headers=headers or bearer(self.key), who=self.who
        )
        if answer is None:
            raise ProviderUnavailable(f"{self.who} has no {path}")
        return answer

    def unreadable(self, what: object) -> ProviderUnavailable:
        """The error for an answer of another shape."""
        return ProviderUnavailable(f"{self.who}: the report of costs cannot be read: {what!r:.80}")

    def usd(self, value: object) -> Decimal:
        """An amount from a number or its text; what is added up must be one. Raises `ProviderUnavailable`."""
        try:
            amount = Decimal(value) if isinstance(value, str | int | Decimal) and not isinstance(value, bool) else None
        except InvalidOperation:
            amount = None
        if amount is None or not amount.is_finite():
            raise self.unreadable(value)
        return amount

    def items(self, document: Any, name: str) -> list[Any]:
        """A list in an object. Raises `ProviderUnavailable`."""
        found = document.get(name) if isinstance(document, Mapping) else None
        if not isinstance(found, list):
            raise self.unreadable(document)
        return found


class OpenAiCosts(_Report):
    """`GET /organization/costs`: buckets of a day, amounts in US dollars."""

    async def read(self, first: date, until: date) -> Mapping[date, Decimal]:
        """Sums of all line items."""
        costs: dict[date, Decimal] = {}
        page: str | None = None
        for _ in range(PAGES_MAX):
            parameters = {
                "start_time": str(_seconds(first)),
                "end_time": str(_seconds(until)),
                "bucket_width": "1d",
                "limit": "180",
            }
            document = await self.get("organization/costs", parameters | ({"page": page} if page else {}))
            for bucket in self.items(document, "data"):
                day = self._day(bucket)
                for result in self.items(bucket, "results"):
                    amount = result.get("amount") if isinstance(result, Mapping) else None
                    if not isinstance(amount, Mapping) or str(amount.get("currency")).lower() != "usd":
                        raise self.unreadable(result)
                    costs[day] = costs.get(day, Decimal(0)) + self.usd(amount.get("value"))
            page = document.get("next_page") if document.get("has_more") else None
            if page is None:
                return costs
        raise self.unreadable(f"more than {PAGES_MAX} pages")

    def _day(self, bucket: Any) -> date:
        started = bucket.get("start_time") if isinstance(bucket, Mapping) else None
        if not isinstance(started, int):
            raise self.unreadable(bucket)
        return datetime.fromtimestamp(started, UTC).date()


class AnthropicCosts(_Report):
    """`GET /organizations/cost_report`: buckets of a day, amounts in cents as decimal text."""

    async def read(self, first: date, until: date) -> Mapping[date, Decimal]:
        """Sums of all results."""
        costs: dict[date, Decimal] = {}
        page: str | None = None
        headers = {"x-api-key": self.key, "anthropic-version": ANTHROPIC_VERSION}
        for _ in range(PAGES_MAX):
            parameters = {
                "starting_at": _midnight(first).strftime("%Y-%m-%dT%H:%M:%SZ"),
                "ending_at": _midnight(until).strftime("%Y-%m-%dT%H:%M:%SZ"),
                "bucket_width": "1d",
                "limit": "31",
            }
            document = await self.get(
                "organizations/cost_report", parameters | ({"page": page} if page else {}), headers
            )
            for bucket in self.items(document, "data"):
                day = _day_of(bucket.get("starting_at") if isinstance(bucket, Mapping) else None)
                if day is None:
                    raise self.unreadable(bucket)
                for result in self.items(bucket, "results"):
                    if not isinstance(result, Mapping) or str(result.get("currency")).lower() != "usd":
                        raise self.unreadable(result)
                    costs[day] = costs.get(day, Decimal(0)) + usd_of_cents(self.usd(result.get("amount")))
            page = document.get("next_page") if document.get("has_more") else None
            if page is None:
                return costs
        raise self.unreadable(f"more than {PAGES_MAX} pages")


class OpenRouterActivity(_Report):
    """`GET /activity`: rows by day, model and endpoint, of completed days of the last month. `usage` is what OpenRouter
    takes, `byok_usage_inference` what the provider behind it takes with a key of the account's own.
    """

    async def read(self, first: date, until: date) -> Mapping[date, Decimal]:
        """Sums of all rows."""
        costs: dict[date, Decimal] = {}
        for number in range((until - first).days):
            asked = first + number * DAY
            for row in self.items(await self.get("activity", {"date": asked.isoformat()}), "data"):
                if not isinstance(row, Mapping):
                    raise self.unreadable(row)
                taken = self.usd(row.get("usage")) + self.usd(row.get("byok_usage_inference") or 0)
                costs[asked] = costs.get(asked, Decimal(0)) + taken
        return costs


class LiteLlmSpend(_Report):
    """`GET /spend/logs`: sums by day. The last day of its range counts with its first moment only, so each day is asked
    for with the next one.
    """

    async def read(self, first: date, until: date) -> Mapping[date, Decimal]:
        """The proxy's own sums."""
        rows = await self.get("spend/logs", {"start_date": first.isoformat(), "end_date": until.isoformat()})
        if not isinstance(rows, list):
            raise self.unreadable(rows)
        costs: dict[date, Decimal] = {}
        for row in rows:
            day = _day_of(row.get("startTime") if isinstance(row, Mapping) else None)
            if day is None:
                raise self.unreadable(row)
            if first <= day < until:
                costs[day] = costs.get(day, Decimal(0)) + self.usd(row.get("spend") or 0)
        return costs


_KINDS: Final[Mapping[CostKind, type[_Report]]] = {
    CostKind.OPENAI: OpenAiCosts,
    CostKind.ANTHROPIC: AnthropicCosts,
    CostKind.OPENROUTER: OpenRouterActivity,
    CostKind.LITELLM: LiteLlmSpend,
}


def cost_source(upstream: Upstream, admin_key: str) -> CostSource:
    """The report of an upstream that has one configured."""
    assert upstream.costs is not None
    source: Any = _KINDS[upstream.costs.kind](upstream.base_url, admin_key, f"upstream {upstream.name}")
    found: CostSource = source
    return found


def _midnight(day: date) -> datetime:
    return datetime.combine(day, time.min, UTC)


def _seconds(day: date) -> int:
    return int(_midnight(day).timestamp())


def _day_of(moment: object) -> date | None:
    """The UTC day of a date or a time in ISO 8601."""
    if not isinstance(moment, str):
        return None
    try:
        parsed = datetime.fromisoformat(moment)
    except ValueError:
        return None
    return (parsed.astimezone(UTC) if parsed.tzinfo else parsed).date()
