"""The test token does what a payment can notice of USDC."""

from typing import Any

import pytest
from eth_utils.crypto import keccak

from devstack.chain import MINT_RAW, LocalChain, call_data, dev_wallets, payer_wallets
from devstack.errors import ChainCallError

PAYER, OTHER, RELAYER = payer_wallets()[3:6]
TRANSFER = "0x" + keccak(text="Transfer(address,address,uint256)").hex()
USED = "0x" + keccak(text="AuthorizationUsed(address,bytes32)").hex()


async def mined(chain: LocalChain, tx_hash: str) -> dict[str, Any]:
    await chain.mine()
    return await chain.wait_for_receipt(tx_hash)


def transfers(receipt: dict[str, Any]) -> list[tuple[str, str, int]]:
    """Payer, receiver and raw amount of each Transfer log, in order."""
    return [
        ("0x" + log["topics"][1][26:], "0x" + log["topics"][2][26:], int(log["data"], 16))
        for log in receipt["logs"]
        if log["topics"][0] == TRANSFER
    ]


async def test_it_calls_itself_what_usdc_does(chain: LocalChain) -> None:
    names = [await chain.read("TestUSDC", name) for name in ("name", "symbol", "decimals", "version")]
    assert names == ["USD Coin", "USDC", 6, "2"]


@pytest.mark.parametrize("amount_raw", [0, 1, 1_000_000])
async def test_a_transfer_even_of_nothing_emits_its_event(chain: LocalChain, amount_raw: int) -> None:
    receipt = await mined(chain, await chain.pay(PAYER.private_key, chain.treasury_address, amount_raw))
    assert transfers(receipt) == [(PAYER.address.lower(), chain.treasury_address.lower(), amount_raw)]
    assert receipt["logs"][0]["address"] == chain.token_address.lower()


async def test_only_the_owner_mints(chain: LocalChain) -> None:
    data = call_data("TestUSDC", "mint", PAYER.address, 1)
    stolen = await mined(chain, await chain.send(PAYER.private_key, chain.token_address, data))
    assert int(stolen["status"], 16) == 0
    receipt = await mined(chain, await chain.mint(PAYER.address, 5))
    assert transfers(receipt) == [("0x" + "0" * 40, PAYER.address.lower(), 5)]


async def test_transfer_from_needs_and_uses_up_an_allowance(chain: LocalChain) -> None:
    token = chain.token_address
    await chain.send(PAYER.private_key, token, call_data("TestUSDC", "approve", OTHER.address, 10))
    await chain.mine()
    take = call_data("TestUSDC", "transferFrom", PAYER.address, chain.treasury_address, 7)
    receipt = await mined(chain, await chain.send(OTHER.private_key, token, take))
    assert transfers(receipt) == [(PAYER.address.lower(), chain.treasury_address.lower(), 7)]
    assert await chain.read("TestUSDC", "allowance", PAYER.address, OTHER.address) == 3
    again = await mined(chain, await chain.send(OTHER.private_key, token, take))
    assert int(again["status"], 16) == 0


async def test_a_permit_gives_an_allowance_once(chain: LocalChain) -> None:
    v, r, s = await chain.sign_permit(PAYER.private_key, RELAYER.address, 11)
    data = call_data("TestUSDC", "permit", PAYER.address, RELAYER.address, 11, 2**48, v, r, s)
    first = await mined(chain, await chain.send(RELAYER.private_key, chain.token_address, data))
    assert int(first["status"], 16) == 1
    assert await chain.read("TestUSDC", "allowance", PAYER.address, RELAYER.address) == 11
    assert await chain.read("TestUSDC", "nonces", PAYER.address) == 1
    second = await mined(chain, await chain.send(RELAYER.private_key, chain.token_address, data))
    assert int(second["status"], 16) == 0


async def test_an_authorization_pays_once_through_another_sender(chain: LocalChain) -> None:
    payment = chain.sign_payment(PAYER.private_key, chain.treasury_address, 42)
    receipt = await mined(chain, await chain.pay_relayed(RELAYER.private_key, payment))
    assert receipt["from"] == RELAYER.address.lower()
    assert transfers(receipt) == [(PAYER.address.lower(), chain.treasury_address.lower(), 42)]
    assert receipt["logs"][0]["topics"][0] == USED
    assert await chain.read("TestUSDC", "authorizationState", PAYER.address, payment.nonce) is True
    again = await mined(chain, await chain.pay_relayed(RELAYER.private_key, payment))
    assert int(again["status"], 16) == 0


