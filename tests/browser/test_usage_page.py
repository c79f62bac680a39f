"""The Usage page as an owner meets it: an empty account, keys, charts, receipts, and on a telephone."""

from __future__ import annotations

import csv
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from playwright.async_api import Browser, Page, expect
from psycopg.types.json import Jsonb

from devstack.chain import LocalChain
from domain.billing.keys import hash_key
from tests.browser.conftest import Site, visited
from tests.support.api import running_api
from tests.support.browser import SMALL_TELEPHONE, Visitor
from tests.support.engine import open_engine
from tests.support.postgres import Database
from tests.support.servers import Namespace
from tests.support.spending import Spender
from tests.support.sql import connect, query, scalar

TOUCH_PIXELS_MIN = 44
CLIPBOARD = ["clipboard-read", "clipboard-write"]
LINES = {
    "markup_factor": "2",
    "lines": [
        {"unit": "input_tokens", "count": 100, "usd": "2.5", "per": 1_000_000},
        {"unit": "output_tokens", "count": 20, "usd": "10", "per": 1_000_000},
    ],
}


@pytest.fixture
async def site(browser: Browser, namespace: Namespace, database: Database, chain: LocalChain) -> AsyncIterator[Site]:
    """The running system without a worker. Its books are not compared: sums of days are planted without receipts."""
    async with (
        open_engine(namespace, database, chain) as engine,
        running_api(engine) as api,
        visited(engine, browser, api) as opened,
    ):
        yield opened


async def spend(site: Site, *, days: int = 0) -> Spender:
    """An account with credits, three calls today, and sums of days before."""
    account = (await site.engine.payer()).billing_account_id
    spender = Spender(site.engine.database, account)
    spender.create_key(limit_day=50_000_000)
    spender.add_credits(1_000_000_000)
    for model, charged in (("gpt-4o-mini", 1_250), ("claude-sonnet", 98_000), ("gpt-4o-mini", 12_345_678)):
        hold = spender.hold(20_000_000, model=model, request_id=f"req-{charged}")
        spender.capture(hold, charged, unit_prices=Jsonb(LINES), tokens=[100, 40, 0, 20, 5])
    spender.capture(
        spender.hold(model="gpt-4o-mini"), 0, absorbed_cost_usd=Decimal("0.002"), provider_cost_usd=Decimal("0.002"),
        charge_reason="upstream_broke_off", estimated=True,
    )  # fmt: skip
    with connect(site.engine.database.superuser_url) as superuser:
        for number in range(1, days + 1):
            superuser.execute(
                "INSERT INTO usage_by_day (day, billing_account_id, virtual_key_id, model, calls, charged_credits,"
                " input_tokens, output_tokens) VALUES (%s, %s, %s, %s, %s, %s, %s, %s)",
                (
                    datetime.now(UTC).date() - timedelta(days=number), account, spender.key_id,
                    ("gpt-4o-mini", "claude-sonnet", "o3")[number % 3], number, (number * 7_919 % 23) * 1_000_000,
                    number * 1_000, number * 100,
                ),
            )  # fmt: skip
    return spender


async def make_key(page: Page, label: str, **fields: str) -> str:
    """Make a key; its secret."""
    await page.get_by_text("Make a key", exact=True).click()
    await page.get_by_label("Label").fill(label)
    for name, value in fields.items():
        await page.locator(f"#{name}").fill(value)
    await page.get_by_role("button", name="Make the key").click()
    await expect(page.get_by_role("heading", name=f"Your new key “{label}”")).to_be_visible()
    return await page.locator("#secret").inner_text()


def state_of(site: Site, key: str) -> str | None:
    """Whether the gateway accepts a key."""
    state: str | None = scalar(site.engine.database.app_url, "SELECT state FROM find_key(%s)", hash_key(key))
    return state


async def opened(site: Site, **options: Any) -> Visitor:
    """A visitor who is signed in and has opened the page by its link."""
    visitor = await site.signed_in(**options)
    await visitor.page.get_by_role("link", name="Usage").click()
    await expect(visitor.page.get_by_role("heading", name="Spent")).to_be_visible()
    return visitor


