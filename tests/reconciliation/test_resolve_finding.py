"""A remedy carried out by Temporal: whatever dies between a credit and its bonus, both come, each once."""

from __future__ import annotations

import asyncio
from typing import Any
from uuid import UUID, uuid4

import pytest
from temporalio import activity
from temporalio.worker import Worker

from activities.interceptors import DomainErrors
from activities.messages import MintedBonus
from activities.operations.resolutions import RemedyActivities
from chain.preconditions import SettlementPreconditions
from chain.reader import ChainReader
from domain.errors import FindingNotFound, RemedyRefused, TemporalUnavailable
from domain.identifiers import SYSTEM_TENANT_ACCOUNT_ID
from domain.operations.findings import Remedy
from domain.operations.resolutions import RemedyRequest, TakenRemedy, parse_request
from starter import resolutions as starter
from starter.resolutions import execute, start_remedy
from tests.reconciliation.planting import REASON, find_receipt, find_transfer, take
from tests.support.engine import RESULT_TIMEOUT, Engine
from tests.support.payments import CHAIN_ID, SHARE, TREASURY, RolePair
from tests.support.servers import TASK_QUEUE, Namespace
from tests.support.sql import query, scalar
from workflows.naming import resolve_workflow_id
from workflows.resolve_finding import ResolveFinding

CREDITS = 50_000_000
BONUS = 37_500_000


def asked(finding_id: UUID, remedy: Remedy = Remedy.CREDIT, **options: Any) -> RemedyRequest:
    """What an operator asks for."""
    return parse_request(finding_id, remedy, operator="ada", reason=REASON, chain_id=CHAIN_ID, **options)


def worker(namespace: Namespace, remedies: RemedyActivities | None, *activities: Any) -> Worker:
    """A worker that carries remedies out."""
    own: list[Any] = [remedies.take_remedy, remedies.mint_bonus_of_credit] if remedies else []
    return Worker(
        namespace.client,
        task_queue=TASK_QUEUE,
        workflows=[ResolveFinding],
        activities=[*own, *activities],
        interceptors=[DomainErrors()],
    )


class _Believing(RemedyActivities):
    """Takes what was observed for true, as these transfers are on no chain; test_one_lying_node.py asks a real one."""

    async def _require_on_chain(self, request: RemedyRequest) -> None:
        pass


@pytest.fixture
def remedies(roles: RolePair) -> RemedyActivities:
    """The activities, on the payments helper's database."""
    unreachable = ChainReader(["http://127.0.0.1:9"], CHAIN_ID)
    preconditions = SettlementPreconditions(unreachable.contracts, TREASURY)
    return _Believing(roles.service, unreachable, preconditions, revenue_share=SHARE, min_confirmations=1)


def postings(roles: RolePair) -> dict[str, int]:
    """What was posted, by reason."""
    return dict(query(roles.database.superuser_url, "SELECT reason, sum(amount)::bigint FROM credit_ledger GROUP BY 1"))


async def test_a_credit_twice_in_a_row_and_twice_at_once_is_one_credit_and_one_bonus(
    roles: RolePair, namespace: Namespace, remedies: RemedyActivities
) -> None:
    finding_id = await find_transfer(roles.service, 1)
    async with worker(namespace, remedies):
        together = await asyncio.gather(*(execute(namespace.client, asked(finding_id)) for _ in range(4)))
        later = await execute(namespace.client, asked(finding_id))
    assert {(taken.amount_credits, taken.bonus_credits) for taken in (*together, later)} == {(CREDITS, BONUS)}
    assert len({taken.taken_at for taken in (*together, later)}) == 1
    assert later.is_repeated
    assert postings(roles) == {"operator_credit": CREDITS, "platform_revenue_share": BONUS}
    assert await roles.books() == []


async def test_a_worker_that_dies_between_the_credit_and_the_bonus_leaves_the_bonus_to_the_next(
    roles: RolePair, namespace: Namespace, remedies: RemedyActivities
) -> None:
    finding_id = await find_transfer(roles.service, 1)
    reached = asyncio.Event()

    @activity.defn(name="mint_bonus_of_credit")
    async def dies(_: TakenRemedy) -> MintedBonus:
        reached.set()
        raise RuntimeError("the worker has ended")

    async with worker(namespace, None, remedies.take_remedy, dies):
        handle = await start_remedy(namespace.client, asked(finding_id))
        await asyncio.wait_for(reached.wait(), RESULT_TIMEOUT.total_seconds())
    assert postings(roles) == {"operator_credit": CREDITS}
    async with worker(namespace, remedies):
        assert (await handle.result(rpc_timeout=RESULT_TIMEOUT)).bonus_credits == BONUS
    assert postings(roles) == {"operator_credit": CREDITS, "platform_revenue_share": BONUS}


