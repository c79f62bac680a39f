"""A confirmed deposit is credited for what it is worth, each on its own, from any sender."""

from __future__ import annotations

import pytest
from structlog.testing import capture_logs

from devstack.chain import payer_wallets
from domain.money import credits_for_raw, revenue_share_credits
from tests.deposits.conftest import MIN_CONFIRMATIONS, Deposits
from tests.support.payments import SHARE, note_former_treasury
from tests.support.sql import connect


async def test_a_deposit_is_seen_at_once_and_credited_when_it_is_confirmed(deposits: Deposits) -> None:
    given = await deposits.give()
    sent = await deposits.pay(given, 1_234_567, blocks=1)
    await deposits.act()
    [(tx_hash, _, value_raw, status)] = deposits.deposits()
    assert (tx_hash, value_raw, status) == (sent, 1_234_567, None)
    assert await deposits.balance(given) == 0

    await deposits.chain.mine(MIN_CONFIRMATIONS - 1)
    await deposits.act()
    [(*_, status)] = deposits.deposits()
    assert status == "CREDITED"
    assert await deposits.balance(given) == credits_for_raw(1_234_567) == 12_345_670
    lines = deposits.rows(
        "SELECT e.reason, l.account_code, l.side, l.amount FROM journal_lines l"
        "  JOIN credit_ledger e ON e.id = l.entry_id"
        " ORDER BY e.entry_seq, l.side DESC"
    )
    bonus = revenue_share_credits(12_345_670, SHARE)
    account = given.account.billing_account_id
    assert lines == [
        ("credits_purchase", "cash:usdc:deposits", "debit", 12_345_670),
        ("credits_purchase", f"credits:{account}", "credit", 12_345_670),
        ("platform_revenue_share", "expense:platform_revenue_share", "debit", bonus),
        ("platform_revenue_share", "credits:cogni_system", "credit", bonus),
    ]


async def test_each_of_several_is_credited_once_whatever_the_order(deposits: Deposits) -> None:
    first, second = await deposits.give(1), await deposits.give(2)
    for given, value in ((first, 5_000_000), (second, 7_000_000), (first, 5_000_000)):
        await deposits.pay(given, value)
    for _ in range(3):
        await deposits.act()
    assert [status for *_, status in deposits.deposits()] == ["CREDITED"] * 3
    assert await deposits.balance(first) == 2 * credits_for_raw(5_000_000)
    assert await deposits.balance(second) == credits_for_raw(7_000_000)


async def test_further_confirmations_credit_nothing_more(deposits: Deposits) -> None:
    """Fault 2: each confirmation added the payment again."""
    given = await deposits.give(charge_cents=700)
    await deposits.pay(given, 1_000_000, blocks=1)
    for _ in range(3 * MIN_CONFIRMATIONS):
        await deposits.chain.mine()
        await deposits.act()
    assert await deposits.balance(given) == credits_for_raw(1_000_000)
    assert (len(deposits.deposits()), deposits.status_of(given)) == (1, "partial")


async def test_two_alike_in_one_transaction_are_two_deposits(deposits: Deposits) -> None:
    """Fault 15: of a transaction only the first payment was seen."""
    given = await deposits.give()
    payer, relayer = deposits.payer(0), deposits.payer(1)
    alike = [deposits.chain.sign_payment(payer.private_key, given.address, 3_000_000) for _ in range(2)]
    other = deposits.chain.sign_payment(payer.private_key, given.address, 4_000_000)
    await deposits.chain.pay_bundle(relayer.private_key, [*alike, other])
    await deposits.chain.mine(MIN_CONFIRMATIONS)
    await deposits.act()
    assert [(value, status) for _, _, value, status in deposits.deposits()] == [
        (3_000_000, "CREDITED"),
        (3_000_000, "CREDITED"),
        (4_000_000, "CREDITED"),
    ]
    assert await deposits.balance(given) == credits_for_raw(10_000_000)


