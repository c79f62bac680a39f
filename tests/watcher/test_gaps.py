"""Blocks that no node returns: the watcher continues past them, records them, and reads them later."""

from __future__ import annotations

from typing import Any

import pytest

from commands.chain_checks import check_watcher
from db.operations.findings import FindingFilter, page_findings
from devstack.chain import LocalChain
from domain.errors import ChainUnavailable
from domain.operations.findings import FindingKind, Remedy
from domain.operations.resolutions import parse_request
from domain.transfers.watching import PATIENCE_PRUNED, PATIENCE_REFUSED, PATIENCE_SOME_SILENT, Patience
from services.transfers.block_scanner import GAP_EVERY
from starter.resolutions import execute
from tests.chain.faulty_node import FaultyNode, Refusal
from tests.support.engine import open_engine
from tests.support.postgres import Database
from tests.support.servers import Namespace
from tests.watcher.conftest import MIN_CONFIRMATIONS, FaultyNodes, Watch, Watches
from tests.watcher.test_watch_chain import ends, start_watch

PRUNED = {
    "go-ethereum": Refusal("pruned history unavailable", code=4444),
    "a state that is not kept": Refusal("missing trie node 5e1f (path ) state 0x5e1f is not available", code=-32000),
    "Nethermind": Refusal("History has been pruned for this block", code=-32000),
    "a range": Refusal("block range 17 to 29 is not available", code=-32000),
    "EIP-1474": Refusal("resource not found", code=-32001),
    "an archive": Refusal("this request needs an archive node", code=-32600),
}
OTHERS = {
    "always an error": Refusal("internal error", code=-32603),
    "too many logs in one block": Refusal("query returned more than 10000 results", code=-32005),
}


async def waited(watch: Watch, patience: Patience) -> None:
    """Returns when the watcher has met the refusal as often and as long as it has to."""
    for _ in range(patience.tries - 1):
        with pytest.raises(ChainUnavailable):
            await watch.scan.advance()
        watch.clock.now += patience.seconds / (patience.tries - 1)


async def gaps(watch: Watch) -> list[tuple[int, int, bool]]:
    """First and last block of each gap, and whether it has been read since."""
    rows = await watch.rows("SELECT first_block, last_block, read_at FROM chain_gaps ORDER BY id")
    return [(row["first_block"], row["last_block"], row["read_at"] is not None) for row in rows]


async def findings(watch: Watch) -> list[tuple[str, str | None]]:
    """Kind and resolution of each finding."""
    rows = await watch.rows("SELECT kind, resolution FROM findings ORDER BY created_at")
    return [(row["kind"], row["resolution"]) for row in rows]


@pytest.mark.slow(but=2)
@pytest.mark.parametrize("refusal", PRUNED.values(), ids=list(PRUNED))
async def test_a_payment_behind_a_pruned_gap_is_found_and_the_gap_is_on_record(
    watches: Watches, faulty: FaultyNode, refusal: Refusal
) -> None:
    watch = await watches(faulty)
    begin = await watch.head() + 1
    hidden = await watch.pay(blocks=30)
    kept_from = await watch.head() - 9
    intent = await watch.intent()
    sent = await watch.pay(blocks=MIN_CONFIRMATIONS)
    faulty.prune_logs_below(kept_from, refusal)
    await waited(watch, PATIENCE_PRUNED)
    await watch.act()
    assert watch.submitted == [(intent.id, sent)]
    assert await watch.cursor() == await watch.head()
    assert await gaps(watch) == [(begin, kept_from - 1, False)]
    [finding] = await watch.rows("SELECT kind, chain_id, metadata, detail FROM findings")
    assert finding["kind"] == "chain_gap"
    assert (finding["metadata"]["fromBlock"], finding["metadata"]["toBlock"]) == (begin, kept_from - 1)
    assert [event.data["kind"] for event in watch.told] == ["chain_gap"]
    assert hidden not in await watch.seen()


