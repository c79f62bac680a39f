"""Two chains on one database and namespace; the other one is so much higher that all of the first is final there."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager
from datetime import timedelta
from typing import Final
from uuid import UUID

import pytest

from composition import chain_reader
from devstack.chain import LocalChain
from devstack.processes import wait_until
from settings import load
from starter.models import Intent
from starter.temporal import connect
from tests.finality.conftest import start_as_before
from tests.support.engine import MIN_CONFIRMATIONS, PATIENCE_SECONDS, Engine, open_engine
from tests.support.parallel import process_number
from tests.support.payments import RolePair
from tests.support.servers import Namespace, running_chain
from tests.support.sql import query
from worker import build_worker
from workflows.jobs.housekeeping import Housekeeping, HousekeepingInput, HousekeepingResult
from workflows.naming import PLATFORM_TASK_QUEUE, task_queue

FINAL_AFTER: Final = 12
"""Confirmations that make a payment final here; it is credited after two."""

OTHER_CHAIN_ID: Final = 31_338
OTHER_CHAIN_PORT: Final = 28_945
BLOCKS_AHEAD: Final = 200
"""When both are new: a block costs the node a millisecond."""
POLLS: Final = 4
"""How often a worker of another chain is asked before it is believed that it does nothing."""


@pytest.fixture(scope="module")
async def chain(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[LocalChain]:
    """The chain that the payments are on: the module's own."""
    async with running_chain(tmp_path_factory.mktemp("own-chain")) as running:
        yield running


@pytest.fixture(scope="module")
async def other_chain(chain: LocalChain, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[LocalChain]:
    """Another one, with the same contracts at the same addresses, far ahead."""
    running = LocalChain(
        tmp_path_factory.mktemp("other-chain"),
        OTHER_CHAIN_PORT + process_number(),
        chain_id=OTHER_CHAIN_ID,
        block_time_seconds=None,
    )
    await running.start()
    try:
        await running.deploy()
        await running.mine(await chain.block_number() + BLOCKS_AHEAD)
        yield running
    finally:
        await running.stop()


@pytest.fixture
async def engine(namespace: Namespace, roles: RolePair, chain: LocalChain) -> AsyncIterator[Engine]:
    """An engine of the payments' chain, which tracks a payment for some blocks."""
    async with open_engine(
        namespace,
        roles,
        chain,
        FINALITY="confirmations",
        FINALITY_CONFIRMATIONS=str(FINAL_AFTER),
        CHAIN_WATCH_FROM_BLOCK=str(await chain.block_number() + 1),
        PAYMENT_INTENT_TTL_SECONDS="864000",
    ) as opened:
        yield opened


@pytest.fixture(autouse=True)
def handed_back_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another worker is asked in no time."""
    monkeypatch.setattr("activities.interceptors.HANDED_BACK", timedelta(milliseconds=100))


@contextmanager
def as_before() -> Iterator[None]:
    """In the block runs are started as up to schema revision 0003: those of all chains on one queue."""
    with pytest.MonkeyPatch.context() as patch:
        for module in ("submission", "resolutions", "singletons"):
            patch.setattr(f"starter.{module}.task_queue", lambda _: PLATFORM_TASK_QUEUE)
        yield


def variables_of(engine: Engine, other: LocalChain, **changes: str) -> dict[str, str]:
    """The engine's environment variables with the other chain in them."""
    own = {
        "CHAIN_ID": str(other.chain_id),
        "CHAIN_RPC_URLS": other.url,
        "USDC_TOKEN_ADDRESS": other.token_address,
        "TREASURY_ADDRESS": other.treasury_address,
    }
    return {**engine.variables, **own, **changes}


OtherWorker = Callable[..., AbstractAsyncContextManager[None]]


@pytest.fixture
def other_worker(engine: Engine, other_chain: LocalChain) -> OtherWorker:
    """The product's own worker of the other chain, on the same database and namespace, as long as the block runs."""

    @asynccontextmanager
    async def run(**changes: str) -> AsyncIterator[None]:
        if (missing := await engine.chain.block_number() + 2 * FINAL_AFTER - await other_chain.block_number()) > 0:
            await other_chain.mine(missing)
        settings = load(variables_of(engine, other_chain, **changes))
        # A client of its own: the SDK refuses two workers of one client on the queue that both chains have.
        client = await connect(engine.namespace.variables)
        async with (
            chain_reader(settings) as reader,
            build_worker(client, settings, chain=reader, settlement=engine.settlement, service=engine.service),
        ):
            yield

    return run


async def credited(engine: Engine) -> tuple[Intent, str]:
    """A credited payment that is not final yet."""
    async with engine.worker():
        payer, intent, sent = await engine.buy()
        await engine.submit(payer, intent, sent)
        await engine.result(intent.attempt_id)
    assert outcome(engine, intent.attempt_id) is None
    return intent, sent


async def credited_as_before(engine: Engine) -> Intent:
    """The same by a run that tracks it itself, left without a worker on the queue of all chains."""
    async with engine.worker():
        payer, intent, sent = await engine.buy()
        await start_as_before(engine, payer, intent, sent, queue=PLATFORM_TASK_QUEUE)
        await engine.polled(intent.attempt_id, "to go")
    return intent


def outcome(engine: Engine, attempt_id: UUID) -> str | None:
    """What is on record of the payment's finality."""
    rows = query(
        engine.database.superuser_url, "SELECT outcome FROM transfer_finality WHERE attempt_id = %s", attempt_id
    )
    return rows[0][0] if rows else None


async def keep_house(engine: Engine, chain_id: int) -> HousekeepingResult:
    """What a tick does on a chain's queue; when this returns its workers have worked."""
    wanted = HousekeepingInput(pick_up_after_seconds=1, chain_id=chain_id)
    return await engine.namespace.client.execute_workflow(
        Housekeeping.run, wanted, id=f"house-{chain_id}", task_queue=task_queue(chain_id)
    )


async def has_been_asked(engine: Engine, attempt_id: UUID, activity: str) -> None:
    """Returns when workers have been given the attempt's activity a few more times."""
    found: list[int] = []

    async def often() -> bool:
        state = await engine.state(attempt_id)
        found.extend(pending.attempt for pending in state.pending if pending.name == activity)
        return bool(found) and found[-1] >= found[0] + POLLS

    await wait_until(often, timeout_seconds=PATIENCE_SECONDS, what=f"{POLLS} more calls of {activity}")


async def becomes_final(engine: Engine, attempt_id: UUID) -> None:
    """Mine until the payment is final, with a worker of its own chain."""
    async with engine.worker():
        await engine.chain.mine(FINAL_AFTER + MIN_CONFIRMATIONS)
        await engine.result(attempt_id)
        await keep_house(engine, engine.chain.chain_id)
    assert outcome(engine, attempt_id) == "final"