async def test_a_small_one_waits_until_the_sum_is_worth_it_and_each_is_credited_on_its_own(deposits: Deposits) -> None:
    with connect(deposits.roles.database.service_url) as service:
        service.execute("UPDATE payment_methods SET min_amount_raw = 10000000")
    given = await deposits.give()
    await deposits.pay(given, 4_000_000)
    await deposits.pay(given, 5_999_999)
    await deposits.act()
    assert [status for *_, status in deposits.deposits()] == [None, None]
    await deposits.pay(given, 1)
    await deposits.act()
    assert [status for *_, status in deposits.deposits()] == ["CREDITED"] * 3
    assert await deposits.balance(given) == credits_for_raw(10_000_000)


async def test_a_disabled_methods_address_is_credited_all_the_same(deposits: Deposits) -> None:
    given = await deposits.give()
    with connect(deposits.roles.database.service_url) as service:
        service.execute("UPDATE payment_methods SET enabled = false")
    await deposits.pay(given, 2_000_000)
    await deposits.act()
    assert await deposits.balance(given) == credits_for_raw(2_000_000)


async def test_eighteen_decimals_are_exact_and_more_than_a_bigint(deposits: Deposits) -> None:
    chain = deposits.chain
    dai = await chain.deploy_token("PlainToken", "DAI", 18)
    deposits.method("DAI:test", dai, decimals=18)
    given = await deposits.give()
    owner = payer_wallets()[-1]
    value = 123_456_789_012_345_678_901_234
    await chain.mint(owner.address, 2 * value, token=dai, owner=owner)
    await chain.mine()
    sent = await chain.pay(owner.private_key, given.address, value, token=dai)
    await chain.mine(MIN_CONFIRMATIONS)
    await chain.wait_for_receipt(sent)
    await deposits.act()
    assert await deposits.balance(given) == value * 10**7 // 10**18 == 1_234_567_890_123
    assert deposits.rows("SELECT account_code FROM journal_lines WHERE account_code LIKE 'cash:%'") == [
        ("cash:dai:deposits",)
    ]


async def test_a_worthless_token_is_not_read_and_one_without_a_price_is_not_credited(deposits: Deposits) -> None:
    """Of an 18-decimals token, 50 raw units of a 6-decimals one are nothing (fault 3)."""
    chain = deposits.chain
    owner = payer_wallets()[-1]
    worthless, volatile = [await chain.deploy_token("PlainToken", name, 6) for name in ("USDC", "WETH")]
    deposits.method("WETH:test", volatile)
    given = await deposits.give()
    for token in (worthless, volatile):
        await chain.mint(owner.address, 10**9, token=token, owner=owner)
        await chain.mine()
        await chain.pay(owner.private_key, given.address, 50_000_000, token=token)
        await chain.mine(MIN_CONFIRMATIONS)
    await deposits.act()
    assert deposits.rows("SELECT method_id, credits, attempt_id FROM deposits") == [("WETH:test", 0, None)]
    assert await deposits.balance(given) == 0


async def test_a_fee_on_the_way_is_the_payers(deposits: Deposits) -> None:
    """Credited is what the address received, by the token's own log."""
    chain = deposits.chain
    owner = payer_wallets()[-1]
    fee = await chain.deploy_token("FeeToken", "USDS", 6)
    deposits.method("USDS:test", fee)
    given = await deposits.give()
    await chain.mint(owner.address, 10**9, token=fee, owner=owner)
    await chain.mine()
    await chain.pay(owner.private_key, given.address, 100_000_000, token=fee)
    await chain.mine(MIN_CONFIRMATIONS)
    await deposits.act()
    assert await deposits.balance(given) == credits_for_raw(99_000_000)
    assert await chain.token_balance_raw(given.address, token=fee) == 99_000_000


async def test_what_no_payer_sent_is_an_operators(deposits: Deposits) -> None:
    given = await deposits.give()
    minted = await deposits.chain.mint(given.address, 5_000_000)
    await deposits.chain.mine(MIN_CONFIRMATIONS)
    await deposits.act()
    assert deposits.findings() == [("transfer_without_intent", minted)]
    assert await deposits.balance(given) == 0


