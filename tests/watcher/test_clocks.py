"""Which clock decides: the database's, whatever time it is on the hosts that make intents, take hashes and end them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from functools import partial
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from temporalio.testing import ActivityEnvironment

from activities.operations.signatures import IntentsToExpire
from composition import singleton_workflows
from devstack.processes import wait_until
from domain.clocks import CHAIN_AHEAD_MAX, CHAIN_BEHIND_MAX, HOST_OFFSET_MAX, ClockOffsets, chain_offset
from domain.payments.attempt import AttemptStatus, ErrorCode
from services.operations.clocks import CLOCK_OFFSET, ChainClock
from starter.singletons import start_missing
from tests.api.test_process import running
from tests.chain.faulty_node import FaultyNode
from tests.cli.command import settle
from tests.support.api import first_wallet
from tests.support.engine import MIN_CONFIRMATIONS, PATIENCE_SECONDS, Engine, open_engine
from tests.support.payments import RolePair
from tests.support.servers import Namespace
from tests.support.shifted_host import CLOCK_AHEAD_VARIABLE
from tests.support.sql import connect
from tests.support.starter import housekeeping_activities
from tests.worker.process import running_worker

A, B = "0x" + "aa" * 32, "0x" + "bb" * 32
FAR = [-3600.0, -600.0, 600.0, 3600.0]
"""Seconds by which a host is ahead. An intent lives for 1,800."""


def on_a_host(ahead_seconds: float) -> dict[str, str]:
    """The variable of a process whose host's clock is so far ahead."""
    return {CLOCK_AHEAD_VARIABLE: str(ahead_seconds)}


@pytest.fixture
async def engine(namespace: Namespace, roles: RolePair, chain: Any) -> AsyncIterator[Engine]:
    """An engine on the folder's chain, whose time is right."""
    async with open_engine(namespace, roles, chain) as opened:
        yield opened


@pytest.mark.slow
@pytest.mark.parametrize("ahead_seconds", FAR)
async def test_a_payment_at_once_is_credited_whatever_the_time_on_the_host_that_made_its_intent(
    engine: Engine, tmp_path: Path, ahead_seconds: float
) -> None:
    async with (
        running(tmp_path, engine.variables, **on_a_host(ahead_seconds)) as api,
        api.visitor() as payer,
        engine.worker(),
    ):
        await payer.sign_in(first_wallet())
        intent = await payer.intent()
        left = datetime.fromisoformat(intent["expiresAt"]) - datetime.now(UTC)
        assert abs(left - timedelta(minutes=30)) < timedelta(minutes=1)
        sent = await engine.chain.pay(first_wallet().private_key, intent["to"], intent["amountRaw"])
        await engine.chain.mine(MIN_CONFIRMATIONS)
        await engine.chain.wait_for_receipt(sent)
        await start_missing(engine.namespace.client, singleton_workflows(engine.settings))

        async def is_credited() -> bool:
            return (await engine.attempt(UUID(intent["attemptId"]))).status is AttemptStatus.CREDITED

        await wait_until(is_credited, timeout_seconds=PATIENCE_SECONDS, what="credit without a submission")
        await engine.result(UUID(intent["attemptId"]))
    assert await engine.books() == []


@pytest.mark.slow
@pytest.mark.parametrize("ahead_seconds", FAR)
async def test_a_host_takes_a_hash_in_time_by_the_clock_that_made_the_intent(
    engine: Engine, tmp_path: Path, ahead_seconds: float
) -> None:
    payer, intent = await engine.intent()
    async with running(tmp_path, engine.variables, **on_a_host(ahead_seconds)) as api, api.visitor() as visitor:
        await visitor.sign_in(first_wallet())
        reply = await visitor.submit(intent.attempt_id, A)
        assert (reply.status, reply.body["status"]) == (202, "PENDING_UNVERIFIED")
        first = await engine.attempt(intent.attempt_id)
        assert first.submitted_at is not None
        assert abs(first.submitted_at - datetime.now(UTC)) < timedelta(minutes=1)
        # Another host's clock says that this one came first: the later one counts all the same.
        await engine.payments.submit(payer.user_id, intent.attempt_id, B)
        assert (await engine.attempt(intent.attempt_id)).tx_hash == B
        reply = await visitor.submit(intent.attempt_id, A)
        assert (await engine.attempt(intent.attempt_id)).tx_hash == A
        # The page compares the end of an intent with this.
        said = parsedate_to_datetime(reply.headers["Date"])
        assert abs(said - datetime.now(UTC)) < timedelta(minutes=1)


