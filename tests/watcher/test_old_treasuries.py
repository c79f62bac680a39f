"""What was promised stays watched: a treasury of earlier settings is followed as long as attempts name it."""

from __future__ import annotations

from datetime import timedelta
from typing import Final
from uuid import UUID

import pytest

from activities.operations.resolutions import RemedyActivities
from activities.transfers.watch_chain import PROMISES_EVERY_SECONDS
from chain.preconditions import SettlementPreconditions
from chain.reader import ChainReader
from db.operations.findings import FindingFilter, page_findings
from db.transfers.scopes import list_promises
from devstack.processes import wait_until
from domain.chain import TransferScope
from domain.operations.findings import Remedy
from domain.operations.resolutions import parse_request
from domain.payments.attempt import AttemptStatus
from domain.transfers.watching import FOLLOWED_AFTER, SCOPES_MAX, old_promises
from tests.chain.faulty_node import FaultyNode, Refusal
from tests.support.engine import MIN_CONFIRMATIONS as ENGINE_CONFIRMATIONS
from tests.support.engine import PATIENCE_SECONDS, RESULT_TIMEOUT, Engine
from tests.support.payments import SHARE
from tests.support.sql import query
from tests.watcher.conftest import MIN_CONFIRMATIONS, Watch, Watches
from tests.watcher.test_watch_chain import ends, start_watch
from workflows.naming import reversal_workflow_id

NEW_TREASURY: Final = "0x" + "22" * 20
"""What the settings name since the change."""


async def test_who_pays_the_old_treasury_and_closes_the_tab_is_credited(watched: Engine) -> None:
    _, intent, sent = await watched.buy()
    async with watched.worker(TREASURY_ADDRESS=NEW_TREASURY):
        await start_watch(watched)
        await ends(watched, intent.attempt_id)
        result = await watched.result(intent.attempt_id)
    assert (result.status, result.tx_hash) == (AttemptStatus.CREDITED, sent)
    assert await watched.books() == []


async def test_who_submits_a_payment_to_the_old_treasury_is_credited_and_tracked(watched: Engine) -> None:
    payer, intent, sent = await watched.buy()
    async with watched.worker(TREASURY_ADDRESS=NEW_TREASURY, FINALITY="confirmations", FINALITY_CONFIRMATIONS="5"):
        await watched.submit(payer, intent, sent)
        await ends(watched, intent.attempt_id)
        await watched.result(intent.attempt_id)
        await start_watch(watched)
        await watched.chain.mine(5)
        await wait_until(
            lambda: query(watched.database.service_url, "SELECT outcome FROM transfer_finality") == [("final",)],
            timeout_seconds=PATIENCE_SECONDS,
            what="a final payment",
        )


@pytest.mark.slow
async def test_a_payment_to_the_old_treasury_that_is_reorged_out_is_reversed(watched: Engine) -> None:
    depth = ENGINE_CONFIRMATIONS
    payer, intent, sent = await watched.buy()
    async with watched.worker(TREASURY_ADDRESS=NEW_TREASURY, FINALITY="confirmations", FINALITY_CONFIRMATIONS="9"):
        await watched.submit(payer, intent, sent)
        await watched.result(intent.attempt_id)
        await start_watch(watched)
        await watched.chain.reorg(depth)
        await _mines_until_reversed(watched, intent.attempt_id)
        handle = watched.namespace.client.get_workflow_handle(reversal_workflow_id(intent.attempt_id))
        await handle.result(rpc_timeout=RESULT_TIMEOUT)
    assert await watched.books() == []


async def _mines_until_reversed(engine: Engine, attempt_id: UUID) -> None:
    """The chain grows until the payment is given up."""

    async def is_reversed() -> bool:
        await engine.chain.mine()
        return (await engine.attempt(attempt_id)).status is AttemptStatus.REVERSED

    await wait_until(is_reversed, timeout_seconds=PATIENCE_SECONDS, what="a reversal")


