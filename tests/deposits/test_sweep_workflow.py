"""`settle sweep` from end to end: planned, signed and sent by commands, ended by a worker."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path
from typing import Any, Final
from uuid import UUID

import pytest
from temporalio.client import WorkflowFailureError
from temporalio.worker import UnsandboxedWorkflowRunner, Worker

from activities.deposits.sweeps import SweepActivities
from chain.reader import ChainReader
from commands.sweep_signing import sign_plan
from db.engine import ServiceDatabase
from devstack.chain import LocalChain, payer_wallets
from domain.deposits.sweeps import Plan
from domain.errors import InvalidInput
from services.deposits.sweeps import Sweeps
from tests.cli.command import ResponseModel, settle
from tests.support.addresses import add_create2_address, chain_variables
from tests.support.deposits import add_method, see_deposit
from tests.support.postgres import Database
from tests.support.servers import Namespace
from tests.support.spending import open_wallets_account
from tests.support.sql import query, scalar
from workflows.naming import task_queue
from workflows.sweep import Sweep

GAS: Final = payer_wallets()[6]
CONFIRMATIONS: Final = 2
DOLLAR: Final = 1_000_000


@pytest.fixture
async def worker(database: Database, chain: LocalChain, namespace: Namespace) -> AsyncIterator[Worker]:
    """A worker of the local chain that runs sweeps, and a chain that goes on."""
    service = ServiceDatabase(database.service_url, application_name="test")
    async with ChainReader([chain.url], chain.chain_id, join_seconds=0.0) as reader:
        sweeps = Sweeps(service, reader, treasury=chain.treasury_address, min_confirmations=CONFIRMATIONS)
        activities = SweepActivities(sweeps, block_time=timedelta(milliseconds=100)).activities()
        async with Worker(
            namespace.client,
            task_queue=task_queue(chain.chain_id),
            workflows=[Sweep],
            activities=activities,
            workflow_runner=UnsandboxedWorkflowRunner(),
        ) as running:
            yield running
    await service.dispose()


def sign(folder: Path, plan: str, secret: str) -> ResponseModel:
    """`settle sweep sign` with a secret on standard input, and no settings."""
    (folder / "plan.json").write_text(plan)
    return settle(("sweep", "sign", "plan.json"), {}, folder, stdin=secret + "\n")


async def test_what_is_planned_signed_and_sent_is_collected_and_booked(
    database: Database, chain: LocalChain, namespace: Namespace, worker: Worker, tmp_path: Path
) -> None:
    variables = chain_variables(database, chain) | namespace.variables

    async def run(*arguments: str) -> ResponseModel:
        return await asyncio.to_thread(settle, arguments, variables, tmp_path)

    add_method(database, address=chain.token_address, chain_id=chain.chain_id)
    account = open_wallets_account(database, payer_wallets()[0].address)
    _, address = add_create2_address(database, chain, account)
    await chain.mint(address, 5 * DOLLAR)
    await chain.mine()
    see_deposit(database, address, 5 * DOLLAR, block_number=await chain.block_number())

    planned = await run("sweep", "plan", "--from", GAS.address, "--max-fee-gwei", "100", "--json")
    assert planned.exit_code == 0, planned.stderr
    document = planned.json()
    assert document["steps"][-1]["addresses"][0]["address"] == address
    with pytest.raises(InvalidInput, match=f"the plan is for {GAS.address}"):
        sign_plan(Plan.model_validate_json(planned.stdout), payer_wallets()[0].private_key, nonce=None)
    signed = await asyncio.to_thread(sign, tmp_path, planned.stdout, GAS.private_key)
    assert signed.exit_code == 0, signed.stderr
    assert GAS.private_key[2:] not in signed.stdout + signed.stderr
    (tmp_path / "signed.json").write_text(signed.stdout)
    unsigned = await run("sweep", "send", "plan.json")
    assert unsigned.exit_code == 2 and "is not signed" in unsigned.stderr

    sent = await run("sweep", "send", "signed.json", "--json")
    assert sent.exit_code == 0, sent.stderr
    again = await run("sweep", "send", "signed.json", "--json")
    assert again.json() == sent.json()
    handle = namespace.client.get_workflow_handle(sent.json()["workflowId"])
    result = asyncio.create_task(handle.result())
    while not result.done():
        await chain.mine()
        await asyncio.wait([result], timeout=0.1)
    assert result.result()["nonces"] == len(document["steps"])
    assert await chain.token_balance_raw(address) == 0
    assert query(database.service_url, "SELECT value_raw::bigint, credits FROM swept_transfers") == [
        (5 * DOLLAR, 50 * DOLLAR)
    ]
    # Sent once more after its end, it changes nothing.
    assert (await run("sweep", "send", "signed.json")).exit_code == 0
    assert scalar(database.service_url, "SELECT count(*) FROM sweeps") == 1
    assert UUID(sent.json()["sweepId"])


async def test_a_sweep_whose_nonce_was_used_for_something_else_fails_visibly(
    database: Database, chain: LocalChain, namespace: Namespace, worker: Worker, tmp_path: Path
) -> None:
    variables = chain_variables(database, chain) | namespace.variables
    add_method(database, address=chain.token_address, chain_id=chain.chain_id)
    _, address = add_create2_address(database, chain, open_wallets_account(database, payer_wallets()[0].address))
    await chain.mint(address, DOLLAR)
    await chain.mine()
    see_deposit(database, address, DOLLAR, block_number=await chain.block_number())
    planned = await asyncio.to_thread(
        settle, ("sweep", "plan", "--from", GAS.address, "--max-fee-gwei", "100", "--json"), variables, tmp_path
    )
    signed = sign_plan(Plan.model_validate_json(planned.stdout), GAS.private_key, nonce=None)
    (tmp_path / "signed.json").write_text(signed.model_dump_json(by_alias=True))
    for _ in signed.steps:
        await chain.pay(GAS.private_key, payer_wallets()[1].address, 1)
    await chain.mine(CONFIRMATIONS + 1)
    sent = await asyncio.to_thread(settle, ("sweep", "send", "signed.json", "--json"), variables, tmp_path)
    handle: Any = namespace.client.get_workflow_handle(sent.json()["workflowId"])
    with pytest.raises(WorkflowFailureError) as failure:
        await handle.result()
    assert "replaced" in str(failure.value.cause)
