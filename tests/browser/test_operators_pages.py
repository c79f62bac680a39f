"""The operators' pages as an operator meets them: from the Credits page to the details of one payment, by keyboard,
on a telephone, and after the session has ended."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Final

import pytest
from playwright.async_api import Browser, Locator, Page, expect

from api.operators import pages
from devstack.chain import LocalChain, Wallet, payer_wallets
from domain.identifiers import SYSTEM_TENANT_ACCOUNT_ID
from domain.payments.attempt import PaymentAttempt, Purpose
from starter.models import Intent
from tests.browser.conftest import Site, visited
from tests.support.api import RunningApi, running_api
from tests.support.browser import SMALL_TELEPHONE, Visitor
from tests.support.engine import Engine, open_engine
from tests.support.payments import NOW, REVERTED, RolePair, open_roles, tx_hash
from tests.support.postgres import MIGRATED_TEMPLATE, Cluster
from tests.support.servers import TemporalServer
from tests.support.sql import connect, query

# All of them read one running system, in which nothing changes any more.

UI: Final = "https://temporal.example"
INTENTS: Final = 5
DONATION_HASH: Final = tx_hash(0xABCDEF)
UNITS: Final = {"k": 10**3, "M": 10**6, "bn": 10**9}

# Where they are on the page, in pixels from its top.
PICTURE: Final = """
(picture) => {
  const middle = (element) => { const box = element.getBoundingClientRect(); return (box.top + box.bottom) / 2; };
  const lines = [...picture.querySelectorAll('.ground, .level')].map(middle);
  return { lowest: Math.max(...lines), highest: Math.min(...lines), end: middle(picture.querySelector('.end')) };
}
"""


def operator() -> Wallet:
    """Who bought the one payment that is on the chain."""
    return payer_wallets()[0]


def other_operator() -> Wallet:
    """Whose session ends."""
    return payer_wallets()[2]


@dataclass(frozen=True)
class System:
    """What is running, and the payments in it, the newest first."""

    engine: Engine
    api: RunningApi
    bought: Intent
    bought_hash: str
    account: str
    """Who bought it."""

    intents: list[PaymentAttempt]
    donated: PaymentAttempt
    reverted: PaymentAttempt

    def ids(self, *attempts: PaymentAttempt) -> list[str]:
        """Of these."""
        return [str(attempt.id) for attempt in attempts]


@pytest.fixture(scope="module")
async def system(cluster: Cluster, temporal_server: TemporalServer, chain: LocalChain) -> AsyncIterator[System]:
    """The whole system with a payment that took its whole way, and others of every kind that only the database has."""
    namespace = await temporal_server.namespace()
    async with cluster.temporary(template=MIGRATED_TEMPLATE) as database:
        settings = {
            "OPERATOR_WALLETS": f"{operator().address},{other_operator().address}",
            "OPERATOR_DATABASE_URL": database.operator_url,
            "TEMPORAL_UI_URL": UI,
        }
        async with (
            open_engine(namespace, database, chain, **settings) as engine,
            open_roles(database, pool_size=2) as roles,
            running_api(engine) as api,
        ):
            yield await _with_payments(engine, roles, api)
            assert not await engine.books()


async def _with_payments(engine: Engine, roles: RolePair, api: RunningApi) -> System:
    one, two = await roles.open_account(1), await roles.open_account(2)
    reverted = await roles.refuse(await roles.create_submitted(one, 1), REVERTED)
    donated = await roles.settle(
        one, 0xABCDEF, cents=4_000, purpose=Purpose.SYSTEM, created_at=NOW + timedelta(seconds=1)
    )
    intents = [await roles.create(two, created_at=NOW + timedelta(minutes=number)) for number in range(INTENTS, 0, -1)]
    async with engine.worker():
        payer, bought, sent = await engine.buy(2_500)
        await engine.submit(payer, bought, sent)
        await engine.result(bought.attempt_id)
    return System(engine, api, bought, sent, payer.billing_account_id, intents, donated, reverted.attempt)


@pytest.fixture
async def site(system: System, browser: Browser) -> AsyncIterator[Site]:
    """The running system for one test's visitors."""
    async with visited(system.engine, browser, system.api) as opened:
        yield opened


