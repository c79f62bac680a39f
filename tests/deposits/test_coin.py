"""A payment in the chain's own coin is credited once, whatever moved it; what did not come is not credited."""

from __future__ import annotations

import pytest

from chain.collection import flush_call, forwarder_deployment
from chain.derivation.create2 import CREATE2_DEPLOYER
from commands.sweep_signing import check_signed, sign_plan
from db.deposits.lanes import list_active_addresses
from db.operations.reconciliation import find_watched
from db.payments.attempts import find_settled_transfer
from devstack.chain import call_data, payer_wallets
from domain.coin import COIN_PLACES_FROM, NATIVE_COIN
from domain.deposits.methods import Scheme
from domain.deposits.sweeps import StepKind
from domain.money import credits_for_raw
from domain.payments.finality import FinalityLevel, ReorgedOut
from services.deposits import lanes
from services.deposits.sweep_plans import PlanTerms, SweepPlanner
from services.payments import lifecycle as payments
from tests.deposits.coin import CREDITS, ETH, ONE, PAYER, USD, CoinDeposits
from tests.deposits.conftest import MIN_CONFIRMATIONS, Deposits
from tests.deposits.test_pricing import Priced
from tests.support.addresses import add_ring_address, stored_ring
from tests.support.sql import connect


@pytest.fixture
async def coin(deposits: Deposits) -> CoinDeposits:
    """The coin as a payment method, on a chain whose final block is so old that its state is not kept."""
    if await deposits.chain.block_number() < 100:
        await deposits.chain.mine(100)
        await deposits.read()
    return await CoinDeposits.open(deposits)


