"""A wallet that declines, is elsewhere, or has too little."""

from __future__ import annotations

import pytest
from eth_account import Account
from eth_typing import HexStr
from eth_utils.address import to_checksum_address
from playwright.async_api import expect

from devstack.chain import Wallet, payer_wallets
from tests.browser.conftest import OpenSite, Site
from tests.support.browser import DECLINED, FOREIGN_CHAIN_ID, PENDING


@pytest.mark.slow
async def test_declining_to_pay_leaves_an_intent_that_the_next_try_pays(site: Site) -> None:
    visitor = await site.signed_in()
    for error, words in (
        (DECLINED, "You declined the request in your wallet, and nothing was sent."),
        (PENDING, "already shows"),
    ):
        visitor.wallet.errors["eth_sendTransaction"] = error
        await visitor.pay("25")
        await expect(visitor.says()).to_contain_text(words)
    # It is shared with other tabs and kept over a reload.
    await visitor.open()
    await expect(visitor.cards()).to_contain_text("Not paid yet")
    visitor.wallet.errors.clear()
    await visitor.pay("25")
    await expect(visitor.cards()).to_contain_text("Waiting for a block")
    await site.engine.chain.mine(2)
    await expect(visitor.cards()).to_contain_text("Credited")
    assert len(await site.attempt_ids()) == 1
    # The next payment of the same amount is another one.
    await visitor.pay("25")
    await expect(visitor.cards()).to_have_count(2)
    assert len(await site.attempt_ids()) == 2


@pytest.mark.slow
async def test_an_intent_that_is_nearly_over_is_not_paid_any_more(open_site: OpenSite) -> None:
    async with open_site(PAYMENT_INTENT_TTL_SECONDS="50") as site:
        visitor = await site.signed_in()
        visitor.wallet.errors["eth_sendTransaction"] = DECLINED
        for tries in (1, 2):
            await visitor.pay("25")
            await expect(visitor.says()).to_contain_text("You declined")
            assert len(await site.attempt_ids()) == tries


@pytest.mark.slow
async def test_a_wallet_on_another_chain_is_switched(site: Site) -> None:
    visitor = await site.signed_in()
    visitor.wallet.chain_id = FOREIGN_CHAIN_ID
    await visitor.emit("chainChanged", hex(FOREIGN_CHAIN_ID))
    await expect(visitor.notices()).to_contain_text("Paying will ask you to switch to Local chain")

    visitor.wallet.errors["wallet_switchEthereumChain"] = DECLINED
    await visitor.pay("25")
    await expect(visitor.says()).to_contain_text("You declined the request in your wallet")
    assert visitor.wallet.times("eth_sendTransaction") == 0

    visitor.wallet.errors.clear()
    await visitor.pay("25")
    await expect(visitor.cards()).to_contain_text("Waiting for a block")
    assert visitor.wallet.chain_id == site.engine.chain.chain_id
    await visitor.emit("chainChanged", hex(visitor.wallet.chain_id))
    await expect(visitor.notices()).to_be_empty()


@pytest.mark.slow
async def test_a_wallet_that_stays_on_another_chain_is_not_asked_to_pay(site: Site) -> None:
    visitor = await site.signed_in()
    visitor.wallet.chain_id = FOREIGN_CHAIN_ID
    visitor.wallet.ignores_switching = True
    await visitor.pay("25")
    await expect(visitor.says()).to_contain_text("Switch your wallet to Local chain, then try again.")
    assert visitor.wallet.times("eth_sendTransaction") == 0


@pytest.mark.slow
async def test_a_chain_that_the_wallet_does_not_know_is_added(open_site: OpenSite) -> None:
    async with open_site(
        PUBLIC_RPC_URL="https://node.example/rpc", EXPLORER_TX_URL="https://e.example/tx/{tx_hash}"
    ) as site:
        visitor = await site.signed_in()
        visitor.wallet.chain_id = FOREIGN_CHAIN_ID
        visitor.wallet.known_chain_ids = {FOREIGN_CHAIN_ID}
        await visitor.pay("25")
        await expect(visitor.cards()).to_contain_text("Waiting for a block")
        [added] = [params for method, params in visitor.wallet.calls if method == "wallet_addEthereumChain"]
        assert added == [
            {
                "chainId": hex(site.engine.chain.chain_id),
                "chainName": "Local chain",
                "rpcUrls": ["https://node.example/rpc"],
                "nativeCurrency": {"name": "Ether", "symbol": "ETH", "decimals": 18},
                "blockExplorerUrls": ["https://e.example"],
            }
        ]


@pytest.mark.slow
async def test_a_chain_without_a_public_node_is_named_to_be_added_by_hand(site: Site) -> None:
    visitor = await site.signed_in()
    visitor.wallet.chain_id = FOREIGN_CHAIN_ID
    visitor.wallet.known_chain_ids = {FOREIGN_CHAIN_ID}
    await visitor.pay("25")
    await expect(visitor.says()).to_contain_text("Your wallet does not know Local chain.")
    await expect(visitor.says()).to_contain_text(f"chain id {site.engine.chain.chain_id}")
    assert visitor.wallet.times("wallet_addEthereumChain") == 0


@pytest.mark.slow
async def test_too_little_usdc_is_said_before_anything_is_asked_for(site: Site) -> None:
    # The account is new: it has what it is given here.
    account = _new_account()
    await site.engine.chain.mint(account.address, 3_500_001)
    await site.engine.chain.mine()
    visitor = await site.signed_in(wallets=[site.wallet(account=account)])
    await visitor.pay("25")
    await expect(visitor.says()).to_have_text("Your wallet has 3.500001 USDC on Local chain; this payment needs 25.00.")
    assert visitor.wallet.times("eth_sendTransaction") == 0
    assert await site.attempt_ids() == []


@pytest.mark.slow
async def test_a_namesake_of_the_chain_is_not_paid_on(site: Site) -> None:
    visitor = await site.signed_in()
    visitor.wallet.results["eth_call"] = "0x"
    await visitor.pay("25")
    await expect(visitor.says()).to_contain_text("no USDC contract on your wallet’s Local chain")
    assert (visitor.wallet.times("eth_sendTransaction"), await site.attempt_ids()) == (0, [])


@pytest.mark.slow
async def test_a_wallet_without_gas_says_so(site: Site) -> None:
    account = _new_account()
    await site.engine.chain.mint(account.address, 25_000_000)
    await site.engine.chain.mine()
    visitor = await site.signed_in(wallets=[site.wallet(account=account)])
    await visitor.pay("25")
    await expect(visitor.says()).to_contain_text("Your wallet has no ETH on Local chain to pay the network’s fee.")


@pytest.mark.slow
async def test_any_other_error_shows_the_wallets_own_message(site: Site) -> None:
    visitor = await site.signed_in()
    visitor.wallet.errors["eth_sendTransaction"] = (-32603, "Ledger <i>device</i> is locked.")
    await visitor.pay("25")
    await expect(visitor.says()).to_have_text("Your wallet says: Ledger <i>device</i> is locked.")


@pytest.mark.slow
async def test_an_account_that_was_switched_while_away_is_noticed_on_return(site: Site) -> None:
    visitor = await site.signed_in()
    visitor.wallet.account = payer_wallets()[1]
    await visitor.open()
    await expect(visitor.notices()).to_contain_text("Your wallet is on 0x3c44…93bc")
    assert visitor.wallet.times("eth_requestAccounts") == 1, "only signing in may open the wallet"


def _new_account() -> Wallet:
    account = Account.create()
    return Wallet(-1, to_checksum_address(account.address), HexStr("0x" + bytes(account.key).hex()))
