"""The page of a charge in a real browser: what it says in each state, live and without its module, and to whom."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from typing import Any, Final
from uuid import UUID, uuid4

import pytest
from playwright.async_api import Browser, expect

from devstack.chain import payer_wallets
from domain.deposits.worth import typeable_raw
from domain.money import format_token
from tests.browser.conftest import Site, visited
from tests.deposits.feeds import add_source, deploy_feed
from tests.support.api import Visitor as Program
from tests.support.api import running_api
from tests.support.browser import SMALL_TELEPHONE, Visitor
from tests.support.deposits import METHOD, add_method, see_deposit, settle_deposit
from tests.support.engine import Engine
from tests.support.sql import query, scalar

TOUCH_PIXELS_MIN: Final = 44
USDC: Final = 1_000_000


@dataclass(frozen=True)
class Shop:
    """The running system with an account that makes charges, and payers who only have a charge's address."""

    site: Site
    program: Program

    @property
    def engine(self) -> Engine:
        return self.site.engine

    async def charge(self, cents: int = 2_500, method: str = METHOD) -> dict[str, Any]:
        reply = await self.program.post("/api/v1/charges", {"method": method, "amountUsdCents": cents})
        assert reply.status == 201, reply.body
        answer: dict[str, Any] = reply.body
        return answer

    async def payer(self, charge: dict[str, Any], **options: Any) -> Visitor:
        """A payer without an account and without a wallet in the browser, on the charge's page."""
        visitor = await self.site.visitor(wallets=[], **options)
        await visitor.open(f"/pay/{charge['chargeId']}")
        return visitor

    async def see(self, charge: dict[str, Any], usdc: int, *, confirmations: int = 1) -> UUID:
        """A transfer to the charge's address, with so many confirmations."""
        height = await self.engine.reader.heads.height()
        number = height - confirmations + 1
        return see_deposit(self.engine.database, charge["address"], usdc * USDC, block_number=number)


OpenShop = Callable[..., AbstractAsyncContextManager[Shop]]


@pytest.fixture
async def open_shop(browser: Browser, engine: Engine) -> OpenShop:
    """Start it with other settings. There is no worker: deposits are written as a worker would."""

    @asynccontextmanager
    async def open_with(**settings: str) -> AsyncIterator[Shop]:
        changes = {"MIN_CONFIRMATIONS": "5", "EXPLORER_TX_URL": "https://explorer.example/tx/{tx_hash}", **settings}
        add_method(engine.database, address=engine.chain.token_address)
        await engine.chain.mine(6)
        async with (
            running_api(engine, **changes) as api,
            visited(engine, browser, api) as site,
            api.visitor(payer_wallets()[0]) as program,
        ):
            yield Shop(site, program)

    return open_with


@pytest.fixture
async def shop(open_shop: OpenShop) -> AsyncIterator[Shop]:
    """The same with the usual settings."""
    async with open_shop() as opened:
        yield opened


async def test_every_state_is_shown_as_it_comes(shop: Shop) -> None:
    charge = await shop.charge()
    payer = await shop.payer(charge)
    page, state = payer.page, payer.page.locator("#state")
    await expect(page.get_by_role("heading", level=1)).to_have_text("Pay 25 USDC")
    await expect(page.locator(".network strong")).to_have_text("Local chain")
    await expect(page.locator("#address")).to_have_text(charge["address"])
    await expect(state.locator(".badge")).to_have_text("Waiting for payment")

    first = await shop.see(charge, 10)
    await expect(state.locator(".badge")).to_have_text("Paid in part")
    await expect(state).to_contain_text("15 USDC is missing.")
    await expect(state).to_contain_text("1 of 5 confirmations")
    await expect(page.locator("#amount")).to_have_text("15")
    await shop.engine.chain.mine(2)
    await expect(page.get_by_role("progressbar")).to_have_js_property("value", 3)

    settle_deposit(shop.engine.database, first)
    await expect(state).to_contain_text("received")
    await expect(state.locator(".badge")).to_have_text("Paid in part")

    second = await shop.see(charge, 16)
    await expect(state.locator(".badge")).to_have_text("Confirming")
    await expect(page.locator("#how")).to_have_count(0)
    settle_deposit(shop.engine.database, second)
    await expect(state.locator(".badge")).to_have_text("Paid")
    await expect(state).to_contain_text("26 USDC has come, 1 more than asked; all of it is credited.")
    await expect(page).to_have_title("Paid · 25 USDC to Cogni")
    await expect(state.get_by_role("link")).to_have_count(2)