@pytest.mark.parametrize("refusal", OTHERS.values(), ids=list(OTHERS))
async def test_one_block_that_is_always_refused_is_a_gap_of_that_block(
    watches: Watches, faulty: FaultyNode, refusal: Refusal
) -> None:
    watch = await watches(faulty)
    before = await watch.pay(blocks=5)
    bad = await watch.head() + 1
    await watch.pay()
    after = await watch.pay(blocks=5)
    faulty.refuse_logs_of(bad, bad, refusal)
    await _read_up_to(watch, bad - 1)
    await waited(watch, PATIENCE_REFUSED)
    await watch.catch_up()
    assert await gaps(watch) == [(bad, bad, False)]
    assert list(await watch.seen()) == [before, after]


async def _read_up_to(watch: Watch, block: int) -> None:
    """The watcher comes to the block before the one that is refused."""
    while True:
        try:
            step = await watch.scan.advance()
        except ChainUnavailable:
            return
        if step.cursor.block_number >= block:
            return


def _malformed(method: str, params: list[Any], result: Any) -> Any:
    return [{**log, "topics": "none"} for log in result] if method == "eth_getLogs" else result


async def test_a_block_whose_logs_are_malformed_does_not_hide_the_next_ones(
    watches: Watches, faulty: FaultyNode
) -> None:
    watch = await watches(faulty)
    await watch.catch_up()
    await watch.pay(blocks=2)
    bad = await watch.head() - 1
    after = await watch.pay(blocks=3)
    faulty.answers(
        lambda method, params, result: (
            _malformed(method, params, result)
            if method == "eth_getLogs" and int(params[0]["fromBlock"], 16) <= bad <= int(params[0]["toBlock"], 16)
            else result
        )
    )
    await waited(watch, PATIENCE_REFUSED)
    await watch.catch_up()
    assert await gaps(watch) == [(bad, bad, False)]
    assert list(await watch.seen()) == [after]


async def test_a_block_with_a_transfer_whose_header_is_never_shown_is_a_gap(
    watches: Watches, faulty: FaultyNode
) -> None:
    watch = await watches(faulty)
    await watch.catch_up()
    await watch.pay(blocks=2)
    bad = await watch.head() - 1
    after = await watch.pay(blocks=3)
    faulty.lose_headers(bad, bad)
    await waited(watch, PATIENCE_REFUSED)
    await watch.catch_up()
    assert await gaps(watch) == [(bad, bad, False)]
    assert list(await watch.seen()) == [after]


@pytest.mark.parametrize("answer", [None, {"number": "nonsense"}, Refusal("header not found", -32000)], ids=str)
async def test_a_cursor_whose_own_block_is_not_shown_any_more_goes_on_from_an_older_one(
    watches: Watches, faulty: FaultyNode, answer: Any
) -> None:
    watch = await watches(faulty)
    kept = await watch.pay()
    await watch.catch_up()
    await watch.chain.mine()
    lost = (await watch.catch_up()).cursor.block_number
    faulty.lose_headers(lost, lost, answer)
    sent = await watch.pay(blocks=2)
    await waited(watch, PATIENCE_PRUNED)
    await watch.catch_up()
    assert list(await watch.seen()) == [kept, sent]
    assert await watch.orphaned() == []
    assert await gaps(watch) == []


async def test_a_cursor_far_below_what_the_nodes_keep_goes_on_where_they_begin(
    watches: Watches, faulty: FaultyNode
) -> None:
    """Headers and logs are pruned up to above the cursor: not even a block that was watched is shown."""
    watch = await watches(faulty)
    kept = await watch.pay()
    reached = (await watch.catch_up()).cursor.block_number
    await watch.chain.mine(40)
    kept_from = await watch.head() - 5
    faulty.prune_logs_below(kept_from)
    faulty.lose_headers(0, kept_from - 1)
    sent = await watch.pay(blocks=2)
    await waited(watch, PATIENCE_PRUNED)
    await watch.catch_up()
    assert await gaps(watch) == [(reached + 1, kept_from - 1, False)]
    assert list(await watch.seen()) == [kept, sent]
    assert await watch.orphaned() == []


