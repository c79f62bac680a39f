"""`settle demo`: eight payments on a local chain, most with a different problem, and calls that spend some of them.

In one the worker is killed between the two credits, in one the payer closes the tab, and one is reorged out. Of the
calls one loses its gateway in mid-stream, and one is refused.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final, TypeVar

import psycopg
from temporalio.client import Client

from commands import demo_spending
from commands.demo_report import Payment, report
from commands.demo_spending import SpendingScenes, SpentCall
from commands.demo_topup import TopUpScene
from commands.local_system import LocalSystem
from commands.output import progress
from composition import payments_client, service_database
from db.engine import ServiceDatabase
from db.ledger import entries as ledger
from db.payments.finality import find_credited
from devstack.chain import LocalChain, Wallet, payer_wallets
from devstack.database import DATABASE
from devstack.stack import until_signalled
from domain.billing.keys import KeySecret, make_key
from domain.errors import DemoFailed
from domain.identifiers import SYSTEM_TENANT_ACCOUNT_ID
from domain.ledger.entries import Reason
from domain.money import credits_for_usd_cents, format_usd, raw_for_usd_cents, revenue_share_credits
from domain.payments.attempt import FINAL_STATUSES, AttemptStatus, ErrorCode, Purpose
from starter.payments import PaymentsClient
from starter.progress import read_reversal, read_workflow
from starter.temporal import connect

T = TypeVar("T")

SETTLED_TIMEOUT_SECONDS: Final = 90.0
POLL_SECONDS: Final = 0.1

# The demo starts its own servers: an address in the environment may be that of a production server.
_SERVERS_OF_OTHERS: Final = (
    "DATABASE_URL",
    "SETTLEMENT_DATABASE_URL",
    "SERVICE_DATABASE_URL",
    "MIGRATION_DATABASE_URL",
    "CHAIN_ID",
    "CHAIN_RPC_URLS",
    "USDC_TOKEN_ADDRESS",
    "TREASURY_ADDRESS",
    "CHAIN_BLOCK_TIME_SECONDS",
    "UPSTREAMS_FILE",
    "GATEWAY_URL",
    "GATEWAY_HOST",
    "GATEWAY_PORT",
)


FINAL_AFTER_BLOCKS: Final = 12
"""With the nodes' tags finality takes 20 minutes on a real chain, which is too long for a demo."""

DEMO_SETTINGS: Final = {
    "FINALITY": "confirmations",
    "FINALITY_CONFIRMATIONS": str(FINAL_AFTER_BLOCKS),
}


async def demo(variables: Mapping[str, str], *, keep: bool, as_json: bool) -> bool:
    """Run the demo in a folder of its own. True only if every expectation was met."""
    own = {
        name: value
        for name, value in variables.items()
        if name not in _SERVERS_OF_OTHERS and not name.startswith("TEMPORAL_")
    }
    ok: bool | None = None
    with TemporaryDirectory(prefix="settle-demo-") as folder:
        governance_key = make_key()
        own |= DEMO_SETTINGS | demo_spending.settings(Path(folder), governance_key)
        async with (
            until_signalled(),
            LocalSystem(Path(folder), own, on_progress=progress, with_service_key=False) as system,
        ):
            settings = system.settings
            async with (
                payments_client(settings, system.variables) as client,
                service_database(settings) as database,
            ):
                scenes = _Scenes(
                    system, client, database, await connect(system.variables), governance_key=governance_key
                )
                payments, calls = await scenes.play()
                ok = await report(system, database, payments, calls, keep=keep, as_json=as_json)
            if keep:
                page = f"{system.variables['API_URL']}/credits"
                progress(
                    f"everything is left running; Credits page: {page}; settings: {system.env_path}; Ctrl-C stops it"
                )
                await system.stack.wait()
    if ok is None:
        progress("settle: interrupted; everything has been stopped")
        raise KeyboardInterrupt
    return ok