@pytest.mark.slow
async def test_a_key_is_made_shown_once_copied_rotated_and_revoked(site: Site) -> None:
    visitor = await opened(site, permissions=CLIPBOARD)
    page = visitor.page
    await expect(page.locator("#spent .empty")).to_contain_text("Nothing was spent")
    await expect(page.locator("#keys .empty")).to_contain_text("No keys yet")
    await expect(page.locator("#calls .empty")).to_contain_text("No calls yet")

    secret = await make_key(page, "Agent", limitDayCredits="2.50", models="gpt-4o, o3", expiresAt="2999-12-31")
    assert state_of(site, secret) == "active"
    await page.get_by_role("button", name="Copy").click()
    await expect(page.locator("#new-key .says")).to_have_text("Copied.")
    assert await page.evaluate("navigator.clipboard.readText()") == secret
    card = page.locator(".key")
    await expect(card).to_contain_text("$0.00 of $2.50")
    await expect(card).to_contain_text("gpt-4o, o3")
    await page.goto(visitor.url + "/usage")
    await expect(card).to_have_count(1)
    assert secret not in await page.content()

    await card.locator("summary", has_text="Rotate").click()
    await card.get_by_role("button", name="Make the new key").click()
    await expect(page.get_by_role("heading", name="Your new key “Agent”")).to_be_visible()
    second = await page.locator("#secret").inner_text()
    assert second != secret
    assert [state_of(site, key) for key in (secret, second)] == ["active", "active"]
    await expect(card.locator(".badge")).to_have_text(["Active", "Replaced"])

    await card.first.locator("summary", has_text="Revoke").click()
    await card.first.get_by_role("button", name="Revoke “Agent”").click()
    await expect(page.get_by_role("status").filter(has_text="revoked")).to_be_visible()
    await expect(card).to_have_count(1)
    assert [state_of(site, key) for key in (secret, second)] == ["active", "key_revoked"]


@pytest.mark.slow
async def test_what_was_spent_is_drawn_listed_and_downloaded(site: Site, tmp_path: Path) -> None:
    spender = await spend(site, days=40)
    visitor = await opened(site)
    page = visitor.page
    picture = page.get_by_role("img", name="Credits spent by day")
    await expect(picture).to_be_visible()
    expected = scalar(
        site.engine.database.service_url,
        "SELECT sum(charged_credits)::bigint FROM usage_by_day WHERE day > (now() AT TIME ZONE 'UTC')::date - 30",
    )
    await expect(page.locator("#spent .figures")).to_contain_text(f"{expected:,}")
    await page.get_by_role("link", name="7 days").click()
    await expect(page.locator("#spent .figures")).to_contain_text("Spent in 7 days")
    models = page.get_by_role("table", name="By model").get_by_role("row")
    await expect(models).to_have_count(4)
    async with page.expect_download() as download:
        await page.get_by_role("link", name="CSV by model").click()
    file = tmp_path / "usage.csv"
    await (await download.value).save_as(file)
    with file.open(newline="") as lines:
        rows = list(csv.DictReader(lines))
    assert {row["model"] for row in rows} == {"gpt-4o-mini", "claude-sonnet", "o3"}
    call = page.locator(".call").filter(has_text="12,345,678 credits")
    await call.locator("summary").click()
    await expect(call).to_contain_text("$1.2345678")
    await expect(call).to_contain_text("20 output tokens at $10 for 1,000,000")
    await expect(call).to_contain_text("req-12345678")
    absorbed = page.locator(".call").filter(has_text="estimated")
    await absorbed.locator("summary").click()
    await expect(absorbed).to_contain_text("$0.002 of the cost")
    await expect(page.locator(".key")).to_contain_text(f"of ${50_000_000 // 10_000_000}.00")
    assert spender.key_id


@pytest.mark.slow
async def test_a_wrong_period_and_a_wrong_limit_are_said_beside_their_fields(site: Site) -> None:
    visitor = await opened(site)
    page = visitor.page
    visitor.allowed.append("422")
    await page.goto(visitor.url + "/usage?from=2026-02-01&to=2026-01-01")
    await expect(page.locator("#to-error")).to_contain_text("expected a day from 2026-02-01 on")
    await expect(page.locator("#to")).to_have_value("2026-01-01")
    await page.get_by_text("Make a key", exact=True).click()
    await page.get_by_label("Label").fill("Agent")
    await page.locator("#limitDayCredits").fill("five")
    await page.get_by_role("button", name="Make the key").click()
    await expect(page.locator("#limitDayCredits-error")).to_contain_text("expected US dollars in digits")
    await expect(page.get_by_label("Label")).to_have_value("Agent")
    await page.locator("#limitDayCredits").fill("5")
    await page.get_by_role("button", name="Make the key").click()
    await expect(page.locator(".key")).to_contain_text("$0.00 of $5.00")


