"""Settlements without Temporal, in a process of their own: `python -m bench.baseline_process inline|dbos PORT`.

Both call the very functions that the product runs (same SQL, same verdict, same chain and database), one after
the other: record the hash, ask the chain, credit the buyer, mint the bonus. `inline` keeps no record of how far it is,
so a crash leaves a payment half-way. `dbos` makes each a durable step of a workflow of DBOS, another engine for durable
workflows, which keeps them in the same PostgreSQL server (`BENCH_DBOS_DATABASE_URL`).
"""

from __future__ import annotations

import asyncio
import importlib
import os
import signal
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any, Final

from aiohttp import web
from temporalio.exceptions import ApplicationError
from temporalio.testing import ActivityEnvironment

from activities.messages import (
    AttemptOutcomeMessage,
    BonusToMint,
    MintedBonus,
    PaymentToCredit,
    PaymentToVerify,
    RecordedSubmission,
    Settlement,
)
from activities.payments.wiring import activities
from activities.wiring import Dependencies
from bench.settlements import in_flight
from chain.joined_batches import JOIN_SECONDS_MIN
from composition import chain_reader, settlement_preconditions, settlement_starter
from db.engine import ServiceDatabase, SettlementDatabase, TenantDatabase
from db.ledger.entries import PostedMeanwhile
from domain.errors import SettlementFailed
from domain.payments.attempt import AttemptStatus
from domain.payments.verification import Refused, Verified
from services.payments.finality import FinalityDecider
from services.payments.submission import record_hash
from settings import Settings, load
from starter.temporal import connect
from telemetry.events import EventPublisher
from worker import DATABASE_CONNECTIONS
from workflows.policies import LEDGER_RETRY

INLINE: Final = "inline"
DBOS: Final = "dbos"
DBOS_DATABASE_URL: Final = "BENCH_DBOS_DATABASE_URL"
SETTLE_PATH: Final = "/settle"
BODY_BYTES_MAX: Final = 2**26

DBOS_CONNECTIONS: Final = 16
"""For its own tables; the steps have a worker's connections, like all others."""

WRITES_MAX: Final = 5

Settle = Callable[[Settlement], Awaitable[None]]


class Steps:
    """What the product does with a submitted hash, and its activities, called as functions."""

    def __init__(self, tenants: TenantDatabase, deps: Dependencies) -> None:
        self._tenants = tenants
        self._settings = deps.settings
        self._activities = {run.__name__: run for run in activities(deps)}

    async def record(self, payment: Settlement) -> RecordedSubmission:
        """Record the submitted hash."""
        submission = payment.submission
        recorded = await record_hash(
            self._tenants,
            submission.owner_user_id,
            submission.attempt_id,
            submission.tx_hash,
            chain_id=self._settings.chain_id,
        )
        return RecordedSubmission.of(recorded.attempt, self._settings.verification_timeout)

    async def verify(self, payment: Settlement, recorded: RecordedSubmission) -> Verified:
        """Ask the chain until there is a verdict. Raises `SettlementFailed` where the payment is refused."""
        submission = payment.submission
        assert recorded.verify_until is not None, "nothing has ended this attempt"
        message = PaymentToVerify(
            **_ref(payment),
            terms=payment.terms,
            submitted_at=submission.submitted_at,
            verify_until=recorded.verify_until,
        )
        while True:
            try:
                verdict: Verified | Refused = await self._run("await_confirmation", message)
            except ApplicationError as waiting:
                if waiting.next_retry_delay is None:
                    raise
                await asyncio.sleep(waiting.next_retry_delay.total_seconds())
                continue
            if isinstance(verdict, Refused):
                raise SettlementFailed(f"attempt {submission.attempt_id} was refused: {verdict.message}")
            return verdict

    async def credit(self, payment: Settlement, verdict: Verified) -> AttemptOutcomeMessage:
        """Credit the buyer."""
        message = PaymentToCredit(**_ref(payment), transfer=verdict.transfer, confirmed_at=verdict.confirmed_at)
        return AttemptOutcomeMessage.model_validate(await self._write("credit_buyer", message))

    async def mint(self, payment: Settlement) -> MintedBonus:
        """Mint the system tenant's bonus."""
        return MintedBonus.model_validate(await self._write("mint_bonus", BonusToMint(**_ref(payment))))

    async def _write(self, name: str, message: object) -> Any:
        """One transaction, again where it met another one: after as long as the product's activities wait."""
        interval = LEDGER_RETRY.initial_interval
        for _ in range(WRITES_MAX - 1):
            try:
                return await self._run(name, message)
            except PostedMeanwhile:
                await asyncio.sleep(interval.total_seconds())
                interval *= LEDGER_RETRY.backoff_coefficient
        return await self._run(name, message)

    async def _run(self, name: str, message: object) -> Any:
        return await ActivityEnvironment().run(self._activities[name], message)


def _ref(payment: Settlement) -> dict[str, Any]:
    return payment.submission.model_dump(include={"attempt_id", "owner_user_id", "billing_account_id", "chain_id"})


def _require_credited(payment: Settlement, ending: AttemptOutcomeMessage) -> None:
    if ending.status is not AttemptStatus.CREDITED:
        raise SettlementFailed(f"attempt {payment.submission.attempt_id} ended {ending.status.value}")


