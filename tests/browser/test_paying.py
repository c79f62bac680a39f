"""Buying and donating: from the button to the ledger."""

from __future__ import annotations

import pytest
from playwright.async_api import expect

from devstack.chain import payer_wallets
from tests.browser.conftest import OpenSite, Site
from tests.support.browser import InjectedWallet

CREDITS_100_USD = 1_000_000_000


async def test_a_purchase_is_paid_once_by_who_signed_in_counts_its_confirmations_and_is_credited(
    open_site: OpenSite,
) -> None:
    async with open_site(MIN_CONFIRMATIONS="4") as site:
        visitor = await site.signed_in()
        # Another account in the wallet is noticed and never pays.
        mine, other = payer_wallets()[:2]
        words = "Your wallet is on 0x3c44…93bc, but you are signed in as 0x7099…79C8."
        await visitor.use_account(other)
        await expect(visitor.notices()).to_contain_text(words)
        await visitor.pay("25")
        await expect(visitor.says()).to_contain_text(words)
        assert (visitor.wallet.times("eth_sendTransaction"), await site.attempt_ids()) == (0, [])
        await visitor.use_account(mine)
        await expect(visitor.notices()).to_be_empty()

        # A double click pays once, and nothing else can be paid while the wallet asks.
        held = visitor.hold("eth_sendTransaction")
        button = await visitor.choose("100")
        await expect(visitor.form().locator("output")).to_have_text("1,000,000,000 credits for 100.00 USDC")
        await expect(button).to_have_text("Pay 100.00 USDC")
        await button.dblclick()
        await expect(visitor.says()).to_contain_text("Confirm 100.00 USDC in your wallet.")
        await expect(button).to_have_attribute("aria-disabled", "true")
        await button.click(force=True)
        await visitor.form("system").get_by_role("button").click(force=True)
        held.set()
        await expect(visitor.cards()).to_have_count(1)
        await expect(button).not_to_have_attribute("aria-disabled", "true")
        assert (len(visitor.wallet.sent), len(await site.attempt_ids())) == (1, 1)

        card, bar = visitor.cards().first, visitor.page.get_by_role("progressbar")
        await expect(card).to_contain_text("Waiting for a block to include it")
        await expect(visitor.says()).to_contain_text("Sent.")
        for confirmations in (1, 2, 3):
            await site.engine.chain.mine()
            await expect(card).to_contain_text(f"{confirmations} of 4 confirmations")
            await expect(bar).to_have_js_property("value", confirmations)
            await expect(bar).to_have_js_property("max", 4)
        await expect(visitor.page.locator("#balance-credits")).to_have_text("0")

        await site.engine.chain.mine()
        await expect(card).to_contain_text("Credited")
        await expect(visitor.page.locator("#balance-credits")).to_have_text("1,000,000,000")
        await expect(visitor.page.locator("#balance")).to_contain_text("worth $100.00")
        await expect(visitor.notices()).to_have_text("1,000,000,000 credits for 100.00 USDC: credited.")
        row = visitor.page.get_by_role("row").nth(1)
        await expect(row).to_contain_text("Credits bought +1,000,000,000 1,000,000,000")
        await expect(row.locator(".hash")).to_have_attribute("title", visitor.wallet.sent[0])

        [attempt_id] = await site.attempt_ids()
        await expect(card).to_contain_text(str(attempt_id))
        assert (await site.engine.credits(attempt_id))["credits_purchase"] == CREDITS_100_USD
        assert await site.own_balance() == CREDITS_100_USD


@pytest.mark.slow
async def test_a_donation_goes_to_the_system_tenant_and_leaves_the_own_balance_alone(site: Site) -> None:
    visitor = await site.signed_in()
    await expect(visitor.page.get_by_role("region", name="Keep Cogni Alive")).to_contain_text(
        "All of it goes to the account that powers Cogni’s own agents. Your own balance does not change."
    )
    button = await visitor.choose("100", purpose="system")
    await expect(visitor.form("system").locator("output")).to_have_text("100.00 USDC for Cogni, 0 credits for you")
    await button.click()
    await expect(visitor.cards().first).to_contain_text("Donation of 100.00 USDC")
    await site.engine.chain.mine(2)
    await expect(visitor.cards().first).to_contain_text("Credited")
    await expect(visitor.page.locator("#balance-credits")).to_have_text("0")
    assert (await site.own_balance(), await site.balance()) == (0, CREDITS_100_USD)