async def test_it_shows_nothing_of_the_account(shop: Shop) -> None:
    body = {"method": METHOD, "amountUsdCents": 2_500, "metadata": {"customer": "Ada Lovelace"}}
    charge = (await shop.program.post("/api/v1/charges", body)).body
    deposit_id = await shop.see(charge, 25)
    settle_deposit(shop.engine.database, deposit_id)
    session = (await shop.program.get("/api/v1/auth/session")).body
    async with shop.site.api.visitor() as stranger:
        shown = await stranger.get(f"/pay/{charge['chargeId']}")
        events = await stranger.get(f"/pay/{charge['chargeId']}/events")
    for reply in (shown, events):
        assert reply.status == 200
        for secret in (session["billingAccountId"], session["userId"], session["address"], "Lovelace", "250,000,000"):
            assert secret.lower() not in reply.body.lower()
    assert "Paid" in shown.body
    assert '"status":"paid"' in events.body
    # A robot does not list it, and no other site is named in its policy.
    assert '<meta name="robots" content="noindex">' in shown.body
    assert "default-src 'none'" in shown.headers["Content-Security-Policy"]


@pytest.mark.parametrize("charge_id", ["7e9b105f-3c1e-4e5e-8a4e-4c0f9d2b6a1f", "nonsense", "%00", "1"])
async def test_an_unknown_charge_is_a_page_that_says_so(shop: Shop, charge_id: str) -> None:
    async with shop.site.api.visitor() as stranger:
        reply = await stranger.get(f"/pay/{charge_id}")
        assert (reply.status, "no such payment" in reply.body) == (404, True)
        assert (await stranger.get(f"/pay/{charge_id}/events")).status == 404


@pytest.mark.slow
async def test_the_qr_codes_say_the_address_and_the_payment(shop: Shop) -> None:
    charge = await shop.charge()
    payer = await shop.payer(charge)
    codes = payer.page.locator(".code")
    await expect(codes.nth(0)).to_be_visible()
    await expect(codes.nth(1)).to_be_hidden()
    await payer.page.get_by_role("radio", name="Address and amount").check()
    await expect(codes.nth(0)).to_be_hidden()
    await expect(codes.nth(1)).to_be_visible()
    link = payer.page.get_by_role("link", name="Open in a wallet")
    token = shop.engine.chain.token_address
    uri = f"ethereum:{token}@31337/transfer?address={charge['address']}&uint256=25000000"
    await expect(link).to_have_attribute("href", uri)
    # What is chosen stays chosen when a part of the page is read again, with the amount that is left.
    await shop.see(charge, 10)
    await expect(link).to_have_attribute("href", uri.replace("25000000", "15000000"))
    await expect(codes.nth(1)).to_be_visible()


@pytest.mark.slow
async def test_amount_and_address_are_copied_as_wallets_take_them(shop: Shop) -> None:
    charge = await shop.charge(123_456)
    payer = await shop.payer(charge, permissions=["clipboard-read", "clipboard-write"])
    for what, expected in (("amount", "1234.56"), ("address", charge["address"])):
        await payer.page.get_by_role("button", name=f"Copy the {what}").click()
        await expect(payer.page.locator("#copied")).to_have_text(f"The {what} is copied.")
        assert await payer.page.evaluate("navigator.clipboard.readText()") == expected


@pytest.mark.slow
async def test_of_a_token_that_is_no_dollar_the_price_is_a_sentence_with_its_worth(shop: Shop) -> None:
    chain, database = shop.engine.chain, shop.engine.database
    feed = await deploy_feed(chain, "253417000000", description="ETH / USD")
    add_method(database, "WETH:local", address=await chain.deploy_token("PlainToken", "WETH", 18), decimals=18)
    add_source(database, chain, "WETH:local", feed.address)
    charge = await shop.charge(1_700, "WETH:local")
    payer = await shop.payer(charge)
    said = await payer.page.locator("#unit-price").inner_text()
    asked = format_token(typeable_raw(int(charge["amountRaw"])), 18)
    assert len(asked) == len("0.00670832"), "as many digits as an exchange takes"
    for part in (asked, "$17.00", "$2,534.17", "ETH / USD"):
        assert part in said
    assert "\n" not in said, "one sentence, whose parts are no columns"
    await expect(payer.page.locator("#price")).to_contain_text("what comes later is credited at that day’s price")
    await expect(payer.page.locator("#left")).to_have_text(re.compile(r"^[0-9]+:[0-5][0-9]$"))


