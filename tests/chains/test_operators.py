"""What operators decide is about one chain, too: its nodes are asked before money is credited, and no others."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from activities.own_chain import OwnChain
from devstack.chain import LocalChain, payer_wallets
from devstack.processes import wait_until
from domain.errors import RemedyRefused, WorkerOfAnotherChain, WrongChain
from domain.operations.findings import Remedy
from domain.operations.resolutions import RemedyRequest, parse_request
from starter.resolutions import execute, start_remedy
from tests.chains.conftest import OTHER_CHAIN_ID, POLLS, OtherWorker, as_before, credited, variables_of
from tests.cli.command import ResponseModel, settle
from tests.reconciliation.planting import find_receipt, stored
from tests.support.engine import MIN_CONFIRMATIONS, PATIENCE_SECONDS, RESULT_TIMEOUT, Engine
from tests.support.sql import query
from workflows.naming import resolve_workflow_id, task_queue

VALUE_RAW = 5_000_000
CREDITS = 50_000_000


async def _stray(engine: Engine) -> tuple[str, RemedyRequest]:
    """A confirmed transfer without an attempt, found; its hash, and the request to credit it in its old form."""
    sender = payer_wallets()[3]
    sent = await engine.chain.pay(sender.private_key, engine.chain.treasury_address, VALUE_RAW)
    await engine.chain.mine(MIN_CONFIRMATIONS)
    finding_id = await find_receipt(engine, sent, sender.address, VALUE_RAW)
    return sent, parse_request(finding_id, Remedy.CREDIT, operator="ada", reason="the payer wrote to us")


def _credited(engine: Engine) -> list[tuple[int]]:
    return query(engine.database.superuser_url, "SELECT amount FROM credit_ledger WHERE reason = 'operator_credit'")


@pytest.mark.slow
@pytest.mark.parametrize("remedy", list(Remedy))
async def test_a_remedy_is_not_taken_by_a_worker_of_another_chain(
    engine: Engine, other_worker: OtherWorker, remedy: Remedy
) -> None:
    _, request = await _stray(engine)
    request = request.model_copy(update={"remedy": remedy})
    with as_before():
        handle = await start_remedy(engine.namespace.client, request)
    async with other_worker():
        await _is_handed_back(engine, handle.id)
    assert (await stored(engine.service, request.finding_id)).is_open
    assert _credited(engine) == []
    async with engine.worker():
        taken = await handle.result(rpc_timeout=RESULT_TIMEOUT)
    assert (taken.remedy, taken.chain_id) == (remedy, engine.chain.chain_id)
    assert _credited(engine) == ([(CREDITS,)] if remedy is Remedy.CREDIT else [])
    assert await engine.books() == []


async def test_the_bonus_of_a_credit_is_not_minted_by_a_worker_of_another_chain(
    engine: Engine, other_worker: OtherWorker
) -> None:
    """The run of an earlier version: its message does not say the chain, the finding's row does."""
    _, request = await _stray(engine)
    async with engine.worker():
        taken = await execute(engine.namespace.client, request.model_copy(update={"chain_id": engine.chain.chain_id}))
    guard = OwnChain(engine.service, OTHER_CHAIN_ID)
    for message in (taken, taken.model_copy(update={"chain_id": None})):
        with pytest.raises(WorkerOfAnotherChain, match=str(request.finding_id)):
            await guard.require(message)
    await OwnChain(engine.service, engine.chain.chain_id).require(taken)


async def test_a_command_has_it_done_on_the_findings_own_chain_whatever_its_own_is(
    engine: Engine, other_chain: LocalChain, tmp_path: Path
) -> None:
    _, request = await _stray(engine)
    variables = variables_of(engine, other_chain)
    arguments = ["findings", "resolve", str(request.finding_id), "--remedy", "credit"]
    async with engine.worker():
        answer = await asyncio.to_thread(
            settle, [*arguments, "--operator", "ada", "--reason", "they wrote to us", "--json"], variables, tmp_path
        )
    assert (answer.exit_code, answer.json()["amountCredits"]) == (0, CREDITS)
    handle = engine.namespace.client.get_workflow_handle(resolve_workflow_id(request.finding_id, Remedy.CREDIT))
    assert (await handle.describe()).task_queue == task_queue(engine.chain.chain_id)


