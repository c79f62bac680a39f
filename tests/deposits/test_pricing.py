"""What a token that is no dollar is worth: the price of its charge while that holds, else that of its block."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any, Final
from uuid import UUID, uuid4

import pytest

from db.deposits.deposits import keep_deposits
from db.deposits.prices import booked_worth
from devstack.chain import payer_wallets
from domain.deposits.prices import PriceSource, Quote
from domain.errors import RemedyRefused
from domain.money import CREDITS_PER_USD
from domain.operations.findings import Remedy
from domain.operations.resolutions import RemedyRequest
from services.deposits import pricing
from services.operations.resolutions import take_remedy
from tests.deposits.conftest import MIN_CONFIRMATIONS, PRICE_LIFETIME, Deposits
from tests.deposits.feeds import DECIMALS, FIRST_AGGREGATOR, Feed, add_source, deploy_feed
from tests.deposits.given import Given
from tests.support.sql import connect

WETH: Final = "WETH:test"
ONE: Final = 10**18
OWNER: Final = payer_wallets()[-1]


@dataclass
class Priced:
    """A method of an 18-decimals token with a feed, and deposits of it."""

    deposits: Deposits
    token: str
    feed: Feed
    method: str = WETH

    async def pay(self, given: Given, value_raw: int = ONE, *, blocks: int = MIN_CONFIRMATIONS) -> str:
        """A transfer of the token to the address."""
        chain = self.deposits.chain
        sent = await chain.pay(OWNER.private_key, given.address, value_raw, token=self.token)
        await chain.mine(blocks)
        await chain.wait_for_receipt(sent)
        return sent

    async def quoted(self, given: Given, **changes: Any) -> UUID:
        """The price of now as that of the address's charge, as the API writes it; with changes, as one who has its
        password may.
        """
        quote = await self.read()
        values: dict[str, Any] = {
            "quote": uuid4(),
            "source_id": quote.source_id,
            "round_id": quote.round_id,
            "answer_raw": quote.answer_raw,
            "updated": quote.feed_updated_at,
            "block": quote.block_number,
            "time": quote.block_time,
            "until": quote.block_time + PRICE_LIFETIME,
            "charge": given.charge_id,
            **changes,
        }
        with connect(self.deposits.roles.database.superuser_url) as superuser:
            superuser.execute(
                b"INSERT INTO price_quotes (id, source_id, round_id, answer_raw, decimals, feed_updated_at,"
                b" block_number, block_time) VALUES (%(quote)s, %(source_id)s, %(round_id)s, %(answer_raw)s, 8,"
                b" %(updated)s, %(block)s, %(time)s)",
                values,
            )
            superuser.execute(
                b"UPDATE charges SET quote_id = %(quote)s, price_expires_at = %(until)s WHERE id = %(charge)s", values
            )
        return UUID(str(values["quote"]))

    async def read(self) -> Quote:
        """The price of now."""
        [row] = self.deposits.rows(
            f"SELECT id, method_id, chain_id, feed FROM price_sources WHERE method_id = '{self.method}'"
            " ORDER BY seq DESC LIMIT 1"
        )
        source = PriceSource(
            id=row[0],
            method_id=row[1],
            chain_id=row[2],
            feed=row[3],
            description="ETH / USD",
            decimals=DECIMALS,
            created_at=datetime.now(UTC),
        )
        return await pricing.Prices({row[2]: self.deposits.reader.prices}).now(source)

    async def give(self, **options: Any) -> Given:
        """An address for the token."""
        return await self.deposits.give(method=WETH, **options)

    async def pass_time(self, seconds: int) -> None:
        """The chain's next block is so much later."""
        await self.deposits.chain.rpc("evm_increaseTime", seconds)
        await self.deposits.chain.mine()

    def priced(self) -> list[tuple[int, str | None, UUID | None]]:
        """Credits, attempt's status and quote of each deposit, in the chain's order."""
        return self.deposits.rows(
            "SELECT d.credits, a.status, d.quote_id FROM deposits d LEFT JOIN payment_attempts a ON a.id = d.attempt_id"
            " ORDER BY d.block_number, d.log_index"
        )


