"""Calls that an external proxy has made: charged once each, by exact decimals, whatever becomes of the others."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, Final

import psycopg
import pytest
from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer

from db.engine import TenantDatabase
from devstack.processes import wait_until
from domain.billing.upstreams import PriceOverride
from gateway.ingest import PATH, ingest_routes
from tests.support.database_pool import Content, DatabasePool, Superuser
from tests.support.engine import PATIENCE_SECONDS
from tests.support.litellm_payloads import FAILURE, body, payload, without_account
from tests.support.oracle import check_books
from tests.support.postgres import Database
from tests.support.spending import Spender
from tests.support.sql import query, scalar

SECRET: Final = "a-secret-of-sixteen-or-more"


@dataclass(frozen=True, slots=True)
class Proxy:
    """An external proxy that reports its calls."""

    client: TestClient[web.Request, web.Application]
    spender: Spender

    async def report(self, document: object, *, secret: str = SECRET) -> tuple[int, Any]:
        """The answer's status and JSON."""
        return await self.send(body(document), secret=secret)

    async def send(self, raw: bytes, *, secret: str = SECRET) -> tuple[int, Any]:
        """The same of bytes."""
        answer = await self.client.post(PATH, data=raw, headers={"Authorization": f"Bearer {secret}"})
        return answer.status, await answer.json()

    def payload(self, **changes: Any) -> dict[str, Any]:
        """A call of the account."""
        return payload(self.spender.account, **changes)

    @property
    def balance(self) -> int:
        """What the account has."""
        statement = "SELECT balance_credits FROM billing_accounts WHERE id = %s"
        return int(scalar(self.spender.database.service_url, statement, self.spender.account))

    def receipts(self, columns: str) -> list[tuple[Any, ...]]:
        """These columns of the account's receipts, in the order of booking."""
        statement = f"SELECT {columns} FROM charge_receipts WHERE billing_account_id = %s ORDER BY created_at"
        return query(self.spender.database.service_url, statement, self.spender.account)


async def serve(database: Database, secret: str | None) -> tuple[TestClient[web.Request, web.Application], Any]:
    tenants = TenantDatabase(database.app_url)
    prices = {"my-model": PriceOverride(input_per_million_usd=Decimal(10), output_per_million_usd=Decimal(20))}
    routes = ingest_routes(secret, markup_factor=Decimal(2), overrides=prices)
    app = web.Application(client_max_size=2**24)
    app.add_routes(routes(tenants))
    client = TestClient(TestServer(app))
    await client.start_server()
    return client, tenants


@pytest.fixture(scope="module")
async def module_proxy(databases: DatabasePool) -> AsyncIterator[tuple[Proxy, Content, Superuser]]:
    """A proxy before the route, an account with ten dollars, and what their database holds then."""
    async with (
        databases.database() as roles,
        await psycopg.AsyncConnection.connect(roles.database.superuser_url, autocommit=True) as superuser,
    ):
        client, tenants = await serve(roles.database, SECRET)
        proxy = Proxy(client, Spender.open(roles.database, credits=100_000_000))
        yield proxy, await Content.read(superuser), superuser
        await client.close()
        await tenants.dispose()


@pytest.fixture
async def proxy(module_proxy: tuple[Proxy, Content, Superuser]) -> AsyncIterator[Proxy]:
    """The module's, before its first call."""
    proxy, content, superuser = module_proxy
    yield proxy
    assert await check_books(proxy.spender.database.superuser_url) == []

    async def is_back() -> bool:
        return await content.restore(superuser)

    await wait_until(is_back, timeout_seconds=PATIENCE_SECONDS, what="database without open transactions")


async def test_a_call_is_charged_its_cost_and_the_markup_and_the_receipt_says_when_it_was_made(proxy: Proxy) -> None:
    status, answer = await proxy.report(proxy.payload())
    assert (status, answer["status"], answer["chargedCredits"]) == (200, "charged", 9_000)
    assert proxy.balance == 100_000_000 - 9_000
    [receipt] = proxy.receipts(
        "id::text, source_system, provider_cost_usd, user_cost_usd, input_tokens, output_tokens, provider, doubt,"
        " called_at AT TIME ZONE 'UTC' = '2025-11-28 03:20:00.123456', created_at > now() - interval '1 minute'"
    )
    assert receipt == (
        answer["receiptId"], "litellm", Decimal("0.00045"), Decimal("0.0009"), 1000, 500, "openai", None, True, True,
    )  # fmt: skip