@pytest.mark.slow
async def test_an_intent_of_a_process_with_other_settings_is_followed_too(watched: Engine) -> None:
    """While settings change, some processes have the new ones, and the worker has not."""
    async with watched.worker(TREASURY_ADDRESS=NEW_TREASURY):
        await start_watch(watched)
        await wait_until(
            lambda: _has_cursor(watched, NEW_TREASURY), timeout_seconds=30, what="the settings' own treasury followed"
        )
        _, intent, _ = await watched.buy()
        await ends(watched, intent.attempt_id)
        await watched.result(intent.attempt_id)


async def _has_cursor(engine: Engine, treasury: str) -> bool:
    from db.transfers import observed

    scope = TransferScope(chain_id=engine.chain.chain_id, token=engine.chain.token_address, treasury=treasury)
    async with engine.service.autocommit() as connection:
        return await observed.find_cursor(connection, scope) is not None


async def _turn(watch: Watch, treasury: str = NEW_TREASURY, *, rounds: int = 4) -> str:
    """A process that was started with that treasury follows for a few rounds; its words."""
    followers = watch.followers(treasury)
    for _ in range(rounds):
        await followers.go_on()
        watch.clock.now += 1.0
    return followers.words


async def _promised(watch: Watch) -> list[tuple[str, bool]]:
    """Treasuries that attempts name, and whether that has an end."""
    async with watch.matcher_of_payers.service.autocommit() as connection:
        promises = await list_promises(connection, watch.chain.chain_id)
    return [(promise.scope.treasury, promise.until is not None) for promise in promises]


async def test_a_transfer_to_the_old_treasury_without_its_amount_becomes_a_finding(watch: Watch) -> None:
    intent = await watch.intent()
    sent = await watch.pay(12_300, blocks=MIN_CONFIRMATIONS)
    words = await _turn(watch)
    assert await watch.findings() == [("wrong_amount", sent, intent.id)]
    assert watch.chain.treasury_address in words


async def test_what_goes_to_one_treasury_pays_no_intent_of_the_other(watch: Watch) -> None:
    await watch.intent()
    sent = await watch.pay(treasury=NEW_TREASURY, blocks=MIN_CONFIRMATIONS)
    await _turn(watch)
    assert watch.submitted == []
    assert [(kind, tx) for kind, tx, _ in await watch.findings()] == [("transfer_without_intent", sent)]


async def test_an_old_treasury_is_followed_a_day_longer_than_its_last_attempt_and_no_more(watch: Watch) -> None:
    attempt = await watch.intent()
    assert await _promised(watch) == [(watch.chain.treasury_address, False)]
    await watch.expire(attempt)
    assert await _promised(watch) == [(watch.chain.treasury_address, True)]
    followers = watch.followers(NEW_TREASURY)
    await followers.go_on()
    assert watch.chain.treasury_address in followers.words
    await _set_time(watch, f"now() - interval '{FOLLOWED_AFTER.total_seconds() + 1} s'")
    assert await _promised(watch) == []
    watch.clock.now += PROMISES_EVERY_SECONDS + 1
    await followers.go_on()
    assert watch.chain.treasury_address not in followers.words
    assert await _retired(watch) == {watch.chain.treasury_address: True, NEW_TREASURY: False}
    await watch.intent()
    watch.clock.now += PROMISES_EVERY_SECONDS + 1
    await followers.go_on()
    assert await _retired(watch) == {watch.chain.treasury_address: False, NEW_TREASURY: False}


async def _retired(watch: Watch) -> dict[str, bool]:
    """Of each cursor, whether it is retired."""
    rows = await watch.rows("SELECT to_address, retired_at FROM chain_cursors")
    return {row["to_address"]: row["retired_at"] is not None for row in rows}


async def _set_time(watch: Watch, expression: str) -> None:
    await watch.change(f"SET session_replication_role = replica; UPDATE payment_attempts SET updated_at = {expression}")