@pytest.fixture
async def weth(deposits: Deposits) -> Priced:
    chain = deposits.chain
    token = await chain.deploy_token("PlainToken", "WETH", 18)
    await chain.mint(OWNER.address, 1_000 * ONE, token=token, owner=OWNER)
    deposits.method(WETH, token, decimals=18)
    feed = await deploy_feed(chain, 2_500)
    add_source(deposits.roles.database, chain, WETH, feed.address, max_age_seconds=86_400)
    return Priced(deposits, token, feed)


async def test_a_token_of_18_decimals_is_credited_at_the_price_of_its_block(weth: Priced) -> None:
    """Fault 8: money as floating-point numbers. Here a fraction that no float holds, rounded down to the credit."""
    given = await weth.give()
    await weth.feed.answer("250012345678")
    await weth.pay(given, 1_234_567_890_123_456_789)
    await weth.feed.answer(9_000)
    await weth.deposits.act()
    [(credits, status, quote_id)] = weth.priced()
    assert credits == 1_234_567_890_123_456_789 * 250_012_345_678 * CREDITS_PER_USD // 10**26 == 30_865_721_410
    assert (status, await weth.deposits.balance(given)) == ("CREDITED", credits)
    [(answer, round_id)] = weth.deposits.rows(f"SELECT answer_raw, round_id FROM price_quotes WHERE id = '{quote_id}'")
    assert (int(answer), int(round_id)) == (250_012_345_678, FIRST_AGGREGATOR + 2)
    [(cash,)] = weth.deposits.rows("SELECT amount FROM journal_lines WHERE account_code = 'cash:weth:deposits'")
    assert cash == credits


async def test_deposits_of_one_block_are_priced_by_one_question(weth: Priced) -> None:
    chain, given = weth.deposits.chain, [await weth.deposits.give(number, method=WETH) for number in (1, 2)]
    for each in given:
        await chain.pay(OWNER.private_key, each.address, ONE, token=weth.token)
    await chain.mine(MIN_CONFIRMATIONS)
    await weth.deposits.act()
    assert [credits for credits, _, _ in weth.priced()] == [2_500 * CREDITS_PER_USD] * 2
    assert weth.deposits.rows("SELECT count(*) FROM price_quotes") == [(1,)]


async def test_within_its_lock_a_charges_price_holds(weth: Priced) -> None:
    given = await weth.give(charge_cents=500_000)
    quote_id = await weth.quoted(given)
    await weth.pass_time(60)
    await weth.feed.answer(1_000)
    await weth.pay(given, 2 * ONE)
    await weth.deposits.act()
    assert weth.priced() == [(5_000 * CREDITS_PER_USD, "CREDITED", quote_id)]


async def test_the_last_second_of_a_lock_is_within_it_and_the_next_is_not(weth: Priced) -> None:
    chain = weth.deposits.chain
    for later, dollars in ((0, 2_500), (1, 1_000)):
        await weth.feed.answer(2_500)
        given = await weth.deposits.give(number=later + 1, method=WETH, charge_cents=250_000)
        quote = await weth.read()
        await weth.quoted(given)
        await weth.feed.answer(1_000)
        sent = await chain.pay(OWNER.private_key, given.address, ONE, token=weth.token)
        until = int((quote.block_time + PRICE_LIFETIME).timestamp())
        await chain.rpc("evm_setNextBlockTimestamp", until + later)
        await chain.mine(MIN_CONFIRMATIONS)
        await chain.wait_for_receipt(sent)
        await weth.deposits.act()
        assert weth.priced()[-1][0] == dollars * CREDITS_PER_USD


