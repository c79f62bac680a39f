"""Signing in and out with a wallet."""

from __future__ import annotations

from dataclasses import replace

import pytest
from eth_utils.address import to_checksum_address
from playwright.async_api import expect

from devstack.chain import payer_wallets
from tests.browser.conftest import Site
from tests.support.browser import DECLINED, PENDING, Visitor
from tests.support.smart_wallets import SIGNING_ON_CHAIN, put_contract, sign_on_chain


async def _press_sign_in(visitor: Visitor) -> None:
    await visitor.page.get_by_role("button", name="Sign in with a wallet").click()


@pytest.mark.slow
async def test_signing_a_message_signs_in_and_shows_the_account(site: Site) -> None:
    visitor = await site.visitor()
    await visitor.open("/")
    await expect(visitor.page).to_have_title("Credits · Cogni")
    await expect(visitor.page.get_by_role("heading", level=1)).to_have_text("Credits for Cogni")
    await _press_sign_in(visitor)
    await expect(visitor.page.get_by_role("heading", name="Your balance")).to_be_visible()
    await expect(visitor.page.locator("#balance-credits")).to_have_text("0")
    await expect(visitor.page.get_by_text("0x7099…79C8")).to_be_visible()


@pytest.mark.slow
async def test_declining_to_sign_is_no_dead_end(site: Site) -> None:
    visitor = await site.visitor()
    await visitor.open()
    for method in ("eth_requestAccounts", "personal_sign"):
        visitor.wallet.errors = {method: DECLINED}
        await _press_sign_in(visitor)
        await expect(visitor.page.locator("#welcome .says")).to_contain_text("You declined the request in your wallet")
    visitor.wallet.errors = {"eth_requestAccounts": PENDING}
    await _press_sign_in(visitor)
    await expect(visitor.page.locator("#welcome .says")).to_contain_text("already shows a request")
    visitor.wallet.errors = {}
    await visitor.sign_in()


@pytest.mark.slow
async def test_a_browser_without_a_wallet_says_what_to_do(site: Site) -> None:
    visitor = await site.visitor(wallets=[])
    await visitor.open()
    await _press_sign_in(visitor)
    await expect(visitor.page.locator("#welcome .says")).to_contain_text("No wallet was found in this browser")


@pytest.mark.slow
async def test_several_wallets_are_offered_by_name_and_the_chosen_one_is_used(site: Site) -> None:
    first = site.wallet(name="First Wallet", rdns="example.first")
    second = site.wallet(
        name="Second <b>Wallet</b>",
        rdns="example.second",
        account=payer_wallets()[1],
        icon="https://elsewhere.example/i.png",
    )
    visitor = await site.visitor(wallets=[first, second])
    await visitor.open()
    dialog = visitor.page.get_by_role("dialog", name="Choose a wallet")
    await _press_sign_in(visitor)
    await expect(dialog.get_by_role("button")).to_have_text(["First Wallet", "Second <b>Wallet</b>", "Cancel"])
    # Only an icon that is no address is shown; no request elsewhere is checked for every test.
    await expect(dialog.locator("img")).to_have_count(1)
    await dialog.get_by_role("button", name="Cancel").click()
    await expect(visitor.page.locator("#welcome .says")).to_contain_text("No wallet was chosen")

    await _press_sign_in(visitor)
    await dialog.get_by_role("button", name="Second").click()
    await expect(visitor.page.get_by_title(second.account.address)).to_be_visible()
    # It is remembered for paying: the user is not asked again.
    await visitor.pay("25")
    await expect(visitor.cards()).to_have_count(1)
    assert (first.calls, len(second.sent)) == ([], 1)


@pytest.mark.slow
async def test_a_wallet_from_before_announcements_works_too(site: Site) -> None:
    visitor = await site.visitor(wallets=[site.wallet(is_old=True)])
    await visitor.sign_in()
    await visitor.pay("25")
    await expect(visitor.cards()).to_have_count(1)


@pytest.mark.slow
async def test_signing_out_and_in_in_one_tab_shows_in_the_other(site: Site) -> None:
    visitor = await site.signed_in()
    other = await visitor.open_another_tab()
    await other.get_by_role("button", name="Sign out").click()
    await expect(other.get_by_role("button", name="Sign in with a wallet")).to_be_visible()
    await expect(visitor.page.get_by_role("button", name="Sign in with a wallet")).to_be_visible()
    await _press_sign_in(visitor)
    for page in (visitor.page, other):
        await expect(page.get_by_role("heading", name="Your balance")).to_be_visible()


@pytest.mark.slow
async def test_a_signature_of_another_account_is_refused_with_a_message(site: Site) -> None:
    visitor = await site.visitor()
    await visitor.open()
    # The wallet switches its account between showing it and signing.
    held = visitor.hold("eth_requestAccounts")
    visitor.allowed.append("401")
    await _press_sign_in(visitor)
    await expect(visitor.page.locator("#welcome .says")).to_contain_text("Open your wallet")
    visitor.wallet.account = payer_wallets()[1]
    held.set()
    await expect(visitor.page.locator("#welcome .says")).to_contain_text("the signature is not that of wallet")


@pytest.mark.slow
async def test_a_wallet_that_signs_on_the_chain_is_waited_for(site: Site) -> None:
    owner = payer_wallets()[2]
    wallet = site.wallet()
    address = to_checksum_address(await put_contract(wallet.chain, 0x5AFE1, SIGNING_ON_CHAIN))
    wallet = site.wallet(account=replace(owner, address=address))
    wallet.results = {**wallet.results, "personal_sign": "0x"}
    visitor = await site.visitor(wallets=[wallet])
    visitor.allowed.append("401")
    await visitor.open()
    await _press_sign_in(visitor)
    await expect(visitor.page.locator("#welcome .says")).to_contain_text("signs on the chain")
    [[message, _]] = [params for method, params in wallet.calls if method == "personal_sign"]
    await sign_on_chain(wallet.chain, owner.private_key, address, bytes.fromhex(message.removeprefix("0x")).decode())
    await expect(visitor.page.get_by_role("heading", name="Your balance")).to_be_visible(timeout=15_000)
