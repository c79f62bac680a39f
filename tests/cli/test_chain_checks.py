"""What `settle doctor` says of finality and of the watch of the chain, and what `settle chain rescan` does."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final

import pytest

from commands.chain_checks import YOUNG_CHAIN_BLOCKS, check_finality, check_watcher
from domain.chain import TransferScope
from domain.errors import ChainUnavailable
from settings import Settings, load
from tests.chain.faulty_node import FaultyNode, Refusal
from tests.cli.command import settle
from tests.support.engine import Engine
from tests.support.servers import running_chain
from tests.support.sql import connect

NO_CHANGES: Final[Mapping[str, str]] = {}
OLD_TREASURY: Final = "0x" + "22" * 20


@asynccontextmanager
async def nodes(
    engine: Engine, count: int = 1, changes: Mapping[str, str] = NO_CHANGES
) -> AsyncIterator[tuple[Settings, list[FaultyNode]]]:
    """Settings that name so many faulty nodes; payments need `finalized`."""
    await engine.chain.mine(80)
    if count == 2:
        async with FaultyNode.in_front_of(engine.chain.url) as one, FaultyNode.in_front_of(engine.chain.url) as two:
            yield _settings(engine, [one, two], changes), [one, two]
    else:
        async with FaultyNode.in_front_of(engine.chain.url) as node:
            yield _settings(engine, [node], changes), [node]


def _settings(engine: Engine, of: list[FaultyNode], changes: Mapping[str, str]) -> Settings:
    urls = ",".join(node.url for node in of)
    return load({**engine.variables, "FINALITY": "finalized", "CHAIN_RPC_URLS": urls, **changes})


def _block(number: int) -> dict[str, Any]:
    return {"number": hex(number), "hash": "0x" + "ab" * 32, "transactions": [], "timestamp": "0x1"}


NO_FINALITY: Final[dict[str, Any]] = {
    "unknown": Refusal("unknown block tag: finalized", code=-32602),
    "null": None,
    "zero": _block(0),
    "beyond the head": _block(10**9),
    "malformed": {"number": "nonsense"},
}


@pytest.mark.slow(but=1)
@pytest.mark.parametrize("answer", NO_FINALITY.values(), ids=list(NO_FINALITY))
async def test_a_tag_that_makes_nothing_final_is_not_ok(engine: Engine, answer: Any) -> None:
    async with nodes(engine) as (settings, [node]):
        assert "finalized is block" in await check_finality(settings)
        node.name_tag("finalized", answer)
        with pytest.raises(ChainUnavailable, match="have no finalized block"):
            await check_finality(settings)


async def test_a_chain_of_a_few_blocks_is_ok_although_nothing_is_final_yet(
    engine: Engine, tmp_path_factory: pytest.TempPathFactory
) -> None:
    async with running_chain(tmp_path_factory.mktemp("young-chain")) as young:
        settings = load({**engine.variables, "CHAIN_RPC_URLS": young.url, "FINALITY": "finalized"})
        assert "no block is finalized" in await check_finality(settings)
        await young.mine(YOUNG_CHAIN_BLOCKS)
        with pytest.raises(ChainUnavailable, match="have no finalized block"):
            await check_finality(settings)


async def test_a_tag_that_stands_still_is_not_ok(engine: Engine) -> None:
    async with nodes(engine, changes={"CHAIN_BLOCK_TIME_SECONDS": "50"}) as (settings, [node]):
        node.name_tag("finalized", _block(1))
        with pytest.raises(ChainUnavailable, match="has stopped"):
            await check_finality(settings)


async def test_each_level_of_the_policy_is_asked_for(engine: Engine) -> None:
    large = {"FINALITY": "safe", "FINALITY_LARGE": "finalized", "FINALITY_LARGE_FROM_USD_CENTS": "50000"}
    async with nodes(engine, changes=large) as (settings, [node]):
        words = await check_finality(settings)
        assert "safe is block" in words
        assert "finalized is block" in words
        node.name_tag("safe", None)
        with pytest.raises(ChainUnavailable, match="have no safe block"):
            await check_finality(settings)
        node.heal()
        node.name_tag("finalized", None)
        with pytest.raises(ChainUnavailable, match="have no finalized block"):
            await check_finality(settings)


async def test_one_of_two_nodes_without_the_tag_is_named_and_holds_nothing_up(engine: Engine) -> None:
    async with nodes(engine, 2) as (settings, [ignorant, _]):
        ignorant.name_tag("finalized", None)
        assert ignorant.url.removeprefix("http://") in await check_finality(settings)


async def test_a_payment_that_has_waited_for_finality_too_long_is_named(engine: Engine) -> None:
    payer, intent = await engine.intent()
    await engine.credit_without_bonus(payer, intent)
    async with nodes(engine) as (settings, _):
        await check_finality(settings)
        with connect(engine.database.superuser_url, triggers=False) as superuser:
            superuser.execute("UPDATE settled_transfers SET created_at = now() - interval '2 h'")
        with pytest.raises(ChainUnavailable, match=str(intent.attempt_id)):
            await check_finality(settings)


# The watcher ---------------------------------------------------------------------------------------------------------


async def test_a_scope_without_a_watcher_is_not_ok_once_it_may_have_been_paid(engine: Engine) -> None:
    assert "not followed yet" in await check_watcher(engine.settings)
    await engine.intent()
    with connect(engine.database.superuser_url, triggers=False) as superuser:
        superuser.execute("UPDATE payment_attempts SET created_at = now() - interval '10 min'")
    with pytest.raises(ChainUnavailable, match="not followed yet"):
        await check_watcher(engine.settings)


def _cursor(engine: Engine, *, behind: int, moved: str, waits: str = "NULL, NULL", treasury: str | None = None) -> None:
    with connect(engine.database.superuser_url, triggers=False) as superuser:
        superuser.execute(
            "INSERT INTO chain_cursors (chain_id, token, to_address, first_block, block_number, head_number,"
            " updated_at, waits_for, waits_since)"
            f" VALUES (%s, %s, %s, 0, %s, 10, now() - interval '{moved}', {waits})",
            (
                engine.chain.chain_id,
                engine.chain.token_address,
                treasury or engine.chain.treasury_address,
                max(noted_head(engine) - behind, 0),
            ),
        )


def noted_head(engine: Engine) -> int:
    """The chain's height as the test has noted it."""
    return _HEADS[engine.chain.url]


