"""One pass decides all credited payments: with a handful of requests, each once, and never by one node's word."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any
from uuid import UUID

import pytest

from chain import block_reader
from db.payments import finality as db
from domain.errors import BookkeepingError, ChainUnavailable
from domain.payments.finality import FinalityLevel, FinalityPolicy
from services.payments import finality
from services.payments.finality import HANDED_OVER_SECONDS, UNDECIDED_SECONDS, FinalityDecider
from tests.chain.anvil import Clock
from tests.chain.faulty_node import FaultyNode
from tests.finality.conftest import FINAL_AFTER, POLICY, Bulk
from tests.support.sql import connect, query

OTHER = "0x" + "5e" * 32
FINALIZED = FinalityPolicy()
TRAILS = 16


def other_blocks(method: str, params: list[Any], result: Any) -> Any:
    """Another hash at every height."""
    by_number = method == "eth_getBlockByNumber" and str(params[0]).startswith("0x")
    return {**result, "hash": OTHER} if by_number and result else result


def block_requests(node: FaultyNode) -> int:
    """How many requests asked for blocks by number."""
    return sum(1 for methods in node.requests if methods.count("eth_getBlockByNumber") > 1)


@pytest.mark.slow(but=1)
@pytest.mark.parametrize("payments", [24, 300])
async def test_many_payments_take_a_handful_of_requests(bulk: Bulk, payments: int) -> None:
    head = await bulk.head()
    blocks = [head - FINAL_AFTER + 1 - n for n in range(20)]
    paid = [await bulk.credited(blocks[n % len(blocks)]) for n in range(payments)]
    decider = await bulk.decider(nodes=2)
    decided = await decider.decide_all()
    assert decided.counts == {"final": payments}
    assert bulk.outcomes().keys() == {attempt.id for attempt in paid}
    # One for how far the chain is, of the first node only, and one for all the blocks.
    assert [len(node.requests) for node in bulk.nodes] == [2, 1]
    assert (await decider.decide_all()).counts == {}
    assert [len(node.requests) for node in bulk.nodes] == [2, 1], "nothing waits, and no node is asked"
    assert await bulk.roles.books() == []


async def test_more_blocks_than_one_request_may_ask_for_take_several(
    bulk: Bulk, monkeypatch: pytest.MonkeyPatch
) -> None:
    blocks = 5
    for module in (block_reader, finality):
        monkeypatch.setattr(module, "BLOCKS_MAX", blocks)
    last = await bulk.head() - FINAL_AFTER + 1
    for number in range(blocks + 2):
        await bulk.credited(last - number)
    decider = await bulk.decider()
    assert (await decider.decide_all()).counts == {"final": blocks + 2}
    assert [methods.count("eth_getBlockByNumber") for methods in bulk.nodes[0].requests] == [0, blocks, 2]


async def test_a_page_is_followed_by_the_next_one(bulk: Bulk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("services.payments.finality.PAGE", 2)
    last = await bulk.head() - FINAL_AFTER + 1
    for number in (last, last, last, last - 1, last - 1):
        await bulk.credited(number)
    assert (await (await bulk.decider()).decide_all()).counts == {"final": 5}


async def test_what_is_recorded_is_the_position_of_the_credit_and_the_level(bulk: Bulk) -> None:
    last = await bulk.head() - FINAL_AFTER + 1
    final, waiting = await bulk.credited(last), await bulk.credited(last + 1)
    decider = await bulk.decider()
    await decider.decide_all()
    assert bulk.outcomes() == {final.id: ("final", "confirmations", last)}
    same = "block_hash, log_index, tx_hash, chain_id"
    [settled] = query(
        bulk.roles.database.service_url, f"SELECT {same} FROM settled_transfers WHERE attempt_id = %s", final.id
    )
    [recorded] = query(bulk.roles.database.service_url, f"SELECT {same} FROM transfer_finality")
    assert recorded == settled
    await bulk.chain.mine(1)
    await decider.decide_all()
    assert bulk.outcomes().keys() == {final.id, waiting.id}


async def test_the_size_of_a_payment_decides_which_level_it_waits_for(bulk: Bulk) -> None:
    head = await bulk.head()
    policy = POLICY.model_copy(update={"large_level": FinalityLevel.FINALIZED, "large_from_usd_cents": 10_000})
    number = head - FINAL_AFTER + 1
    small, large = await bulk.credited(number, cents=9_999), await bulk.credited(number, cents=10_000)
    decider = await bulk.decider(policy=policy)
    await decider.decide_all()
    assert bulk.outcomes() == {small.id: ("final", "confirmations", number)}
    await bulk.chain.mine(TRAILS)
    await decider.decide({FinalityLevel.FINALIZED: number})
    assert bulk.outcomes()[large.id] == ("final", "finalized", number)


def tag_above(blocks: int) -> Callable[[str, list[Any], Any], Any]:
    """Names a block that much higher finalized."""

    def lie(method: str, params: list[Any], result: Any) -> Any:
        is_tag = method == "eth_getBlockByNumber" and params[0] == "finalized"
        return {**result, "number": hex(int(result["number"], 16) + blocks)} if is_tag else result

    return lie


async def test_one_node_that_invents_a_finalized_block_makes_nothing_final(bulk: Bulk) -> None:
    head = await bulk.head()
    await bulk.credited(head - 2)
    decider = await bulk.decider(nodes=3, policy=FINALIZED)
    bulk.nodes[0].answers(tag_above(TRAILS - 2))
    # As the watcher, which has the height from this node.
    assert (await decider.decide({FinalityLevel.FINALIZED: head - 2})).counts == {}
    assert block_requests(bulk.nodes[1]) == 1, "all were asked"
    assert bulk.outcomes() == {}


async def test_one_node_that_invents_a_head_makes_nothing_final(bulk: Bulk) -> None:
    head = await bulk.head()
    await bulk.credited(head - 2)
    decider = await bulk.decider(nodes=3)
    bulk.nodes[0].shift_head(100)
    assert (await decider.decide({FinalityLevel.CONFIRMATIONS: head - 2})).counts == {}
    assert bulk.outcomes() == {}


async def test_one_node_of_three_that_has_another_block_does_not_stop_finality(bulk: Bulk) -> None:
    attempt = await bulk.credited(await bulk.head() - FINAL_AFTER)
    decider = await bulk.decider(nodes=3)
    bulk.nodes[0].answers(other_blocks)
    await decider.decide_all()
    assert bulk.outcomes().keys() == {attempt.id}
    assert bulk.reversals.started == []


async def test_one_node_of_two_that_has_another_block_decides_nothing(bulk: Bulk) -> None:
    await bulk.credited(await bulk.head() - FINAL_AFTER)
    decider = await bulk.decider(nodes=2)
    bulk.nodes[0].answers(other_blocks)
    assert (await decider.decide_all()).counts == {"undecided": 1}
    assert (bulk.outcomes(), bulk.reversals.started) == ({}, [])


async def test_one_node_that_alone_has_the_block_of_the_credit_makes_nothing_final(bulk: Bulk) -> None:
    """It confirms a block that the others never had: the payment's own workflow decides."""
    attempt = await bulk.credited(await bulk.head() - FINAL_AFTER, block_hash=OTHER)
    decider = await bulk.decider(nodes=3)
    bulk.nodes[0].answers(other_blocks)
    assert (await decider.decide_all()).counts == {"handed_over": 1}
    assert bulk.outcomes() == {}
    assert bulk.reversals.started == [(attempt.id, False)]