async def test_a_transfer_of_the_treasury_is_no_income(deposits: Deposits) -> None:
    given = await deposits.give()
    with connect(deposits.roles.database.service_url) as service:
        note_former_treasury(service, deposits.payer(2).address)
    await deposits.pay(given, 5_000_000, payer=2)
    await deposits.act()
    assert (deposits.findings(), await deposits.balance(given)) == ([], 0)


async def test_an_address_that_its_owner_does_not_give_is_not_read(deposits: Deposits) -> None:
    """Who holds the API's password can write rows, and mint nothing: here, an exchange's address as one's own."""
    given = await deposits.give()
    exchange = deposits.payer(3).address
    with connect(deposits.roles.database.superuser_url) as superuser:
        superuser.execute("UPDATE deposit_addresses SET address = %s WHERE id = %s", (exchange, given.id))
    sent = await deposits.chain.pay(deposits.payer(0).private_key, exchange, 9_000_000)
    await deposits.chain.mine(MIN_CONFIRMATIONS)
    await deposits.chain.wait_for_receipt(sent)
    await deposits.act()
    await deposits.act()
    assert deposits.deposits() == []


async def test_an_address_of_another_account_derives_differently(deposits: Deposits) -> None:
    given, other = await deposits.give(1), await deposits.account(2)
    with connect(deposits.roles.database.superuser_url) as superuser:
        superuser.execute(
            "UPDATE deposit_addresses SET billing_account_id = %s WHERE id = %s", (other.billing_account_id, given.id)
        )
    await deposits.pay(given, 9_000_000)
    await deposits.act()
    assert deposits.deposits() == []
    assert await deposits.roles.balance(other.billing_account_id) == 0