NOTE = (
    "INSERT INTO payment_destinations (chain_id, token, to_address, noted_by)"
    " SELECT DISTINCT chain_id, lower(token), lower(to_address), 'worker' FROM payment_attempts ON CONFLICT DO NOTHING"
)
"""As if some worker had once had settings that name them."""


async def test_an_old_token_is_followed_like_an_old_treasury(watch: Watch) -> None:
    other = await watch.chain.deploy_look_alike()
    await watch.intent()
    await watch.change(f"SET session_replication_role = replica; UPDATE payment_attempts SET token = '{other}'; {NOTE}")
    followers = watch.followers()
    await followers.go_on()
    rows = await watch.rows("SELECT token FROM chain_cursors ORDER BY token")
    assert {row["token"] for row in rows} == {other, watch.chain.token_address}


async def test_an_old_treasury_goes_on_where_it_was_and_misses_nothing_in_between(watch: Watch) -> None:
    await watch.catch_up()
    attempt = await watch.intent(ttl=timedelta(days=2))
    sent = await watch.pay(blocks=5)
    await _turn(watch)
    assert watch.submitted == [(attempt.id, sent)]


async def test_a_treasury_that_was_never_followed_is_read_from_before_its_oldest_intent(watches: Watches) -> None:
    """Only the promise says how far back."""
    watch = await watches(from_block=None, look_back_blocks=50)
    attempt = await watch.intent(7_777)
    sent = await watch.pay(7_777, blocks=MIN_CONFIRMATIONS)
    await _turn(watch)
    assert watch.submitted == [(attempt.id, sent)]


async def test_one_scope_that_cannot_be_read_does_not_hold_the_other_one_up(
    watches: Watches, faulty: FaultyNode
) -> None:
    watch = await watches(faulty)
    await watch.intent(ttl=timedelta(days=2))

    def refuse(method: str, params: list[dict[str, list[str]]], result: object) -> object:
        of_old = method == "eth_getLogs" and params[0]["topics"][2].endswith(watch.chain.treasury_address[2:].lower())
        return Refusal("internal error", code=-32603) if of_old else result

    faulty.answers(refuse)
    sent = await watch.pay(treasury=NEW_TREASURY, blocks=MIN_CONFIRMATIONS)
    words = await _turn(watch, rounds=3)
    assert list(await watch.seen()) == [sent]
    assert "waiting" in words
    rows = await watch.rows("SELECT to_address, waits_for FROM chain_cursors WHERE waits_for IS NOT NULL")
    assert [row["to_address"] for row in rows] == [watch.chain.treasury_address]


async def test_one_scope_costs_no_more_requests_than_before(watches: Watches, faulty: FaultyNode) -> None:
    watch = await watches(faulty)
    followers = watch.followers()
    await followers.go_on()
    faulty.requests.clear()
    await watch.chain.mine()
    watch.clock.now += 1
    await followers.go_on()
    assert len(faulty.requests) == 2, "the head, and the range"


async def test_a_transaction_that_pays_both_treasuries_alike_pays_each_its_own(watch: Watch) -> None:
    """The same sender and amount in one transaction; what the one treasury was paid is not what the other was."""
    attempt = await watch.intent()
    sent = await watch.pay(blocks=MIN_CONFIRMATIONS)
    await watch.catch_up()
    await watch.submit(attempt, sent)
    await watch.credit(attempt, sent)
    await watch.change(
        "INSERT INTO observed_transfers (chain_id, tx_hash, log_index, block_number, block_hash, block_time, token,"
        " from_address, to_address, value_raw)"
        " SELECT chain_id, tx_hash, log_index + 1, block_number, block_hash, block_time, token, from_address,"
        f" '{NEW_TREASURY}', value_raw FROM observed_transfers"
    )
    await _turn(watch)
    rows = await watch.rows("SELECT to_address, attempt_id FROM observed_transfers ORDER BY log_index")
    assert [(row["to_address"], row["attempt_id"]) for row in rows] == [
        (watch.chain.treasury_address, attempt.id),
        (NEW_TREASURY, None),
    ]
    assert [(kind, tx) for kind, tx, _ in await watch.findings()] == [("transfer_without_intent", sent)]