async def test_a_credit_whose_workflow_was_lost_gets_its_bonus_from_the_same_remedy_again(
    roles: RolePair, namespace: Namespace, remedies: RemedyActivities
) -> None:
    """Temporal knows nothing of the credit; the database does."""
    finding_id = await find_transfer(roles.service, 1)
    await take(roles.service, finding_id, Remedy.CREDIT)
    async with worker(namespace, remedies):
        taken = await execute(namespace.client, asked(finding_id))
    assert (taken.is_repeated, taken.bonus_credits) == (True, BONUS)
    assert postings(roles) == {"operator_credit": CREDITS, "platform_revenue_share": BONUS}


async def test_a_refusal_is_reported_and_another_try_may_succeed(
    roles: RolePair, namespace: Namespace, remedies: RemedyActivities
) -> None:
    finding_id = await find_transfer(roles.service, 1)
    client = namespace.client
    async with worker(namespace, remedies):
        with pytest.raises(RemedyRefused, match="account unknown not found"):
            await execute(client, asked(finding_id, billing_account_id="unknown"))
        with pytest.raises(RemedyRefused, match="system tenant's account"):
            await execute(client, asked(finding_id, billing_account_id=SYSTEM_TENANT_ACCOUNT_ID))
        with pytest.raises(FindingNotFound):
            await execute(client, asked(uuid4()))
        taken = await execute(client, asked(finding_id))
        with pytest.raises(RemedyRefused, match="credit of 50000000 .* by ada"):
            await execute(client, asked(finding_id, Remedy.WRITE_OFF))
        with pytest.raises(RemedyRefused, match="resolved: credit"):
            await execute(client, asked(finding_id, billing_account_id="unknown"))
    assert taken.amount_credits == CREDITS
    assert scalar(roles.database.superuser_url, "SELECT count(*) FROM operator_actions") == 1


async def test_joining_a_run_with_another_target_reports_the_runs_own(
    roles: RolePair, namespace: Namespace, remedies: RemedyActivities
) -> None:
    """Both start while no worker is there, so that the second joins the first's run."""
    finding_id = await find_transfer(roles.service, 1)
    other = await roles.open_account(2)
    await start_remedy(namespace.client, asked(finding_id))
    joining = asyncio.create_task(
        execute(namespace.client, asked(finding_id, billing_account_id=other.billing_account_id))
    )
    handle = namespace.client.get_workflow_handle(resolve_workflow_id(finding_id, Remedy.CREDIT))
    assert (await handle.describe()).id == f"resolve-finding-{finding_id}-credit"
    async with worker(namespace, remedies):
        with pytest.raises(RemedyRefused, match="resolved: credit of 50000000"):
            await joining
    assert await roles.balance(other.billing_account_id) == 0


async def test_without_a_worker_it_is_on_record_and_says_so(
    roles: RolePair, namespace: Namespace, remedies: RemedyActivities, monkeypatch: pytest.MonkeyPatch
) -> None:
    finding_id = await find_transfer(roles.service, 1)
    monkeypatch.setattr(starter, "ANSWER_TIMEOUT", starter.ANSWER_TIMEOUT / 60)
    with pytest.raises(TemporalUnavailable, match=starter.NOT_EXECUTED_YET):
        await execute(namespace.client, asked(finding_id, Remedy.WRITE_OFF))
    async with worker(namespace, remedies):
        handle = namespace.client.get_workflow_handle(resolve_workflow_id(finding_id, Remedy.WRITE_OFF))
        await handle.result(rpc_timeout=RESULT_TIMEOUT)
    assert scalar(roles.database.superuser_url, "SELECT resolution FROM findings") == "write_off"


async def test_a_submitted_transfer_that_was_credited_ends_its_attempt_and_pays_nothing_twice(engine: Engine) -> None:
    """End to end: the poll of the chain leaves out what an operator has credited."""
    payer, intent, sent = await engine.buy()
    finding_id = await find_receipt(engine, sent, payer.wallet_address, intent.amount_raw)
    async with engine.worker():
        taken = await execute(engine.namespace.client, asked(finding_id))
        await engine.submit(payer, intent, sent)
        result = await engine.result(intent.attempt_id)
    assert (result.status, result.error_code) == ("REJECTED", "TX_ALREADY_SETTLED")
    assert taken.billing_account_id == payer.billing_account_id
    assert await engine.books(nothing_stuck=True) == []