@pytest.fixture(scope="module")
async def cookie(system: System) -> dict[str, str]:
    """An operator's session."""
    async with system.api.visitor(operator()) as signed_in:
        return {"name": signed_in.cookie_name, "value": signed_in.cookie, "url": system.api.url}


async def _operator(site: Site, cookie: Any, path: str = "/operator", **options: Any) -> Page:
    """A page that an operator has opened, who is signed in already."""
    return (await _visiting_operator(site, cookie, path, **options)).page


async def _visiting_operator(site: Site, cookie: Any, path: str = "/operator", **options: Any) -> Visitor:
    visitor = await site.visitor(**options)
    await visitor.context.add_cookies([cookie])
    await visitor.open(path)
    return visitor


def _rows(page: Page, title: str = "Payments") -> Locator:
    """Of one of a page's tables, without its head."""
    return page.get_by_role("table", name=title).locator("tbody").get_by_role("row")


async def _shows(page: Page, *attempt_ids: str) -> None:
    """The list shows these payments and no other, in this order."""
    links = page.locator("tbody th a")
    await expect(links).to_have_count(len(attempt_ids))
    for number, attempt_id in enumerate(attempt_ids):
        await expect(links.nth(number)).to_have_attribute("href", f"/operator/attempts/{attempt_id}")


async def _filter(page: Page) -> None:
    await page.get_by_role("button", name="Filter").click()


# -- who


@pytest.mark.slow
async def test_an_operator_gets_there_from_their_credits_and_back(site: Site, system: System) -> None:
    visitor = await site.signed_in()
    page = visitor.page
    await page.get_by_role("link", name="Operators").click()
    await expect(page).to_have_title("Payments · Cogni")
    await _shows(page, str(system.bought.attempt_id), *system.ids(*system.intents, system.donated, system.reverted))
    await expect(_rows(page).first).to_contain_text(f"CREDITED purchase 25.00 {system.account}")
    await expect(_rows(page).last).to_contain_text("FAILED TX_REVERTED purchase 100.00")
    await page.get_by_role("link", name="Credits", exact=True).click()
    await expect(page.get_by_role("heading", name="Your balance")).to_be_visible()

    await page.get_by_role("link", name="Operators").click()
    await page.get_by_role("button", name="Sign out").click()
    await expect(page.get_by_role("button", name="Sign in with a wallet")).to_be_visible()
    # What was seen before is not kept by the browser.
    await page.go_back()
    await expect(page.get_by_role("button", name="Sign in with a wallet")).to_be_visible()


@pytest.mark.slow
async def test_only_operators_see_a_link_or_a_page(site: Site, system: System) -> None:
    visitor = await site.visitor(wallets=[site.wallet(account=payer_wallets()[1])])
    page, link = visitor.page, visitor.page.locator("a[href*=operator]")
    for path in ("/operator", f"/operator/attempts/{system.bought.attempt_id}"):
        await visitor.open(path)
        await expect(page.get_by_role("button", name="Sign in with a wallet")).to_be_visible()
        await expect(link).to_have_count(0)
    await visitor.sign_in()
    await expect(link).to_have_count(0)
    visitor.allowed.append("403")
    for path in ("/operator", f"/operator/attempts/{system.bought.attempt_id}"):
        await visitor.open(path)
        await expect(page.get_by_role("heading", level=1)).to_have_text("Operator access required")
        await expect(page.get_by_role("table")).to_have_count(0)
        await expect(page.locator("body")).not_to_contain_text(system.account)
    # It leads on, and to another wallet.
    await page.get_by_role("link", name="To your credits").click()
    await expect(page.get_by_role("heading", name="Your balance")).to_be_visible()
    await page.go_back()
    await page.get_by_role("button", name="Sign out").click()
    await expect(page.get_by_role("button", name="Sign in with a wallet")).to_be_visible()


@pytest.mark.slow
async def test_a_session_that_is_over_leads_to_signing_in_and_back(site: Site, system: System) -> None:
    def end_session() -> None:
        with connect(system.engine.database.superuser_url) as superuser:
            superuser.execute(
                "UPDATE sessions SET expires_at = now() FROM users WHERE users.id = user_id AND wallet_address = %s",
                (other_operator().address,),
            )

    visitor = await site.signed_in(wallets=[site.wallet(account=other_operator())])
    page, sign_in = visitor.page, visitor.page.get_by_role("button", name="Sign in with a wallet")
    for path, press in (
        ("/operator", page.get_by_role("button", name="Filter")),
        ("/operator", page.locator("tbody th a").first),
        (f"/operator/attempts/{system.bought.attempt_id}", page.get_by_role("link", name="← Payments")),
    ):
        await visitor.open(path)
        end_session()
        await press.click()
        await expect(page).to_have_url(re.compile("/credits(#|$)"))
        await sign_in.click()
        await page.get_by_role("link", name="Operators").click()
        await expect(_rows(page).first).to_contain_text("CREDITED")