async def test_an_expired_intent_is_expired_on_a_host_whose_clock_is_behind(engine: Engine, tmp_path: Path) -> None:
    _, intent = await engine.intent()
    _set_expiry(engine, "clock_timestamp() - interval '1 second'")
    variables = {**engine.variables, **on_a_host(-600)}
    submit = ("attempt", "submit", str(intent.attempt_id), A, "--json")
    submitted = await asyncio.to_thread(settle, submit, variables, tmp_path)
    assert submitted.json()["errorCode"] == ErrorCode.INTENT_EXPIRED


@pytest.mark.parametrize(("lived", "ended"), [("9 seconds", 0), ("11 seconds", 1)])
async def test_housekeeping_ends_intents_by_the_databases_clock(engine: Engine, lived: str, ended: int) -> None:
    await engine.intent()
    _set_expiry(engine, f"clock_timestamp() - interval '{lived}'")

    activities = housekeeping_activities(engine, chain_id=1)
    for asked_at in (datetime.now(UTC) - timedelta(hours=1), datetime.now(UTC) + timedelta(hours=1)):
        wanted = IntentsToExpire(due_at=asked_at, batch_size=10, grace_seconds=10)
        done = await ActivityEnvironment().run(activities.expire_intents, wanted)
        assert sum(done.counts.values()) == ended
        ended = 0


async def test_an_intent_that_a_fast_clock_has_ended_takes_its_hash_until_its_time_is_over(engine: Engine) -> None:
    payer, intent = await engine.intent()
    with connect(engine.database.superuser_url) as sql:
        sql.execute("UPDATE payment_attempts SET status = 'FAILED', error_code = 'INTENT_EXPIRED'")
    async with engine.worker():
        view = await engine.payments.submit(payer.user_id, intent.attempt_id, A)
        assert view.status is AttemptStatus.PENDING_UNVERIFIED
        await engine.handle(intent.attempt_id).terminate("the test is over")


async def test_a_submission_comes_after_the_one_that_it_has_seen_when_the_clock_was_set_back(engine: Engine) -> None:
    payer, intent = await engine.intent()
    await engine.payments.submit(payer.user_id, intent.attempt_id, A)
    with connect(engine.database.superuser_url) as sql:
        sql.execute("UPDATE payment_attempts SET submitted_at = submitted_at + interval '1 hour'")
    await engine.payments.submit(payer.user_id, intent.attempt_id, B)
    assert (await engine.attempt(intent.attempt_id)).tx_hash == B


# -- what reports clocks that are apart ------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("ahead_seconds", [-600.0, 600.0])
async def test_doctor_and_a_metric_report_a_host_whose_clock_is_wrong(
    engine: Engine, tmp_path: Path, ahead_seconds: float
) -> None:
    async with engine.worker():
        said = await asyncio.to_thread(
            settle, ("doctor", "--json"), {**engine.variables, **on_a_host(ahead_seconds)}, tmp_path
        )
    assert said.exit_code == 1
    assert [check["name"] for check in said.json()["checks"] if not check["ok"]] == ["clocks"]
    name = f'{CLOCK_OFFSET._name}{{clock="host"}} '
    async with (
        running_worker(tmp_path, engine.variables, **on_a_host(ahead_seconds)) as worker,
        running(tmp_path, engine.variables, **on_a_host(ahead_seconds)) as api,
        api.visitor() as visitor,
    ):

        async def is_said(read: Callable[[], Awaitable[str]]) -> bool:
            found = [line for line in (await read()).splitlines() if line.startswith(name)]
            return bool(found) and abs(float(found[0].removeprefix(name)) - ahead_seconds) < 30

        async def of_worker() -> str:
            return (await worker.get("/metrics"))[1]

        async def of_api() -> str:
            return str((await visitor.get("/metrics")).body)

        for read in (of_worker, of_api):
            await wait_until(partial(is_said, read), timeout_seconds=PATIENCE_SECONDS, what=read.__name__)