async def test_an_outage_is_waited_for_and_nothing_is_skipped_however_long_it_lasts(
    watches: Watches, faulty: FaultyNode
) -> None:
    watch = await watches(faulty)
    await watch.catch_up()
    sent = await watch.pay(blocks=2)
    for fault in (
        faulty.drop,
        lambda: faulty.status(503),
        faulty.truncate,
        lambda: faulty.refuse("pruned", code=-32601),
    ):
        fault()
        for _ in range(8):
            with pytest.raises(ChainUnavailable):
                await watch.scan.advance()
            watch.clock.now += 3_600
        faulty.heal()
    assert await gaps(watch) == []
    await watch.catch_up()
    assert list(await watch.seen()) == [sent]


async def test_a_node_that_is_asked_too_often_is_waited_for(watches: Watches, faulty: FaultyNode) -> None:
    watch = await watches(faulty)
    await watch.catch_up()
    bad = await watch.head() + 1
    await watch.pay(blocks=4)
    faulty.refuse_logs_of(bad, bad, Refusal("too many requests, slow down", code=429))
    for _ in range(8):
        with pytest.raises(ChainUnavailable, match="slow down"):
            await watch.scan.advance()
        watch.clock.now += 3_600
    assert await gaps(watch) == []


async def test_a_node_that_gives_no_logs_at_all_is_no_gap(watches: Watches, faulty: FaultyNode) -> None:
    """There is nothing behind it to go on with."""
    watch = await watches(faulty)
    await watch.catch_up()
    await watch.pay(blocks=4)
    faulty.prune_logs_below(10**9)
    for _ in range(8):
        with pytest.raises(ChainUnavailable):
            await watch.scan.advance()
        watch.clock.now += 3_600
    assert await gaps(watch) == []


async def test_a_node_that_is_away_may_have_what_the_others_have_pruned(
    watches: Watches, faulty_nodes: FaultyNodes
) -> None:
    pruned, away = await faulty_nodes(2)
    watch = await watches(pruned, away)
    await watch.catch_up()
    await watch.pay(blocks=10)
    kept_from = await watch.head() - 2
    pruned.prune_logs_below(kept_from)
    away.drop()
    for _ in range(PATIENCE_SOME_SILENT.tries):
        with pytest.raises(ChainUnavailable):
            await watch.scan.advance()
        watch.clock.now += PATIENCE_REFUSED.seconds / 2
    assert await gaps(watch) == []
    watch.clock.now += PATIENCE_SOME_SILENT.seconds
    await watch.catch_up()
    assert len(await gaps(watch)) == 1
    away.heal()
    await _due(watch)
    assert await watch.scan.read_due_gap() > 0
    assert [is_read for *_, is_read in await gaps(watch)] == [True]


async def test_refusals_that_pass_in_time_leave_no_gap(watches: Watches, faulty: FaultyNode) -> None:
    watch = await watches(faulty)
    await watch.catch_up()
    sent = await watch.pay(blocks=4)
    faulty.prune_logs_below(await watch.head())
    for _ in range(PATIENCE_PRUNED.tries + 2):
        with pytest.raises(ChainUnavailable):
            await watch.scan.advance()
    faulty.heal()
    await watch.catch_up()
    assert (await gaps(watch), list(await watch.seen())) == ([], [sent])


async def _due(watch: Watch) -> None:
    """The next time to ask for gaps has come."""
    await watch.change(f"UPDATE chain_gaps SET tried_at = tried_at - interval '{GAP_EVERY.total_seconds()} s'")


async def _gap(watches: Watches, faulty: FaultyNode) -> tuple[Watch, str, int]:
    """A watcher that continued past a gap with a payment in it; the payment, and where the nodes begin."""
    watch = await watches(faulty)
    await watch.catch_up()
    hidden = await watch.pay(blocks=10)
    kept_from = await watch.head() - 2
    faulty.prune_logs_below(kept_from)
    await waited(watch, PATIENCE_PRUNED)
    await watch.catch_up()
    assert len(await gaps(watch)) == 1
    return watch, hidden, kept_from


