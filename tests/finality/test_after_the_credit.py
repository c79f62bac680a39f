"""Runs of the version before track their payments: what stays is final, what is reorged out is reversed, once."""

from __future__ import annotations

from uuid import UUID

import pytest
from temporalio.client import WorkflowExecutionStatus

from db.accounts.wallets import balances
from db.ledger import entries as ledger
from devstack.chain import LocalChain
from devstack.processes import wait_until
from domain.identifiers import SYSTEM_TENANT_ACCOUNT_ID
from domain.payments.attempt import AttemptStatus, ClientStatus, Purpose
from domain.payments.finality import FinalityLevel, FinalityState
from starter.models import Intent
from tests.finality.conftest import FINAL_AFTER, Polls, start_as_before
from tests.support.engine import MIN_CONFIRMATIONS, PATIENCE_SECONDS, Engine
from tests.support.payments import RolePair
from tests.support.sql import query

CREDITS = 1_000_000_000
BONUS = 750_000_000
DEPTHS = (1, 10)


async def _credited(engine: Engine, purpose: Purpose = Purpose.SELF, *, confirmations: int) -> tuple[Intent, str]:
    """A credited payment with so many confirmations, whose workflow tracks it."""
    payer, intent, sent = await engine.buy(purpose=purpose)
    await start_as_before(engine, payer, intent, sent)
    await engine.waits(
        intent.attempt_id,
        lambda state: any(pending.name == "await_finality" for pending in state.pending),
        what="the poll after the credit",
    )
    await engine.chain.mine(confirmations - MIN_CONFIRMATIONS)
    return intent, sent


async def _missed(engine: Engine, attempt_id: UUID) -> None:
    await engine.polled(attempt_id, "not on the canonical chain")


def _on_record(engine: Engine, attempt_id: UUID) -> list[tuple[object, ...]]:
    return query(
        engine.database.service_url,
        "SELECT outcome, level, block_number, log_index FROM transfer_finality WHERE attempt_id = %s",
        attempt_id,
    )


async def _shown(engine: Engine, attempt_id: UUID) -> tuple[FinalityState | None, FinalityLevel | None]:
    """What the payer is shown."""
    attempt = await engine.attempt(attempt_id)
    view = await engine.payments.status(attempt.owner_user_id, attempt_id)
    return view.finality_state, view.finality_level


async def _balances(engine: Engine) -> dict[str, int]:
    async with engine.service.transaction() as connection:
        return await balances(connection)


async def test_a_run_waits_until_the_payment_is_final_and_the_credit_is_posted_before(engine: Engine) -> None:
    async with engine.worker():
        intent, _ = await _credited(engine, confirmations=MIN_CONFIRMATIONS)
        assert await engine.credits(intent.attempt_id) == {"credits_purchase": CREDITS, "platform_revenue_share": BONUS}
        assert await _shown(engine, intent.attempt_id) == (FinalityState.PENDING, FinalityLevel.CONFIRMATIONS)
        state = await engine.polled(intent.attempt_id, "to go")
        assert state.is_running
        await engine.chain.mine(FINAL_AFTER)
        result = await engine.result(intent.attempt_id)
    assert await _shown(engine, intent.attempt_id) == (FinalityState.FINAL, None)
    [(outcome, level, block_number, _)] = _on_record(engine, intent.attempt_id)
    assert (outcome, level) == ("final", "confirmations")
    assert (result.status, result.final_block) == (AttemptStatus.CREDITED, block_number)
    assert await engine.books() == []


async def _tracked(engine: Engine, *, confirmations: int, **changes: str) -> tuple[Polls, str]:
    """A credited payment with so many confirmations; the polls for it and its transaction."""
    payer, intent = await engine.intent()
    sent = await engine.credit_without_bonus(payer, intent)
    await engine.chain.mine(confirmations - MIN_CONFIRMATIONS)
    return Polls(engine, intent.attempt_id, changes), sent