@asynccontextmanager
async def settling_inline(steps: Steps) -> AsyncIterator[Settle]:
    """One function after the other, and nothing else."""

    async def settle(payment: Settlement) -> None:
        recorded = await steps.record(payment)
        verdict = await steps.verify(payment, recorded)
        _require_credited(payment, await steps.credit(payment, verdict))
        await steps.mint(payment)

    yield settle


@asynccontextmanager
async def settling_by_dbos(steps: Steps) -> AsyncIterator[Settle]:
    """The same four as durable steps. Needs the package `dbos`, an extra: it is imported where it is used only."""
    dbos: Any = importlib.import_module("dbos")
    dbos.DBOS(
        config={
            "name": "settle-bench",
            "system_database_url": os.environ[DBOS_DATABASE_URL],
            "sys_db_pool_size": DBOS_CONNECTIONS,
            "log_level": "ERROR",
        }
    )

    async def record(payment: dict[str, Any]) -> dict[str, Any]:
        return (await steps.record(Settlement.model_validate(payment))).model_dump(mode="json")

    async def verify(payment: dict[str, Any], recorded: dict[str, Any]) -> dict[str, Any]:
        found = await steps.verify(Settlement.model_validate(payment), RecordedSubmission.model_validate(recorded))
        return found.model_dump(mode="json")

    async def credit(payment: dict[str, Any], verdict: dict[str, Any]) -> dict[str, Any]:
        ending = await steps.credit(Settlement.model_validate(payment), Verified.model_validate(verdict))
        return ending.model_dump(mode="json")

    async def mint(payment: dict[str, Any]) -> dict[str, Any]:
        return (await steps.mint(Settlement.model_validate(payment))).model_dump(mode="json")

    step = dbos.DBOS.step()
    durable_record, durable_verify, durable_credit, durable_mint = map(step, (record, verify, credit, mint))

    async def settlement(payment: dict[str, Any]) -> Any:
        recorded = await durable_record(payment)
        ending = await durable_credit(payment, await durable_verify(payment, recorded))
        await durable_mint(payment)
        return ending

    durable_settlement = dbos.DBOS.workflow()(settlement)

    async def settle(payment: Settlement) -> None:
        # Started and then waited for, as a submit must: the payer has an answer before the chain has confirmed.
        with dbos.SetWorkflowID(str(payment.submission.attempt_id)):
            handle = await dbos.DBOS.start_workflow_async(durable_settlement, payment.model_dump(mode="json"))
        ending = await handle.get_result()
        _require_credited(payment, AttemptOutcomeMessage.model_validate(ending))

    await asyncio.to_thread(dbos.DBOS.launch)
    try:
        yield settle
    finally:
        await asyncio.to_thread(dbos.DBOS.destroy)


@asynccontextmanager
async def opened_steps(settings: Settings, variables: Mapping[str, str]) -> AsyncIterator[Steps]:
    """The activities with a worker's connections."""
    options: dict[str, Any] = {
        "application_name": "settle bench",
        "pool_size": DATABASE_CONNECTIONS,
        "pre_ping": False,
    }
    async with AsyncExitStack() as stack:
        tenants = TenantDatabase(settings.require_database_url(), **options)
        stack.push_async_callback(tenants.dispose)
        settlement = SettlementDatabase(settings.require_settlement_database_url(), **options)
        stack.push_async_callback(settlement.dispose)
        service = ServiceDatabase(settings.require_service_database_url(), **options)
        stack.push_async_callback(service.dispose)
        # The product waits for others that share a request while its processors are busy; these would only wait.
        chain = await stack.enter_async_context(chain_reader(settings, join_seconds=JOIN_SECONDS_MIN))
        temporal = await connect(variables, lazy=True)
        starter = settlement_starter(temporal, settings, settlement)
        yield Steps(
            tenants,
            Dependencies(
                settings=settings,
                chain=chain,
                settlement=settlement,
                service=service,
                preconditions=settlement_preconditions(settings, chain),
                starter=starter,
                publish=EventPublisher().publish,
                finality=FinalityDecider(chain, service, starter, policy=settings.finality_policy),
            ),
        )


SETTLERS: Final = {INLINE: settling_inline, DBOS: settling_by_dbos}


async def main(name: str, port: int) -> None:
    """Serve until SIGTERM: a POST of payments is answered when all are settled, as many at once as the product has."""
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    variables = dict(os.environ)
    async with opened_steps(load(variables), variables) as steps, SETTLERS[name](steps) as settle:

        async def settle_all(request: web.Request) -> web.Response:
            payments = [Settlement.model_validate(one) for one in await request.json()]
            try:
                await in_flight(settle, payments)
            except Exception as error:  # to the process that measures, which reports it
                return web.json_response({"error": f"{type(error).__name__}: {error}"}, status=500)
            return web.json_response({"settled": len(payments)})

        async def ready(_request: web.Request) -> web.Response:
            return web.json_response({})

        app = web.Application(client_max_size=BODY_BYTES_MAX)
        app.add_routes([web.get("/", ready), web.post(SETTLE_PATH, settle_all)])
        runner = web.AppRunner(app, access_log=None, handle_signals=False)
        await runner.setup()
        try:
            await web.TCPSite(runner, "127.0.0.1", port).start()
            await stop.wait()
        finally:
            await runner.cleanup()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], int(sys.argv[2])))