async def test_a_log_that_moves_to_the_place_of_another_treasurys_is_of_its_own_treasury(watch: Watch) -> None:
    await watch.catch_up()
    sent = await watch.pay()
    await watch.catch_up()
    await watch.change(
        f"UPDATE observed_transfers SET to_address = '{NEW_TREASURY}', block_hash = '0x{'ee' * 32}', value_raw = 7"
    )
    await watch.chain.mine()
    await watch.catch_up()
    rows = await watch.rows("SELECT tx_hash, to_address, value_raw FROM observed_transfers")
    assert [tuple(row.values()) for row in rows] == [(sent, watch.chain.treasury_address, 100_000_000)]


async def test_many_invented_treasuries_do_not_keep_the_watcher_from_its_own(watch: Watch) -> None:
    await watch.intent()
    await watch.catch_up()
    await watch.change(
        "SET session_replication_role = replica; INSERT INTO payment_attempts (billing_account_id, from_address,"
        " chain_id, token, to_address, amount_raw, amount_usd_cents, expires_at,"
        " created_at)"
        " SELECT billing_account_id, from_address, chain_id, token, '0x' || lpad(to_hex(n), 40, '0'), amount_raw,"
        " amount_usd_cents, now() + interval '1 hour', '2020-01-01' FROM payment_attempts, generate_series(1, 100) n"
    )
    current = watch.scan.scope.model_copy(update={"treasury": NEW_TREASURY})
    async with watch.matcher_of_payers.service.autocommit() as connection:
        promises = await list_promises(connection, watch.chain.chain_id)
    assert [promise.scope for promise in promises] == [watch.scan.scope], "an intent alone defines no destination"
    await watch.change(NOTE)
    async with watch.matcher_of_payers.service.autocommit() as connection:
        promises = await list_promises(connection, watch.chain.chain_id)
    old = old_promises(current, promises)
    assert len(old) == SCOPES_MAX
    assert old[0].scope == watch.scan.scope


@pytest.mark.parametrize("cursors", [0, 1])
async def test_the_reader_needs_nothing_of_the_settings_but_the_nodes(watch: Watch, cursors: int) -> None:
    """A restart finds old scopes in the database alone, whether they were followed before or not."""
    if cursors:
        await watch.catch_up()
    await watch.intent()
    assert isinstance(watch.reader, ChainReader)
    await _turn(watch)
    rows = await watch.rows("SELECT to_address FROM chain_cursors")
    assert {row["to_address"] for row in rows} == {watch.chain.treasury_address, NEW_TREASURY}


async def test_an_operator_credits_what_came_to_the_old_treasury(watch: Watch) -> None:
    """All nodes are asked for the transfer before, by its own treasury and not by that of the settings."""
    await watch.intent()
    await watch.pay(12_300, blocks=MIN_CONFIRMATIONS)
    await _turn(watch)
    service = watch.matcher_of_payers.service
    async with service.transaction() as connection:
        [finding] = (await page_findings(connection, FindingFilter(), limit=5)).findings
    scope = watch.scan.scope.model_copy(update={"treasury": NEW_TREASURY})
    remedies = RemedyActivities(
        service,
        watch.reader,
        SettlementPreconditions(watch.reader.contracts, scope.treasury),
        revenue_share=SHARE,
        min_confirmations=MIN_CONFIRMATIONS,
    )
    taken = await remedies.take_remedy(parse_request(finding.id, Remedy.CREDIT, operator="ada", reason="it is theirs"))
    assert taken.amount_credits == 1_230_000_000
