"""The whole payment system with workers as processes of their own: killed, paused and started again by their pid.

`PaymentSystem` is an `Engine` (database, Temporal namespace and chain of a test, the client in this process) that
also starts worker processes. None of them outlives the block that opened the system, nor this process.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import signal
import subprocess
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, fields
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any, Final, cast
from uuid import UUID

import psycopg
from temporalio import activity
from temporalio.worker import Worker

from activities.messages import SettlementResult
from db.accounts.wallets import Payer, balances
from db.engine import AnyConnection
from db.ledger import entries as ledger
from db.payments import attempts
from devstack.chain import LocalChain, Wallet, payer_wallets
from devstack.errors import PartFailedError
from devstack.processes import ChildProcess, ProcessSpec, process_identity, wait_until
from domain.identifiers import SYSTEM_TENANT_ACCOUNT_ID
from domain.payments.attempt import AttemptStatus, PaymentAttempt, Purpose
from services.payments import lifecycle
from starter.models import AttemptView, Intent
from starter.progress import read_workflow
from tests.support import warm_process
from tests.support.engine import Engine, open_engine
from tests.support.faults import FAULT_VARIABLE, Fault
from tests.support.payments import RolePair
from tests.support.postgres import Database
from tests.support.servers import TASK_QUEUE, Namespace
from tests.support.sql import scalar
from workflows.verify_and_settle import VerifyAndSettle

MIN_CONFIRMATIONS: Final = 3
PATIENCE_SECONDS: Final = 60.0
"""Deadline of every wait: what does not happen in this time does not happen."""

LEDGER_STEPS: Final = ("credit_buyer", "mint_bonus", "credit_donation", "end_without_credits")
"""Those that run in the worker that has the workflow's task, where its database answers."""

FAULTY_WORKER: Final = "tests.crash.faulty_worker"
FAULTY_COMMAND: Final = "tests.crash.faulty_command"
FOLLOWER: Final = "tests.crash.follower"
STOP_TIMEOUT_SECONDS: Final = 15


class WorkerProcess:
    """A worker in a process of its own."""

    def __init__(self, child: ChildProcess) -> None:
        self._child = child

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._child.pid

    @property
    def is_running(self) -> bool:
        """Whether it is there, paused or not."""
        return self._child.is_running

    @property
    def is_paused(self) -> bool:
        """Whether a signal has stopped it."""
        try:
            return Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()[0] == "T"
        except OSError:
            return False

    def log(self) -> str:
        """What it has written."""
        return self._child.log_path.read_text(errors="replace") if self._child.log_path.exists() else ""

    async def says(self, words: str) -> None:
        """Wait until its log holds these words."""
        await self._wait(lambda: words in self.log(), f"a log with {words!r}")

    async def ready(self) -> None:
        """Wait until it asks for work."""
        await self.says("worker runs")

    async def killed_itself(self) -> None:
        """Wait until its fault has killed it."""
        await wait_until(
            lambda: not self.is_running, timeout_seconds=PATIENCE_SECONDS, what=f"worker's death; {self.log()[-3000:]}"
        )
        assert self._child.exit_code == -signal.SIGKILL, self.log()[-3000:]

    async def paused_itself(self) -> None:
        """Wait until its fault has paused it."""
        await self._wait(lambda: self.is_paused, "worker's pause")

    def pause(self) -> None:
        """SIGSTOP."""
        self._child.signal(signal.SIGSTOP)

    def go_on(self) -> None:
        """SIGCONT."""
        self._child.signal(signal.SIGCONT)

    async def kill(self) -> None:
        """SIGKILL; it has ended when this returns."""
        await self._child.kill()

    async def stop(self) -> None:
        """SIGTERM: it drains."""
        self.go_on()
        await self._child.stop()

    async def _wait(self, condition: Callable[[], bool], what: str) -> None:
        try:
            await wait_until(lambda: condition() or not self.is_running, timeout_seconds=PATIENCE_SECONDS, what=what)
        except PartFailedError as error:
            raise AssertionError(f"{error}; the worker wrote: {self.log()[-3000:]}") from None
        assert condition(), f"no {what}, the worker has ended: {self.log()[-3000:]}"


@dataclass(frozen=True)
class Payment:
    """A payer, their intent, and the transaction that they sent for it."""

    payer: Payer
    intent: Intent
    tx_hash: str

    @property
    def attempt_id(self) -> UUID:
        """The attempt's id."""
        return self.intent.attempt_id