# -- the list


@pytest.mark.slow
async def test_each_filter_shows_what_it_names(site: Site, system: System, cookie: Any) -> None:
    page = await _operator(site, cookie)
    bought, donated, reverted = str(system.bought.attempt_id), str(system.donated.id), str(system.reverted.id)
    await page.get_by_label("Status", exact=True).select_option("CREDITED")
    await _filter(page)
    await _shows(page, bought, donated)
    # Each is chosen in addition to what is chosen already, and stays to be seen.
    await page.get_by_label("Purpose", exact=True).select_option("donation")
    await _filter(page)
    await _shows(page, donated)
    await expect(page.get_by_label("Status", exact=True)).to_have_value("CREDITED")
    await page.get_by_role("link", name="Clear").click()
    await expect(_rows(page)).to_have_count(INTENTS + 3)

    # By the account of a payment that is listed.
    await _rows(page).last.get_by_title("Payments of").click()
    await _shows(page, donated, reverted)
    await expect(page.get_by_label("Account", exact=True)).to_have_value(system.reverted.billing_account_id)
    await page.get_by_label("Account", exact=True).fill(f" {system.account} ")
    await _filter(page)
    await _shows(page, bought)
    await page.get_by_role("link", name="Clear").click()

    for wanted in (DONATION_HASH, "0x" + DONATION_HASH[2:].upper(), f" {DONATION_HASH} "):
        await page.get_by_label("Transaction hash").fill(wanted)
        await _filter(page)
        await _shows(page, donated)
        await expect(page.get_by_label("Transaction hash")).to_have_value(wanted.strip())
    await page.get_by_label("Transaction hash").fill(tx_hash(99))
    await _filter(page)
    await expect(page.get_by_text("No payments match.")).to_be_visible()
    await page.get_by_role("link", name="Clear").click()

    # The numbers of each status are links to them.
    await page.get_by_role("link", name="FAILED 1").click()
    await _shows(page, reverted)
    await expect(page.get_by_role("link", name="FAILED 1")).to_have_attribute("aria-current", "true")
    # The reference that a payer quotes opens the payment.
    await page.get_by_label("Payer’s reference").fill(donated.upper())
    await _filter(page)
    await expect(page).to_have_url(re.compile(f"/operator/attempts/{donated}(#|$)"))
    await expect(page.get_by_role("heading", level=1)).to_contain_text("400,000,000 credits donated")


@pytest.mark.slow
async def test_an_invalid_search_is_explained_beside_its_field(site: Site, system: System, cookie: Any) -> None:
    visitor = await _visiting_operator(site, cookie)
    visitor.allowed.append("422")
    page = visitor.page
    for name, wrong, says in (
        ("Transaction hash", system.bought_hash[:20], "expected 0x and 64 hex digits"),
        ("Transaction hash", "<b>garbage</b>", "expected 0x and 64 hex digits"),
        ("Account", "a" * 201, "expected an account's id"),
        ("Payer’s reference", "42", "expected "),
    ):
        field = page.get_by_label(name)
        await field.fill(wrong)
        await _filter(page)
        await expect(page.get_by_text("Correct the marked fields above.")).to_be_in_viewport()
        await expect(page.get_by_role("table", name="Payments")).to_have_count(0)
        await expect(field).to_have_value(wrong)
        await expect(field).to_have_attribute("aria-invalid", "true")
        await expect(field).to_have_accessible_description(re.compile(re.escape(says)))
        await expect(page.locator(".wrong")).to_be_in_viewport()
        await field.fill("")
    await _filter(page)
    await expect(_rows(page)).to_have_count(INTENTS + 3)


