"""What the relay's transactions cost, to the unit: of execution, without what each byte of a signature costs."""

from __future__ import annotations

from typing import Any, Final

from relay.fees import GAS_MARGIN_PERCENT
from tests.support.deposits import add_method
from tests.support.engine import MIN_CONFIRMATIONS
from tests.topups.conftest import OTHER, PAYER, RAW, Till, payment_header
from tests.topups.test_charges import Shop

INTRINSIC_GAS: Final = 21_000
ZERO_BYTE_GAS: Final = 4
OTHER_BYTE_GAS: Final = 16

FIRST_TO_TREASURY: Final = 68_734
"""The treasury's balance gets its place: 17,100 more than each later one."""
TO_TREASURY: Final = 51_634
TO_CHARGE: Final = 68_734
"""A charge's address holds nothing before."""
OF_SMART_WALLET: Final = 53_586
"""The overload with bytes, and the wallet's own code."""
CREATION_GAS: Final = 32_000
INIT_CODE_WORD_GAS: Final = 2
OF_UNDEPLOYED_WALLET: Final = 476_735
"""The same with the wallet's deployment by its factory, and the relay's code that calls both."""


async def execution_gas(till: Till, tx_hash: str) -> int:
    """What a mined transaction used beyond what its bytes cost."""
    receipt = await till.chain.wait_for_receipt(tx_hash)
    assert int(receipt["status"], 16) == 1
    sent: dict[str, Any] = await till.chain.rpc("eth_getTransactionByHash", tx_hash)
    data = bytes.fromhex(sent["input"][2:])
    zeros = data.count(0)
    intrinsic = INTRINSIC_GAS + ZERO_BYTE_GAS * zeros + OTHER_BYTE_GAS * (len(data) - zeros)
    if sent["to"] is None:
        intrinsic += CREATION_GAS + INIT_CODE_WORD_GAS * -(-len(data) // 32)
    return int(receipt["gasUsed"], 16) - intrinsic


async def relayed(till: Till) -> list[int]:
    """The execution of everything that is claimed, in the order of nonces."""
    before = {tx_hash for (tx_hash,) in await till.rows("SELECT tx_hash FROM relay_transactions")}
    await till.relay.run_once()
    await till.chain.mine(MIN_CONFIRMATIONS)
    rows = await till.rows("SELECT tx_hash FROM relay_transactions ORDER BY nonce")
    await till.relay.run_once()
    return [await execution_gas(till, tx_hash) for (tx_hash,) in rows if tx_hash not in before]


async def test_gas_of_signed_payments_is_exact(till: Till) -> None:
    for _ in range(3):
        await till.claimed()
    assert await relayed(till) == [FIRST_TO_TREASURY, TO_TREASURY, TO_TREASURY], (
        "each by itself: none is dearer in a row"
    )
    assert FIRST_TO_TREASURY == TO_TREASURY + 17_100

    add_method(till.engine.database, address=till.chain.token_address)
    async with till.api.visitor() as visitor:
        shop = Shop(till, visitor)
        await shop.signed(await shop.charge(), PAYER)
    assert await relayed(till) == [TO_CHARGE]

    wallet = await till.chain.deploy_smart_wallet(OTHER.address)
    await till.chain.mint(wallet, 10 * RAW)
    await till.chain.mine(1)
    offer = await till.offer()
    payment = till.sign(offer, OTHER, payer=wallet)
    reply = await till.payee.post(
        "/api/v1/payments/topups",
        {"amountUsdCents": 100},
        headers={"PAYMENT-SIGNATURE": payment_header(offer, payment)},
    )
    assert reply.status == 202, reply.body
    assert await relayed(till) == [OF_SMART_WALLET]

    undeployed = await till.new_wallet()
    await till.claimed_by(undeployed)
    assert await relayed(till) == [OF_UNDEPLOYED_WALLET]


async def test_the_limit_is_a_fifth_above_what_is_used(till: Till) -> None:
    """The estimate is what is used: what a payer can have spent by a transaction that reverts is bounded."""
    await till.claimed()
    await till.relay.run_once()
    await till.chain.mine(1)
    [(tx_hash, gas)] = await till.rows("SELECT tx_hash, gas FROM relay_transactions")
    used = int((await till.chain.wait_for_receipt(tx_hash))["gasUsed"], 16)
    assert gas == used + used * GAS_MARGIN_PERCENT // 100