async def test_those_that_cannot_be_decided_about_stop_no_other(
    deposits: Deposits, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither beside one, nor behind as many as are read at a time."""
    monkeypatch.setattr("services.deposits.crediting.PAGE", 2)
    given = await deposits.give()
    with connect(deposits.roles.database.superuser_url) as superuser:
        superuser.execute("ALTER TABLE payment_attempts ADD CONSTRAINT refused CHECK (value_raw <> 666)")
    for value_raw in (666, 5_000_000, 666, 666, 5_000_000):
        await deposits.pay(given, value_raw)
    await deposits.act()
    assert [status for *_, status in deposits.deposits()] == [None, "CREDITED", None, None, "CREDITED"]
    with connect(deposits.roles.database.superuser_url) as superuser:
        superuser.execute("ALTER TABLE payment_attempts DROP CONSTRAINT refused")
    await deposits.act()
    assert [status for *_, status in deposits.deposits()] == ["CREDITED"] * 5


async def test_a_pass_ends_in_time_and_the_next_one_goes_on(
    deposits: Deposits, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("services.deposits.crediting.PAGE", 1)
    monkeypatch.setattr("services.deposits.crediting.ACT_SECONDS_MAX", -1.0)
    given = await deposits.give()
    for _ in range(2):
        await deposits.pay(given, 5_000_000)
    for credited in (1, 2):
        await deposits.act()
        assert [status for *_, status in deposits.deposits()].count("CREDITED") == credited


async def test_what_has_moved_since_it_was_listed_is_decided_about_where_it_is_now(deposits: Deposits) -> None:
    given = await deposits.give()
    sent = [await deposits.pay(given, 5_000_000), await deposits.chain.mint(given.address, 7)]
    await deposits.chain.mine(MIN_CONFIRMATIONS)
    listed = await deposits.crediting._page(await deposits.read())
    assert len(listed) == 2
    transactions = [(await deposits.chain.raw_transaction(one), 1) for one in sent]
    await deposits.chain.reorg(2 * MIN_CONFIRMATIONS, transactions)
    await deposits.chain.mine(MIN_CONFIRMATIONS)
    await deposits.read()
    before = deposits.deposits()
    with capture_logs() as lines:
        for one in listed:
            assert await deposits.crediting._decide_unhindered(one) is False
    assert [line for line in lines if line["log_level"] == "error"] == [], "it is no fault of the deposit"
    assert (deposits.deposits(), deposits.findings()) == (before, [])
    assert deposits.rows("SELECT count(*) FROM payment_attempts") == [(0,)]
    await deposits.act()
    assert [status for *_, status in deposits.deposits()] == ["CREDITED", None]
    assert deposits.findings() == [("transfer_without_intent", sent[1])]


async def test_one_that_was_refused_is_an_operators(deposits: Deposits) -> None:
    """What was not found in time is credited when it is there; for any other reason it is not."""
    given = await deposits.give()
    deposits.settling.is_idle = True
    sent = await deposits.pay(given, 5_000_000)
    await deposits.act()
    [attempt_id] = deposits.settling.resumed
    with connect(deposits.roles.database.service_url) as service:
        service.execute(
            "UPDATE payment_attempts SET status = 'FAILED', error_code = 'TX_REVERTED' WHERE id = %s", (attempt_id,)
        )
        service.execute(
            "INSERT INTO payment_events (attempt_id, event_type, from_status, to_status, error_code)"
            " VALUES (%s, 'failed', 'PENDING_UNVERIFIED', 'FAILED', 'TX_REVERTED')",
            (attempt_id,),
        )
    # Decided about again, as in another block.
    with connect(deposits.roles.database.superuser_url) as superuser:
        superuser.execute("UPDATE observed_transfers SET handled_at = NULL, attempt_id = NULL")
    await deposits.act()
    assert deposits.findings() == [("transfer_without_intent", sent)]
    assert deposits.rows("SELECT count(*) FROM payment_attempts") == [(1,)]


@pytest.mark.parametrize(
    ("of_method", "needed"), [(MIN_CONFIRMATIONS + 2, MIN_CONFIRMATIONS + 2), (1, MIN_CONFIRMATIONS)]
)
async def test_a_method_may_ask_for_more_confirmations_and_not_for_less(
    deposits: Deposits, of_method: int, needed: int
) -> None:
    with connect(deposits.roles.database.service_url) as service:
        service.execute("UPDATE payment_methods SET confirmations = %s", (of_method,))
    given = await deposits.give()
    await deposits.pay(given, 5_000_000, blocks=needed - 1)
    await deposits.act()
    assert [status for *_, status in deposits.deposits()] == [None]
    await deposits.chain.mine()
    await deposits.act()
    assert [status for *_, status in deposits.deposits()] == ["CREDITED"]


async def test_a_minimum_is_of_one_address_one_token_and_of_what_is_not_credited_yet(deposits: Deposits) -> None:
    other_token = await deposits.chain.deploy_token("PlainToken", "USDT", 6)
    deposits.method("USDT:test", other_token)
    with connect(deposits.roles.database.service_url) as service:
        service.execute("UPDATE payment_methods SET min_amount_raw = 10")
    owner = payer_wallets()[-1]
    await deposits.chain.mint(owner.address, 10**9, token=other_token, owner=owner)
    first, second = await deposits.give(1), await deposits.give(2)
    await deposits.pay(first, 10)
    await deposits.act()
    assert [status for *_, status in deposits.deposits()] == ["CREDITED"]
    await deposits.pay(first, 6)
    await deposits.pay(second, 6)
    await deposits.chain.pay(owner.private_key, first.address, 6, token=other_token)
    await deposits.chain.mine(MIN_CONFIRMATIONS)
    await deposits.act()
    assert [status for *_, status in deposits.deposits()] == ["CREDITED", None, None, None]


async def test_what_no_ledger_can_hold_stops_no_other_and_is_not_credited(deposits: Deposits) -> None:
    """A token that lies may log any number."""
    chain = deposits.chain
    lying = await chain.deploy_token("LyingToken", "USDS", 6)
    deposits.method("USDS:test", lying)
    given = await deposits.give()
    owner = payer_wallets()[-1]
    await chain.mint(owner.address, 2**255, token=lying, owner=owner)
    await chain.mine()
    await chain.pay(owner.private_key, given.address, 2**255, token=lying)
    await chain.mine()
    await deposits.pay(given, 5_000_000)
    await deposits.act()
    assert deposits.rows("SELECT credits, attempt_id IS NULL FROM deposits ORDER BY block_number") == [
        (0, True),
        (credits_for_raw(5_000_000), False),
    ]