async def test_a_plain_payment_is_seen_at_once_and_credited_at_its_blocks_price(coin: CoinDeposits) -> None:
    deposits = coin.deposits
    given = await deposits.give()
    sent = await coin.pay(given, ONE // 2, blocks=1)
    await coin.act()
    assert deposits.deposits() == [(sent, COIN_PLACES_FROM, ONE // 2, None)]
    await coin.chain.mine(MIN_CONFIRMATIONS - 1)
    for _ in range(3):
        await coin.act()
    assert [status for *_, status in deposits.deposits()] == ["CREDITED"]
    assert await deposits.balance(given) == CREDITS // 2
    assert deposits.rows("SELECT DISTINCT account_code FROM journal_lines WHERE account_code LIKE 'cash:%'") == [
        ("cash:eth:deposits",)
    ]
    assert deposits.rows("SELECT method_id, token, from_address, quote_id IS NOT NULL FROM deposits") == [
        (ETH, NATIVE_COIN, PAYER.address, True)
    ]


async def test_what_is_paid_to_a_charge_is_credited_at_its_locked_price_and_else_at_its_blocks(
    coin: CoinDeposits,
) -> None:
    charged, own = await coin.deposits.give(1, charge_cents=250_000, method=ETH), await coin.deposits.give(2)
    await Priced(coin.deposits, NATIVE_COIN, coin.feed, ETH).quoted(charged)
    await coin.feed.answer(2 * USD)
    await coin.do("pay", [(charged.address, ONE), (own.address, ONE)])
    await coin.act()
    assert [await coin.deposits.balance(given) for given in (charged, own)] == [CREDITS, 2 * CREDITS]


async def test_small_ones_wait_until_their_sum_is_the_methods_minimum(coin: CoinDeposits) -> None:
    with connect(coin.deposits.roles.database.service_url) as service:
        service.execute(b"UPDATE payment_methods SET min_amount_raw = %s WHERE id = %s", (ONE, ETH))
    given = await coin.deposits.give()
    await coin.pay(given, ONE // 4)
    await coin.act()
    assert await coin.deposits.balance(given) == 0
    await coin.do("pay", [(given.address, 3 * ONE // 4)])
    await coin.act()
    assert [status for *_, status in coin.deposits.deposits()] == ["CREDITED"] * 2
    assert await coin.deposits.balance(given) == CREDITS


async def test_what_an_exchanges_contract_pays_is_credited_each_on_its_own(coin: CoinDeposits) -> None:
    """Fault 15: what a contract sends was invisible."""
    deposits = coin.deposits
    first, second = await deposits.give(1), await deposits.give(2)
    sent = await coin.do("pay", [(first.address, ONE), (second.address, 2 * ONE), (first.address, ONE)])
    destroyed = await coin.do("payByDestruction", second.address, value_wei=ONE)
    await coin.act()
    assert deposits.deposits() == [
        (sent, COIN_PLACES_FROM, ONE, "CREDITED"),
        (sent, COIN_PLACES_FROM + 1, 2 * ONE, "CREDITED"),
        (sent, COIN_PLACES_FROM + 2, ONE, "CREDITED"),
        (destroyed, COIN_PLACES_FROM + 2, ONE, "CREDITED"),
    ]
    assert await deposits.balance(first) == 2 * CREDITS
    assert await deposits.balance(second) == 3 * CREDITS


async def test_what_a_failure_has_undone_or_a_call_only_named_is_no_deposit(coin: CoinDeposits) -> None:
    given = await coin.deposits.give()
    await coin.do("payAndTakeBack", given.address, ONE)
    await coin.do("borrowCode", given.address, ONE)
    await coin.do("payAndRevert", given.address, ONE)
    await coin.act()
    assert coin.deposits.deposits() == []
    assert await coin.held_by(given.address) == 0


async def test_a_token_and_the_coin_in_one_transaction_are_two_deposits(coin: CoinDeposits) -> None:
    deposits = coin.deposits
    given = await deposits.give()
    token = coin.chain.token_address
    await coin.send(token, call_data("TestUSDC", "approve", coin.exchange, 5_000_000))
    sent = await coin.do("payWithToken", token, 5_000_000, given.address, ONE)
    await deposits.act()
    await coin.act()
    assert [(tx_hash, value, status) for tx_hash, _, value, status in deposits.deposits()] == [
        (sent, 5_000_000, "CREDITED"),
        (sent, ONE, "CREDITED"),
    ]
    assert [place >= COIN_PLACES_FROM for _, place, *_ in deposits.deposits()] == [False, True]
    assert await deposits.balance(given) == CREDITS + credits_for_raw(5_000_000)
    # Neither lane takes the other's for one that a node left out, or invented.
    for scan in (deposits.scan, coin.scan):
        assert (await scan.rescan(50)).orphaned == 0
    assert len(deposits.deposits()) == 2


async def test_one_that_leaves_the_chain_before_it_is_credited_is_no_deposit(coin: CoinDeposits) -> None:
    given = await coin.deposits.give(charge_cents=500)
    await coin.pay(given, blocks=1)
    await coin.act()
    assert len(coin.deposits.deposits()) == 1
    await coin.chain.reorg(1)
    await coin.chain.mine(MIN_CONFIRMATIONS)
    await coin.act()
    await coin.act()
    assert coin.deposits.deposits() == []


async def test_one_that_moves_to_another_block_is_the_same_and_credited_once(coin: CoinDeposits) -> None:
    deposits = coin.deposits
    given = await deposits.give()
    sent = await coin.do("pay", [(given.address, ONE), (given.address, ONE)])
    deposits.settling.is_idle = True
    await coin.act()
    transaction = await coin.chain.raw_transaction(sent)
    await coin.chain.reorg(MIN_CONFIRMATIONS, [(transaction, 1)])
    await coin.chain.mine(MIN_CONFIRMATIONS)
    await coin.act()
    await coin.act()
    assert [status for *_, status in deposits.deposits()] == ["PENDING_UNVERIFIED"] * 2
    assert len(deposits.settling.resumed) == 2
    for attempt_id in deposits.settling.resumed:
        await deposits.settling.settle(attempt_id)
    await coin.act()
    assert [(place, status) for _, place, _, status in deposits.deposits()] == [
        (COIN_PLACES_FROM, "CREDITED"),
        (COIN_PLACES_FROM + 1, "CREDITED"),
    ]
    assert await deposits.balance(given) == 2 * CREDITS


async def reverse(coin: CoinDeposits) -> None:
    """The one deposit is reorged out and reversed, as its workflow does."""
    deposits = coin.deposits
    [(attempt_id,)] = deposits.rows("SELECT id FROM payment_attempts")
    async with deposits.roles.service.transaction() as connection:
        transfer = await find_settled_transfer(connection, attempt_id)
        assert transfer is not None
    await coin.chain.reorg(MIN_CONFIRMATIONS)
    await coin.chain.mine(MIN_CONFIRMATIONS)
    await coin.act()
    gone = ReorgedOut(transfer=transfer, level=FinalityLevel.FINALIZED, message="it was reorganised away")
    async with deposits.roles.service.transaction() as connection:
        await payments.reverse_payment(connection, attempt_id, gone)
        await payments.reverse_bonus(connection, attempt_id)


async def test_a_credited_one_that_leaves_the_chain_is_reversed(coin: CoinDeposits) -> None:
    deposits = coin.deposits
    given = await deposits.give()
    await coin.pay(given)
    await coin.act()
    await reverse(coin)
    assert await deposits.balance(given) == 0
    assert [status for *_, status in deposits.deposits()] == ["REVERSED"]


async def test_an_address_given_out_while_the_lane_reads_is_in_its_next_block_and_an_old_one_always(
    coin: CoinDeposits, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All are kept in memory: with each block only new ones are read from the database."""
    old = await coin.deposits.give(1)
    await coin.read()
    with connect(coin.deposits.roles.database.superuser_url) as superuser:
        superuser.execute(b"UPDATE deposit_addresses SET active_at = now() - interval '400 days'")
    asked = []

    async def counted(*arguments: object, within: object, scheme: Scheme) -> object:
        asked.append(within)
        return await list_active_addresses(*arguments, within=within, scheme=scheme)  # type: ignore[arg-type]

    monkeypatch.setattr(lanes, "list_active_addresses", counted)
    new = await coin.deposits.give(2)
    await coin.pay(old)
    await coin.pay(new)
    await coin.act()
    assert set(asked) == {lanes.COIN_NEW_WITHIN}
    assert [await coin.deposits.balance(given) for given in (old, new)] == [CREDITS, CREDITS]


async def flushed(coin: CoinDeposits, address: str) -> str:
    """A stranger deploys the address's contract, and sends what it holds to the treasury."""
    [(salt,)] = coin.deposits.rows(f"SELECT salt FROM deposit_addresses WHERE address = '{address}'")
    deployment = forwarder_deployment(salt, coin.chain.treasury_address)
    await coin.send(CREATE2_DEPLOYER, "0x" + deployment.hex(), blocks=1)
    return await coin.send(address, "0x" + flush_call([]).hex())


def cash(coin: CoinDeposits) -> dict[str, int]:
    """Debits less credits of the coin's two accounts."""
    return dict(
        coin.deposits.rows(
            "SELECT account_code, sum(CASE side WHEN 'debit' THEN amount ELSE -amount END)::bigint FROM journal_lines"
            " WHERE account_code LIKE 'cash:eth%' GROUP BY 1 ORDER BY 1"
        )
    )


async def test_what_is_flushed_to_the_treasury_is_booked_once_and_neither_credited_nor_found(
    coin: CoinDeposits,
) -> None:
    deposits = coin.deposits
    given = await deposits.give()
    await coin.pay(given, 2 * ONE)
    await coin.act()
    await flushed(coin, given.address)
    # What others send to the treasury is no sweep.
    await coin.send(coin.chain.treasury_address, value_wei=5)
    await coin.act()
    assert await coin.held_by(given.address) == 0
    assert [await coin.sweeps().book() for _ in range(2)] == [1, 0]
    assert cash(coin) == {"cash:eth": 2 * CREDITS, "cash:eth:deposits": 0}
    assert deposits.rows("SELECT value_raw::bigint, method_id FROM swept_transfers") == [(2 * ONE, ETH)]
    assert (deposits.findings(), await deposits.balance(given)) == ([], 2 * CREDITS)
    # Nor does a reconciliation of USDC take it for dollars that came.
    assert deposits.rows("SELECT value_raw FROM received_transfers()") == []
    # A deployed address takes the next payment, too, with more gas than a plain one needs.
    await coin.pay(given, ONE)
    await coin.act()
    assert await deposits.balance(given) == 3 * CREDITS
    checked = await coin.balances().check()
    assert (checked.addresses, checked.differences) == (1, [])


async def test_a_plan_collects_the_coin_by_flushes_without_a_token_and_once_of_each_address(coin: CoinDeposits) -> None:
    deposits, chain = coin.deposits, coin.chain
    only_coin, both = await deposits.give(1), await deposits.give(2)
    await coin.do("pay", [(only_coin.address, 2 * ONE), (both.address, ONE)])
    await deposits.pay(both, 5_000_000)
    await deposits.act()
    await coin.act()
    gas = payer_wallets()[6]
    terms = PlanTerms(treasury=chain.treasury_address, max_fee_wei=10**11, batch_size=20, sender=gas.address)
    plan = await SweepPlanner(deposits.roles.service, deposits.reader).plan(terms)
    collected = [step for step in plan.steps if step.kind is StepKind.COLLECT]
    assert [(step.token, [one.address for one in step.addresses]) for step in collected] == [
        (chain.token_address, [both.address]),
        (NATIVE_COIN, [only_coin.address]),
    ]
    assert [one.amount_raw for one in collected[1].addresses] == [2 * ONE]
    before = await coin.held_by(chain.treasury_address)
    signed = sign_plan(plan, gas.private_key, nonce=None)
    for one in check_signed(signed):
        await chain.rpc("eth_sendRawTransaction", "0x" + one[3].hex())
    await chain.mine(MIN_CONFIRMATIONS)
    await coin.act()
    assert await coin.held_by(chain.treasury_address) == before + 3 * ONE
    assert await coin.sweeps().book() == 3, "a token's transfer, and two movements of the coin"
    assert cash(coin) == {"cash:eth": 3 * CREDITS, "cash:eth:deposits": 0}
    assert (await SweepPlanner(deposits.roles.service, deposits.reader).plan(terms)).steps == ()


async def test_a_flush_is_booked_although_its_block_was_read_late(coin: CoinDeposits) -> None:
    """As of a gap: what was booked up to a later block does not hide it."""
    given = await coin.deposits.give()
    await coin.pay(given)
    await coin.act()
    await flushed(coin, given.address)
    head = await coin.read()
    with connect(coin.deposits.roles.database.superuser_url) as superuser:
        superuser.execute(b"DELETE FROM observed_transfers WHERE to_address = %s", (coin.chain.treasury_address,))
    assert await coin.sweeps().book() == 0
    await coin.scan.read_again(head - MIN_CONFIRMATIONS, head)
    await coin.chain.mine()
    await coin.read()
    assert await coin.sweeps().book() == 1


async def test_a_plain_payment_of_21000_gas_reaches_an_address_until_its_contract_is_deployed(
    coin: CoinDeposits,
) -> None:
    given = await coin.deposits.give()

    async def pay() -> int:
        sent = await coin.chain.send(PAYER.private_key, given.address, "0x", gas=21_000, value_wei=1)
        await coin.chain.mine()
        return int((await coin.chain.wait_for_receipt(sent))["status"], 16)

    assert await pay() == 1
    await flushed(coin, given.address)
    assert await pay() == 0


async def test_a_balance_without_a_call_is_a_finding_and_no_credit(coin: CoinDeposits) -> None:
    deposits = coin.deposits
    given = await deposits.give()
    await coin.pay(given)
    # As the reward of a block comes, or a withdrawal of a validator: no transaction pays it.
    await coin.chain.set_balance(given.address, 3 * ONE)
    await coin.chain.mine(MIN_CONFIRMATIONS + 2)
    await coin.act()
    checked = await coin.balances().check()
    assert [(one.token, one.holds_raw, one.expected_raw) for one in checked.differences] == [
        (NATIVE_COIN, 3 * ONE, ONE)
    ]
    assert deposits.rows("SELECT kind FROM findings") == [("deposits_differ",)]
    assert await deposits.balance(given) == CREDITS
    await coin.chain.set_balance(given.address, ONE)
    await coin.chain.mine(MIN_CONFIRMATIONS + 2)
    await coin.read()
    await coin.balances().check()
    assert deposits.rows("SELECT resolved_at IS NOT NULL FROM findings") == [(True,)]


async def test_an_address_of_a_key_is_neither_read_for_the_coin_nor_compared(coin: CoinDeposits) -> None:
    """It pays gas from what it holds: that what came is still there could not be proven."""
    database = coin.deposits.roles.database
    account = (await coin.deposits.account()).billing_account_id
    ring = stored_ring(database)
    _, address = add_ring_address(database, coin.chain.chain_id, account, ring, 0)
    await coin.send(address, value_wei=ONE, blocks=MIN_CONFIRMATIONS + 2)
    await coin.act()
    assert coin.deposits.deposits() == []
    await coin.read()
    assert (await coin.balances().check()).differences == []


async def test_tokens_are_compared_although_no_one_traces_the_coin(coin: CoinDeposits) -> None:
    """Its lane stands where the nodes stopped to trace: the tokens' balances do not wait for it."""
    deposits = coin.deposits
    given = await deposits.give()
    await coin.pay(given)
    await coin.act()
    await coin.chain.mine(40)
    await deposits.pay(given, 5_000_000)
    await coin.chain.mine(MIN_CONFIRMATIONS + 2)
    await deposits.act()
    checked = await coin.balances().check()
    assert checked.block is not None
    assert checked.block > await coin.chain.block_number() - 10
    async with deposits.roles.service.transaction() as connection:
        watched = await find_watched(connection, coin.chain.chain_id)
    assert watched.block_number == await coin.chain.block_number(), "a reconciliation does not wait for it either"