@pytest.mark.slow
async def test_the_countdown_is_the_prices_and_the_address_stays(open_shop: OpenShop) -> None:
    """Fault 9: expiry was never enforced, and what came after it was not credited."""
    async with open_shop(CHARGE_PRICE_TTL_SECONDS="4") as shop:
        charge = await shop.charge()
        payer = await shop.payer(charge)
        await expect(payer.page.locator("#left")).to_have_text(re.compile(r"^0:0[0-4]$"))
        await expect(payer.page.locator("#state .badge")).to_have_text("Price expired")
        await expect(payer.page.locator("#price")).to_contain_text("what comes later is credited all the same")
        await expect(payer.page.locator("#address")).to_have_text(charge["address"])
        await shop.see(charge, 25)
        await expect(payer.page.locator("#state .badge")).to_have_text("Confirming")


@pytest.mark.slow
async def test_without_its_module_it_asks_again_by_itself(shop: Shop) -> None:
    charge = await shop.charge()
    payer = await shop.payer(charge, java_script_enabled=False)
    refresh = payer.page.locator("noscript meta[http-equiv=refresh]")
    await expect(refresh).to_have_attribute("content", "20")
    await expect(payer.page.locator("#address")).to_have_text(charge["address"])
    await expect(payer.page.locator("time").first).to_contain_text(" UTC")
    await expect(payer.page.get_by_role("button")).to_have_count(0)
    await payer.page.get_by_role("radio", name="Address and amount").check()
    await expect(payer.page.locator(".of-amount")).to_be_visible()
    await shop.see(charge, 10)
    await payer.page.get_by_role("link", name="Ask now").click()
    await expect(payer.page.locator("#state .badge")).to_have_text("Paid in part")


@pytest.mark.slow
async def test_opening_it_lets_the_address_be_watched_closely(shop: Shop) -> None:
    charge = await shop.charge()
    long_ago = "UPDATE deposit_addresses SET active_at = now() - interval '40 days' RETURNING 1"
    query(shop.engine.database.superuser_url, long_ago)
    await shop.payer(charge)
    statement = "SELECT active_at > now() - interval '1 minute' FROM deposit_addresses WHERE address = %s"
    assert scalar(shop.engine.database.superuser_url, statement, charge["address"]) is True


@pytest.mark.slow
async def test_a_small_telephone_scrolls_down_only(shop: Shop) -> None:
    charge = await shop.charge(123_456)
    await shop.see(charge, 10)
    payer = await shop.payer(charge, viewport=SMALL_TELEPHONE, has_touch=True, is_mobile=True)
    await payer.page.get_by_role("radio", name="Address and amount").check()
    assert await payer.widths() == [360, 360]
    for target in await payer.page.locator("button, input, figcaption a").all():
        box = await target.bounding_box()
        assert box is None or box["height"] >= TOUCH_PIXELS_MIN, box


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["light", "dark"])
async def test_no_state_has_a_barrier_that_axe_knows(open_shop: OpenShop, scheme: str) -> None:
    async with open_shop() as shop:
        charge = await shop.charge()
        payer = await shop.payer(charge, bypass_csp=True, color_scheme=scheme, reduced_motion="reduce")
        badge = payer.page.locator("#state .badge")
        assert await payer.barriers() == []
        await payer.page.get_by_role("radio", name="Address and amount").check()
        first = await shop.see(charge, 10)
        await expect(badge).to_have_text("Paid in part")
        assert await payer.barriers() == []
        settle_deposit(shop.engine.database, first)
        second = await shop.see(charge, 15)
        await expect(badge).to_have_text("Confirming")
        assert await payer.barriers() == []
        settle_deposit(shop.engine.database, second)
        await expect(badge).to_have_text("Paid")
        assert await payer.barriers() == []
        over = await shop.charge()
        query(
            shop.engine.database.superuser_url,
            "UPDATE charges SET price_expires_at = now(), status = 'expired' WHERE id = %s RETURNING 1",
            over["chargeId"],
        )
        await payer.open(f"/pay/{over['chargeId']}")
        await expect(badge).to_have_text("Price expired")
        assert await payer.barriers() == []
        payer.allowed.append("404")
        await payer.open(f"/pay/{uuid4()}")
        assert await payer.barriers() == []