async def test_the_same_again_is_answered_the_same_and_another_body_is_a_conflict(proxy: Proxy) -> None:
    first = await proxy.report(proxy.payload())
    status, again = await proxy.report(proxy.payload())
    assert (status, again) == (200, first[1] | {"status": "repeated"})
    status, other = await proxy.report(proxy.payload(completion_tokens=501))
    assert (status, other["status"], other["receiptId"]) == (409, "conflict", first[1]["receiptId"])
    assert proxy.balance == 100_000_000 - 9_000


async def test_the_same_sent_many_times_at_once_is_charged_once(proxy: Proxy) -> None:
    answers = await asyncio.gather(*(proxy.report(proxy.payload()) for _ in range(8)))
    assert sorted(answer["status"] for _, answer in answers) == ["charged"] + ["repeated"] * 7
    assert proxy.balance == 100_000_000 - 9_000


@pytest.mark.parametrize("name", [None, "None", "chatcmpl-424"])
async def test_ids_that_name_nothing_do_not_swallow_each_other(proxy: Proxy, name: str | None) -> None:
    calls = [
        proxy.payload(id=name),
        proxy.payload(id=name, startTime=1764300001.5),
        proxy.payload(id=name, trace_id="another"),
        proxy.payload(id=name, trace_id=None),
        proxy.payload(id=name, trace_id="None", startTime=1764300002),
    ]
    status, answer = await proxy.report(calls)
    assert (status, [one["status"] for one in answer["results"]]) == (200, ["charged"] * 5)
    assert (await proxy.report(calls))[1]["results"][4]["status"] == "repeated"
    assert len(proxy.receipts("id")) == 5


async def test_calls_without_any_id_are_distinguished_by_their_content(proxy: Proxy) -> None:
    calls = [proxy.payload(id=None, trace_id=None, completion_tokens=count) for count in (1, 2)]
    assert [one["status"] for one in (await proxy.report(calls))[1]["results"]] == ["charged"] * 2
    assert [one["status"] for one in (await proxy.report(calls))[1]["results"]] == ["repeated"] * 2


async def test_parts_of_a_reference_cannot_be_mistaken_for_each_other(proxy: Proxy) -> None:
    calls = [proxy.payload(id="a:b", trace_id="c"), proxy.payload(id="a", trace_id="b:c", completion_tokens=1)]
    assert [one["status"] for one in (await proxy.report(calls))[1]["results"]] == ["charged"] * 2


async def test_money_is_read_from_its_text(proxy: Proxy) -> None:
    raw = body(proxy.payload()).replace(b'"response_cost": 0.00045', b'"response_cost": 0.000000100000000000000001')
    assert (await proxy.send(raw))[1]["chargedCredits"] == 3, "2.00000000000000000002 credits, rounded up"
    assert proxy.receipts("provider_cost_usd") == [(Decimal("0.000000100000000000000001"),)]


async def test_a_cost_of_zero_for_tokens_with_a_price_is_the_price_book_s_and_doubtful(proxy: Proxy) -> None:
    assert (await proxy.report(proxy.payload(response_cost=0)))[1]["chargedCredits"] == 9_000
    assert proxy.receipts("doubt, price_version IS NOT NULL") == [("zero_cost", True)]


async def test_a_cost_that_is_not_stated_is_the_price_book_s(proxy: Proxy) -> None:
    assert (await proxy.report(proxy.payload(response_cost=None)))[1]["chargedCredits"] == 9_000
    assert (await proxy.report(proxy.payload(response_cost=None, id="2", model="my-model")))[1][
        "chargedCredits"
    ] == 400_000, "the file of upstreams has a price of its own"
    assert (await proxy.report(proxy.payload(response_cost=None, id="3", model="unheard-of")))[1]["chargedCredits"] == 0
    assert proxy.receipts("doubt") == [(None,), (None,), ("unknown_cost",)]