@pytest.mark.parametrize(("level", "trails"), [("safe", 8), ("finalized", 16)])
async def test_the_nodes_tag_decides_where_the_policy_says_so(engine: Engine, level: str, trails: int) -> None:
    polls, _ = await _tracked(engine, confirmations=trails, FINALITY=level, FINALITY_LARGE="finalized")
    assert "1 to go" in str(await polls.poll())
    assert _on_record(engine, polls.attempt_id) == []
    await engine.chain.mine(1)
    await polls.find_final()
    [(outcome, found, *_)] = _on_record(engine, polls.attempt_id)
    assert (outcome, found) == ("final", level)


async def test_a_larger_payment_waits_for_more(engine: Engine) -> None:
    changes = {"FINALITY_LARGE": "finalized", "FINALITY_LARGE_FROM_USD_CENTS": "10000"}
    polls, _ = await _tracked(engine, confirmations=FINAL_AFTER, **changes)
    assert "finalized is block" in str(await polls.poll())
    await engine.chain.mine(16 + 1 - FINAL_AFTER)
    await polls.find_final()
    assert _on_record(engine, polls.attempt_id)[0][:2] == ("final", "finalized")


@pytest.mark.slow(but=1)
@pytest.mark.parametrize("depth", DEPTHS)
async def test_a_purchase_that_is_reorged_out_is_reversed(engine: Engine, depth: int) -> None:
    async with engine.worker():
        intent, sent = await _credited(engine, confirmations=max(depth, MIN_CONFIRMATIONS))
        await engine.chain.reorg(max(depth, MIN_CONFIRMATIONS))
        await engine.chain.mine(1)
        await _missed(engine, intent.attempt_id)
        # It is given as long to come back as a payment takes to be final.
        assert (await engine.attempt(intent.attempt_id)).status is AttemptStatus.CREDITED
        await engine.chain.mine(2 * FINAL_AFTER)
        result = await engine.result(intent.attempt_id)
    attempt = await engine.attempt(intent.attempt_id)
    assert (result.status, attempt.status) == (AttemptStatus.REVERSED, AttemptStatus.REVERSED)
    assert (attempt.client_status, attempt.tx_hash) == (ClientStatus.FAILED, sent)
    assert await _shown(engine, intent.attempt_id) == (FinalityState.REVERSED, None)
    async with engine.service.transaction() as connection:
        rows = await ledger.list_entries(connection, str(intent.attempt_id))
    assert [(row.billing_account_id == SYSTEM_TENANT_ACCOUNT_ID, row.reason, row.amount) for row in rows] == [
        (False, "credits_purchase", CREDITS),
        (True, "platform_revenue_share", BONUS),
        (False, "payment_reversal", -CREDITS),
        (True, "payment_reversal", -BONUS),
    ]
    assert set((await _balances(engine)).values()) == {0}
    assert (await engine.events(intent.attempt_id))[-1].event_type == "reversed"
    assert query(engine.database.service_url, "SELECT kind, attempt_id FROM findings") == [
        ("payment_reversed", intent.attempt_id)
    ]
    assert await engine.books() == []


@pytest.mark.slow
async def test_a_donation_that_is_reorged_out_is_reversed(engine: Engine) -> None:
    async with engine.worker():
        intent, _ = await _credited(engine, Purpose.SYSTEM, confirmations=4)
        await engine.chain.reorg(4)
        await engine.chain.mine(1)
        await _missed(engine, intent.attempt_id)
        await engine.chain.mine(2 * FINAL_AFTER)
        await engine.result(intent.attempt_id)
    assert await engine.credits(intent.attempt_id) == {"system_donation": CREDITS, "payment_reversal": -CREDITS}
    assert await engine.books() == []


