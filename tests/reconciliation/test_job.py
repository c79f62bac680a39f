"""The scheduled reconciliation: its assertion, its CSV, its event; and one that has nothing to reconcile."""

from __future__ import annotations

import csv
from datetime import timedelta
from pathlib import Path

import pytest
from temporalio.client import WorkflowFailureError
from temporalio.worker import Worker

from activities.interceptors import DomainErrors
from activities.operations.events import AnnouncementActivities
from activities.operations.reconciliation import ReconciliationActivities
from domain.operations.events import RECONCILED, PlatformEvent
from tests.reconciliation.books import HOUR, Books, ago, plant
from tests.support.engine import RESULT_TIMEOUT
from tests.support.payments import CHAIN_ID
from tests.support.servers import TASK_QUEUE, Namespace
from tests.support.sql import query
from workflows import policies
from workflows.jobs.reconcile import Reconcile, Reconciled, ReconcileInput
from workflows.naming import RECONCILE
from workflows.registry import JOBS


class Listener:
    """The receiver of events."""

    def __init__(self) -> None:
        self.heard: list[PlatformEvent] = []

    async def publish(self, event: PlatformEvent) -> None:
        """One more."""
        self.heard.append(event)


async def _run(namespace: Namespace, books: Books, folder: Path, listener: Listener, *, hours: int = 24) -> Reconciled:
    job = ReconciliationActivities(books.reconciliation(), chain_id=CHAIN_ID, directory=folder)
    async with Worker(
        namespace.client,
        task_queue=TASK_QUEUE,
        workflows=[Reconcile],
        activities=[job.reconcile, AnnouncementActivities(listener.publish).announce],
        interceptors=[DomainErrors()],
    ):
        return await namespace.client.execute_workflow(
            Reconcile.run,
            ReconcileInput(hours=hours),
            id="reconcile",
            task_queue=TASK_QUEUE,
            execution_timeout=RESULT_TIMEOUT,
        )


def test_a_schedule_may_name_it() -> None:
    assert JOBS[RECONCILE].input_model is ReconcileInput
    assert ReconcileInput().hours == 24


async def test_it_stores_and_publishes_its_report(books: Books, namespace: Namespace, tmp_path: Path) -> None:
    plant(books.roles, "UPDATE observed_transfers SET block_time = block_time - interval '2 h'")
    listener = Listener()
    found = await _run(namespace, books, tmp_path / "books", listener)
    assert (found.closes, found.alarms, found.counts, found.transfers) == (True, 0, {}, 7)
    [event] = listener.heard
    assert (event.type, event.id) == (RECONCILED, f"{RECONCILED}:{CHAIN_ID}:{found.assertion_id}")
    assert event.data["totals"]["transfers"] == "7"
    assert found.csv is not None
    [file] = (tmp_path / "books").iterdir()
    assert str(file) == found.csv
    assert len(list(csv.DictReader(file.read_text().splitlines()))) == 7
    [(period, minute)] = query(
        books.roles.database.superuser_url,
        "SELECT period_to - period_from, extract(minute FROM period_to)::int FROM balance_assertions",
    )
    assert (period, minute) == (timedelta(days=1), 0)


async def test_where_the_watcher_has_come_no_further_it_fails_in_sight(
    books: Books, namespace: Namespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plant(books.roles, "UPDATE chain_cursors SET updated_at = now() - interval '10 h'")
    await books.reconcile(ago(30 * HOUR), ago(9 * HOUR))
    monkeypatch.setattr("workflows.jobs.reconcile.RECONCILE_RETRY", policies.RECONCILE_RETRY)
    retry = policies.RECONCILE_RETRY
    monkeypatch.setattr(retry, "maximum_attempts", 1)
    with pytest.raises(WorkflowFailureError) as failed:
        await _run(namespace, books, tmp_path, Listener())
    cause = failed.value.cause
    assert "has been followed to" in str(cause.__cause__)