async def test_what_the_proxy_answered_from_its_cache_costs_nothing_and_is_not_doubtful(proxy: Proxy) -> None:
    for cost in (0, None):
        assert (await proxy.report(proxy.payload(id=f"cached-{cost}", response_cost=cost, cache_hit=True)))[1][
            "chargedCredits"
        ] == 0
    assert proxy.receipts("doubt") == [(None,)] * 2


async def test_a_cost_that_the_proxy_states_counts_although_its_cache_answered(proxy: Proxy) -> None:
    answer = (await proxy.report(proxy.payload(response_cost=0.001, cache_hit=True)))[1]
    assert answer["chargedCredits"] == 20_000


async def test_a_failure_without_cost_is_nothing_and_one_with_cost_is_borne_by_the_platform(proxy: Proxy) -> None:
    status, answer = await proxy.report(proxy.payload(of=FAILURE))
    assert (status, answer["status"], answer["receiptId"]) == (200, "ignored", None)
    assert proxy.receipts("id") == []
    await proxy.report(proxy.payload(of=FAILURE, response_cost=0.001, prompt_tokens=10))
    assert proxy.receipts("charged_credits, absorbed_cost_usd") == [(0, Decimal("0.001"))]


@pytest.mark.parametrize(
    "changes",
    [{"prompt_tokens": -5}, {"completion_tokens": 10**12}, {"response_cost": -1}, {"prompt_tokens": 1.5}],
    ids=str,
)
async def test_what_cannot_be_true_is_never_a_credit_and_is_doubtful(proxy: Proxy, changes: dict[str, Any]) -> None:
    assert (await proxy.report(proxy.payload(**changes)))[1]["chargedCredits"] == 0
    assert proxy.receipts("doubt, provider_cost_usd") == [("implausible_usage", 0)]


async def test_one_bad_item_of_a_list_does_not_lose_the_others(proxy: Proxy) -> None:
    calls = [
        proxy.payload(id="1"),
        proxy.payload(id="2", response_cost=float("nan")),
        {"hello": "world"},
        payload("no-such-account", id="4"),
        "text",
        proxy.payload(id="6", startTime="yesterday"),
        proxy.payload(id="7", response_cost=float("inf")),
        proxy.payload(id="8"),
    ]
    status, answer = await proxy.report(calls)
    results = answer["results"]
    assert status == 207
    assert [one["status"] for one in results] == ["charged", *["invalid"] * 6, "charged"]
    assert "NaN" in results[1]["error"]
    assert "metadata.billing_account_id" in results[2]["error"]
    assert "no-such-account" in results[3]["error"]
    assert "startTime" in results[5]["error"]
    assert proxy.balance == 100_000_000 - 18_000


async def test_the_account_is_the_metadata_s_else_the_end_user(proxy: Proxy) -> None:
    assert (await proxy.report(without_account(end_user=proxy.spender.account)))[1]["chargedCredits"] == 9_000
    other = Spender.open(proxy.spender.database)
    await proxy.report(proxy.payload(id="2", end_user=other.account))
    assert proxy.balance == 100_000_000 - 18_000
    assert (await proxy.report(without_account()))[0] == 422


async def test_who_does_not_know_the_secret_is_refused_and_without_one_it_is_off(proxy: Proxy) -> None:
    assert (await proxy.report(proxy.payload(), secret="another"))[0] == 401
    assert (await proxy.client.post(PATH, json=proxy.payload())).status == 401
    basic = {"Authorization": f"Basic {SECRET}"}
    assert (await proxy.client.post(PATH, json=proxy.payload(), headers=basic)).status == 401
    client, tenants = await serve(proxy.spender.database, None)
    answer = await client.post(PATH, json=proxy.payload(), headers={"Authorization": "Bearer "})
    assert (answer.status, (await answer.json())["error"]["message"]) == (
        503,
        "ingest is off: set BILLING_INGEST_SECRET",
    )
    await client.close()
    await tenants.dispose()
    assert proxy.receipts("id") == []


@pytest.mark.parametrize(
    "raw", [b"", b"{", b'{"a": 1}}', b"\xff", b"[" * 100_000], ids=["empty", "open", "more", "no text", "deep"]
)
async def test_what_is_not_json_is_refused(proxy: Proxy, raw: bytes) -> None:
    assert (await proxy.send(raw))[0] == 400
