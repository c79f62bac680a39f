"""Pictures of the pages' main states for the documents; `make screenshots`. Not part of a test run."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from random import Random
from typing import Any, Final

import pytest
from playwright.async_api import Browser, ViewportSize, expect

from db.accounts import wallets as accounts
from devstack.chain import LocalChain, payer_wallets
from domain.payments.attempt import Purpose
from tests.browser.conftest import OpenSite, Site, visited
from tests.browser.test_usage_page import make_key, spend
from tests.deposits.feeds import add_source, deploy_feed
from tests.deposits.test_settlement import start_watch
from tests.support.api import Visitor as Program
from tests.support.api import running_api
from tests.support.browser import DECLINED, Visitor
from tests.support.deposits import METHOD, add_method
from tests.support.engine import open_engine
from tests.support.payments import INTENT_TTL, REVERTED, WRONG_PAYMENT, RolePair, open_roles
from tests.support.postgres import Database
from tests.support.servers import Namespace, TemporalServer
from tests.support.sql import connect
from workflows.naming import workflow_id

FOLDER: Final = Path(__file__).parents[2] / "docs" / "images"
DESKTOP: Final[ViewportSize] = {"width": 1100, "height": 820}
TEMPORAL_UI: Final[ViewportSize] = {"width": 1400, "height": 1500}
TELEPHONE: Final[ViewportSize] = {"width": 390, "height": 844}
BROAD: Final[ViewportSize] = {"width": 1280, "height": 1180}
EXPLORER: Final = "https://explorer.example/tx/{tx_hash}"
PAYMENTS: Final = 140
DAYS: Final = 9


async def _save(visitor: Visitor, name: str) -> None:
    await visitor.page.evaluate("document.activeElement?.blur(); scrollTo(0, 0)")
    await visitor.page.mouse.move(0, 0)
    await visitor.page.screenshot(path=FOLDER / f"{name}.png", full_page=True, animations="disabled")


async def _credited(site: Site, visitor: Visitor, dollars: str, *, purpose: str = "self") -> None:
    await visitor.pay(dollars, purpose=purpose)
    await expect(visitor.cards().first).to_contain_text("Confirming")
    await site.engine.chain.mine(5)
    await expect(visitor.cards().first).to_contain_text("Credited")


async def test_take_screenshots(open_site: OpenSite) -> None:
    async with open_site(MIN_CONFIRMATIONS="5", EXPLORER_TX_URL=EXPLORER) as site:
        visitor = await site.visitor(viewport=DESKTOP)
        await visitor.open()
        await _save(visitor, "credits-signed-out")

        await visitor.sign_in()
        await visitor.choose("2000")
        await _save(visitor, "credits-other-amount")
        visitor.wallet.errors["eth_sendTransaction"] = DECLINED
        await visitor.pay("50")
        await expect(visitor.says()).to_contain_text("declined")
        await _save(visitor, "credits-declined")
        visitor.wallet.errors.clear()

        await _credited(site, visitor, "100")
        await _credited(site, visitor, "25", purpose="system")
        await visitor.pay("10")
        await expect(visitor.cards().first).to_contain_text("Confirming")
        await site.engine.chain.mine(3)
        await expect(visitor.cards().first).to_contain_text("3 of 5 confirmations")
        await _save(visitor, "credits-confirming")
        await visitor.page.emulate_media(color_scheme="dark")
        await _save(visitor, "credits-confirming-dark")
        await visitor.page.set_viewport_size(TELEPHONE)
        await _save(visitor, "credits-telephone-dark")
        await visitor.page.emulate_media(color_scheme="light")
        await site.engine.chain.mine(3)
        await expect(visitor.cards().first).to_contain_text("Credited")
        await visitor.page.set_viewport_size(DESKTOP)
        await _save(visitor, "credits-credited")

        many = await site.visitor(
            wallets=[site.wallet(), site.wallet(name="Second Wallet", rdns="example.second")], viewport=DESKTOP
        )
        await many.open()
        await many.page.get_by_role("button", name="Sign in with a wallet").click()
        await expect(many.page.get_by_role("dialog")).to_be_visible()
        await _save(many, "credits-wallets")


async def _priced_charge(site: Site, program: Program) -> dict[str, Any]:
    """A charge in a token that is no dollar."""
    chain, database = site.engine.chain, site.engine.database
    feed = await deploy_feed(chain, "253417000000")
    add_method(database, "WETH:local", address=await chain.deploy_token("PlainToken", "WETH", 18), decimals=18)
    add_source(database, chain, "WETH:local", feed.address)
    await chain.mine(3)
    charge: dict[str, Any] = (
        await program.post("/api/v1/charges", {"method": "WETH:local", "amountUsdCents": 1_700})
    ).body
    return charge


async def test_take_screenshots_of_a_charge(open_site: OpenSite) -> None:
    async with open_site(MIN_CONFIRMATIONS="5", EXPLORER_TX_URL=EXPLORER) as site:
        add_method(site.engine.database, address=site.engine.chain.token_address)
        await start_watch(site.engine)
        seller = await site.signed_in(viewport=DESKTOP)
        stranger = payer_wallets()[5].private_key
        async with site.api.visitor(payer_wallets()[0]) as program:
            charge = (await program.post("/api/v1/charges", {"method": METHOD, "amountUsdCents": 2_500})).body
            await program.post("/api/v1/deposit-address", {"method": METHOD})
            priced = await _priced_charge(site, program)
        page = f"/pay/{charge['chargeId']}"
        payer = await site.visitor(wallets=[], viewport=DESKTOP)
        await payer.open(f"/pay/{priced['chargeId']}")
        await _save(payer, "pay-priced")
        telephone = await site.visitor(
            wallets=[], viewport=TELEPHONE, has_touch=True, is_mobile=True, color_scheme="dark"
        )
        await payer.open(page)
        await _save(payer, "pay-new")
        await telephone.open(page)
        await _save(telephone, "pay-telephone-dark")
        await site.engine.chain.pay(stranger, charge["address"], 24_000_000)
        await site.engine.chain.mine(3)
        badge = payer.page.locator("#state .badge")
        await expect(badge).to_have_text("Paid in part")
        await expect(payer.page.locator("#state")).to_contain_text("3 of 5 confirmations")
        await _save(payer, "pay-partial")
        await seller.open()
        await expect(seller.cards().first).to_contain_text("3 of 5 confirmations")
        await _save(seller, "credits-deposit")
        await site.engine.chain.pay(stranger, charge["address"], 2_000_000)
        await site.engine.chain.mine(6)
        await expect(badge).to_have_text("Paid")
        await _save(payer, "pay-paid")


def _hex(number: int, name: str, digits: int) -> str:
    """What looks like an address or a hash, the same at every run."""
    return "0x" + hashlib.sha256(f"{name} {number}".encode()).hexdigest()[:digits]


async def _pay_for_days(roles: RolePair, database: Database) -> None:
    """Payments of several wallets, credited but for some, up to an hour ago."""
    random = Random(1)
    payers = []
    for number in range(7):
        async with roles.app.unscoped() as connection:
            payers.append(await accounts.provision_wallet(connection, _hex(number, "wallet", 40)))
    newest = datetime.now(UTC) - timedelta(hours=1)
    times = sorted(newest - timedelta(days=DAYS) * random.random() for _ in range(PAYMENTS))
    for number, at in enumerate(times):
        purpose = Purpose.SYSTEM if random.random() < 0.15 else Purpose.SELF
        cents = random.choice([1_000, 1_000, 2_500, 2_500, 5_000, 10_000])
        attempt = await roles.create(
            random.choice(payers), cents=cents, purpose=purpose, created_at=at, expires_at=at + INTENT_TTL
        )
        fate = random.random()
        if fate < 0.05:
            continue
        attempt = (await roles.submit(attempt, _hex(number, "transaction", 64), at=at)).attempt
        if fate < 0.2:
            await roles.refuse(attempt, REVERTED if fate < 0.08 else WRONG_PAYMENT)
            continue
        await roles.credit(attempt)
        if purpose is Purpose.SELF:
            await roles.mint(attempt)
    # The ledger's own time is that of the transaction.
    with connect(database.superuser_url, triggers=False) as superuser:
        superuser.execute(
            "UPDATE credit_ledger SET created_at = a.created_at FROM payment_attempts a WHERE reference = a.id::text"
        )


async def test_take_operators_screenshots(open_site: OpenSite, database: Database) -> None:
    settings = {
        "EXPLORER_TX_URL": EXPLORER,
        "TEMPORAL_UI_URL": "https://temporal.example",
        "OPERATOR_WALLETS": payer_wallets()[0].address,
        "OPERATOR_DATABASE_URL": database.operator_url,
    }
    async with open_site(**settings) as site, open_roles(database, pool_size=2) as roles:
        await _pay_for_days(roles, database)
        visitor = await site.signed_in(viewport=BROAD)
        await _credited(site, visitor, "25")
        await visitor.pay("50", purpose="system")
        await expect(visitor.cards().first).to_contain_text("Confirming")
        await visitor.page.get_by_role("link", name="Operators").click()
        await expect(visitor.page.get_by_role("row")).to_have_count(51)
        await visitor.page.screenshot(path=FOLDER / "operator.png")
        await visitor.page.get_by_role("rowheader").nth(1).get_by_role("link").click()
        await expect(visitor.page.get_by_role("heading", level=1)).to_contain_text("187,500,000 to the system tenant")
        await visitor.page.mouse.move(0, 0)
        await visitor.page.screenshot(path=FOLDER / "operator-payment.png", full_page=True)


async def test_take_screenshots_of_usage(
    browser: Browser, namespace: Namespace, database: Database, chain: LocalChain
) -> None:
    # Without a worker: sums of days are planted, which no books would balance with.
    async with (
        open_engine(namespace, database, chain) as engine,
        running_api(engine) as api,
        visited(engine, browser, api) as site,
    ):
        await spend(site, days=45)
        visitor = await site.signed_in(viewport=BROAD)
        page = await visitor.open("/usage")
        await make_key(page, "Agent in production", limitDayCredits="5", models="gpt-4o-mini")
        await page.locator("#secret").evaluate("(shown) => { shown.textContent = 'sk-settle-' + 'x'.repeat(43); }")
        await _save(visitor, "usage-new-key")
        await visitor.open("/usage")
        await page.locator(".call summary").nth(1).click()
        await _save(visitor, "usage")
        await page.set_viewport_size(TELEPHONE)
        await page.emulate_media(color_scheme="dark")
        await _save(visitor, "usage-telephone-dark")


@pytest.fixture
async def namespace(temporal_server: TemporalServer) -> Namespace:
    """On the server whose UI is photographed."""
    return await temporal_server.namespace()


async def test_take_temporals_screenshot(open_site: OpenSite, temporal_server: TemporalServer) -> None:
    async with open_site(MIN_CONFIRMATIONS="5") as site:
        visitor = await site.signed_in()
        await _credited(site, visitor, "10")
        [attempt_id] = await site.attempt_ids()
        await site.engine.result(attempt_id)
        page = await site.browser.new_page(viewport=TEMPORAL_UI)
        namespace = site.engine.namespace.name
        await page.goto(f"{temporal_server.server.ui_url}/namespaces/{namespace}/workflows/{workflow_id(attempt_id)}")
        await expect(page.get_by_text("Completed", exact=True).first).to_be_visible(timeout=60_000)
        await page.screenshot(path=FOLDER / "temporal-ui.png", animations="disabled")
        await page.close()


if __name__ == "__main__":
    sys.exit(subprocess.run([sys.executable, "-m", "pytest", "-q", __file__], check=False).returncode)