@pytest.mark.slow
async def test_pages_lead_on_and_back_with_the_filters_kept(
    site: Site, system: System, cookie: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pages, "PAGE_ROWS", 2)
    page = await _operator(site, cookie, "/operator?days=30")
    await page.get_by_label("Status", exact=True).select_option("CREATED_INTENT")
    await page.get_by_label("Account", exact=True).fill(system.intents[0].billing_account_id)
    await _filter(page)
    older, newer = page.get_by_role("link", name="Older"), page.get_by_role("link", name="Newer")
    ids = system.ids(*system.intents)
    for shown in (ids[:2], ids[2:4], ids[4:]):
        await _shows(page, *shown)
        await expect(page.get_by_label("Status", exact=True)).to_have_value("CREATED_INTENT")
        await expect(page.get_by_label("Account", exact=True)).to_have_value(system.intents[0].billing_account_id)
        await expect(page.get_by_role("link", name="30 days")).to_have_attribute("aria-current", "true")
        if shown != ids[4:]:
            await older.click()
    await expect(older).to_have_count(0)
    await newer.click()
    await _shows(page, *ids[2:4])
    await newer.click()
    await _shows(page, *ids[:2])
    await expect(newer).to_have_count(0)


@pytest.mark.slow
async def test_with_the_keyboard_alone(site: Site, system: System, cookie: Any) -> None:
    page = await _operator(site, cookie)

    async def tab_to(wanted: Locator) -> None:
        for _ in range(30):
            await page.keyboard.press("Tab")
            if await wanted.evaluate("element => element === document.activeElement"):
                # Where one is can be seen.
                await expect(wanted).to_have_css("outline-style", "solid")
                await expect(wanted).to_be_in_viewport()
                return
        raise AssertionError(f"{wanted} is not reached")

    await tab_to(page.get_by_label("Status", exact=True))
    await page.keyboard.type("CRED")
    await tab_to(page.get_by_label("Account", exact=True))
    await page.keyboard.type(system.account)
    await page.keyboard.press("Enter")
    await expect(page).to_have_url(re.compile(r"\?status=CREDITED&purpose=&account=.+#payments$"))
    await _shows(page, str(system.bought.attempt_id))
    # The way goes on where the list is, not at the top.
    await tab_to(page.get_by_label("Status", exact=True))
    await tab_to(page.locator("tbody th a"))
    await page.keyboard.press("Enter")
    await expect(page.get_by_role("heading", level=1)).to_contain_text("Credited: 250,000,000 credits to the buyer")
    await tab_to(page.get_by_role("link", name="← Payments"))


# -- one payment


@pytest.mark.slow
async def test_a_payments_history_is_shown_from_all_sources(site: Site, system: System, cookie: Any) -> None:
    page = await _operator(site, cookie, "/operator?status=CREDITED#payments")
    listed = page.url
    attempt_id = str(system.bought.attempt_id)
    await _rows(page).first.get_by_role("rowheader").get_by_role("link").click()
    await expect(page.get_by_role("heading", level=1)).to_contain_text(
        "Credited: 250,000,000 credits to the buyer, 187,500,000 to the system tenant."
    )
    events = _rows(page, "Events")
    await expect(events.get_by_role("rowheader")).to_have_text(["intent_created", "submitted", "credited"])
    await expect(events.nth(1)).to_contain_text("CREATED_INTENT → PENDING_UNVERIFIED")
    await expect(events.nth(1)).to_contain_text(system.bought_hash)
    times = [await when.get_attribute("datetime") for when in await events.locator("time").all()]
    assert times == sorted(times, key=str)
    ledger = _rows(page, "Ledger")
    await expect(ledger).to_have_count(2)
    await expect(ledger.nth(0)).to_contain_text(f"purchase {system.account} +250,000,000 250,000,000")
    await expect(ledger.nth(1)).to_contain_text(
        f"bonus {SYSTEM_TENANT_ACCOUNT_ID} +187,500,000 {await site.balance():,}"
    )

    block, log_index = query(
        system.engine.database.superuser_url,
        "SELECT block_number, log_index FROM settled_transfers WHERE tx_hash = %s",
        system.bought_hash,
    )[0]
    confirmations = await system.engine.reader.heads.height() - block + 1
    said = f"the right payment, in block {block}, log {log_index}, {confirmations} confirmations"
    now = page.get_by_role("region", name="At ")
    await expect(now).to_contain_text(said)
    await expect(now).to_contain_text("COMPLETED, ")
    link = now.get_by_role("link", name="Temporal’s UI")
    workflow = f"verify-and-settle-{attempt_id}"
    namespace = system.engine.namespace.name
    await expect(link).to_have_attribute("href", f"{UI}/namespaces/{namespace}/workflows/{workflow}")
    await expect(link).to_have_attribute("target", "_blank")
    assert await system.engine.namespace.client.get_workflow_handle(workflow).describe()

    await page.go_back()
    await expect(page).to_have_url(listed)
    await _shows(page, attempt_id, str(system.donated.id))
    await expect(page.get_by_label("Status", exact=True)).to_have_value("CREDITED")