async def test_a_node_that_is_down_does_not_stop_finality_and_all_of_them_do(bulk: Bulk) -> None:
    attempt = await bulk.credited(await bulk.head() - FINAL_AFTER)
    decider = await bulk.decider(nodes=3)
    for node in bulk.nodes:
        node.fixed("eth_chainId", "0x1")
    with pytest.raises(ChainUnavailable):
        await decider.decide({FinalityLevel.CONFIRMATIONS: 10_000})
    assert bulk.outcomes() == {}
    for node in bulk.nodes[1:]:
        node.heal()
    await decider.decide({FinalityLevel.CONFIRMATIONS: 10_000})
    assert bulk.outcomes().keys() == {attempt.id}


async def test_without_a_node_that_knows_the_tag_payments_wait_and_it_says_why(bulk: Bulk) -> None:
    await bulk.credited(await bulk.head() - TRAILS - 5)
    decider = await bulk.decider(policy=FINALIZED)
    bulk.nodes[0].name_tag("finalized", None)
    with pytest.raises(ChainUnavailable, match="no finalized block"):
        await decider.decide_all()
    assert bulk.outcomes() == {}


async def test_nodes_without_the_block_have_no_vote_on_it(bulk: Bulk) -> None:
    number = await bulk.head() - FINAL_AFTER
    attempt = await bulk.credited(number)
    decider = await bulk.decider(nodes=3)
    bulk.nodes[0].lose_headers(number, number)
    bulk.nodes[1].freeze_head(number - 1)
    await decider.decide({FinalityLevel.CONFIRMATIONS: 10_000})
    assert bulk.outcomes().keys() == {attempt.id}


async def test_a_lagging_node_alone_decides_nothing(bulk: Bulk) -> None:
    """It may be on a branch that the others have abandoned, which have no such block any more."""
    head = await bulk.head()
    number = head - FINAL_AFTER - 5
    await bulk.credited(number)
    decider = await bulk.decider(nodes=3)
    bulk.nodes[0].freeze_head(head - 4)
    bulk.nodes[1].lose_headers(number, number)
    bulk.nodes[2].lose_headers(number, number)
    assert (await decider.decide({FinalityLevel.CONFIRMATIONS: 10_000})).counts == {"undecided": 1}
    assert bulk.outcomes() == {}


