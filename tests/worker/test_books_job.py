"""The scheduled books check, from the schedule's input to the event, the metric and the command's exit code."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from pathlib import Path
from typing import Any, Final

import pytest
from prometheus_client import REGISTRY
from temporalio.client import WorkflowFailureError
from temporalio.common import RetryPolicy

from db.engine import ServiceDatabase
from db.ledger.invariants import CHECK_NAMES
from domain.operations.events import BOOKS_RESTORED, BOOKS_VIOLATED, PlatformEvent
from tests.cli.command import settle
from tests.support.engine import RESULT_TIMEOUT, Engine
from tests.support.servers import TASK_QUEUE
from tests.support.sql import connect, query
from worker import build_worker
from workflows import policies
from workflows.jobs.check_books import CheckBooks, CheckBooksInput
from workflows.naming import CHECK_BOOKS
from workflows.registry import JOBS

SPOIL: Final = "UPDATE billing_accounts SET balance_credits = balance_credits + %s WHERE is_system_tenant"


class Receiver:
    """The receiver of events; unavailable for as long as it is asked to be."""

    def __init__(self) -> None:
        self.told: list[PlatformEvent] = []
        self.is_deaf = False

    async def publish(self, event: PlatformEvent) -> None:
        """Take an event."""
        if self.is_deaf:
            raise ConnectionError("deaf")
        self.told.append(event)

    def news(self) -> list[tuple[str, str]]:
        """Types and subjects since the last call."""
        news = [(event.type, event.subject) for event in self.told]
        self.told.clear()
        return news


def spoil(engine: Engine, credits: int) -> None:
    """Change the system tenant's balance behind every check."""
    with connect(engine.database.superuser_url, triggers=False) as superuser:
        superuser.execute(SPOIL, (credits,))


def violations(check: str) -> float | None:
    """What the gauge says."""
    return REGISTRY.get_sample_value("settle_books_violations", {"check": check})


async def check(engine: Engine, *, full: bool = False) -> dict[str, Any]:
    """Run the job once, as a schedule does; its result."""
    client = engine.namespace.client
    handle = await client.start_workflow(
        CHECK_BOOKS, {"full": full}, id=f"books-{full}", task_queue=TASK_QUEUE, result_type=dict[str, Any]
    )
    result: dict[str, Any] = await handle.result(rpc_timeout=RESULT_TIMEOUT)
    return result


async def test_a_violation_is_announced_once_and_its_end_too(engine: Engine, tmp_path: Path) -> None:
    receiver = Receiver()
    payer, intent, sent = await engine.buy()
    async with build_worker(
        engine.namespace.client,
        engine.settings,
        chain=engine.reader,
        settlement=engine.settlement,
        service=engine.service,
        publish=receiver.publish,
    ):
        await engine.submit(payer, intent, sent)
        result = await check(engine, full=True)
        assert (result["violations_open"], receiver.news()) == (0, [])
        assert [violations(name) for name in CHECK_NAMES] == [0.0] * len(CHECK_NAMES)
        assert REGISTRY.get_sample_value("settle_books_last_check_timestamp_seconds")

        spoil(engine, 1)
        assert (await check(engine))["violations_open"] == 1
        assert receiver.news() == [(BOOKS_VIOLATED, "cogni_system")]
        assert violations("account_balance") == 1.0
        answer = await asyncio.to_thread(settle, ("doctor", "--json"), engine.variables, tmp_path)
        assert answer.exit_code == 1
        [books] = [found for found in answer.json()["checks"] if found["name"] == "books"]
        assert "balance of account cogni_system" in books["detail"]
        assert "0 min ago" in books["detail"]
        assert (await check(engine))["violations_open"] == 1
        assert receiver.news() == []

        spoil(engine, -1)
        assert (await check(engine, full=True))["violations_open"] == 0
        assert receiver.news() == [(BOOKS_RESTORED, "cogni_system")]
        assert violations("account_balance") == 0.0
        answer = await asyncio.to_thread(settle, ("doctor", "--full", "--json"), engine.variables, tmp_path)
        [books] = [found for found in answer.json()["checks"] if found["name"] == "books"]
        assert books["ok"]
        assert "every row was checked" in books["detail"]


@pytest.mark.usefixtures("sandboxed")
async def test_what_the_receiver_did_not_take_is_announced_by_the_next_check(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(policies, "BEAT_ANNOUNCE_SCHEDULE_TO_CLOSE", timedelta(seconds=1))
    receiver = Receiver()
    async with build_worker(
        engine.namespace.client,
        engine.settings,
        chain=engine.reader,
        settlement=engine.settlement,
        service=engine.service,
        publish=receiver.publish,
    ):
        spoil(engine, 1)
        receiver.is_deaf = True
        assert (await check(engine, full=True))["violations_open"] == 1
        receiver.is_deaf = False
        assert receiver.news() == []
        await check(engine)
        first = list(receiver.told)
        assert receiver.news() == [(BOOKS_VIOLATED, "cogni_system")]
        [(row_id, announced)] = query(
            engine.database.service_url, "SELECT id, announced_at IS NOT NULL FROM books_violations"
        )
        assert announced
        assert first[0].id == f"{BOOKS_VIOLATED}:account_balance:cogni_system:{row_id}"


async def test_the_job_is_found_by_its_name_and_takes_nothing_for_an_ordinary_check() -> None:
    job = JOBS[CHECK_BOOKS]
    assert (job.workflow, job.input_model) == (CheckBooks, CheckBooksInput)
    assert CheckBooksInput().full is False


async def test_a_check_without_a_database_fails_in_sight(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        policies, "BATCHES_RETRY", RetryPolicy(initial_interval=timedelta(milliseconds=1), maximum_attempts=2)
    )
    gone = ServiceDatabase(engine.database.service_url.replace(engine.database.name, "not_there"))
    async with build_worker(
        engine.namespace.client, engine.settings, chain=engine.reader, settlement=engine.settlement, service=gone
    ):
        with pytest.raises(WorkflowFailureError):
            await check(engine)
    await gone.dispose()