# -- the balance


@pytest.mark.slow
async def test_the_picture_shows_the_balance_that_the_database_has(site: Site, cookie: Any) -> None:
    page = await _operator(site, cookie)
    balance = await site.balance()
    assert balance == 187_500_000 + 400_000_000
    section = page.get_by_role("region", name="The system tenant’s balance")
    chart = section.get_by_role("img", name="Balance of ")
    for period in ("7 days", "1 day", "30 days", "90 days"):
        await section.get_by_role("link", name=period).click()
        await expect(section.get_by_role("link", name=period)).to_have_attribute("aria-current", "true")
        await expect(section).to_contain_text(f"Now {balance:,}")
        await expect(section).to_contain_text(f"Bonuses in {period} +187,500,000")
        await expect(section).to_contain_text(f"Donations in {period} +400,000,000")
        await expect(chart).to_be_visible()
        await expect(chart).to_have_accessible_name(
            re.compile(f"^Balance of {SYSTEM_TENANT_ACCOUNT_ID} over time, in credits From 0 at .+ to {balance:,} at ")
        )
        # As it is drawn: the curve's end between the lines of the levels.
        drawn = await chart.evaluate(PICTURE)
        top = await section.locator(".levels text").last.text_content() or ""
        number, unit = top.split()
        lowest, highest, end = (drawn[name] for name in ("lowest", "highest", "end"))
        pixel = int(number) * UNITS[unit] / (lowest - highest)
        assert abs((lowest - end) * pixel - balance) <= pixel
    await section.get_by_text("The numbers", exact=True).click()
    await expect(section.get_by_role("row").nth(1).get_by_role("cell").last).to_have_text(f"{balance:,}")


# -- for every visitor


async def _main_states(site: Site, system: System, cookie: Any, **options: Any) -> AsyncIterator[Visitor]:
    """An operator on each page, in each of its states."""
    visitor = await _visiting_operator(site, cookie, **options)
    page = visitor.page
    await expect(_rows(page)).to_have_count(INTENTS + 3)
    await page.get_by_text("The numbers", exact=True).click()
    yield visitor
    visitor.allowed += ["422", "404", "403"]
    for path, words in (
        ("/operator?status=x&purpose=x&hash=x&reference=x&days=x&account=" + "a" * 201, "Correct the marked fields"),
        ("/operator?account=nobody", "No payments match."),
        (f"/operator/attempts/{system.bought.attempt_id}", "187,500,000 to the system tenant"),
        (f"/operator/attempts/{system.reverted.id}", "ended FAILED with TX_REVERTED"),
        (f"/operator/attempts/{system.intents[0].id}", "No ledger entries"),
        ("/operator/attempts/nothing", "Payment attempt nothing not found"),
    ):
        await visitor.open(path)
        await expect(page.locator("main")).to_contain_text(words)
        yield visitor
    await visitor.context.clear_cookies()
    visitor.wallet.account = payer_wallets()[1]
    await visitor.sign_in()
    await visitor.open("/operator")
    await expect(page.locator("main")).to_contain_text("Operator access required")
    yield visitor


@pytest.mark.slow
async def test_a_small_telephone_scrolls_down_only(site: Site, system: System, cookie: Any) -> None:
    options = {"viewport": SMALL_TELEPHONE, "has_touch": True, "is_mobile": True}
    async for visitor in _main_states(site, system, cookie, **options):
        assert await visitor.widths() == [360, 360], visitor.page.url


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["light", "dark"])
async def test_no_state_has_a_barrier_that_axe_knows(site: Site, system: System, cookie: Any, scheme: str) -> None:
    options = {"bypass_csp": True, "color_scheme": scheme, "reduced_motion": "reduce"}
    async for visitor in _main_states(site, system, cookie, **options):
        assert await visitor.barriers() == [], visitor.page.url