async def test_an_authorization_that_is_forged_early_late_or_cancelled_is_refused(chain: LocalChain) -> None:
    async def refusal(*arguments: Any) -> str:
        data = call_data("TestUSDC", "transferWithAuthorization", *arguments)
        with pytest.raises(ChainCallError) as caught:
            await chain.rpc("eth_call", {"from": RELAYER.address, "to": chain.token_address, "data": data}, "latest")
        return str(caught.value)

    good = chain.sign_payment(PAYER.private_key, chain.treasury_address, 42).as_arguments()
    assert "invalid signature" in await refusal(*good[:2], 43, *good[3:])
    assert "invalid signature" in await refusal(OTHER.address, *good[1:])
    order = 0xFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFEBAAEDCE6AF48A03BBFD25E8CD0364141
    mirrored = (order - int.from_bytes(good[8], "big")).to_bytes(32, "big")
    assert "invalid signature" in await refusal(*good[:6], 55 - good[6], good[7], mirrored)
    early = chain.sign_payment(PAYER.private_key, chain.treasury_address, 1, valid_after=2**40)
    assert "not valid yet" in await refusal(*early.as_arguments())
    late = chain.sign_payment(PAYER.private_key, chain.treasury_address, 1, valid_before=1)
    assert "expired" in await refusal(*late.as_arguments())
    cancelled = chain.sign_payment(PAYER.private_key, chain.treasury_address, 1)
    v, r, s = chain.sign_cancellation(PAYER.private_key, cancelled.nonce)
    cancel = call_data("TestUSDC", "cancelAuthorization", PAYER.address, cancelled.nonce, v, r, s)
    receipt = await mined(chain, await chain.send(RELAYER.private_key, chain.token_address, cancel))
    assert int(receipt["status"], 16) == 1
    assert "used or cancelled" in await refusal(*cancelled.as_arguments())


async def test_only_the_payee_receives_with_an_authorization(chain: LocalChain) -> None:
    payment = chain.sign_payment(PAYER.private_key, OTHER.address, 9, for_receiver=True)
    data = call_data("TestUSDC", "receiveWithAuthorization", *payment.as_arguments())
    stolen = await mined(chain, await chain.send(RELAYER.private_key, chain.token_address, data, gas=200_000))
    assert int(stolen["status"], 16) == 0
    receipt = await mined(chain, await chain.send(OTHER.private_key, chain.token_address, data, gas=200_000))
    assert transfers(receipt) == [(PAYER.address.lower(), OTHER.address.lower(), 9)]


async def test_a_smart_wallet_authorizes_by_bytes_of_its_own(chain: LocalChain) -> None:
    wallet = await chain.deploy_smart_wallet(OTHER.address)
    await chain.mint(wallet, 50)
    await chain.mine()
    payment = chain.sign_payment(OTHER.private_key, chain.treasury_address, 50, payer=wallet)
    data = call_data("TestUSDC", "transferWithAuthorization", *payment.as_arguments()[:6], payment.signature)
    receipt = await mined(chain, await chain.send(RELAYER.private_key, chain.token_address, data, gas=200_000))
    assert transfers(receipt) == [(wallet.lower(), chain.treasury_address.lower(), 50)]
    assert [log["topics"][0] for log in receipt["logs"]] == [USED, TRANSFER]
    # The owner's key is not the wallet's: without the wallet's word it authorizes nothing in its name.
    strangers = chain.sign_payment(PAYER.private_key, chain.treasury_address, 1, payer=wallet)
    data = call_data("TestUSDC", "transferWithAuthorization", *strangers.as_arguments()[:6], strangers.signature)
    with pytest.raises(ChainCallError, match="invalid signature"):
        await chain.rpc("eth_call", {"from": RELAYER.address, "to": chain.token_address, "data": data}, "latest")


async def test_a_key_authorizes_receives_and_cancels_by_bytes_too(chain: LocalChain) -> None:
    token = chain.token_address
    payment = chain.sign_payment(PAYER.private_key, chain.treasury_address, 3)
    data = call_data("TestUSDC", "transferWithAuthorization", *payment.as_arguments()[:6], payment.signature)
    receipt = await mined(chain, await chain.send(RELAYER.private_key, token, data, gas=200_000))
    assert transfers(receipt) == [(PAYER.address.lower(), chain.treasury_address.lower(), 3)]
    received = chain.sign_payment(PAYER.private_key, OTHER.address, 4, for_receiver=True)
    data = call_data("TestUSDC", "receiveWithAuthorization", *received.as_arguments()[:6], received.signature)
    receipt = await mined(chain, await chain.send(OTHER.private_key, token, data, gas=200_000))
    assert transfers(receipt) == [(PAYER.address.lower(), OTHER.address.lower(), 4)]
    cancelled = chain.sign_payment(PAYER.private_key, chain.treasury_address, 5)
    v, r, s = chain.sign_cancellation(PAYER.private_key, cancelled.nonce)
    data = call_data("TestUSDC", "cancelAuthorization", PAYER.address, cancelled.nonce, r + s + bytes([v]))
    receipt = await mined(chain, await chain.send(RELAYER.private_key, token, data))
    assert int(receipt["status"], 16) == 1
    assert await chain.read("TestUSDC", "authorizationState", PAYER.address, cancelled.nonce) is True