async def test_another_token_at_a_charges_address_is_not_at_the_charges_price(weth: Priced) -> None:
    deposits = weth.deposits
    other = await deposits.chain.deploy_token("PlainToken", "LINK", 18)
    await deposits.chain.mint(OWNER.address, 10 * ONE, token=other, owner=OWNER)
    deposits.method("LINK:test", other, decimals=18)
    feed = await deploy_feed(deposits.chain, 12)
    add_source(deposits.roles.database, deposits.chain, "LINK:test", feed.address)
    given = await weth.give(charge_cents=250_000)
    await weth.quoted(given)
    await deposits.chain.pay(OWNER.private_key, given.address, ONE, token=other)
    await deposits.chain.mine(MIN_CONFIRMATIONS)
    await deposits.act()
    assert [credits for credits, _, _ in weth.priced()] == [12 * CREDITS_PER_USD]


FORGED: Final[dict[str, Any]] = {
    "another price": {"answer_raw": 10**15},
    "another round": {"round_id": FIRST_AGGREGATOR + 7},
    "an old time": {"back": timedelta(days=3)},
    "a lock without an end": {"forward": timedelta(days=30)},
}


@pytest.mark.parametrize("what", FORGED)
async def test_a_quote_that_the_feed_does_not_say_is_not_honoured(weth: Priced, what: str) -> None:
    """Who has the API's password writes charges and quotes, and mints nothing by it."""
    given = await weth.give(charge_cents=250_000)
    changes = dict(FORGED[what])
    time = (await weth.read()).block_time
    if back := changes.pop("back", None):
        changes = {"time": time - back, "updated": time - back, "until": time - back + PRICE_LIFETIME, "block": None}
    if forward := changes.pop("forward", None):
        changes = {"until": time + forward}
    await weth.quoted(given, **changes)
    await weth.feed.answer(1_000)
    await weth.pay(given)
    await weth.deposits.act()
    assert [credits for credits, _, _ in weth.priced()] == [1_000 * CREDITS_PER_USD]


async def test_the_price_of_an_old_block_is_not_honoured_as_one_of_now(weth: Priced) -> None:
    given = await weth.give(charge_cents=250_000)
    old = await weth.read()
    await weth.pass_time(2 * int(PRICE_LIFETIME.total_seconds()))
    await weth.feed.answer(1_000)
    now = (await weth.read()).block_time
    await weth.quoted(
        given,
        round_id=old.round_id,
        answer_raw=old.answer_raw,
        updated=old.feed_updated_at,
        block=old.block_number,
        time=now,
        until=now + PRICE_LIFETIME,
    )
    await weth.pay(given)
    await weth.deposits.act()
    assert [credits for credits, _, _ in weth.priced()] == [1_000 * CREDITS_PER_USD]


async def test_of_a_quote_that_was_no_price_or_of_no_quote_a_deposit_has_the_price_of_its_block(weth: Priced) -> None:
    stale, without = [await weth.deposits.give(number=number, method=WETH, charge_cents=250_000) for number in (1, 2)]
    old = await weth.read()
    await weth.pass_time(90_000)
    block = await weth.deposits.chain.rpc("eth_getBlockByNumber", "latest", False)
    time = datetime.fromtimestamp(int(block["timestamp"], 16), UTC)
    values = {"round_id": old.round_id, "answer_raw": old.answer_raw, "updated": old.feed_updated_at}
    await weth.feed.answer(1_000)
    await weth.quoted(stale, block=int(block["number"], 16), time=time, until=time + PRICE_LIFETIME, **values)
    for given in (stale, without):
        await weth.pay(given)
    await weth.deposits.act()
    assert [credits for credits, _, _ in weth.priced()] == [1_000 * CREDITS_PER_USD] * 2


async def test_a_quote_whose_feed_cannot_be_read_again_is_waited_for(weth: Priced) -> None:
    """The method has another feed by now: its price is not that of the quote."""
    given = await weth.give(charge_cents=250_000)
    await weth.quoted(given)
    with connect(weth.deposits.roles.database.superuser_url, triggers=False) as superuser:
        superuser.execute("UPDATE price_sources SET chain_id = 999")
    add_source(weth.deposits.roles.database, weth.deposits.chain, WETH, weth.feed.address)
    await weth.pay(given)
    await weth.deposits.act()
    assert weth.priced() == [(0, None, None)]


