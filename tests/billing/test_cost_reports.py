"""Reports of costs as providers could send them: what cannot be read is no bill, least of all one of zero."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from datetime import date
from decimal import Decimal
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from domain.billing.upstreams import CostKind, Costs, Upstream, UsageLookup
from domain.errors import ProviderUnavailable
from services.billing import provider_api
from services.billing.provider_api import Providers
from services.billing.provider_costs import PAGES_MAX, cost_source
from tests.support.engine import PATIENCE_SECONDS

DAY = date(2026, 3, 1)
NEXT = date(2026, 3, 2)
STARTS = 1772323200
"""The same day in seconds."""


@asynccontextmanager
async def provider(*documents: Any) -> AsyncIterator[tuple[str, list[Mapping[str, str]]]]:
    """A provider that answers these one after another, then the last one again; and what it was asked with.

    A document is what becomes JSON, text, or an answer; it was asked with parameters and headers.
    """
    asked: list[Mapping[str, str]] = []

    async def answer(request: web.Request) -> web.Response:
        document = documents[min(len(asked), len(documents) - 1)]
        asked.append({**request.query, **{name.lower(): value for name, value in request.headers.items()}})
        if isinstance(document, web.Response):
            return document
        return web.Response(text=document if isinstance(document, str) else json.dumps(document))

    app = web.Application()
    app.router.add_get("/{path:.*}", answer)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        yield f"http://127.0.0.1:{runner.addresses[0][1]}", asked
    finally:
        await runner.cleanup()


async def read(kind: CostKind, url: str) -> Mapping[date, Decimal]:
    """What the provider billed for the day."""
    upstream = Upstream(name="p", base_url=url, models=("*",), costs=Costs(kind=kind, admin_key_env="KEY"))
    return await cost_source(upstream, "sk-admin").read(DAY, NEXT)


def openai(*results: Any, starts: Any = STARTS, **more: Any) -> dict[str, Any]:
    """A page of OpenAI's."""
    return {"data": [{"start_time": starts, "results": list(results)}], "has_more": False, **more}


def anthropic(*results: Any, starts: Any = "2026-03-01T00:00:00Z", **more: Any) -> dict[str, Any]:
    """A page of Anthropic's."""
    return {"data": [{"starting_at": starts, "results": list(results)}], "has_more": False, **more}


USD = {"amount": {"value": 1.5, "currency": "usd"}}
CENTS = {"amount": "150", "currency": "USD"}


@pytest.mark.parametrize(
    ("kind", "document"),
    [
        (CostKind.OPENAI, {"data": None}),
        (CostKind.OPENAI, {"data": ["no bucket"]}),
        (CostKind.OPENAI, openai(USD, starts="2026-03-01")),
        (CostKind.OPENAI, openai("no result")),
        (CostKind.OPENAI, openai({"amount": {"value": 1.5, "currency": "eur"}})),
        (CostKind.OPENAI, openai({"amount": {"value": True, "currency": "usd"}})),
        (CostKind.OPENAI, openai({"amount": {"value": "NaN", "currency": "usd"}})),
        (CostKind.OPENAI, openai({"amount": {"value": "much", "currency": "usd"}})),
        (CostKind.OPENAI, openai({"amount": {"currency": "usd"}})),
        (CostKind.ANTHROPIC, anthropic(CENTS, starts=STARTS)),
        (CostKind.ANTHROPIC, anthropic(CENTS, starts="yesterday")),
        (CostKind.ANTHROPIC, anthropic({"amount": "150", "currency": "EUR"})),
        (CostKind.ANTHROPIC, anthropic({"amount": None, "currency": "USD"})),
        (CostKind.OPENROUTER, {"data": ["no row"]}),
        (CostKind.OPENROUTER, {"data": [{"usage": None}]}),
        (CostKind.LITELLM, {"rows": []}),
        (CostKind.LITELLM, {}),
        (CostKind.LITELLM, [{"spend": 1}]),
        (CostKind.LITELLM, [{"startTime": "2026-03-01", "spend": "Infinity"}]),
    ],
    ids=str,
)
async def test_what_cannot_be_read_is_no_bill(kind: CostKind, document: Any) -> None:
    async with provider(document) as (url, _):
        with pytest.raises(ProviderUnavailable, match="cannot be read"):
            await read(kind, url)


