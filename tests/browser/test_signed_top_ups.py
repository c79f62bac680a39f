"""The Credits page's own way to pay without gas: the wallet signs, the relay sends."""

from __future__ import annotations

import pytest
from playwright.async_api import expect

from tests.browser.conftest import Site
from tests.browser.test_paying_charges import relaying
from tests.deposits.test_settlement import start_watch
from tests.support.browser import DECLINED, Visitor
from tests.support.engine import MIN_CONFIRMATIONS

BUTTONS = {"self": "Buy with a signature", "system": "Donate with a signature"}


async def signer(site: Site) -> Visitor:
    """A visitor who has signed in, and does not mind what browsers say of terms to sign."""
    visitor = await site.signed_in()
    visitor.allowed.append("402 (Payment Required)")
    return visitor


@pytest.mark.parametrize("purpose", ["self", pytest.param("system", marks=pytest.mark.slow)])
async def test_credits_are_bought_with_a_signature_and_without_gas(site: Site, purpose: str) -> None:
    await start_watch(site.engine)
    async with relaying(site.engine):
        visitor = await signer(site)
        form = visitor.form(purpose)
        await form.get_by_role("radio", name="$10", exact=True).check()
        button = form.get_by_role("button", name=BUTTONS[purpose])
        visitor.wallet.errors["eth_signTypedData_v4"] = DECLINED
        await button.click()
        await expect(visitor.says(purpose)).to_contain_text("You declined the request in your wallet")
        await expect(visitor.cards()).to_have_count(0)
        del visitor.wallet.errors["eth_signTypedData_v4"]
        await button.click()
        await expect(visitor.cards()).to_contain_text("Waiting for a block to include it.")
        await site.engine.chain.mine(MIN_CONFIRMATIONS)
        await expect(visitor.cards()).to_contain_text("Credited")
        await expect(visitor.notices()).to_contain_text("credited")
    assert visitor.wallet.sent == []
    assert await site.own_balance() == (100_000_000 if purpose == "self" else 0)


@pytest.mark.slow
async def test_without_a_relay_the_page_offers_no_signature(site: Site) -> None:
    visitor = await site.signed_in()
    await expect(visitor.form().get_by_role("button")).to_have_count(1)