async def test_a_gap_that_is_shown_again_is_read_by_itself_and_its_finding_ends(
    watches: Watches, faulty: FaultyNode
) -> None:
    watch, hidden, _ = await _gap(watches, faulty)
    assert await watch.scan.read_due_gap() == 0, "it was asked for a moment ago"
    await _due(watch)
    assert await watch.scan.read_due_gap() == 0, "it is still pruned"
    faulty.heal()
    assert await watch.scan.read_due_gap() == 0, "it was asked for a moment ago"
    await _due(watch)
    assert await watch.scan.read_due_gap() > 0
    assert list(await watch.seen()) == [hidden]
    assert [is_read for *_, is_read in await gaps(watch)] == [True]
    assert await findings(watch) == [("chain_gap", "settled")]


async def test_a_part_that_is_shown_is_not_missing_any_more(watches: Watches, faulty: FaultyNode) -> None:
    watch, hidden, kept_from = await _gap(watches, faulty)
    [(first, last, _)] = await gaps(watch)
    faulty.heal()
    faulty.refuse_logs_of(first + 3, last, Refusal("pruned history unavailable", code=4444))
    with pytest.raises(ChainUnavailable):
        await watch.scan.read_again(first, first + 5)
    await watch.scan.read_again(first, first + 2)
    assert await gaps(watch) == [(first + 3, kept_from - 1, False)]
    assert list(await watch.seen()) == [hidden]


async def test_an_operator_who_acknowledges_a_gap_ends_the_asking(watches: Watches, faulty: FaultyNode) -> None:
    watch, _, _ = await _gap(watches, faulty)
    await watch.change("UPDATE findings SET resolved_at = now(), resolution = 'write_off'")
    await _due(watch)
    faulty.heal()
    assert await watch.scan.read_due_gap() == 0
    [(first, last, _)] = await gaps(watch)
    assert await watch.scan.read_again(first, last) == last - first + 1, "reading it by hand works all the same"
    assert await findings(watch) == [("chain_gap", "write_off")]


async def test_an_operators_retry_does_not_wait_and_is_answered(watches: Watches, faulty: FaultyNode) -> None:
    watch, _, _ = await _gap(watches, faulty)
    await watch.change("UPDATE findings SET resolved_at = now(), resolution = 'retry'")
    assert await watch.scan.read_due_gap() == 0
    assert await findings(watch) == [("chain_gap", None)], "still not shown: open again"
    await watch.change("UPDATE findings SET resolved_at = now(), resolution = 'retry'")
    faulty.heal()
    assert await watch.scan.read_due_gap() > 0
    assert await findings(watch) == [("chain_gap", "settled")]


async def test_a_reorganisation_above_a_gap_goes_back_to_above_it(watches: Watches, faulty: FaultyNode) -> None:
    watch, _, kept_from = await _gap(watches, faulty)
    kept = await watch.pay()
    await watch.catch_up()
    gone = await watch.pay()
    await watch.catch_up()
    await watch.chain.reorg(1)
    sent = await watch.pay(blocks=2)
    await watch.catch_up()
    assert list(await watch.seen()) == [kept, sent]
    assert await watch.orphaned() == [gone]
    assert [(last, is_read) for _, last, is_read in await gaps(watch)] == [(kept_from - 1, False)]


async def test_a_reorganisation_that_replaces_the_blocks_of_a_gap_reads_them_again(
    watches: Watches, faulty: FaultyNode
) -> None:
    """One broken block at the head, which the chain replaces: the new one is not broken."""
    watch = await watches(faulty)
    kept = await watch.pay()
    await watch.catch_up()
    bad = await watch.head() + 1
    await watch.pay(blocks=2)
    faulty.refuse_logs_of(bad, bad, Refusal("internal error", code=-32603))
    await waited(watch, PATIENCE_REFUSED)
    await watch.catch_up()
    assert await gaps(watch) == [(bad, bad, False)]
    faulty.heal()
    await watch.chain.reorg(2)
    sent = await watch.pay(blocks=3)
    await watch.catch_up()
    assert list(await watch.seen()) == [kept, sent]
    assert await gaps(watch) == [(bad, bad, True)]
    assert await findings(watch) == [("chain_gap", "settled")]


