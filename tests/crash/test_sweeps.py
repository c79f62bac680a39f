"""Commands and workers killed at each commit and broadcast of a sweep: it is mined once, and booked once."""

from __future__ import annotations

import asyncio
import signal
from dataclasses import dataclass
from typing import Final

import pytest
from eth_account import Account

from activities.deposits.signatures import SweptToBook
from commands.sweep_signing import sign_plan
from domain.deposits.sweeps import Plan
from services.deposits.sweep_plans import PlanTerms, SweepPlanner
from tests.support.addresses import add_create2_address
from tests.support.deposits import add_method, see_deposit
from tests.support.faults import Fault, Moment
from tests.support.servers import TASK_QUEUE
from tests.support.spending import open_wallets_account
from tests.support.sql import query
from tests.support.system import PaymentSystem
from workflows.jobs.book_sweeps import BookSweeps

VALUES_RAW: Final = (5_000_000, 2_345_678)
CAP_WEI: Final = 10**12
FILE: Final = "signed.json"
SEND: Final = ("sweep", "send", FILE)

COMMITS: Final = {
    "an outcome": "UPDATE sweep_transactions SET outcome",
    "the end": "UPDATE sweeps SET status",
    "what was moved": "book_swept_transfer(",
}
POINTS: Final = {
    "before a broadcast": Fault(moment=Moment.BEFORE_BROADCAST),
    "after a broadcast": Fault(moment=Moment.AFTER_BROADCAST),
} | {
    f"{moment.value} of {commit}": Fault(statement=statement, moment=moment)
    for commit, statement in COMMITS.items()
    for moment in (Moment.BEFORE_COMMIT, Moment.AFTER_COMMIT)
}
"""Where a worker is killed."""


@dataclass(frozen=True)
class SignedSweep:
    """A signed plan in a file, and what is to come of it."""

    system: PaymentSystem
    plan: Plan
    addresses: tuple[str, ...]
    treasury_raw_before: int

    async def must_be_done_once(self) -> None:
        """Everything is in the treasury and booked, by as many transactions as were signed."""
        chain, database = self.system.chain, self.system.database
        await self.system.until(self._is_over, "end of the sweep")
        assert [await chain.token_balance_raw(address) for address in self.addresses] == [0] * len(self.addresses)
        assert await chain.token_balance_raw(chain.treasury_address) == self.treasury_raw_before + sum(VALUES_RAW)
        assert self.plan.nonce is not None
        for tag in ("latest", "pending"):
            nonce = int(await chain.rpc("eth_getTransactionCount", self.plan.sender, tag), 16)
            assert nonce == self.plan.nonce + len(self.plan.steps), "nothing but what was signed is on its way"
        assert query(database.service_url, "SELECT outcome, spent_wei > 0 FROM sweep_transactions") == [
            ("succeeded", True)
        ] * len(self.plan.steps)
        assert query(database.service_url, "SELECT status FROM sweeps") == [("done",)]
        booked = query(database.service_url, "SELECT value_raw::bigint FROM swept_transfers ORDER BY value_raw")
        assert booked == [(value_raw,) for value_raw in sorted(VALUES_RAW)]
        await self.system.books_are_right()

    def _is_over(self) -> bool:
        [(left,)] = query(
            self.system.database.service_url,
            "SELECT (SELECT count(*) FROM sweeps WHERE status = 'sent') + %s - (SELECT count(*) FROM swept_transfers)",
            len(VALUES_RAW),
        )
        return bool(left == 0)

    async def send(self) -> None:
        """The command as an operator repeats it."""
        await self.system.ends(self.system.start_command(*SEND), exit_code=0)


async def signed_sweep(system: PaymentSystem) -> SignedSweep:
    """Two addresses that hold something, planned and signed with a key of its own."""
    chain, database = system.chain, system.database
    add_method(database, address=chain.token_address, chain_id=chain.chain_id)
    addresses = []
    for number, value_raw in enumerate(VALUES_RAW):
        account = open_wallets_account(database, Account.create(f"payer {number}").address)
        _, address = add_create2_address(database, chain, account)
        await chain.mint(address, value_raw)
        await chain.mine()
        see_deposit(database, address, value_raw, block_number=await chain.block_number())
        addresses.append(address)
    payer = Account.create()
    await chain.set_balance(payer.address, 10**18)
    terms = PlanTerms(treasury=chain.treasury_address, max_fee_wei=CAP_WEI, batch_size=1, sender=payer.address)
    plan = sign_plan(await SweepPlanner(system.service, system.reader).plan(terms), payer.key.to_0x_hex(), nonce=None)
    assert len(plan.steps) >= len(VALUES_RAW), plan.refused
    system.folder.mkdir(parents=True, exist_ok=True)
    (system.folder / FILE).write_text(plan.model_dump_json(by_alias=True))
    return SignedSweep(system, plan, tuple(addresses), await chain.token_balance_raw(chain.treasury_address))


@pytest.mark.slow(but=("after a broadcast",))
@pytest.mark.parametrize("point", POINTS)
async def test_a_worker_killed_in_a_sweep_sends_and_books_nothing_twice(system: PaymentSystem, point: str) -> None:
    sweep = await signed_sweep(system)
    await sweep.send()
    shortened = {"sweep_start_to_close_seconds": 3, "sticky_seconds": 0.5}
    doomed = system.start_worker(POINTS[point].model_copy(update=shortened))
    async with system.mining():
        await doomed.killed_itself()
        system.start_worker()
        await sweep.must_be_done_once()


@pytest.mark.slow
@pytest.mark.parametrize("moment", [Moment.BEFORE_COMMIT, Moment.AFTER_COMMIT])
async def test_a_command_killed_as_it_stores_a_sweep_is_repeated(system: PaymentSystem, moment: Moment) -> None:
    sweep = await signed_sweep(system)
    doomed = system.start_command(*SEND, fault=Fault(statement="INSERT INTO sweeps", moment=moment))
    await system.ends(doomed, exit_code=-signal.SIGKILL)
    stored = query(system.database.service_url, "SELECT count(*) FROM sweep_transactions")
    assert stored == [(len(sweep.plan.steps) if moment is Moment.AFTER_COMMIT else 0,)]
    await sweep.send()
    system.start_worker()
    async with system.mining():
        await sweep.must_be_done_once()


@pytest.mark.slow
async def test_a_sweep_whose_command_died_before_it_started_a_workflow_is_sent_by_the_job(
    system: PaymentSystem,
) -> None:
    sweep = await signed_sweep(system)
    doomed = system.start_command(*SEND, fault=Fault(statement="INSERT INTO sweeps", moment=Moment.AFTER_COMMIT))
    await system.ends(doomed, exit_code=-signal.SIGKILL)
    # A minute later.
    query(
        system.database.superuser_url, "UPDATE sweeps SET created_at = created_at - interval '61 seconds' RETURNING 1"
    )
    system.start_worker()
    async with system.mining():
        until_done = asyncio.create_task(_run_job_until_done(system))
        try:
            await sweep.must_be_done_once()
        finally:
            until_done.cancel()


async def _run_job_until_done(system: PaymentSystem) -> None:
    """The job as its schedule runs it, one after the other."""
    while True:
        await system.namespace.client.execute_workflow(
            BookSweeps.run, SweptToBook(), id="book-sweeps", task_queue=TASK_QUEUE
        )