async def test_of_two_payments_only_the_one_whose_block_was_replaced_is_handed_over(bulk: Bulk) -> None:
    number = await bulk.head() - FINAL_AFTER
    stays, goes = await bulk.credited(number), await bulk.credited(number, block_hash=OTHER)
    await (await bulk.decider()).decide_all()
    assert bulk.outcomes().keys() == {stays.id}
    assert bulk.reversals.started == [(goes.id, False)]


async def test_who_was_handed_over_is_asked_about_again_after_a_while(bulk: Bulk) -> None:
    goes = await bulk.credited(await bulk.head() - FINAL_AFTER, block_hash=OTHER)
    decider, clock = await bulk.decider(), Clock()
    decider._clock = clock
    await decider.decide_all()
    asked = block_requests(bulk.nodes[0]), len(bulk.nodes[0].requests)
    await decider.decide({FinalityLevel.CONFIRMATIONS: 10_000})
    assert (block_requests(bulk.nodes[0]), len(bulk.nodes[0].requests)) == asked
    clock.now += max(HANDED_OVER_SECONDS, UNDECIDED_SECONDS) + 1
    await decider.decide({FinalityLevel.CONFIRMATIONS: 10_000})
    assert bulk.reversals.started == [(goes.id, False)] * 2


async def test_a_completed_run_is_followed_by_another_only_while_there_is_no_outcome(bulk: Bulk) -> None:
    number = await bulk.head() - FINAL_AFTER
    restored, done = await bulk.credited(number, block_hash=OTHER), await bulk.credited(number, block_hash=OTHER)
    bulk.reversals.completed = {restored.id, done.id}

    async def reversed_since(attempt_id: UUID) -> None:
        if attempt_id == done.id:
            await bulk.roles.reverse(done)

    bulk.reversals.before = reversed_since
    await (await bulk.decider()).decide_all()
    assert set(bulk.reversals.started) == {(restored.id, False), (restored.id, True), (done.id, False)}


async def test_two_passes_at_once_record_each_payment_once(bulk: Bulk) -> None:
    last = await bulk.head() - FINAL_AFTER + 1
    for n in range(12):
        await bulk.credited(last - n % 4)
    first, second = await bulk.decider(), await bulk.decider()
    decided = await asyncio.gather(first.decide_all(), second.decide_all())
    assert sum(one.final for one in decided) == len(bulk.outcomes()) == 12


async def test_a_reversal_at_the_same_time_leaves_one_outcome_and_fails_neither(bulk: Bulk) -> None:
    """What only disagreeing answers of the chain can cause: whichever comes second finds the other's outcome."""
    number = await bulk.head() - FINAL_AFTER
    decider = await bulk.decider()
    for _ in range(10):
        attempt = await bulk.credited(number)
        _, reversal = await asyncio.gather(decider.decide_all(), bulk.roles.reverse(attempt), return_exceptions=True)
        outcome, *_ = bulk.outcomes()[attempt.id]
        if outcome == "final":
            assert isinstance(reversal, BookkeepingError), reversal
        else:
            await bulk.roles.reverse_bonus(attempt)
    assert await bulk.roles.books() == []


async def test_a_payment_that_has_been_reversed_is_not_recorded_as_final(bulk: Bulk) -> None:
    number = await bulk.head() - FINAL_AFTER
    attempt, other = await bulk.credited(number), await bulk.credited(number)
    async with bulk.roles.service.autocommit() as connection:
        page = await db.page_awaiting(
            connection, attempt.chain_id, up_to_block=number, from_cents=0, below_cents=10**9, after=db.FIRST, limit=9
        )
    await bulk.roles.reverse(attempt)
    async with bulk.roles.service.transaction() as connection:
        assert await db.insert_final(connection, page, FinalityLevel.CONFIRMATIONS) == {other.id}
    assert bulk.outcomes()[attempt.id][0] == "reversed"


async def test_the_heights_of_levels_are_noted_only_while_something_waits(bulk: Bulk) -> None:
    noted = "SELECT level, block_number FROM finality_progress"
    head = await bulk.head()
    decider = await bulk.decider()
    await decider.decide({FinalityLevel.CONFIRMATIONS: head})
    assert query(bulk.roles.database.service_url, noted) == []
    await bulk.credited(head)
    await decider.decide({FinalityLevel.CONFIRMATIONS: head - 5})
    assert query(bulk.roles.database.service_url, noted) == [("confirmations", head - 5)]


async def test_another_chains_payments_are_left_to_its_workers(bulk: Bulk) -> None:
    block = await bulk.head() - FINAL_AFTER
    other, own = await bulk.credited(block), await bulk.credited(block)
    with connect(bulk.roles.database.superuser_url, triggers=False) as superuser:
        superuser.execute("UPDATE transfers_awaiting_finality SET chain_id = 1 WHERE attempt_id = %s", (other.id,))
    decider: FinalityDecider = await bulk.decider()
    await decider.decide({FinalityLevel.CONFIRMATIONS: block})
    assert set(bulk.outcomes()) == {own.id}
