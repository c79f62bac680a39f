"""Every transfer to the treasury is recorded, whatever nodes and chain do: none skipped, none twice."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any

import pytest

from devstack.chain import payer_wallets
from domain.errors import ChainUnavailable, DatabaseBusy
from services.transfers.block_scanner import BLIND_REWIND_BLOCKS, OVERLAP_BLOCKS
from tests.chain.faulty_node import FaultyNode, Refusal
from tests.watcher.conftest import FaultyNodes, Watch, Watches


async def test_a_transfer_is_recorded_with_where_and_when_it_was_mined(watch: Watch) -> None:
    await watch.catch_up()
    sent = await watch.pay(12_345)
    receipt = await watch.chain.wait_for_receipt(sent)
    await watch.catch_up()
    await watch.catch_up()
    assert await watch.rows(
        "SELECT chain_id, tx_hash, log_index, block_number, block_hash, from_address, value_raw, handled_at"
        "  FROM observed_transfers"
    ) == [
        {
            "chain_id": watch.chain.chain_id,
            "tx_hash": sent,
            "log_index": int(receipt["logs"][0]["logIndex"], 16),
            "block_number": int(receipt["blockNumber"], 16),
            "block_hash": receipt["blockHash"],
            "from_address": payer_wallets()[0].address,
            "value_raw": 123_450_000,
            "handled_at": None,
        }
    ]
    assert (await watch.rows("SELECT block_time FROM observed_transfers"))[0]["block_time"] == await watch.now()


async def test_transfers_of_nothing_and_to_others_are_not_recorded(watch: Watch) -> None:
    payer, other = payer_wallets()[:2]
    await watch.chain.pay(payer.private_key, watch.chain.treasury_address, 0)
    await watch.chain.pay(payer.private_key, other.address, 1_000_000)
    await watch.chain.mine()
    await watch.catch_up()
    assert await watch.seen() == {}


async def test_a_watcher_that_was_down_for_100_blocks_fills_the_gap_with_a_log_query_for_each_range(
    watches: Watches, faulty: FaultyNode
) -> None:
    watch = await watches(faulty, log_range_max=40)
    await watch.catch_up()
    faulty.log_ranges.clear()
    sent = []
    for _ in range(5):
        sent += [await watch.pay(blocks=0) for _ in range(4)]
        await watch.chain.mine(20)
    await watch.chain.wait_for_receipt(sent[-1])
    step = await watch.catch_up()
    assert step.cursor.block_number == await watch.head()
    assert list(await watch.seen()) == sent
    assert len(faulty.log_ranges) == 3, "100 blocks in ranges of 40, however many transfers"
    assert max(faulty.log_ranges) == 40


async def test_a_provider_that_refuses_more_than_ten_blocks_is_read_ten_by_ten(
    watches: Watches, faulty: FaultyNode
) -> None:
    watch = await watches(faulty)
    await watch.catch_up()
    sent = [await watch.pay(blocks=30) for _ in range(5)]
    faulty.refuse_log_ranges_over(10)
    await watch.catch_up()
    assert list(await watch.seen()) == sent
    assert faulty.log_ranges.count(10) >= 10
    assert sum(blocks > 10 for blocks in faulty.log_ranges) <= 8


async def test_a_provider_that_refuses_every_log_query_is_replaced_by_the_next(
    watches: Watches, faulty_nodes: FaultyNodes
) -> None:
    refusing, good = await faulty_nodes(2)
    refusing.refuse_log_ranges_over(0, Refusal("this method is not on your plan", code=-32601))
    watch = await watches(refusing, good)
    sent = await watch.pay()
    await watch.catch_up()
    assert list(await watch.seen()) == [sent]


async def test_logs_that_a_node_omits_at_the_head_are_found_with_the_next_block(
    watches: Watches, faulty: FaultyNode
) -> None:
    watch = await watches(faulty)
    await watch.catch_up()
    faulty.omit_newest_logs()
    sent = await watch.pay()
    await watch.catch_up()
    assert await watch.seen() == {}, "the node did not have them yet"
    await watch.chain.mine()
    await watch.catch_up()
    assert list(await watch.seen()) == [sent]


async def test_logs_that_a_node_omits_for_longer_are_found_by_reading_again(
    watches: Watches, faulty_nodes: FaultyNodes
) -> None:
    forgetful, other = await faulty_nodes(2)
    watch = await watches(forgetful, other)
    await watch.catch_up()
    forgetful.fixed("eth_getLogs", [])
    sent = await watch.pay()
    for _ in range(OVERLAP_BLOCKS + 2):
        await watch.catch_up()
        await watch.chain.mine()
    await watch.catch_up()
    assert await watch.seen() == {}
    report = await watch.scan.rescan(600)
    assert (report.added, report.orphaned) == (1, 0)
    assert list(report.endpoints) == list(watch.reader.labels)
    assert list(await watch.seen()) == [sent]
    assert (await watch.scan.rescan(600)).added == 0


async def test_reading_again_goes_back_as_far_as_requested_and_never_before_the_beginning(
    watches: Watches, faulty: FaultyNode
) -> None:
    before = await watches(faulty)
    await before.pay(blocks=3)
    watch = await watches(faulty, from_block=await before.head() + 1)
    assert (await watch.scan.rescan(10)).last is None, "nothing has been followed yet"
    faulty.fixed("eth_getLogs", [])
    early = await watch.pay()
    await watch.chain.mine(20)
    late = await watch.pay()
    await watch.chain.mine(OVERLAP_BLOCKS)
    await watch.catch_up()
    faulty.heal()
    assert (await watch.scan.rescan(10)).added == 1
    assert list(await watch.seen()) == [late]
    report = await watch.scan.rescan(10_000)
    assert report.first == (await watch.rows("SELECT first_block FROM chain_cursors"))[0]["first_block"]
    assert list(await watch.seen()) == [early, late]


async def test_an_endpoint_on_another_branch_does_not_count_when_blocks_are_read_again(
    watches: Watches, faulty_nodes: FaultyNodes
) -> None:
    good, strange = await faulty_nodes(2)
    watch = await watches(good, strange)
    sent = await watch.pay(blocks=3)
    await watch.catch_up()
    _other_hashes(strange, above=-1)
    report = await watch.scan.rescan(100)
    assert [line.partition(": ")[0] for line in report.silent] == [watch.reader.labels[1]]
    assert list(await watch.seen()) == [sent]


@pytest.mark.parametrize("blocks", [1, 3, 10])
async def test_a_provider_that_goes_back_in_height_costs_nothing_but_time(
    watches: Watches, faulty: FaultyNode, blocks: int
) -> None:
    watch = await watches(faulty)
    first = await watch.pay(blocks=12)
    reached = (await watch.catch_up()).cursor.block_number
    faulty.shift_head(-blocks)
    for _ in range(3):
        with contextlib.suppress(ChainUnavailable):
            await watch.scan.advance()
    assert await watch.cursor() == reached
    second = await watch.pay(blocks=2)
    faulty.heal()
    await watch.catch_up()
    assert list(await watch.seen()) == [first, second]
    assert await watch.orphaned() == []


async def test_a_range_beyond_the_nodes_own_head_is_not_believed(watches: Watches, faulty_nodes: FaultyNodes) -> None:
    """The head comes from one node of a pool, and the logs from one that is two blocks behind: it would give a part."""
    good, late = await faulty_nodes(2)
    watch = await watches(good, late)
    await watch.catch_up()
    sent = await watch.pay(blocks=2)
    good.refuse_log_ranges_over(0)
    late.shift_head(-2)
    with pytest.raises(ChainUnavailable, match="has no block"):
        await watch.scan.advance()
    assert await watch.seen() == {}
    late.heal()
    await watch.catch_up()
    assert list(await watch.seen()) == [sent]


@pytest.mark.parametrize("depth", [1, 10])
async def test_a_payment_that_a_reorganisation_takes_away_is_not_observed_any_more(watch: Watch, depth: int) -> None:
    kept = await watch.pay(blocks=2)
    gone = await watch.pay()
    await _follow_block_by_block(watch, depth - 1)
    assert list(await watch.seen()) == [kept, gone]
    await watch.chain.reorg(depth)
    await watch.chain.mine()
    await watch.catch_up()
    assert list(await watch.seen()) == [kept]
    assert await watch.orphaned() == [gone]
    assert await watch.cursor() == await watch.head()


@pytest.mark.parametrize("depth", [1, 10])
async def test_a_payment_that_comes_back_in_another_block_is_observed_there(watch: Watch, depth: int) -> None:
    sent = await watch.pay()
    raw = await watch.chain.raw_transaction(sent)
    await _follow_block_by_block(watch, depth - 1)
    before = (await watch.seen())[sent]
    other = await watch.pay(wallet=payer_wallets()[1], blocks=0)
    other_raw = await watch.chain.raw_transaction(other)
    await watch.chain.reorg(depth, [(other_raw, depth - 1), (raw, depth - 1)])
    await watch.chain.mine(2)
    await watch.catch_up()
    receipt = await watch.chain.wait_for_receipt(sent)
    number, log_index = int(receipt["blockNumber"], 16), int(receipt["logs"][0]["logIndex"], 16)
    assert number == before + depth - 1
    assert await watch.rows(
        f"SELECT block_number, block_hash, log_index FROM observed_transfers WHERE tx_hash = '{sent}'"
    ) == [{"block_number": number, "block_hash": receipt["blockHash"], "log_index": log_index}]
    assert await watch.orphaned() == [sent]


async def test_a_reorganisation_below_a_range_is_noticed_although_only_its_end_was_remembered(watch: Watch) -> None:
    """A gap that was filled at once leaves one hash for many blocks."""
    await watch.catch_up()
    kept = await watch.pay(blocks=5)
    gone = await watch.pay(blocks=5)
    await watch.catch_up()
    await watch.chain.reorg(5)
    await watch.chain.mine()
    await watch.catch_up()
    assert list(await watch.seen()) == [kept]
    assert await watch.orphaned() == [gone], "what is still where it was is not taken out"


async def test_a_reorganisation_deeper_than_what_is_remembered_goes_back_to_the_beginning(watch: Watch) -> None:
    await watch.catch_up()
    gone = await watch.pay()
    await _follow_block_by_block(watch, 7)
    await watch.change(f"DELETE FROM watched_blocks WHERE block_number < {await watch.head()}")
    await watch.chain.reorg(8)
    sent = await watch.pay()
    await watch.catch_up()
    assert await watch.head() < BLIND_REWIND_BLOCKS
    assert list(await watch.seen()) == [sent]
    assert await watch.orphaned() == [gone]


async def test_a_payment_on_a_branch_that_was_left_and_is_taken_again_is_observed_again(
    watches: Watches, faulty: FaultyNode
) -> None:
    watch = await watches(faulty)
    kept = await watch.pay()
    await watch.catch_up()
    fork = await watch.head()
    sent = await watch.pay()
    await _follow_block_by_block(watch, 3)
    assert list(await watch.seen()) == [kept, sent]
    _other_hashes(faulty, above=fork)
    faulty.fixed("eth_getLogs", [])
    await watch.chain.mine()
    await watch.catch_up()
    assert list(await watch.seen()) == [kept]
    faulty.heal()
    await watch.chain.mine()
    await watch.catch_up()
    assert list(await watch.seen()) == [kept, sent]


async def test_a_chain_that_has_become_shorter_is_followed_from_where_it_is_the_same(watches: Watches) -> None:
    watch = await watches(head_tolerance_blocks=0, mark_expiry_seconds=0.0)
    kept = await watch.pay()
    snapshot = await watch.chain.snapshot()
    gone = await watch.pay()
    await _follow_block_by_block(watch, 3)
    assert list(await watch.seen()) == [kept, gone]
    await watch.chain.revert(snapshot)
    await watch.chain.mine(2)
    await watch.catch_up()
    assert await watch.cursor() == await watch.head()
    assert list(await watch.seen()) == [kept]
    assert await watch.orphaned() == [gone]


async def test_a_single_node_on_another_branch_is_not_believed_when_the_others_deny_it(
    watches: Watches, faulty_nodes: FaultyNodes
) -> None:
    strange, good = await faulty_nodes(2)
    watch = await watches(good)
    sent = await watch.pay(blocks=3)
    await watch.catch_up()
    odd = await watches(strange, good)
    await watch.chain.mine()
    reached = await watch.cursor()

    def other_anchor(method: str, params: list[Any], result: Any) -> Any:
        """Another hash at the cursor with the logs only, as from one stray machine of a pool."""
        return {**result, "hash": "0x" + "ee" * 32} if method == "eth_getBlockByNumber" and _wanted(params) else result

    def _wanted(params: list[Any]) -> bool:
        return int(params[0], 16) == reached and "eth_getLogs" in strange.requests[-1]

    strange.answers(other_anchor)
    with pytest.raises(ChainUnavailable, match="disagree on block"):
        await odd.scan.advance()
    assert list(await watch.seen()) == [sent]
    assert await watch.cursor() == reached


async def test_two_watchers_at_once_record_every_transfer_once(watches: Watches) -> None:
    one, other = await watches(log_range_max=7), await watches(log_range_max=5)
    sent = [await one.pay(blocks=9) for _ in range(6)]

    async def follow(watch: Watch) -> None:
        while True:
            try:
                await watch.catch_up()
            except DatabaseBusy:
                continue
            return

    await asyncio.gather(follow(one), follow(other))
    assert list(await one.seen()) == sent
    assert await one.cursor() == await one.head()


async def test_a_watcher_that_was_paused_writes_nothing_over_what_another_one_has_done(
    watches: Watches, faulty: FaultyNode
) -> None:
    paused, other = await watches(faulty), await watches()
    await other.catch_up()
    await other.pay()
    released = asyncio.Event()
    held = asyncio.Event()

    async def hold(request: Any) -> Any:
        from aiohttp import web

        document = await request.json()
        if any(call["method"] == "eth_getLogs" for call in document):
            held.set()
            await released.wait()
        return web.json_response(await faulty.forward(document))

    faulty.wire(hold)
    late = asyncio.create_task(paused.scan.advance())
    await held.wait()
    sent = await other.pay(blocks=2)
    await other.catch_up()
    released.set()
    with pytest.raises(DatabaseBusy):
        await late
    assert await other.cursor() == await other.head()
    assert sent in await other.seen()


async def test_the_first_time_a_chain_is_followed_from_the_block_that_the_settings_name(watches: Watches) -> None:
    earlier = await watches()
    await earlier.pay(blocks=3)
    wanted = [await earlier.pay(blocks=3), await earlier.pay(blocks=3)]
    begin = int((await earlier.chain.wait_for_receipt(wanted[0]))["blockNumber"], 16)
    watch = await watches(from_block=begin)
    await watch.catch_up()
    assert list(await watch.seen()) == wanted


async def test_the_first_time_without_one_it_is_followed_as_far_back_as_intents_live(watches: Watches) -> None:
    earlier = await watches()
    await earlier.pay(blocks=10)
    wanted = await earlier.pay(blocks=10)
    watch = await watches(from_block=None, look_back_blocks=9)
    await watch.catch_up()
    assert list(await watch.seen()) == [wanted]


async def test_hashes_are_kept_of_a_bounded_number_of_blocks(watch: Watch, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("db.transfers.observed.TRACKED_BLOCKS_MAX", 4)
    for _ in range(6):
        await watch.chain.mine()
        await watch.catch_up()
    rows = await watch.rows("SELECT block_number FROM watched_blocks ORDER BY block_number DESC")
    head = await watch.head()
    assert [row["block_number"] for row in rows] == [head, head - 1, head - 2, head - 3]


async def _follow_block_by_block(watch: Watch, blocks: int) -> None:
    """As at the head of a living chain: the hash of every block is remembered, and nothing of it is left to read."""
    await watch.catch_up()
    for _ in range(blocks):
        await watch.chain.mine()
        await watch.catch_up()


def _other_hashes(node: FaultyNode, *, above: int) -> None:
    """Blocks above that height have other hashes, and logs belong to them."""

    def change(method: str, params: list[Any], result: Any) -> Any:
        if method == "eth_getBlockByNumber" and result and int(result["number"], 16) > above:
            return {**result, "hash": "0x" + f"{int(result['number'], 16):064x}"}
        if method == "eth_getLogs":
            return [{**log, "blockHash": "0x" + f"{int(log['blockNumber'], 16):064x}"} for log in result]
        return result

    node.answers(change)