@pytest.mark.slow
async def test_clocks_that_agree_are_fine(engine: Engine, tmp_path: Path) -> None:
    said = await asyncio.to_thread(settle, ("doctor", "--json"), engine.variables, tmp_path)
    [clocks] = [check for check in said.json()["checks"] if check["name"] == "clocks"]
    assert clocks["ok"], clocks


@pytest.mark.parametrize("ahead_seconds", [-600, 600])
async def test_a_chain_whose_new_blocks_are_of_another_time_is_reported(
    engine: Engine, roles: RolePair, chain: Any, ahead_seconds: int
) -> None:
    def shift(method: str, _: list[Any], result: Any) -> Any:
        if method == "eth_getBlockByNumber" and result:
            return {**result, "timestamp": hex(int(result["timestamp"], 16) + ahead_seconds)}
        return result

    async with FaultyNode.in_front_of(chain.url) as node:
        node.answers(shift)
        async with (
            open_engine(engine.namespace, roles, chain, CHAIN_RPC_URLS=node.url) as shifted,
            shifted.service.autocommit() as connection,
        ):
            clock = ChainClock(shifted.reader, timedelta(seconds=2))
            assert await clock.compare(connection) is None
            assert await clock.compare(connection) is None, "no new block: an old one proves nothing"
            await chain.mine()
            found = await clock.compare(connection)
            assert found is not None
            assert abs(found.total_seconds() - ahead_seconds) < 60
            assert ClockOffsets(host=timedelta(0), chain=found).problems


SECOND = timedelta(seconds=1)


@pytest.mark.parametrize(
    ("offsets", "problems"),
    [
        (ClockOffsets(host=HOST_OFFSET_MAX), 0),
        (ClockOffsets(host=HOST_OFFSET_MAX + SECOND), 1),
        (ClockOffsets(host=-HOST_OFFSET_MAX - SECOND), 1),
        (ClockOffsets(host=0 * SECOND, chain=-CHAIN_BEHIND_MAX), 0),
        (ClockOffsets(host=0 * SECOND, chain=-CHAIN_BEHIND_MAX - SECOND), 1),
        (ClockOffsets(host=0 * SECOND, chain=CHAIN_AHEAD_MAX), 0),
        (ClockOffsets(host=0 * SECOND, chain=CHAIN_AHEAD_MAX + SECOND), 1),
        (ClockOffsets(host=HOST_OFFSET_MAX + SECOND, chain=CHAIN_AHEAD_MAX + SECOND), 2),
    ],
)
def test_both_sides_of_each_bound(offsets: ClockOffsets, problems: int) -> None:
    assert len(offsets.problems) == problems


def test_a_newest_block_may_be_a_block_time_old() -> None:
    now = datetime(2026, 1, 2, tzinfo=UTC)
    block_time = 2 * SECOND
    for age, offset in ((0, 0), (1, 0), (2, 0), (3, -1), (-3, 3)):
        assert chain_offset(now - age * SECOND, now, block_time) == offset * SECOND


def _set_expiry(engine: Engine, when: str) -> None:
    with connect(engine.database.superuser_url) as sql:
        sql.execute(f"UPDATE payment_attempts SET expires_at = {when}".encode())