def _without_database(step: str) -> Callable[..., Any]:
    async def fail(_: dict[str, Any]) -> None:
        raise ConnectionError("this worker has no database")

    return activity.defn(name=step)(fail)


@dataclass(frozen=True)
class PaymentSystem(Engine):
    """An engine and its worker processes."""

    folder: Path
    _children: list[ChildProcess] = field(default_factory=list)
    _numbers: Any = field(default_factory=lambda: itertools.count(1))

    def start_worker(self, fault: Fault | None = None, **changes: str) -> WorkerProcess:
        """The product's worker; with a fault the same one, started by the tests' entry script.

        `changes` are settings by their variables' names.
        """
        given = {"LOG_FORMAT": "json", "WORKER_HEALTH_PORT": "0", **self.variables, **changes}
        if fault is not None:
            given[FAULT_VARIABLE] = fault.model_dump_json()
        if fault is None:
            return WorkerProcess(self._start("worker", "cli", ("worker",), given))
        return WorkerProcess(self._start("worker", FAULTY_WORKER, (), given))

    def start_follower(self) -> WorkerProcess:
        """A process that follows the chain as the watcher does, and does nothing else."""
        return WorkerProcess(self._start("follower", FOLLOWER, (), self.variables))

    def start_command(self, *arguments: str, fault: Fault | None = None, **changes: str) -> ChildProcess:
        """One of the product's commands, as `settle ...` on a command line; with a fault, one that kills itself.

        `changes` are settings by their variables' names.
        """
        given = {**self.variables, **changes}
        if fault is None:
            return self._start(arguments[0], "cli", arguments, given)
        given[FAULT_VARIABLE] = fault.model_dump_json()
        return self._start(arguments[0], FAULTY_COMMAND, arguments, given)

    def _start(self, name: str, module: str, arguments: Sequence[str], variables: Mapping[str, str]) -> ChildProcess:
        kept = {name: value for name, value in os.environ.items() if name in {"PATH", "HOME", "LANG", "TZ"}}
        self.folder.mkdir(parents=True, exist_ok=True)
        spec = ProcessSpec(
            name=f"{name}-{next(self._numbers)}",
            argv=[module, *arguments],
            state_dir=self.folder,
            stop_timeout_seconds=STOP_TIMEOUT_SECONDS,
        )
        log_path = self.folder / f"{spec.name}.log"
        with log_path.open("wb") as log:
            process = warm_process.fork(
                module,
                arguments,
                variables={**kept, **variables},
                folder=self.folder,
                stdout=log.fileno(),
                stderr=log.fileno(),
            )
        child = ChildProcess(spec, cast("subprocess.Popen[bytes]", process), log_path)
        self._children.append(child)
        return child

    @asynccontextmanager
    async def workflows_only(self) -> AsyncIterator[None]:
        """A worker in this process that takes workflow tasks and no activities, as long as the block runs.

        It has no database, so that ledger steps become activities of another worker.
        """
        async with Worker(
            self.namespace.client,
            task_queue=TASK_QUEUE,
            workflows=[VerifyAndSettle],
            activities=[_without_database(step) for step in LEDGER_STEPS],
            no_remote_activities=True,
        ):
            yield

    async def purchase(
        self,
        cents: int = 10_000,
        purpose: Purpose = Purpose.SELF,
        *,
        wallet: Wallet | None = None,
        amount_raw: int | None = None,
        confirmed: bool = True,
    ) -> Payment:
        """An intent and its payment on the chain, confirmed or not mined at all, and not yet submitted."""
        payer, intent = await self.intent(cents, purpose, wallet=wallet)
        tx_hash = await self.pay(intent, wallet=wallet, amount_raw=amount_raw)
        if confirmed:
            await self.confirm(tx_hash)
        return Payment(payer, intent, tx_hash)

    async def confirm(self, *tx_hashes: str, blocks: int = MIN_CONFIRMATIONS) -> None:
        """Mine, and see that the transactions are in."""
        await self.chain.mine(blocks)
        for tx_hash in tx_hashes:
            await self.chain.wait_for_receipt(tx_hash)

    @asynccontextmanager
    async def mining(self, *, every_seconds: float = 0.2) -> AsyncIterator[None]:
        """Blocks, one after the other, for the length of the block."""

        async def mine() -> None:
            while True:
                await self.chain.mine()
                await asyncio.sleep(every_seconds)

        task = asyncio.create_task(mine())
        try:
            yield
        finally:
            task.cancel()

    async def ends(self, command: ChildProcess, *, exit_code: int) -> None:
        """Wait until a command has ended like this."""
        await self.until(lambda: not command.is_running, f"the end of {command.spec.name}")
        assert command.exit_code == exit_code, command.log_path.read_text()

    async def record_only(self, payment: Payment) -> None:
        """Only the database hears of the payment's hash: as if its sender had died before it started a run."""
        async with self.settlement.transaction(payment.payer.user_id) as connection:
            await lifecycle.submit(connection, payment.attempt_id, payment.tx_hash, submitted_at=datetime.now(UTC))

    async def submit_payment(self, payment: Payment) -> AttemptView:
        """Submit the payment's hash."""
        return await self.submit(payment.payer, payment.intent, payment.tx_hash)

    async def record_without_worker(self, payment: Payment) -> None:
        """Submit while no worker runs: the hash is recorded and the workflow started when this returns."""
        view = await self.submit_payment(payment)
        assert view.status is AttemptStatus.PENDING_UNVERIFIED

    async def until(self, condition: Callable[[], bool | Awaitable[bool]], what: str) -> None:
        """Wait for a condition, with a deadline; a failure shows what the workers wrote."""
        try:
            await wait_until(condition, timeout_seconds=PATIENCE_SECONDS, what=what)
        except PartFailedError as error:
            logs = "\n".join(f"-- {c.spec.name}: {WorkerProcess(c).log()[-2000:]}" for c in self._children)
            raise AssertionError(f"{error}\n{logs}") from None

    async def wait_for_status(self, attempt_id: UUID, status: AttemptStatus) -> PaymentAttempt:
        """Wait until the attempt stands like this in the database."""
        seen: list[PaymentAttempt] = []

        async def stands() -> bool:
            seen.append(await self.attempt(attempt_id))
            return seen[-1].status is status

        await self.until(stands, f"attempt {attempt_id} in {status}")
        return seen[-1]

    async def wait_for_hash(self, attempt_id: UUID, tx_hash: str) -> None:
        """Wait until the attempt waits for this hash."""

        async def waits() -> bool:
            return (await self.attempt(attempt_id)).tx_hash == tx_hash

        await self.until(waits, f"attempt {attempt_id} waiting for {tx_hash}")

    async def finished(self, attempt_id: UUID) -> SettlementResult:
        """The result of the attempt's workflow, once it has COMPLETED."""
        seen: list[str] = []

        async def is_over() -> bool:
            state = await self.state(attempt_id)
            seen.append(f"{state.status}, pending {state.pending}")
            return not state.is_running

        try:
            await self.until(is_over, f"end of the workflow of {attempt_id}")
        except AssertionError as error:
            raise AssertionError(f"{error}\nworkflow: {seen[-1]}") from None
        assert (await self.state(attempt_id)).status == "COMPLETED", seen[-1]
        return await self.result(attempt_id)

    async def pending(self, attempt_id: UUID, activity: str) -> None:
        """Wait until the attempt's workflow has this activity under way."""
        await self.waits(
            attempt_id, lambda state: any(found.name == activity for found in state.pending), what=f"pending {activity}"
        )

    @asynccontextmanager
    async def locked_attempts(self, *attempt_ids: UUID) -> AsyncIterator[None]:
        """The attempts' rows stay locked for the block: transactions that change one wait, in order."""
        async with await psycopg.AsyncConnection.connect(self.database.superuser_url) as connection:
            await connection.execute(
                "SELECT 1 FROM payment_attempts WHERE id = ANY(%s) FOR UPDATE", (list(attempt_ids),)
            )
            yield

    @asynccontextmanager
    async def locked_system_tenant(self) -> AsyncIterator[None]:
        """The system tenant's row stays locked for the block: every bonus and donation waits."""
        async with await psycopg.AsyncConnection.connect(self.database.superuser_url) as connection:
            await connection.execute("SELECT 1 FROM billing_accounts WHERE is_system_tenant FOR UPDATE")
            yield

    @asynccontextmanager
    async def bonus_that_waits(self) -> AsyncIterator[tuple[Payment, WorkerProcess]]:
        """A credited purchase whose bonus waits, for the length of the block, for the system tenant's row."""
        payment = await self.purchase()
        async with self.locked_system_tenant():
            worker = self.start_worker()
            await self.submit_payment(payment)
            await self.wait_for_status(payment.attempt_id, AttemptStatus.CREDITED)
            await self.lock_waiters(1)
            yield payment, worker

    async def waits_for_locks(self) -> int:
        """How many sessions wait for a lock in this database."""
        question = "SELECT count(*) FROM pg_stat_activity WHERE datname = %s AND wait_event_type = 'Lock'"
        return int(scalar(self.database.superuser_url, question, self.database.name))

    async def lock_waiters(self, count: int) -> None:
        """Wait until so many sessions wait for a lock in this database."""

        async def as_many() -> bool:
            return await self.waits_for_locks() >= count

        await self.until(as_many, f"{count} sessions that wait for a lock")

    async def started(self, attempt_id: UUID) -> None:
        """Wait until Temporal has the attempt's workflow."""

        async def is_there() -> bool:
            return await read_workflow(self.namespace.client, attempt_id) is not None

        await self.until(is_there, f"workflow of {attempt_id}")

    async def read(self, question: Callable[[AnyConnection], Awaitable[Any]]) -> Any:
        """What the service role reads."""
        async with self.service.transaction() as connection:
            return await question(connection)

    async def balance(self, billing_account_id: str = SYSTEM_TENANT_ACCOUNT_ID) -> int:
        """Credits of an account, the system tenant's by default."""
        async with self.service.transaction() as connection:
            return (await balances(connection))[billing_account_id]

    async def entries(self, attempt_id: UUID) -> list[tuple[str, str, int]]:
        """The attempt's ledger rows in order: account, reason and amount."""
        async with self.service.transaction() as connection:
            rows = await ledger.list_entries(connection, str(attempt_id))
        return [(row.billing_account_id, row.reason, row.amount) for row in rows]

    async def settled_by(self, attempt_id: UUID) -> Any:
        """The transfer that paid the attempt."""
        return await self.read(lambda connection: attempts.find_settled_transfer(connection, attempt_id))

    async def must_be_settled(self, payment: Payment, *, share: Decimal = Decimal("0.75")) -> None:
        """The payment is credited once to whom it was meant for, with its bonus, and the workflow says so too."""
        result = await self.finished(payment.attempt_id)
        credits = payment.intent.amount_usd_cents * 100_000
        bonus = int(credits * share)
        account = payment.payer.billing_account_id
        expected = (
            [(account, "credits_purchase", credits)]
            + ([(SYSTEM_TENANT_ACCOUNT_ID, "platform_revenue_share", bonus)] if bonus else [])
            if payment.intent.purpose is Purpose.SELF
            else [(SYSTEM_TENANT_ACCOUNT_ID, "system_donation", credits)]
        )
        assert await self.entries(payment.attempt_id) == expected
        attempt = await self.attempt(payment.attempt_id)
        assert attempt.status is result.status is AttemptStatus.CREDITED
        assert attempt.tx_hash == payment.tx_hash
        assert result.buyer_credits == sum(amount for name, _, amount in expected if name == account)
        assert result.system_tenant_credits == sum(amount for name, _, amount in expected if name != account)

    async def books_are_right(self, **options: Any) -> None:
        """The oracle has nothing to say, and nothing is stuck."""
        assert await self.books(**{"nothing_stuck": True} | options) == []

    async def end_workers(self) -> None:
        """SIGKILL to every worker process, paused or not."""
        for child in self._children:
            await child.kill()
        assert all(process_identity(child.pid) is None for child in self._children)


def wallets(count: int) -> tuple[Wallet, ...]:
    """So many wallets with test USDC and gas."""
    return payer_wallets()[:count]


@asynccontextmanager
async def open_system(
    namespace: Namespace,
    on: Database | RolePair,
    chain: LocalChain,
    folder: Path,
    changes: Mapping[str, str] | None = None,
) -> AsyncIterator[PaymentSystem]:
    """A system without a worker; `changes` are settings by their variables' names."""
    settings = {
        "MIN_CONFIRMATIONS": str(MIN_CONFIRMATIONS),
        "CHAIN_BLOCK_TIME_SECONDS": "0.2",
        "SYSTEM_TENANT_REVENUE_SHARE": "0.75",
    }
    async with open_engine(namespace, on, chain, **settings | dict(changes or {})) as engine:
        parts = {part.name: getattr(engine, part.name) for part in fields(Engine)}
        system = PaymentSystem(**parts, folder=folder)
        try:
            yield system
        finally:
            await system.end_workers()