async def test_two_watchers_write_one_gap(watches: Watches, faulty: FaultyNode) -> None:
    watch, _, _ = await _gap(watches, faulty)
    other = await watches(faulty)
    await other.catch_up()
    assert len(await gaps(watch)) == 1


async def test_the_next_block_behind_a_gap_is_read_without_touching_it_again(
    watches: Watches, faulty: FaultyNode
) -> None:
    """The newest blocks are read twice, in passing; not across what is refused."""
    watch = await watches(faulty)
    await watch.catch_up()
    bad = await watch.head() + 1
    await watch.chain.mine(3)
    faulty.refuse_logs_of(bad, bad, OTHERS["always an error"])
    await waited(watch, PATIENCE_REFUSED)
    await watch.catch_up()
    for _ in range(2):
        sent = await watch.pay()
        await watch.scan.advance()
        assert list(await watch.seen())[-1] == sent


@pytest.mark.slow
async def test_a_worker_continues_past_a_pruned_gap_and_an_operator_acknowledges_it(
    namespace: Namespace, database: Database, chain: LocalChain, faulty: FaultyNode
) -> None:
    """The whole engine, with the patience that it has."""
    begin = str(await chain.block_number() + 1)
    settings = {
        "CHAIN_WATCH_FROM_BLOCK": begin,
        "PAYMENT_INTENT_TTL_SECONDS": "864000",
        "CHAIN_RPC_URLS": faulty.url,
        "FINALITY": "finalized",
    }
    await chain.mine(20)
    faulty.prune_logs_below(await chain.block_number() - 3)
    faulty.name_tag("finalized", None)
    async with open_engine(namespace, database, chain, **settings) as engine, engine.worker():
        await start_watch(engine)
        _, intent, _ = await engine.buy()
        await ends(engine, intent.attempt_id)
        async with engine.service.transaction() as connection:
            wanted = FindingFilter(kinds=(FindingKind.CHAIN_GAP,))
            [finding] = (await page_findings(connection, wanted, limit=10)).findings
        assert f"--from {begin} " in finding.details["command"]
        with pytest.raises(ChainUnavailable, match="were not read"):
            await check_watcher(engine.settings)
        request = parse_request(finding.id, Remedy.WRITE_OFF, operator="ann", reason="these blocks have no payment")
        taken = await execute(engine.namespace.client, request)
        assert taken.remedy is Remedy.WRITE_OFF
        assert "were not read" not in await check_watcher(engine.settings)


async def test_a_gap_is_not_read_from_a_node_that_has_another_chain_than_was_followed(
    watches: Watches, faulty: FaultyNode
) -> None:
    watch = await watches(faulty)
    begin = await watch.head() + 1
    hidden = await watch.pay(blocks=12)
    kept_from = await watch.head() - 4
    faulty.prune_logs_below(kept_from, PRUNED["go-ethereum"])
    await waited(watch, PATIENCE_PRUNED)
    await watch.act()
    faulty.heal()
    read_up_to = await watch.cursor()
    assert read_up_to is not None
    faulty.answers(
        lambda method, params, result: (
            {**result, "hash": "0x" + "ee" * 32}
            if method == "eth_getBlockByNumber" and params[0] == hex(read_up_to)
            else result
        )
    )
    with pytest.raises(ChainUnavailable, match=f"another block {read_up_to}"):
        await watch.scan.read_again(begin, kept_from - 1)
    assert await gaps(watch) == [(begin, kept_from - 1, False)]
    assert hidden not in await watch.seen()

    faulty.heal()
    await watch.scan.read_again(begin, kept_from - 1)
    assert hidden in await watch.seen()
