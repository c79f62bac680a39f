"""What the page is without its module, on a telephone, for a screen reader, in both schemes, and page by page."""

from __future__ import annotations

from typing import Any, Final

import pytest
from playwright.async_api import expect

from api.pages import credits as pages
from devstack.chain import payer_wallets
from domain.errors import DatabaseUnavailable
from domain.ledger.entries import USAGE_REASON, Reason
from domain.payments.attempt import ErrorCode
from tests.browser.conftest import OpenSite, Site
from tests.support.api import running_api
from tests.support.browser import DECLINED, SMALL_TELEPHONE, Visitor
from tests.support.engine import Engine
from tests.support.sql import query

TOUCH_PIXELS_MIN: Final = 44


async def _post(site: Site, amounts: list[int], *, reason: str = "adjustment") -> None:
    account = (await site.engine.payer()).billing_account_id
    statement = "SELECT posted FROM post_entry(%s, %s, %s, NULL, 'cash:usdc', '{}')"
    for amount in amounts:
        assert query(site.engine.database.service_url, statement, account, amount, reason) == [(True,)]


async def _main_states(site: Site, **options: Any) -> Visitor:
    """A visitor with everything on the page: entries, an unpaid, a pending, a credited payment, and an error."""
    visitor = await site.signed_in(**options)
    await _post(site, [10_000_000, -2_500_000])
    await visitor.pay("100")
    await expect(visitor.cards()).to_contain_text("Waiting for a block")
    await site.engine.chain.mine(2)
    await expect(visitor.cards()).to_contain_text("Credited")
    await visitor.pay("1234.56", purpose="system")
    await expect(visitor.cards()).to_have_count(2)
    await site.engine.chain.mine()
    await expect(visitor.cards().first).to_contain_text("1 of 2 confirmations")
    await site.engine.intent(5_000)
    await visitor.open()
    visitor.wallet.errors["eth_sendTransaction"] = DECLINED
    await visitor.pay("25")
    await expect(visitor.says()).to_contain_text("declined")
    await visitor.emit("chainChanged", "0x1")
    await expect(visitor.notices()).to_contain_text("another network")
    return visitor


@pytest.mark.slow
async def test_without_javascript_everything_is_there_but_the_wallet(site: Site) -> None:
    with_script = await _main_states(site)
    cookies: Any = await with_script.context.cookies()
    visitor = await site.visitor(java_script_enabled=False)
    await visitor.context.add_cookies(cookies)
    await visitor.open()
    await expect(visitor.page.locator("#balance-credits")).to_have_text("1,007,500,000")
    await expect(visitor.page.locator("noscript p")).to_contain_text("Paying needs JavaScript")
    await expect(visitor.form().get_by_role("button")).to_be_disabled()
    await expect(visitor.page.get_by_role("progressbar")).to_have_js_property("value", 1)
    await expect(visitor.page.get_by_role("row")).to_have_count(4)
    await expect(visitor.page.locator("td time").first).to_contain_text(" UTC")
    await visitor.page.get_by_role("button", name="Sign out").click()
    await expect(visitor.page.get_by_role("heading", name="Credits for Cogni")).to_be_visible()
    await expect(visitor.page.locator("noscript p")).to_contain_text("need JavaScript")
    # The session itself is over, not only this browser's cookie.
    await with_script.open()
    await expect(with_script.page.get_by_role("button", name="Sign in with a wallet")).to_be_visible()


@pytest.mark.slow
async def test_the_history_is_paged_there_and_back(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pages, "LEDGER_PAGE_ROWS", 2)
    visitor = await site.signed_in()
    await _post(site, [1, 2, 3, 4, 5])
    await visitor.open()
    amounts = visitor.page.locator("tbody td.number:nth-child(3)")
    older, newer = (visitor.page.get_by_role("link", name=name) for name in ("Older", "Newer"))
    for expected in (["+5", "+4"], ["+3", "+2"], ["+1"]):
        await expect(amounts).to_have_text(expected)
        if expected != ["+1"]:
            await older.click()
    await expect(older).to_have_count(0)
    # What arrives does not turn the page.
    await visitor.pay("25")
    await expect(visitor.cards()).to_have_count(1)
    await expect(amounts).to_have_text(["+1"])
    await newer.click()
    await expect(amounts).to_have_text(["+3", "+2"])
    await newer.click()
    await expect(amounts).to_have_text(["+5", "+4"])
    await expect(newer).to_have_count(0)
    assert visitor.page.url == f"{site.api.url}/credits#ledger"
    await visitor.open("/credits?cursor=nonsense")
    await expect(amounts).to_have_text(["+5", "+4"])


@pytest.mark.slow
async def test_entries_have_signs_and_words(site: Site) -> None:
    visitor = await site.signed_in()
    await _post(site, [30_000_000], reason="welcome_gift")
    await _post(site, [-1_234_567], reason="usage")
    await visitor.open()
    rows = visitor.page.get_by_role("row")
    await expect(rows.nth(1)).to_contain_text("Usage −1,234,567 28,765,433 –")
    await expect(rows.nth(2)).to_contain_text("Welcome gift +30,000,000")
    await expect(visitor.page.locator("#balance")).to_contain_text("worth $2.87")


