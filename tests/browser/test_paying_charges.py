"""Charges paid for real, from a wallet that never signed in: the page shows what the chain has, and the books agree."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Final

import pytest
from playwright.async_api import expect

from devstack.chain import payer_wallets
from devstack.processes import wait_until
from relay.relay import Relay
from tests.browser.conftest import OpenSite, Site
from tests.deposits.test_settlement import start_watch
from tests.support.api import Visitor as Program
from tests.support.browser import DECLINED, FOREIGN_CHAIN_ID, Visitor
from tests.support.deposits import METHOD, add_method, status_of
from tests.support.engine import MIN_CONFIRMATIONS, PATIENCE_SECONDS, Engine
from tests.support.sql import scalar
from tests.topups.conftest import new_key, opened_relay

USDC: Final = 1_000_000
STRANGER: Final = payer_wallets()[5]


@dataclass(frozen=True)
class Shop:
    """The whole system, an account that makes charges, and a wallet that it has never heard of."""

    site: Site
    program: Program

    async def charge(self, cents: int = 2_500) -> dict[str, Any]:
        reply = await self.program.post("/api/v1/charges", {"method": METHOD, "amountUsdCents": cents})
        assert reply.status == 201, reply.body
        answer: dict[str, Any] = reply.body
        return answer

    async def read(self, charge: dict[str, Any]) -> dict[str, Any]:
        answer: dict[str, Any] = (await self.program.get(f"/api/v1/charges/{charge['chargeId']}")).body
        return answer

    async def page(self, charge: dict[str, Any], **options: Any) -> Visitor:
        visitor = await self.site.visitor(**{"wallets": [], **options})
        # The terms to sign, which browsers list among errors.
        visitor.allowed.append("402 (Payment Required)")
        await visitor.open(f"/pay/{charge['chargeId']}")
        return visitor

    async def send(self, address: str, usdc: int) -> str:
        """What an exchange does: a transfer to an address, mined."""
        sent = await self.site.engine.chain.pay(STRANGER.private_key, address, usdc * USDC)
        await self.site.engine.chain.mine()
        return sent

    async def confirm(self) -> None:
        await self.site.engine.chain.mine(MIN_CONFIRMATIONS)

    async def credited(self, charge: dict[str, Any], usdc: int) -> dict[str, Any]:
        """The charge, once so much of it is credited."""
        seen: list[dict[str, Any]] = []

        async def is_credited() -> bool:
            seen.append(await self.read(charge))
            return bool(seen[-1]["creditedCredits"] == usdc * 10_000_000)

        await wait_until(is_credited, timeout_seconds=PATIENCE_SECONDS, what=f"{usdc} USDC credited")
        return seen[-1]


@pytest.fixture
async def settings() -> dict[str, str]:
    """Other settings than the usual ones."""
    return {}


@pytest.fixture
async def shop(open_site: OpenSite, settings: dict[str, str]) -> AsyncIterator[Shop]:
    """The system with a worker that follows the chain."""
    async with open_site(**settings) as site:
        add_method(site.engine.database, address=site.engine.chain.token_address)
        await start_watch(site.engine)
        async with site.api.visitor(payer_wallets()[0]) as program:
            yield Shop(site, program)


@pytest.mark.slow
async def test_a_charge_is_paid_by_a_wallet_that_never_signed_in(shop: Shop) -> None:
    charge = await shop.charge()
    payer = await shop.page(charge)
    badge = payer.page.locator("#state .badge")
    await expect(badge).to_have_text("Waiting for payment")
    sent = await shop.send(charge["address"], 25)
    await expect(badge).to_have_text("Confirming")
    await expect(payer.page.locator("#state [role=status]")).to_contain_text("1 of 2 confirmations")
    await shop.confirm()
    await expect(badge).to_have_text("Paid")
    paid = await shop.credited(charge, 25)
    # On this chain a block is final 64 blocks later.
    await expect(payer.page.locator("#state .came")).to_contain_text("not final yet")
    assert [found["finalityState"] for found in paid["deposits"]] == ["pending"]
    assert (paid["status"], [found["txHash"] for found in paid["deposits"]]) == ("paid", [sent])
    [deposit] = paid["deposits"]
    assert (deposit["state"], deposit["fromAddress"], deposit["attemptId"]) == (
        "credited",
        STRANGER.address,
        deposit["depositId"],
    )
    assert await shop.site.own_balance() == 250_000_000
    # The wallet of a payer is no account.
    statement = "SELECT count(*) FROM users WHERE wallet_address = %s"
    assert scalar(shop.site.engine.database.service_url, statement, STRANGER.address) == 0


@pytest.mark.slow
async def test_short_several_and_over_are_credited_each_for_what_it_is(shop: Shop) -> None:
    """Fault 10: short was "settled" and credited to no account, over was kept, a second transfer was dropped."""
    charge = await shop.charge()
    payer = await shop.page(charge)
    badge, state = payer.page.locator("#state .badge"), payer.page.locator("#state")
    await shop.send(charge["address"], 10)
    await expect(badge).to_have_text("Paid in part")
    await expect(state).to_contain_text("15 USDC is missing.")
    await shop.confirm()
    # What is short is credited before the rest comes.
    assert (await shop.credited(charge, 10))["status"] == "partial"
    await expect(state).to_contain_text("received")
    for usdc in (15, 3):
        await shop.send(charge["address"], usdc)
    await shop.confirm()
    paid = await shop.credited(charge, 28)
    assert (paid["status"], paid["receivedRaw"], paid["missingRaw"]) == ("paid", 28 * USDC, 0)
    assert sorted(found["valueRaw"] for found in paid["deposits"]) == [3 * USDC, 10 * USDC, 15 * USDC]
    await expect(badge).to_have_text("Paid")
    # After it is paid, too.
    await shop.send(charge["address"], 1)
    await shop.confirm()
    assert (await shop.credited(charge, 29))["status"] == "paid"
    assert await shop.site.own_balance() == 290_000_000


@asynccontextmanager
async def relaying(engine: Engine) -> AsyncIterator[Relay]:
    """A relay that goes on by itself, once it has said that it is there."""

    async def go_on(relay: Relay) -> None:
        while True:
            await relay.run_once()
            await asyncio.sleep(0.1)

    # The chain mines on request: by its block time everything would be replaced.
    async with opened_relay(engine, await new_key(engine.chain), block_time=timedelta(minutes=1)) as relay:
        await relay.run_once()
        task = asyncio.create_task(go_on(relay))
        try:
            yield relay
        finally:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task


@pytest.mark.slow
async def test_a_wallet_that_never_signed_in_pays_by_signature_without_gas(shop: Shop) -> None:
    """It is on another network, declines at first, and its account holds no gas."""
    engine = shop.site.engine
    gas_wei = int(await engine.chain.rpc("eth_getBalance", STRANGER.address, "latest"), 16)
    await engine.chain.set_balance(STRANGER.address, 0)
    wallet = shop.site.wallet(account=STRANGER, chain_id=FOREIGN_CHAIN_ID)
    async with relaying(engine):
        charge = await shop.charge()
        payer = await shop.page(charge, wallets=[wallet])
        button = payer.page.get_by_role("button", name="Pay with a wallet")
        says = payer.page.locator("#signing")
        wallet.errors["eth_signTypedData_v4"] = DECLINED
        await button.click()
        await expect(says).to_contain_text("You declined the request in your wallet, and nothing was sent.")
        under = await says.bounding_box(), await button.bounding_box()
        assert under[0] and under[1] and 0 < under[0]["y"] - under[1]["y"] < 150, "beside the button that it is about"
        assert (wallet.times("wallet_switchEthereumChain"), wallet.chain_id) == (1, engine.chain.chain_id)
        del wallet.errors["eth_signTypedData_v4"]
        await button.click()
        badge, state = payer.page.locator("#state .badge"), payer.page.locator("#state")
        await expect(state).to_contain_text("signed and sent; waiting for a block")
        await expect(button).to_have_count(0)
        await shop.confirm()
        await expect(badge).to_have_text("Paid")
        paid = await shop.credited(charge, 25)
    assert [found["fromAddress"] for found in paid["deposits"]] == [STRANGER.address]
    assert wallet.sent == []
    assert wallet.times("eth_signTypedData_v4") == 2
    assert await shop.site.own_balance() == 250_000_000
    await engine.chain.set_balance(STRANGER.address, gas_wei)


@pytest.mark.slow
async def test_signing_is_offered_only_where_a_wallet_and_a_relay_are(shop: Shop) -> None:
    charge = await shop.charge()
    wallet = shop.site.wallet(account=STRANGER)
    button = "button", "Pay with a wallet"
    without_relay = await shop.page(charge, wallets=[wallet])
    await expect(without_relay.page.get_by_role("button", name="Copy the amount")).to_be_visible()
    assert await without_relay.page.get_by_role("button", name=button[1]).count() == 0
    async with relaying(shop.site.engine):
        with_both = await shop.page(charge, wallets=[wallet])
        await expect(with_both.page.get_by_role("button", name=button[1])).to_be_visible()
        without_wallet = await shop.page(charge, wallets=[])
        await expect(without_wallet.page.get_by_role("button", name="Copy the amount")).to_be_visible()
        await expect(without_wallet.page.locator("#sign")).to_be_hidden()


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["light", "dark"])
async def test_signing_has_no_barrier_that_axe_knows(shop: Shop, scheme: str) -> None:
    async with relaying(shop.site.engine):
        charge = await shop.charge()
        wallet = shop.site.wallet(account=STRANGER)
        options = {"bypass_csp": True, "color_scheme": scheme, "reduced_motion": "reduce"}
        payer = await shop.page(charge, wallets=[wallet], **options)
        button = payer.page.get_by_role("button", name="Pay with a wallet")
        await expect(button).to_be_visible()
        assert await payer.barriers() == []
        await button.click()
        await expect(payer.page.locator("#state")).to_contain_text("signed and sent")
        assert await payer.barriers() == []
        await shop.confirm()
        await expect(payer.page.locator("#state .badge")).to_have_text("Paid")


@pytest.mark.slow
@pytest.mark.parametrize("settings", [{"CHARGE_PRICE_TTL_SECONDS": "2"}])
async def test_what_comes_late_is_credited_all_the_same(shop: Shop) -> None:
    """Faults 9 and 10: after its expiry a charge's address was nothing but an address to lose money at."""
    charge = await shop.charge()
    payer = await shop.page(charge)
    badge = payer.page.locator("#state .badge")
    await expect(badge).to_have_text("Price expired")
    await shop.send(charge["address"], 25)
    await expect(badge).to_have_text("Confirming")
    await shop.confirm()
    await expect(badge).to_have_text("Paid")
    assert (await shop.credited(charge, 25))["status"] == "paid"
    assert status_of(shop.site.engine.database, charge["chargeId"]) == "paid"


@pytest.mark.slow
async def test_the_accounts_own_address_takes_what_an_exchange_sends(shop: Shop) -> None:
    visitor = await shop.site.signed_in()
    await visitor.page.get_by_role("button", name="Show my address").click()
    address = await visitor.page.locator("#exchange code").inner_text()
    await shop.send(address, 7)
    await expect(visitor.cards()).to_contain_text("70,000,000 credits for a deposit of $7.00")
    await expect(visitor.cards()).to_contain_text("Confirming")
    await shop.confirm()
    await expect(visitor.cards()).to_contain_text("Credited")
    await expect(visitor.page.locator("#balance-credits")).to_have_text("70,000,000")
    await expect(visitor.page.locator("#ledger")).to_contain_text("+70,000,000")