@pytest.mark.parametrize("kind", [CostKind.OPENAI, CostKind.ANTHROPIC])
async def test_all_pages_are_read_and_not_without_end(kind: CostKind) -> None:
    page, result = (openai, USD) if kind is CostKind.OPENAI else (anthropic, CENTS)
    first = page(result, has_more=True, next_page="two")
    async with provider(first, page(result)) as (url, asked):
        assert await read(kind, url) == {DAY: Decimal(3)}
        assert [query.get("page") for query in asked] == [None, "two"]
    async with provider(first) as (url, asked):
        with pytest.raises(ProviderUnavailable, match=f"more than {PAGES_MAX} pages"):
            await read(kind, url)
        assert len(asked) == PAGES_MAX


async def test_a_key_of_the_account_s_own_is_part_of_the_bill() -> None:
    async with provider({"data": [{"usage": 0.05, "byok_usage_inference": 1}, {"usage": "0.01"}]}) as (url, _):
        assert await read(CostKind.OPENROUTER, url) == {DAY: Decimal("1.06")}


async def test_the_proxy_s_days_are_utc_s_and_only_those_that_were_asked_for() -> None:
    rows = [
        {"startTime": "2026-03-01", "spend": 1},
        {"startTime": "2026-03-02T00:30:00+01:00", "spend": 2},
        {"startTime": "2026-03-01T23:30:00-01:00", "spend": 4},
        {"startTime": "2026-02-28T23:59:59Z", "spend": 8},
    ]
    async with provider(rows) as (url, _):
        assert await read(CostKind.LITELLM, url) == {DAY: Decimal(3)}


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (web.Response(status=404), "has no organization/costs"),
        (web.Response(status=500), "answers 500"),
        (web.Response(status=302, headers={"Location": "/elsewhere"}), "answers 302"),
        ("<html>", "answers no JSON"),
        ('{"data": NaN}', "answers no JSON"),
        ("[" + "0," * 600 + "0]", "answers more than 1000 bytes"),
    ],
    ids=["absent", "failure", "redirect", "page", "not a number", "too long"],
)
async def test_an_answer_that_is_no_report_says_so(
    answer: web.Response | str, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(provider_api, "ANSWER_BYTES_MAX", 1_000)
    async with provider(answer, openai(USD)) as (url, _):
        with pytest.raises(ProviderUnavailable, match=said):
            await read(CostKind.OPENAI, url)


async def test_a_provider_that_says_nothing_is_not_waited_for_without_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(provider_api, "_TIMEOUT", aiohttp.ClientTimeout(total=0.1))
    silent = await asyncio.start_server(lambda _, writer: writers.append(writer), "127.0.0.1", 0)
    writers: list[asyncio.StreamWriter] = []
    async with silent, asyncio.timeout(PATIENCE_SECONDS):
        host, port = silent.sockets[0].getsockname()
        with pytest.raises(ProviderUnavailable, match="cannot be reached: TimeoutError"):
            await read(CostKind.OPENAI, f"http://{host}:{port}")
        for writer in writers:
            writer.close()


async def test_who_keeps_no_records_is_not_asked() -> None:
    async with provider({}) as (url, asked):
        known = Upstream(name="known", base_url=url, models=("*",))
        for name in ("known", "another"):
            assert not Providers((known,)).keeps_records(name)
            assert await Providers((known,)).look_up(name, "gen-1") is None
        assert not asked


@pytest.mark.parametrize("key", [None, "sk-own"])
async def test_an_upstream_is_asked_with_its_own_key_where_it_has_one(key: str | None) -> None:
    async with provider(web.Response(status=404)) as (url, asked):
        kept = Upstream(name="kept", base_url=url, models=("*",), usage_lookup=UsageLookup.OPENROUTER)
        assert await Providers((kept,), api_keys={"kept": key} if key else {}).look_up("kept", "gen-1") is None
        assert asked[0].get("authorization") == (f"Bearer {key}" if key else None)
