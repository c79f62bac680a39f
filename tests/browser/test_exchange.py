"""The Credits page's addresses of one's own: given once, copied, and what arrives there listed as it is confirmed."""

from __future__ import annotations

from typing import Final

import pytest
from playwright.async_api import Locator, expect

from tests.browser.test_pay_page import USDC, OpenShop, Shop, open_shop, shop
from tests.support.browser import SMALL_TELEPHONE, Visitor
from tests.support.deposits import METHOD, add_method, disable, see_deposit, settle_deposit

__all__ = ["open_shop", "shop"]

ADDRESS: Final = "/api/v1/deposit-address"


def exchange(visitor: Visitor) -> Locator:
    return visitor.page.locator("#exchange")


async def own_address(shop: Shop) -> str:
    return str((await shop.program.post(ADDRESS, {"method": METHOD})).body["address"])


async def test_the_address_is_given_when_it_is_asked_for_and_stays(shop: Shop) -> None:
    visitor = await shop.site.signed_in(permissions=["clipboard-read", "clipboard-write"])
    await expect(exchange(visitor).get_by_role("heading", level=3)).to_have_text("USDC on Local chain")
    await expect(exchange(visitor).locator("code")).to_have_count(0)
    await exchange(visitor).get_by_role("button", name="Show my address").click()
    address = exchange(visitor).locator("code")
    await expect(address).to_have_text(await own_address(shop))
    await exchange(visitor).get_by_role("button", name="Copy").click()
    await expect(exchange(visitor).locator(".says")).to_have_text("The address is copied.")
    assert await visitor.page.evaluate("navigator.clipboard.readText()") == await own_address(shop)
    # A method that is disabled is not offered, whatever was given out for it.
    disable(shop.engine.database)
    await visitor.open()
    await expect(exchange(visitor)).to_have_count(0)


@pytest.mark.slow
async def test_what_arrives_is_listed_as_it_is_confirmed(shop: Shop) -> None:
    address = await own_address(shop)
    visitor = await shop.site.signed_in()
    await expect(visitor.cards()).to_have_count(0)
    height = await shop.engine.reader.heads.height()
    deposit_id = see_deposit(shop.engine.database, address, 25 * USDC, block_number=height)
    await expect(visitor.cards()).to_have_count(1)
    await expect(visitor.cards()).to_contain_text("250,000,000 credits for a deposit of $25.00")
    await expect(visitor.cards()).to_contain_text("1 of 5 confirmations")
    await shop.engine.chain.mine(2)
    await expect(visitor.cards()).to_contain_text("3 of 5 confirmations")
    await expect(visitor.cards().locator("details")).to_have_count(0)
    settle_deposit(shop.engine.database, deposit_id)
    await expect(visitor.cards().locator(".badge")).to_have_text("Credited")
    await expect(visitor.cards()).to_contain_text("250,000,000 credits for a deposit of $25.00")
    # What came to a charge of the account is its payment, too.
    see_deposit(shop.engine.database, (await shop.charge())["address"], 5, block_number=height)
    await expect(visitor.cards()).to_have_count(2)


@pytest.mark.slow
async def test_without_its_module_the_address_is_given_by_a_form(shop: Shop) -> None:
    with_script = await shop.site.signed_in()
    visitor = await shop.site.visitor(java_script_enabled=False)
    await visitor.context.add_cookies(await with_script.context.cookies())  # type: ignore[arg-type]
    await visitor.open()
    await exchange(visitor).get_by_role("button", name="Show my address").click()
    await expect(exchange(visitor).locator("code")).to_have_text(await own_address(shop))
    await expect(exchange(visitor).get_by_role("button")).to_have_count(0)


async def test_a_form_that_asks_for_nonsense_gives_nothing(shop: Shop) -> None:
    for form in ({}, {"method": "nonsense"}, {"method": ["a", "b"]}, {"method": "\x00"}):
        reply = await shop.program.call("POST", "/credits/address", data=form, allow_redirects=False)
        assert (reply.status, reply.headers["Location"]) == (303, "/credits#exchange"), form
    async with shop.site.api.visitor() as stranger:
        reply = await stranger.call("POST", "/credits/address", data={"method": METHOD}, allow_redirects=False)
        assert reply.status == 303


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["light", "dark"])
async def test_no_state_has_a_barrier_and_a_telephone_scrolls_down_only(open_shop: OpenShop, scheme: str) -> None:
    async with open_shop() as shop:
        add_method(shop.engine.database, "DAI:local", decimals=18)
        address = await own_address(shop)
        height = await shop.engine.reader.heads.height()
        see_deposit(shop.engine.database, address, 25 * USDC, block_number=height)
        visitor = await shop.site.signed_in(
            bypass_csp=True, color_scheme=scheme, reduced_motion="reduce", viewport=SMALL_TELEPHONE, is_mobile=True
        )
        await expect(visitor.cards()).to_have_count(1)
        assert await visitor.barriers() == []
        assert await visitor.widths() == [360, 360]