_HEADS: Final[dict[str, int]] = {}


async def _mined(engine: Engine, blocks: int) -> None:
    await engine.chain.mine(blocks)
    _HEADS[engine.chain.url] = await engine.chain.block_number()


async def test_a_watcher_at_the_head_is_ok_and_says_where_it_is(engine: Engine) -> None:
    await _mined(engine, 1)
    _cursor(engine, behind=0, moved="1 h")
    assert f"block {noted_head(engine)}, 0 behind" in await check_watcher(engine.settings)


@pytest.mark.slow(but=1)
@pytest.mark.parametrize(
    ("behind", "moved", "waits"),
    [
        (151, "1 s", "NULL, NULL"),
        (20, "10 min", "NULL, NULL"),
        (0, "1 s", "'no usable chain endpoint', now() - interval '5 min'"),
    ],
    ids=["far behind", "stands", "waits"],
)
async def test_a_watcher_that_is_not_well_is_not_ok(engine: Engine, behind: int, moved: str, waits: str) -> None:
    await _mined(engine, 160)
    _cursor(engine, behind=behind, moved=moved, waits=waits)
    with pytest.raises(ChainUnavailable, match=f"{behind} behind"):
        await check_watcher(engine.settings)


async def test_an_old_treasury_is_named_with_how_long_it_is_followed(engine: Engine) -> None:
    await _mined(engine, 1)
    _cursor(engine, behind=0, moved="1 s")
    _cursor(engine, behind=0, moved="1 s", treasury=OLD_TREASURY)
    assert OLD_TREASURY not in await check_watcher(engine.settings)
    await engine.intent()
    with connect(engine.database.superuser_url, triggers=False) as superuser:
        superuser.execute(f"UPDATE payment_attempts SET to_address = '{OLD_TREASURY}'")
        # As the worker did that was started with the settings of then.
        superuser.execute(
            "INSERT INTO payment_destinations (chain_id, token, to_address, noted_by)"
            f" SELECT chain_id, lower(token), '{OLD_TREASURY}', 'worker' FROM payment_attempts"
        )
    assert OLD_TREASURY in await check_watcher(engine.settings)


async def test_blocks_that_no_node_showed_are_not_ok_until_they_are_read_or_acknowledged(
    engine: Engine, tmp_path: Path
) -> None:
    await _mined(engine, 20)
    _cursor(engine, behind=0, moved="1 s")
    head = noted_head(engine)
    await engine.buy()
    scope = TransferScope(
        chain_id=engine.chain.chain_id, token=engine.chain.token_address, treasury=engine.chain.treasury_address
    )
    from db.transfers import gaps

    for first, last in ((1, 3), (head - 5, head - 1)):
        async with engine.service.transaction() as connection:
            await gaps.open_gap(connection, scope, first, last, "pruned")
    with pytest.raises(ChainUnavailable, match=f"blocks {head - 5} to {head - 1}"):
        await check_watcher(engine.settings)

    def run(*words: str) -> Any:
        return settle((*words, "--json"), engine.variables, tmp_path)

    answer = await asyncio.to_thread(run, "chain", "rescan", "--from", str(head - 5), "--to", str(head - 1))
    assert answer.exit_code == 0
    [read] = answer.json()
    assert (read["treasury"], read["blocksRead"], read["error"]) == (engine.chain.treasury_address, 5, None)
    with pytest.raises(ChainUnavailable, match="blocks 1 to 3"):
        await check_watcher(engine.settings)
    with connect(engine.database.superuser_url, triggers=False) as superuser:
        superuser.execute("UPDATE findings SET resolved_at = now(), resolution = 'write_off' WHERE resolved_at IS NULL")
    await check_watcher(engine.settings)


async def test_a_gap_that_is_still_unread_is_exit_code_1(engine: Engine, tmp_path: Path) -> None:
    await _mined(engine, 20)
    _cursor(engine, behind=0, moved="1 s")
    head = noted_head(engine)
    async with FaultyNode.in_front_of(engine.chain.url) as node:
        node.prune_logs_below(head - 2)
        variables = {**engine.variables, "CHAIN_RPC_URLS": node.url}
        words = ("chain", "rescan", "--from", "1", "--to", str(head - 1), "--json")
        answer = await asyncio.to_thread(settle, words, variables, tmp_path)
    assert answer.exit_code == 1
    assert answer.json()[0]["error"] is not None