@pytest.mark.slow
async def test_what_one_gets_is_exact_for_every_amount(site: Site) -> None:
    visitor = await site.signed_in()
    await visitor.choose("1")
    field, output = visitor.page.get_by_label("Other amount in US dollars").first, visitor.form().locator("output")
    for typed, shown in {
        "1": "10,000,000 credits for 1.00 USDC",
        "1.1": "11,000,000 credits for 1.10 USDC",
        "4.35": "43,500,000 credits for 4.35 USDC",
        " $1234.56 ": "12,345,600,000 credits for 1,234.56 USDC",
        "10000": "100,000,000,000 credits for 10,000.00 USDC",
        "0.99": "The amount must be between 1.00 and 10,000.00 US dollars.",
        "10000.01": "The amount must be between 1.00 and 10,000.00 US dollars.",
        "1,500": "Enter the amount in digits, such as 40 or 12.50.",
        "1.005": "Enter the amount in digits, such as 40 or 12.50.",
        "1e3": "Enter the amount in digits, such as 40 or 12.50.",
        "-5": "Enter the amount in digits, such as 40 or 12.50.",
        "٣": "Enter the amount in digits, such as 40 or 12.50.",
        "": "",
    }.items():
        await field.fill(typed)
        await expect(output).to_have_text(shown)
    # A wrong amount asks for nothing, neither wallet nor server.
    before = list(visitor.wallet.calls)
    await visitor.form().get_by_role("button").click()
    await expect(output).to_have_text("Enter the amount in digits, such as 40 or 12.50.")
    await expect(field).to_be_focused()
    await expect(field).to_have_attribute("aria-invalid", "true")
    assert visitor.wallet.calls == before
    assert await site.attempt_ids() == []


@pytest.mark.slow
async def test_a_second_tab_cannot_pay_while_the_first_has_the_wallet(site: Site) -> None:
    visitor = await site.signed_in()
    other = await visitor.open_another_tab()
    held = visitor.hold("eth_sendTransaction")
    await visitor.pay("25")
    await expect(visitor.says()).to_contain_text("Confirm 25.00 USDC")
    await visitor.form(page=other).get_by_role("button").click()
    await expect(visitor.form(page=other).locator(".says")).to_contain_text("Another tab of this page")
    held.set()
    await expect(visitor.cards(page=other)).to_have_count(1)
    assert len(visitor.wallet.sent) == 1


@pytest.mark.slow
async def test_a_reorged_out_block_takes_its_confirmations_away(open_site: OpenSite) -> None:
    async with open_site(MIN_CONFIRMATIONS="4") as site:
        visitor = await site.signed_in()
        chain = site.engine.chain
        await chain.mine(4)
        await visitor.pay("25")
        await expect(visitor.cards()).to_contain_text("Waiting for a block")
        await chain.mine(2)
        await expect(visitor.cards()).to_contain_text("2 of 4 confirmations")
        raw = await chain.raw_transaction(visitor.wallet.sent[0])
        await chain.reorg(3)
        await expect(visitor.cards()).to_contain_text("Waiting for a block")
        await expect(visitor.page.get_by_role("progressbar")).to_have_js_property("value", 0)
        await chain.rpc("eth_sendRawTransaction", raw)
        await chain.mine(4)
        await expect(visitor.cards()).to_contain_text("Credited")


@pytest.mark.slow
async def test_two_tabs_show_the_same_progress(site: Site) -> None:
    visitor = await site.signed_in()
    other = await visitor.open_another_tab()
    await visitor.pay("25")
    for words, blocks in (("Waiting for a block", 1), ("1 of 2 confirmations", 1), ("Credited", 0)):
        for page in (visitor.page, other):
            await expect(visitor.cards(page=page)).to_contain_text(words)
        await site.engine.chain.mine(blocks)
    for page in (visitor.page, other):
        await expect(page.locator("#balance-credits")).to_have_text("250,000,000")