@pytest.mark.slow
async def test_a_form_that_is_sent_twice_makes_one_key(site: Site) -> None:
    visitor = await opened(site)
    page = visitor.page
    secret = await make_key(page, "Agent")
    page.on("dialog", lambda dialog: dialog.accept())
    await page.reload()
    await expect(page.locator("#new-key")).to_contain_text("The form was sent twice")
    await expect(page.locator(".key")).to_have_count(1)
    assert state_of(site, secret) == "active"


@pytest.mark.slow
async def test_without_javascript_keys_are_made_and_revoked(site: Site) -> None:
    with_script = await site.signed_in()
    cookies: Any = await with_script.context.cookies()
    visitor = await site.visitor(java_script_enabled=False)
    await visitor.context.add_cookies(cookies)
    page = visitor.page
    await visitor.open("/usage")
    secret = await make_key(page, "Agent")
    assert state_of(site, secret) == "active"
    await expect(page.get_by_role("button", name="Copy")).to_be_hidden()
    await expect(page.locator(".key time").first).to_contain_text(" UTC")
    await page.locator(".key").locator("summary", has_text="Revoke").click()
    await page.get_by_role("button", name="Revoke “Agent”").click()
    await expect(page.locator(".key")).to_have_count(0)
    assert state_of(site, secret) == "key_revoked"


@pytest.mark.slow
async def test_who_is_not_signed_in_is_sent_to_the_credits_page(site: Site) -> None:
    visitor = await site.visitor()
    await visitor.open("/usage")
    await expect(visitor.page.get_by_role("button", name="Sign in with a wallet")).to_be_visible()
    assert visitor.page.url == visitor.url + "/credits"


@pytest.mark.slow
async def test_the_calls_are_paged(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("api.pages.usage.CALLS_SHOWN", 3)
    await spend(site)
    visitor = await opened(site)
    page = visitor.page
    await expect(page.locator(".call")).to_have_count(3)
    await page.get_by_role("link", name="Older →").click()
    await expect(page.locator(".call")).to_have_count(1)
    await expect(page.locator(".call")).to_contain_text("1,250 credits")
    await page.get_by_role("link", name="« Newest").click()
    await expect(page.locator(".call")).to_have_count(3)


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["light", "dark"])
async def test_the_page_has_no_barrier_that_axe_knows_and_fits_a_telephone(site: Site, scheme: str) -> None:
    options = {"bypass_csp": True, "color_scheme": scheme, "reduced_motion": "reduce"}
    visitor = await opened(site, viewport=SMALL_TELEPHONE, has_touch=True, is_mobile=True, **options)
    assert await visitor.barriers() == []
    await spend(site, days=20)
    secret = await make_key(
        visitor.page, "An agent with a name that is as long as a label may be, which is eighty" + "!" * 9
    )
    assert secret
    for summary in await visitor.page.locator("summary").all():
        if not await summary.evaluate("(element) => element.parentElement.open"):
            await summary.click()
    assert await visitor.barriers() == []
    assert await visitor.widths() == [360, 360]
    for target in await visitor.page.locator("button, input, select, summary, .brand, .paging a, .periods a").all():
        box = await target.bounding_box()
        assert box is None or box["height"] >= TOUCH_PIXELS_MIN, (await target.inner_text(), box)


@pytest.mark.slow
async def test_held_credits_are_beside_the_balance_and_not_taken_from_it(site: Site) -> None:
    spender = await spend(site)
    before = scalar(
        site.engine.database.service_url, "SELECT balance_credits FROM billing_accounts WHERE id = %s", spender.account
    )
    hold = spender.hold(4_000)
    visitor = await site.signed_in()
    await expect(visitor.page.locator("#balance-credits")).to_have_text(f"{before:,}")
    await expect(visitor.page.locator("#balance")).to_contain_text("4,000 credits are held for calls in flight")
    await expect(visitor.page.locator("#ledger")).to_contain_text("Call to a model")
    spender.void(hold)
    assert query(site.engine.database.service_url, "SELECT FROM credit_holds WHERE state = 'held'") == []
