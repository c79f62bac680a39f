"""The watcher decides finality when a level moves: in the background, and whatever becomes of it, it goes on."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from activities.transfers.finality import FinalityFollower
from activities.transfers.watch_chain import Followers, ScopeWatch, ScopeWatches
from chain.head_reader import ChainProgress
from chain.reader import ChainReader
from domain.chain import TransferScope
from domain.errors import ChainUnavailable
from domain.payments.finality import FinalityLevel, FinalityPolicy
from services.payments.finality import Decided, FinalityDecider
from services.transfers.block_scanner import BlockScanner
from services.transfers.matcher import TransferMatcher
from tests.chain.anvil import Clock
from tests.chain.faulty_node import FaultyNode
from tests.finality.conftest import FINAL_AFTER, Bulk
from tests.support.starter import ScriptedStarter


class Passes(FinalityDecider):
    """The product's, whose passes a test holds or lets fail."""

    def __init__(self, decider: FinalityDecider) -> None:
        self.__dict__.update(decider.__dict__)
        self.asked: list[dict[FinalityLevel, int]] = []
        self.error: Exception | None = None
        self.go_on = asyncio.Event()
        self.go_on.set()

    async def decide(self, reached, on_progress=lambda: None) -> Decided:  # type: ignore[no-untyped-def]
        self.asked.append(dict(reached))
        await self.go_on.wait()
        if self.error is not None:
            raise self.error
        return await super().decide(reached, on_progress)


def at(head_number: int, **tagged: int) -> ChainProgress:
    """What the watcher reads of the head."""
    return ChainProgress(head_number, tagged)


def confirmed(head_number: int) -> dict[FinalityLevel, int]:
    return {FinalityLevel.CONFIRMATIONS: head_number - FINAL_AFTER + 1}


async def test_a_pass_begins_when_a_level_has_moved_and_only_then(bulk: Bulk) -> None:
    passes = Passes(await bulk.decider())
    async with FinalityFollower(passes) as follower:
        for head in (100, 100, 99, 101):
            follower.saw(at(head))
            await follower.finish()
    assert passes.asked == [confirmed(100), confirmed(101)]


async def test_only_levels_of_the_policy_and_known_to_the_node_count(bulk: Bulk) -> None:
    passes = Passes(await bulk.decider(policy=FinalityPolicy()))
    assert passes.tags == ("finalized",)
    async with FinalityFollower(passes) as follower:
        for progress in (at(100), at(101, finalized=7), at(102, finalized=7), at(103), at(104, finalized=8)):
            follower.saw(progress)
            await follower.finish()
    assert passes.asked == [{FinalityLevel.FINALIZED: 7}, {FinalityLevel.FINALIZED: 8}]


async def test_one_pass_at_a_time_and_none_is_waited_for(bulk: Bulk) -> None:
    passes = Passes(await bulk.decider())
    passes.go_on.clear()
    async with FinalityFollower(passes) as follower:
        follower.saw(at(100))
        await asyncio.sleep(0)
        follower.saw(at(101))
        await asyncio.sleep(0)
        assert passes.asked == [confirmed(100)]
        passes.go_on.set()
        await follower.finish()
        follower.saw(at(101))
        await follower.finish()
    assert passes.asked == [confirmed(100), confirmed(101)]


async def test_a_pass_under_way_ends_with_the_following(bulk: Bulk) -> None:
    passes = Passes(await bulk.decider())
    passes.go_on.clear()
    async with FinalityFollower(passes) as follower:
        follower.saw(at(100))
        await asyncio.sleep(0)
    assert follower._pass is not None
    assert follower._pass.cancelled()


@pytest.mark.parametrize("error", [ChainUnavailable("no usable chain endpoint: a"), ZeroDivisionError("a fault")])
async def test_a_pass_that_fails_is_made_again_after_a_while_and_says_so(bulk: Bulk, error: Exception) -> None:
    passes, clock = Passes(await bulk.decider()), Clock()
    passes.error = error
    async with FinalityFollower(passes, clock=clock) as follower:
        for _ in range(3):
            follower.saw(at(100))
            await follower.finish()
        assert len(passes.asked) == 1
        assert "finality waits: " in follower.words
        clock.now += 1.5
        passes.error = None
        follower.saw(at(100))
        await follower.finish()
        assert (len(passes.asked), follower.words) == (2, "")


async def test_the_tagged_block_comes_with_the_head_in_one_request(bulk: Bulk) -> None:
    """At the head the watcher makes two requests a block, with or without finality."""
    scope = TransferScope(
        chain_id=bulk.chain.chain_id, token=bulk.chain.token_address, treasury=bulk.chain.treasury_address
    )
    head = await bulk.head()
    node = await bulk.stack.enter_async_context(FaultyNode.in_front_of(bulk.chain.url))
    reader = await bulk.stack.enter_async_context(ChainReader([node.url], bulk.chain.chain_id))
    decider = FinalityDecider(reader, bulk.roles.service, bulk.reversals, policy=FinalityPolicy(), pause_seconds=0.0)
    scan = BlockScanner(reader, bulk.roles.service, scope, from_block=head, look_back_blocks=1, tags=decider.tags)

    async def publish(_: object) -> None:
        raise AssertionError("nothing to publish")

    nothing_to_submit: Any = ScriptedStarter()
    matcher = TransferMatcher(
        bulk.roles.service, scope, nothing_to_submit, publish, chain=reader, min_confirmations=2, dust_below_raw=0
    )
    watches = ScopeWatches(bulk.roles.service, scope, lambda *_: ScopeWatch(scan, matcher))
    followers = Followers(watches, 0.0)
    async with FinalityFollower(decider) as follower:
        for blocks in range(3):
            await bulk.chain.mine(1)
            await followers.go_on()
            follower.saw(followers.progress)
            await follower.finish()
            assert len(node.requests) == 2 * (blocks + 1)
    assert node.requests[0] == ["eth_chainId", "eth_blockNumber", "eth_getBlockByNumber"]
    progress = followers.progress
    assert progress is not None
    assert progress.tagged == {"finalized": await bulk.chain.block_number() - 16}