async def test_a_transfer_to_a_former_treasury_is_credited_when_the_nodes_show_it(engine: Engine) -> None:
    sent, request = await _stray(engine)
    async with engine.worker(TREASURY_ADDRESS=payer_wallets()[5].address):
        taken = await execute(engine.namespace.client, request)
    assert (taken.amount_credits, sent in (taken.reference or "")) == (CREDITS, True)


@pytest.mark.slow(but=1)
@pytest.mark.parametrize("treasury", [None, payer_wallets()[5].address])
async def test_a_transfer_that_the_nodes_do_not_return_cannot_be_credited_whatever_the_treasury_is(
    engine: Engine, treasury: str | None
) -> None:
    _, request = await _stray(engine)
    await engine.chain.reorg(MIN_CONFIRMATIONS)
    await engine.chain.mine(2 * MIN_CONFIRMATIONS)
    async with engine.worker(**({"TREASURY_ADDRESS": treasury} if treasury else {})):
        with pytest.raises(RemedyRefused):
            await execute(engine.namespace.client, request)
    assert _credited(engine) == []


async def test_a_transfer_that_is_not_observed_any_more_is_not_credited(engine: Engine) -> None:
    _, request = await _stray(engine)
    query(engine.database.superuser_url, "DELETE FROM observed_transfers RETURNING 1")
    async with engine.worker():
        with pytest.raises(RemedyRefused):
            await execute(engine.namespace.client, request)
    assert _credited(engine) == []


@pytest.mark.slow
async def test_an_attempt_of_another_chain_is_shown_without_asking_this_ones_nodes_and_not_tried_again(
    engine: Engine, other_chain: LocalChain, tmp_path: Path
) -> None:
    intent, sent = await credited(engine)
    variables = variables_of(engine, other_chain)

    async def run(*arguments: str) -> ResponseModel:
        return await asyncio.to_thread(settle, ["attempt", *arguments, "--json"], variables, tmp_path)

    shown = (await run("show", str(intent.attempt_id))).json()
    assert shown["status"] == "CREDITED"
    assert str(engine.chain.chain_id) in shown["chain"]
    assert shown["confirmations"] is None
    retried = await run("retry", str(intent.attempt_id), "--operator", "ada", "--reason", "why not")
    assert (retried.exit_code, retried.json()["code"]) == (1, WrongChain.code)
    assert query(engine.database.superuser_url, "SELECT count(*) FROM operator_actions") == [(0,)]
    assert (await run("submit", str(intent.attempt_id), sent)).exit_code == 0, "how it ended, as ever"


@pytest.mark.slow
async def test_doctor_names_payments_without_a_worker(
    engine: Engine, other_chain: LocalChain, other_worker: OtherWorker, tmp_path: Path
) -> None:
    """CHAIN_ID was changed while a payment was not final: nothing is wrong with it, and no worker polls for it."""
    # Without a worker ever: Temporal remembers for minutes who has asked for work.
    await engine.credit_without_bonus(*await engine.intent())
    variables = variables_of(engine, other_chain)

    async def workers() -> dict[str, Any]:
        answer = await asyncio.to_thread(settle, ["doctor", "--json"], variables, tmp_path)
        return next(check for check in answer.json()["checks"] if check["name"] == "workers")

    async with other_worker():
        alone = await workers()
        assert not alone["ok"]
        assert f"1 of chain {engine.chain.chain_id}" in alone["detail"]
        async with engine.worker():
            assert (await workers())["ok"]


async def _is_handed_back(engine: Engine, workflow_id: str) -> None:
    """Returns when workers have been given the run's activity a few times, and have said that it is not theirs."""

    async def often() -> bool:
        description = await engine.namespace.client.get_workflow_handle(workflow_id).describe()
        pending = description.raw_description.pending_activities
        return any(one.attempt > POLLS and "belongs to chain" in one.last_failure.message for one in pending)

    await wait_until(often, timeout_seconds=PATIENCE_SECONDS, what="a run that is handed back")