async def test_without_a_price_a_deposit_waits_and_is_credited_once_there_is_one(
    weth: Priced, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Fault 19: never one to one, and never lost."""
    monkeypatch.setattr(pricing, "AGAIN_SECONDS", 0.0)
    given = await weth.give()
    await weth.pass_time(90_000)
    await weth.pay(given)
    await weth.deposits.act()
    assert weth.priced() == [(0, None, None)], "its block's price is stale"
    assert (weth.deposits.findings(), await weth.deposits.balance(given)) == ([], 0)

    with connect(weth.deposits.roles.database.superuser_url) as superuser:
        superuser.execute("UPDATE deposits SET created_at = created_at - interval '2 hours'")
    await weth.deposits.act()
    assert weth.deposits.findings() == [("deposit_without_price", None)]

    # An operator registers the method again, with the age that the feed really has.
    add_source(weth.deposits.roles.database, weth.deposits.chain, WETH, weth.feed.address, max_age_seconds=200_000)
    await weth.deposits.act()
    [(credits, status, _)] = weth.priced()
    assert (credits, status) == (2_500 * CREDITS_PER_USD, "CREDITED")
    assert weth.deposits.rows("SELECT resolution FROM findings") == [("settled",)]


async def test_what_has_no_price_is_not_asked_for_with_each_block(weth: Priced) -> None:
    given = await weth.give()
    await weth.pass_time(90_000)
    await weth.pay(given)
    await weth.deposits.act()
    add_source(weth.deposits.roles.database, weth.deposits.chain, WETH, weth.feed.address, max_age_seconds=200_000)
    await weth.deposits.chain.mine()
    await weth.deposits.act()
    assert weth.priced() == [(0, None, None)]


async def test_one_that_cannot_be_priced_stops_no_other(weth: Priced) -> None:
    given = await weth.give()
    await weth.feed.answer(2_500)
    with connect(weth.deposits.roles.database.superuser_url) as superuser:
        superuser.execute("ALTER TABLE deposits ADD CONSTRAINT refused CHECK (credits <> 25000000000)")
    for value_raw in (ONE, 2 * ONE):
        await weth.pay(given, value_raw)
    await weth.deposits.act()
    assert [(credits, status) for credits, status, _ in weth.priced()] == [(0, None), (50_000_000_000, "CREDITED")]


async def test_a_price_that_ends_at_a_time_that_python_lacks_stops_no_deposit(weth: Priced) -> None:
    """Who has the API's password writes when a charge's price expires."""
    given, other = await weth.give(charge_cents=500), await weth.deposits.give(2)
    with connect(weth.deposits.roles.database.superuser_url) as superuser:
        superuser.execute("UPDATE charges SET price_expires_at = 'infinity'")
    await weth.pay(given)
    await weth.deposits.pay(other, 1_000_000)
    await weth.deposits.act()
    assert [status for _, status, _ in weth.priced()] == ["CREDITED", "CREDITED"]


async def test_nothing_is_priced_before_it_is_confirmed(weth: Priced) -> None:
    given = await weth.give()
    await weth.pay(given, blocks=MIN_CONFIRMATIONS - 1)
    await weth.deposits.act()
    assert weth.priced() == [(0, None, None)]
    assert weth.deposits.rows("SELECT count(*) FROM price_quotes") == [(0,)]


async def test_a_method_without_a_feed_credits_nothing(weth: Priced) -> None:
    with connect(weth.deposits.roles.database.superuser_url) as superuser:
        superuser.execute("DELETE FROM price_sources")
    given = await weth.give()
    await weth.pay(given)
    await weth.deposits.act()
    assert weth.priced() == [(0, None, None)]


async def test_what_is_swept_leaves_the_books_at_the_prices_that_it_came_at(weth: Priced) -> None:
    given = await weth.give()
    await weth.pay(given)
    await weth.pass_time(10)
    await weth.feed.answer(1_000)
    await weth.pay(given)
    await weth.deposits.act()
    service, total = weth.deposits.roles.service, 3_500 * CREDITS_PER_USD
    async with service.autocommit() as connection:
        part = await booked_worth(connection, given.id, "WETH", ONE // 2)
        assert part == total // 4
        assert await booked_worth(connection, given.id, "WETH", 2 * ONE) == total
    treasury = weth.deposits.chain.treasury_address
    with connect(weth.deposits.roles.database.superuser_url) as superuser:
        superuser.execute(
            "SELECT book_swept_transfer(%s, %s, 0, %s, %s, %s, %s, %s, 1, %s)",
            (31337, f"0x{1:064x}", given.id, WETH, treasury, ONE // 2, part, f"0x{2:064x}"),
        )
    async with service.autocommit() as connection:
        assert await booked_worth(connection, given.id, "WETH", 3 * ONE // 2) == total - part
        assert await booked_worth(connection, given.id, "WETH", 9 * ONE) == total - part
    await weth.pass_time(10)
    await weth.feed.answer(4_000)
    await weth.pay(given)
    await weth.deposits.act()
    left = total - part + 4_000 * CREDITS_PER_USD
    async with service.autocommit() as connection:
        assert await booked_worth(connection, given.id, "WETH", 5 * ONE // 4) == left // 2


async def test_an_operator_credits_what_no_payer_sent_at_its_price_and_not_without_one(weth: Priced) -> None:
    given = await weth.give()
    minted = await weth.deposits.chain.mint(given.address, ONE, token=weth.token, owner=OWNER)
    await weth.deposits.chain.mine(MIN_CONFIRMATIONS)
    await weth.deposits.act()
    assert weth.deposits.findings() == [("transfer_without_intent", minted)]
    [(finding_id,)] = weth.deposits.rows("SELECT id FROM findings")
    account = given.account.billing_account_id
    request = RemedyRequest(
        finding_id=finding_id, remedy=Remedy.CREDIT, operator="ada", reason="bridged", billing_account_id=account
    )
    quote = weth.deposits.rows("SELECT quote_id, credits FROM deposits")
    with connect(weth.deposits.roles.database.superuser_url) as superuser:
        superuser.execute("UPDATE deposits SET quote_id = NULL, credits = 0")
    with pytest.raises(RemedyRefused, match="price of WETH"):
        async with weth.deposits.roles.service.transaction() as connection:
            await take_remedy(connection, request, revenue_share=Decimal(0))
    with connect(weth.deposits.roles.database.superuser_url) as superuser:
        superuser.execute("UPDATE deposits SET quote_id = %s, credits = %s", quote[0])
    async with weth.deposits.roles.service.transaction() as connection:
        await take_remedy(connection, request, revenue_share=Decimal(0))
    assert await weth.deposits.balance(given) == 2_500 * CREDITS_PER_USD


async def test_a_deposit_that_moves_to_another_block_is_priced_again(weth: Priced) -> None:
    """As long as it is no payment: its price was that of a block that is not on the chain any more."""
    given = await weth.give()
    weth.deposits.settling.is_idle = True
    sent = await weth.pay(given)
    await weth.deposits.read()
    pricing_ = weth.deposits.crediting._pricing
    assert await pricing_.price(await weth.deposits.read()) == 1
    with connect(weth.deposits.roles.database.superuser_url) as superuser:
        superuser.execute("UPDATE deposits SET block_hash = %s, block_time = now()", (f"0x{9:064x}",))
    async with weth.deposits.roles.service.transaction() as connection:
        await keep_deposits(connection, weth.deposits.chain.chain_id, [sent])
    assert weth.priced() == [(0, None, None)]
    weth.deposits.settling.is_idle = False
    await weth.deposits.act()
    assert [(credits, status) for credits, status, _ in weth.priced()] == [(2_500 * CREDITS_PER_USD, "CREDITED")]