async def test_who_is_blacklisted_neither_pays_nor_is_paid(chain: LocalChain) -> None:
    owner, token = dev_wallets()[0], chain.token_address
    await chain.send(owner.private_key, token, call_data("TestUSDC", "blacklist", OTHER.address))
    await chain.mine()
    payment = chain.sign_payment(OTHER.private_key, chain.treasury_address, 1)
    relayed = await mined(chain, await chain.pay_relayed(RELAYER.private_key, payment))
    to_them = await mined(chain, await chain.pay(PAYER.private_key, OTHER.address, 1))
    assert [int(receipt["status"], 16) for receipt in (relayed, to_them)] == [0, 0]
    await chain.send(owner.private_key, token, call_data("TestUSDC", "unBlacklist", OTHER.address))
    await chain.mine()
    assert int((await mined(chain, await chain.pay_relayed(RELAYER.private_key, payment)))["status"], 16) == 1


async def test_nothing_moves_while_it_is_paused(chain: LocalChain) -> None:
    owner, token = dev_wallets()[0], chain.token_address
    strangers = await mined(chain, await chain.send(PAYER.private_key, token, call_data("TestUSDC", "pause")))
    assert int(strangers["status"], 16) == 0
    await chain.send(owner.private_key, token, call_data("TestUSDC", "pause"))
    await chain.mine()
    payment = chain.sign_payment(PAYER.private_key, chain.treasury_address, 1)
    relayed = await mined(chain, await chain.pay_relayed(RELAYER.private_key, payment))
    paid = await mined(chain, await chain.pay(PAYER.private_key, OTHER.address, 1))
    assert [int(receipt["status"], 16) for receipt in (relayed, paid)] == [0, 0]
    await chain.send(owner.private_key, token, call_data("TestUSDC", "unpause"))
    await chain.mine()
    assert int((await mined(chain, await chain.pay_relayed(RELAYER.private_key, payment)))["status"], 16) == 1


async def test_other_tokens_are_plain_take_a_fee_or_lie(chain: LocalChain) -> None:
    owner, events, arrived = payer_wallets()[-1], [], []
    for contract, decimals in (("PlainToken", 18), ("FeeToken", 6), ("LyingToken", 6)):
        token = await chain.deploy_token(contract, "TKN", decimals)
        assert await chain.read("PlainToken", "decimals", address=token) == decimals
        await chain.mint(PAYER.address, 10_000, token=token, owner=owner)
        await chain.mine()
        receipt = await mined(chain, await chain.pay(PAYER.private_key, OTHER.address, 10_000, token=token))
        events.append([value for _, to, value in transfers(receipt) if to == OTHER.address.lower()])
        arrived.append(await chain.token_balance_raw(OTHER.address, token=token))
    assert events == [[10_000], [9_900], [10_000]]
    assert arrived == [10_000, 9_900, 0]


async def test_several_payers_in_one_transaction(chain: LocalChain) -> None:
    treasury = chain.treasury_address
    signed = [chain.sign_payment(wallet.private_key, treasury, 100 + wallet.index) for wallet in (PAYER, OTHER)]
    receipt = await mined(chain, await chain.pay_bundle(RELAYER.private_key, signed))
    expected = [(wallet.address.lower(), treasury.lower(), 100 + wallet.index) for wallet in (PAYER, OTHER)]
    assert transfers(receipt) == expected

    for wallet in (PAYER, OTHER):
        approve = call_data("TestUSDC", "approve", chain.multisend_address, 2**256 - 1)
        await chain.send(wallet.private_key, chain.token_address, approve)
    await chain.mine()
    calls = [(chain.token_address, wallet.address, treasury, 100 + wallet.index) for wallet in (PAYER, OTHER)]
    receipt = await mined(chain, await chain.pay_bundle_approved(RELAYER.private_key, calls))
    assert transfers(receipt) == expected


async def test_a_counterfeit_token_emits_the_same_event_from_another_address(chain: LocalChain) -> None:
    owner = payer_wallets()[-1]
    fake = await chain.deploy_look_alike(owner)
    assert fake != chain.token_address
    await chain.mint(PAYER.address, MINT_RAW, token=fake, owner=owner)
    await chain.mine()
    receipt = await mined(chain, await chain.pay(PAYER.private_key, chain.treasury_address, 5, token=fake))
    assert transfers(receipt) == [(PAYER.address.lower(), chain.treasury_address.lower(), 5)]
    assert receipt["logs"][0]["address"] == fake.lower()