@pytest.mark.slow
async def test_the_keyboard_is_enough_to_buy(site: Site) -> None:
    visitor = await site.signed_in()
    page = visitor.page
    await page.get_by_role("radio", name="$25").first.focus()
    await page.keyboard.press("ArrowRight")
    await expect(visitor.form().locator("output")).to_have_text("500,000,000 credits for 50.00 USDC")
    await page.keyboard.press("Tab")
    await expect(visitor.form().get_by_role("button")).to_be_focused()
    await page.keyboard.press("Enter")
    await expect(visitor.cards()).to_have_count(1)
    await expect(visitor.form().get_by_role("button")).to_be_focused()


@pytest.mark.slow
async def test_a_transaction_that_was_sent_elsewhere_is_given_by_its_hash(site: Site) -> None:
    visitor = await site.signed_in()
    payer, intent = await site.engine.intent(2_500)
    sent = await site.engine.pay_and_confirm(intent)
    await visitor.open()
    await visitor.page.get_by_text("Already sent it?").click()
    field = visitor.page.get_by_label("Its transaction hash")
    await field.fill("0x1234")
    await visitor.page.get_by_role("button", name="Send the hash").click()
    await expect(visitor.cards()).to_contain_text("A transaction hash is 0x and 64 digits")
    await field.fill(f" {sent} ")
    await field.press("Enter")
    await expect(visitor.cards()).to_contain_text("Credited")
    assert await site.balance(payer.billing_account_id) == 250_000_000


@pytest.mark.slow
async def test_a_payment_that_is_wrong_says_why_and_keeps_its_reference(site: Site) -> None:
    visitor = await site.signed_in()
    _, intent = await site.engine.intent(2_500)
    sent = await site.engine.pay_and_confirm(intent, amount_raw=intent.amount_raw - 1)
    await visitor.open()
    await visitor.page.get_by_text("Already sent it?").click()
    await visitor.page.get_by_label("Its transaction hash").fill(sent)
    await visitor.page.get_by_role("button", name="Send the hash").click()
    await expect(visitor.cards()).to_contain_text("Not credited")
    await expect(visitor.cards()).to_contain_text("The amount sent was too small.")
    await expect(visitor.cards()).to_contain_text(str(intent.attempt_id))
    await expect(visitor.notices()).to_contain_text("not credited")
    assert await site.own_balance() == 0


@pytest.mark.slow
async def test_a_hash_of_another_payment_is_refused_with_a_message(site: Site) -> None:
    visitor = await site.signed_in()
    visitor.allowed.append("409")
    await visitor.pay("25")
    await expect(visitor.cards()).to_contain_text("Waiting for a block")
    await site.engine.intent(2_500)
    await visitor.open()
    await visitor.page.get_by_text("Already sent it?").click()
    await visitor.page.get_by_label("Its transaction hash").fill(visitor.wallet.sent[0])
    await visitor.page.get_by_role("button", name="Send the hash").click()
    await expect(visitor.cards().first).to_contain_text("already submitted for another of your payments")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("smallest", "largest", "presets"), [("5000", "6000", ["$50", "Other"]), ("1", "2", ["Other"])]
)
async def test_only_amounts_that_are_allowed_are_offered(
    open_site: OpenSite, smallest: str, largest: str, presets: list[str]
) -> None:
    async with open_site(PAYMENT_MIN_USD_CENTS=smallest, PAYMENT_MAX_USD_CENTS=largest) as site:
        visitor = await site.signed_in()
        await expect(visitor.form().locator(".presets label")).to_have_text(presets)


@pytest.mark.slow
async def test_a_sped_up_transaction_is_followed_by_its_new_hash(site: Site) -> None:
    visitor = await site.signed_in()
    await visitor.pay("25")
    wallet: InjectedWallet = visitor.wallet
    await expect(visitor.cards()).to_contain_text("Waiting for a block")
    faster = await site.engine.chain.speed_up(wallet.account.private_key, wallet.sent[0])
    await site.engine.chain.mine(2)
    await visitor.page.get_by_text("Sped it up in your wallet?").click()
    await visitor.page.get_by_label("The new transaction hash").fill(faster)
    await visitor.page.get_by_role("button", name="Send the hash").click()
    await expect(visitor.cards()).to_contain_text("Credited")
    await expect(visitor.cards().locator(".hash")).to_have_attribute("title", faster)