class _Scenes:
    """The payments, each as a user would make them: intent, transfer on the chain, hash submitted."""

    def __init__(
        self,
        system: LocalSystem,
        client: PaymentsClient,
        database: ServiceDatabase,
        temporal: Client,
        *,
        governance_key: KeySecret,
    ) -> None:
        self.system = system
        self.temporal = temporal
        self.client = client
        self.database = database
        self.governance_key = governance_key
        self.started = time.monotonic()

    @property
    def chain(self) -> LocalChain:
        """The local chain."""
        return self.system.stack.chain

    def say(self, words: str) -> None:
        """Print progress, with the seconds since the payments began."""
        progress(f"[{time.monotonic() - self.started:5.1f} s] {words}")

    async def play(self) -> tuple[list[Payment], list[SpentCall]]:
        """All payments, and the calls that spend the first one.

        The payments with the crash and the reorganisation come last, so that they affect no other.
        """
        buyer, donor, miser, thief, closer, unlucky, orphan, machine = payer_wallets()[:8]
        closed_tab = await self._intend("a purchase whose tab was closed", closer, 1500)
        await self._pay(closed_tab, closer)
        self.say(f"{closed_tab.title}: nothing is submitted; the chain watcher has to find it")
        purchase = await self._intend("a purchase", buyer, 2500)
        donation = await self._intend("a donation", donor, 1000, Purpose.SYSTEM)
        too_little = await self._intend(
            "a payment of one cent too little", miser, 1000, error=ErrorCode.INSUFFICIENT_AMOUNT
        )
        stolen = await self._intend("another payer's hash", thief, 2500, error=ErrorCode.SENDER_MISMATCH)

        purchase_hash = await self._pay(purchase, buyer)
        # The thief submits first: it neither gains credits nor prevents the payer's.
        await self._submit(stolen, purchase_hash)
        await self._submit(purchase, purchase_hash)
        await self._submit(donation, await self._pay(donation, donor))
        await self._submit(too_little, await self._pay(too_little, miser, less_raw=raw_for_usd_cents(1)))
        early = [purchase, donation, too_little, stolen, closed_tab]
        await asyncio.gather(*(self._ended(payment) for payment in early))
        top_up, topped_up = await TopUpScene(self.system, self.client, self.say).play(machine)
        spending = SpendingScenes(self.system, self.database, self.temporal, self.say)
        async with _alongside(spending.play(purchase.payer)) as calls:
            crashed = await self._intend("a purchase whose worker is killed", unlucky, 10_000)
            await self._crash_between_the_credits(crashed, unlucky)
            await self._ended(crashed)

            reversed_ = await self._intend("a purchase that is reorged out", orphan, 5000, is_taken_back=True)
            await self._reorganise_away(reversed_, orphan)

            payments = [*early, top_up, crashed, reversed_]
            await asyncio.gather(*(self._looked_after(payment) for payment in payments))
            return payments, [topped_up, *await calls, await spending.governance(self.governance_key)]

    async def _intend(
        self,
        title: str,
        wallet: Wallet,
        amount_usd_cents: int,
        purpose: Purpose = Purpose.SELF,
        *,
        error: ErrorCode | None = None,
        is_taken_back: bool = False,
    ) -> Payment:
        payer = await self.client.provision(wallet.address)
        intent = await self.client.create_intent(payer, amount_usd_cents, purpose)
        credits = credits_for_usd_cents(amount_usd_cents)
        bonus = revenue_share_credits(credits, self.system.settings.system_tenant_revenue_share)
        rows: dict[tuple[str, str], int] = {}
        if error is None and purpose is Purpose.SYSTEM:
            rows[SYSTEM_TENANT_ACCOUNT_ID, Reason.SYSTEM_DONATION] = credits
        elif error is None:
            rows[payer.billing_account_id, Reason.CREDITS_PURCHASE] = credits
            if bonus:
                rows[SYSTEM_TENANT_ACCOUNT_ID, Reason.PLATFORM_REVENUE_SHARE] = bonus
        self.say(f"{title}: intent for {format_usd(amount_usd_cents)} USD by {wallet.address[:8]}…")
        status = AttemptStatus.REJECTED if error else AttemptStatus.CREDITED
        if is_taken_back:
            status = AttemptStatus.REVERSED
            rows |= {(account_id, Reason.PAYMENT_REVERSAL): -amount for (account_id, _), amount in rows.items()}
        return Payment(title, payer, intent, status, error, expected_rows=rows)

    async def _pay(self, payment: Payment, wallet: Wallet, *, less_raw: int = 0) -> str:
        tx_hash = await self.chain.pay(wallet.private_key, payment.intent.to, payment.intent.amount_raw - less_raw)
        self.say(f"{payment.title}: sent in transaction {tx_hash[:10]}…")
        return str(tx_hash)

    async def _submit(self, payment: Payment, tx_hash: str) -> None:
        view = await self.client.submit(payment.payer.user_id, payment.attempt_id, tx_hash)
        self.say(f"{payment.title}: hash submitted, {view.status.value}")

    async def _ended(self, payment: Payment) -> None:
        """Wait for the payment's end: credited, or refused."""
        told = ""
        async with asyncio.timeout(SETTLED_TIMEOUT_SECONDS):
            while True:
                view = await self.client.status(payment.payer.user_id, payment.attempt_id)
                words = view.waiting_for or ""
                if words and words != told:
                    self.say(f"{payment.title}: {words}")
                    told = words
                if view.status in FINAL_STATUSES:
                    break
                await asyncio.sleep(POLL_SECONDS)
        self.say(f"{payment.title}: {view.status.value}{f' / {view.error_code.value}' if view.error_code else ''}")

    async def _looked_after(self, payment: Payment) -> None:
        """Wait until its workflow has ended and the payment is final, or reversed, and store what is to be compared."""

        async def is_over() -> bool:
            workflow = await read_workflow(self.temporal, payment.attempt_id)
            payment.workflow = workflow.status if workflow else None
            return workflow is not None and not workflow.is_running and await self._is_decided(payment)

        await self._until(f"the outcome of {payment.title}", is_over)
        view = await self.client.status(payment.payer.user_id, payment.attempt_id)
        payment.status, payment.error = view.status, view.error_code
        payment.rows = await self._rows(payment)
        if payment.status is AttemptStatus.CREDITED:
            self.say(f"{payment.title}: final")
        elif payment.status is AttemptStatus.REVERSED:
            self.say(f"{payment.title}: REVERSED, its credits and the bonus were reversed")

    async def _is_decided(self, payment: Payment) -> bool:
        """Whether nothing will happen to its credits any more."""
        async with self.database.transaction() as connection:
            credited = await find_credited(connection, payment.attempt_id)
        if credited is None or credited.final_level is not None:
            return True
        reversal = await read_reversal(self.temporal, payment.attempt_id)
        return reversal is not None and not reversal.is_running

    async def _reorganise_away(self, payment: Payment, wallet: Wallet) -> None:
        """Replace the blocks from the payment's on, as soon as it is credited."""
        tx_hash = await self._pay(payment, wallet)
        await self._submit(payment, tx_hash)
        await self._ended(payment)
        mined_in = int((await self.chain.wait_for_receipt(tx_hash))["blockNumber"], 16)
        depth = await self.chain.block_number() - mined_in + 1
        await self.chain.reorg(depth)
        self.say(f"{payment.title}: the last {depth} blocks were replaced by blocks without the payment")

    async def _rows(self, payment: Payment) -> list[ledger.LedgerRow]:
        async with self.database.transaction() as connection:
            return await ledger.list_entries(connection, reference=str(payment.attempt_id))

    async def _crash_between_the_credits(self, payment: Payment, wallet: Wallet) -> None:
        """Kill the worker when the buyer is credited and the system tenant's bonus is not.

        A lock on the system tenant's row extends that moment, so that it is hit every time.
        """
        worker = self.system.stack.processes["worker"]
        async with _system_tenant_locked(self.system) as lock:
            await self._submit(payment, await self._pay(payment, wallet))
            await self._until("the buyer's credit", lambda: self._is_credited(payment))
            await self._until("the bonus to be under way", lambda: _is_worker_blocked(lock))
            pid = worker.pid
            self.say(f"{payment.title}: buyer credited, bonus under way: SIGKILL to worker {pid}")
            await worker.kill()
            # Its statement would still run in the server once the row is free, so it is ended with the worker.
            await lock.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'settle worker'"
            )
            reasons = [row.reason for row in await self._rows(payment)]
            if reasons != [Reason.CREDITS_PURCHASE]:
                raise DemoFailed(f"after the kill the ledger has {reasons}, expected the buyer's credit alone")
            self.say(f"{payment.title}: the worker is dead, the ledger has the buyer's credit alone")
        await worker.start()
        self.say(f"{payment.title}: worker started again as {worker.pid}")

    async def _is_credited(self, payment: Payment) -> bool:
        view = await self.client.status(payment.payer.user_id, payment.attempt_id)
        return view.status is AttemptStatus.CREDITED

    @staticmethod
    async def _until(what: str, condition: Callable[[], Awaitable[bool]]) -> None:
        deadline = time.monotonic() + SETTLED_TIMEOUT_SECONDS
        while not await condition():
            if time.monotonic() > deadline:
                raise DemoFailed(f"waited {SETTLED_TIMEOUT_SECONDS:.0f} s for {what}")
            await asyncio.sleep(POLL_SECONDS)


@asynccontextmanager
async def _alongside(work: Coroutine[object, object, T]) -> AsyncIterator[asyncio.Task[T]]:
    """Let the work go on beside the block; where the block fails, the work is ended."""
    task = asyncio.create_task(work)
    try:
        yield task
    finally:
        task.cancel()
        await asyncio.wait([task])


@asynccontextmanager
async def _system_tenant_locked(system: LocalSystem) -> AsyncIterator[psycopg.AsyncConnection]:
    url = system.stack.postgres.superuser_url(DATABASE)
    async with await psycopg.AsyncConnection.connect(url, application_name="settle demo") as connection:
        await connection.execute("SELECT 1 FROM billing_accounts WHERE id = %s FOR UPDATE", (SYSTEM_TENANT_ACCOUNT_ID,))
        yield connection


async def _is_worker_blocked(connection: psycopg.AsyncConnection) -> bool:
    cursor = await connection.execute(
        "SELECT 1 FROM pg_stat_activity WHERE application_name = 'settle worker' AND wait_event_type = 'Lock'"
    )
    return await cursor.fetchone() is not None