@pytest.mark.slow
@pytest.mark.parametrize("depth", DEPTHS)
async def test_a_payment_that_returns_in_another_block_stays_credited(engine: Engine, depth: int) -> None:
    async with engine.worker():
        replaced = max(depth, MIN_CONFIRMATIONS)
        intent, sent = await _credited(engine, confirmations=replaced)
        raw = await engine.chain.raw_transaction(sent)
        before = int((await engine.chain.wait_for_receipt(sent))["blockNumber"], 16)
        await engine.chain.reorg(replaced, [(raw, 1)])
        await engine.chain.mine(FINAL_AFTER + 2)
        result = await engine.result(intent.attempt_id)
    assert (result.status, result.final_block) == (AttemptStatus.CREDITED, before + 1)
    assert _on_record(engine, intent.attempt_id)[0][:3] == ("final", "confirmations", before + 1)
    assert await engine.books() == []


async def test_a_payment_that_returns_late_stays_credited(engine: Engine) -> None:
    polls, sent = await _tracked(engine, confirmations=3)
    raw = await engine.chain.raw_transaction(sent)
    await engine.chain.reorg(3)
    await engine.chain.mine(1)
    assert isinstance(await polls.poll(), str)
    assert list(polls.remembered) == [await engine.chain.block_number(), engine.chain.chain_id], "missing since then"
    await engine.chain.rpc("eth_sendRawTransaction", raw)
    await engine.chain.mine(1)
    await engine.chain.wait_for_receipt(sent)
    assert "to go" in str(await polls.poll())
    assert list(polls.remembered) == [None, engine.chain.chain_id], "missing again, it has the whole time again"
    await engine.chain.mine(FINAL_AFTER)
    await polls.find_final()
    assert (await engine.attempt(polls.attempt_id)).status is AttemptStatus.CREDITED
    assert await engine.books(pending_bonus_ok=True) == []


async def test_a_balance_that_was_spent_goes_below_zero(roles: RolePair) -> None:
    attempt = await roles.settle(await roles.open_account(1), 1)
    query(
        roles.database.service_url,
        "SELECT post_entry(%s, -900000000, 'usage', 'call-1', 'revenue:usage', '{}')",
        attempt.billing_account_id,
    )
    await roles.reverse(attempt)
    await roles.reverse_bonus(attempt)
    assert await roles.balance(attempt.billing_account_id) == -900_000_000
    assert await roles.books() == []


@pytest.mark.slow
async def test_a_dead_node_after_the_credit_is_waited_for(engine: Engine, chain: LocalChain) -> None:
    async with engine.worker(FINALITY="finalized"):
        intent, _ = await _credited(engine, confirmations=MIN_CONFIRMATIONS)
        await engine.polled(intent.attempt_id, "to go")
        await chain.stop()
        await engine.polled(intent.attempt_id, "no usable chain endpoint")
        await chain.start()
        await engine.chain.mine(20)
        await engine.result(intent.attempt_id)
    assert _on_record(engine, intent.attempt_id)[0][0] == "final"


@pytest.mark.slow
async def test_the_payer_may_pay_again_with_another_transaction_after_a_reversal(engine: Engine) -> None:
    async with engine.worker():
        intent, _ = await _credited(engine, confirmations=3)
        await engine.chain.reorg(3)
        await engine.chain.mine(1)
        await _missed(engine, intent.attempt_id)
        await engine.chain.mine(2 * FINAL_AFTER)
        await engine.result(intent.attempt_id)
        # Of another amount: with the nonce and all the rest the same it would be the same transaction.
        payer, again = await engine.intent(20_000)
        await engine.submit(payer, again, await engine.pay_and_confirm(again))

        async def credited() -> bool:
            return (await engine.attempt(again.attempt_id)).status is AttemptStatus.CREDITED

        await wait_until(credited, timeout_seconds=PATIENCE_SECONDS, what="the second payment's credit")
    state = await engine.state(intent.attempt_id)
    assert state.status == WorkflowExecutionStatus.COMPLETED.name
    assert await engine.books(pending_bonus_ok=True) == []