@pytest.mark.slow
async def test_a_small_telephone_scrolls_down_only(site: Site) -> None:
    visitor = await _main_states(site, viewport=SMALL_TELEPHONE, has_touch=True, is_mobile=True)
    await visitor.choose("1")
    await visitor.page.get_by_text("Already sent it?").click()
    assert await visitor.widths() == [360, 360]
    # The history too: its rows are laid out in lines, and say all that they say elsewhere.
    assert await visitor.page.evaluate("(e => e.scrollWidth === e.clientWidth)(document.querySelector('.scroller'))")
    row = visitor.page.get_by_role("row").nth(1)
    await expect(row.get_by_role("rowheader")).to_have_text("Credits bought")
    await expect(row.get_by_role("cell")).to_have_count(4)
    for target in await visitor.page.locator("button, input, summary, .brand, .paging a").all():
        if await target.is_visible():
            box = await target.bounding_box()
            assert box is not None and box["height"] >= TOUCH_PIXELS_MIN, (await target.inner_text(), box)
    out = await site.visitor(viewport=SMALL_TELEPHONE, has_touch=True, is_mobile=True)
    await out.open()
    assert await out.widths() == [360, 360]


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["light", "dark"])
async def test_no_main_state_has_a_barrier_that_axe_knows(site: Site, scheme: str) -> None:
    visitor = await _main_states(site, bypass_csp=True, color_scheme=scheme, reduced_motion="reduce")
    assert await visitor.barriers() == []
    await visitor.form().get_by_role("radio", name="Other").check()
    await visitor.form().get_by_label("Other amount").fill("1,5")
    await visitor.page.get_by_text("Already sent it?").click()
    assert await visitor.barriers() == []
    await visitor.page.get_by_role("button", name="Sign out").click()
    await expect(visitor.page.get_by_role("button", name="Sign in with a wallet")).to_be_enabled()
    assert await visitor.barriers() == []

    several = await site.visitor(
        wallets=[site.wallet(), site.wallet(name="Second", rdns="second")], bypass_csp=True, color_scheme=scheme
    )
    await several.open()
    await several.page.get_by_role("button", name="Sign in with a wallet").click()
    await expect(several.page.get_by_role("dialog")).to_be_visible()
    assert await several.barriers() == []


@pytest.mark.slow
async def test_both_schemes_are_the_systems(site: Site) -> None:
    visitor = await site.visitor(color_scheme="light")
    await visitor.open()
    body = visitor.page.locator("body")
    await expect(body).to_have_css("background-color", "rgb(244, 246, 245)")
    await visitor.page.emulate_media(color_scheme="dark")
    await expect(body).to_have_css("background-color", "rgb(14, 19, 18)")


@pytest.mark.slow
async def test_the_platforms_name_is_text_and_files_are_kept(open_site: OpenSite) -> None:
    async with open_site(PLATFORM_NAME="A & <B>") as site:
        visitor = await site.signed_in()
        await expect(visitor.page.get_by_role("heading", name="Keep A & <B> Alive")).to_be_visible()
        await expect(visitor.page.locator(".brand")).to_have_text("A & <B>")
        await expect(visitor.form("system").locator("output")).to_have_text("25.00 USDC for A & <B>, 0 credits for you")
        async with visitor.page.expect_response("**/static/credits.js*") as loaded:
            await visitor.open()
        headers = (await loaded.value).headers
        assert headers["cache-control"] == "public, max-age=31536000, immutable"


async def test_a_database_that_does_not_answer_is_said_as_a_page(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fail(*_: object, **__: object) -> None:
        raise DatabaseUnavailable("out of reach")

    monkeypatch.setattr(pages, "read_summary", fail)
    async with running_api(engine) as api, api.visitor(wallet=None) as visitor:
        assert (await visitor.get("/credits")).status == 200
        await visitor.sign_in(payer_wallets()[0])
        reply = await visitor.get("/credits")
        assert (reply.status, reply.headers["Retry-After"]) == (503, "5")
        assert "Nothing is lost" in reply.body
        assert "script" not in reply.body


def test_every_code_and_reason_has_words() -> None:
    assert all(code.for_the_payer for code in ErrorCode)
    assert set(pages.REASON_LABELS) == {*Reason, USAGE_REASON}


def test_numbers_are_written_exactly() -> None:
    assert [pages.worth_in_usd(credits) for credits in (0, 99_999, 100_000, 2**62, -150_000)] == [
        "0.00", "0.00", "0.01", "461,168,601,842.73", "-0.01",
    ]  # fmt: skip
    assert [pages.signed(number) for number in (-1_000, 0, 1_000)] == ["−1,000", "0", "+1,000"]
    assert pages.shortened("0x70997970C51812dc3A010C7d01b50e0d17dc79C8") == "0x7099…79C8"
