"""Record a history of every scheduled job: `make histories`, or `python -m tests.schedules.record_histories`.

To be run by hand after a change that is meant to change histories, and the files committed with that change. A job's
run is short, but `CheckBooks` may take eleven hours, and one that a new worker goes on with must replay. Names on the
command line record those paths only.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from pydantic import BaseModel
from temporalio import activity
from temporalio.client import Client, WorkflowFailureError, WorkflowHandle
from temporalio.exceptions import ApplicationError
from temporalio.worker import Worker

from activities.billing.signatures import (
    AlertsToPublish,
    DaysToReconcile,
    LapsedToResolve,
    MonthsToOpen,
    ProvidersReconciled,
    PublishedAlerts,
    ReceiptsChecked,
    ReceiptsToCheck,
)
from activities.deposits.signatures import (
    AddressesVerified,
    BalancesFound,
    BalancesToCheck,
    SweptBooked,
    SweptToBook,
)
from activities.ledger.signatures import AnnouncedChanges, BooksChange, BooksReport, BooksToCheck
from activities.messages import Rescan
from activities.operations.signatures import (
    CallToMake,
    CallToPrepare,
    Done,
    FinalityToDecide,
    HeartbeatRef,
    HeartbeatToTake,
    IntentsToExpire,
    PaymentsToPickUp,
    PeriodToReconcile,
    RowsToPrune,
    SingletonWorkflows,
    SpanToReport,
    TakenHeartbeat,
)
from activities.webhooks.signatures import DeliveriesToStart, WebhooksToPrune
from domain.operations.events import PlatformEvent
from domain.operations.governance import Heartbeat, HeartbeatStatus, Income
from domain.operations.governance_call import CallOutcome, GovernanceCall
from domain.operations.reconciliation.report import Period, Report
from domain.operations.reconciliation.totals import Totals
from domain.transfers.rescan import RescanReport
from tests.support.histories import RECORDER, Recorded
from tests.support.servers import TASK_QUEUE
from workflows.registry import JOBS

NOON: Final = datetime(2026, 1, 1, 12, tzinfo=UTC)

DEAF: Final = "_that_nobody_hears_of"
BROKEN: Final = "_that_fails"

PATHS: Final[dict[str, str]] = {
    "BillingHousekeeping": "BillingHousekeeping",
    f"BillingHousekeeping{DEAF}": "BillingHousekeeping",
    f"BillingHousekeeping{BROKEN}": "BillingHousekeeping",
    "BookSweeps": "BookSweeps",
    "CheckBooks": "CheckBooks",
    f"CheckBooks{DEAF}": "CheckBooks",
    "GovernanceHeartbeat": "GovernanceHeartbeat",
    f"GovernanceHeartbeat{DEAF}": "GovernanceHeartbeat",
    f"GovernanceHeartbeat{BROKEN}": "GovernanceHeartbeat",
    "GovernanceLoop": "GovernanceLoop",
    f"GovernanceLoop{DEAF}": "GovernanceLoop",
    f"GovernanceLoop{BROKEN}": "GovernanceLoop",
    "GovernanceReport": "GovernanceReport",
    "Housekeeping": "Housekeeping",
    f"Housekeeping{BROKEN}": "Housekeeping",
    "Reconcile": "Reconcile",
    f"Reconcile{DEAF}": "Reconcile",
    "ReconcileProviders": "ReconcileProviders",
    f"ReconcileProviders{DEAF}": "ReconcileProviders",
    f"ReconcileProviders{BROKEN}": "ReconcileProviders",
    "RescanChain": "RescanChain",
    "VerifyAddresses": "VerifyAddresses",
    "WebhookHousekeeping": "WebhookHousekeeping",
    f"WebhookHousekeeping{BROKEN}": "WebhookHousekeeping",
    "CheckDeposits": "CheckDeposits",
}
"""Path and job. With a receiver of events that takes none; with a database that answers no."""


class Script:
    """Activities as the product's, without a database or a chain."""

    def __init__(self, path: str) -> None:
        self._is_deaf = path.endswith(DEAF)
        self._is_broken = path.endswith(BROKEN)

    def activities(self) -> list[Callable[..., Any]]:
        """What the worker runs."""
        return [value for name in dir(self) if hasattr(value := getattr(self, name), "__temporal_activity_definition")]

    @activity.defn
    async def announce(self, event: PlatformEvent) -> None:
        if self._is_deaf:
            raise ApplicationError("the receiver takes no event", type="EVENT_NOT_DELIVERED", non_retryable=True)

    @activity.defn
    async def check_books(self, wanted: BooksToCheck) -> BooksReport:
        changes = tuple(
            BooksChange(id=number, check="balance", subject="account", detail="off", at=NOON, is_resolved=number == 2)
            for number in (1, 2)
        )
        return BooksReport(entries_checked=7, violations_open=1, changes=changes)

    @activity.defn
    async def note_books_announced(self, announced: AnnouncedChanges) -> None:
        pass

    @activity.defn
    async def take_heartbeat(self, wanted: HeartbeatToTake) -> TakenHeartbeat:
        if self._is_broken:
            raise ApplicationError("no database", type="DATABASE_UNAVAILABLE", non_retryable=True)
        heartbeat = Heartbeat(
            key=wanted.key,
            scheduled_at=NOON,
            status=HeartbeatStatus.LOW,
            account_present=True,
            is_flagged=True,
            balance_credits=1,
            threshold_credits=2,
            is_low=True,
            crossed=True,
            last_revenue_share_at=None,
            schema_revision=None,
            worker_version="0",
            chain_id=1,
            head_number=7,
            head_age_seconds=1,
            problems=(),
        )
        return TakenHeartbeat(heartbeat=heartbeat, low_balances=(heartbeat,))

    @activity.defn
    async def low_balance_announced(self, heartbeat: HeartbeatRef) -> None:
        pass

    @activity.defn
    async def read_income(self, span: SpanToReport) -> Income:
        return Income(since=span.since, until=span.until, by_reason={}, balance_credits=1)

    @activity.defn
    async def prepare_governance_call(self, wanted: CallToPrepare) -> str:
        return json.dumps({"model": "m", "max_tokens": wanted.output_tokens_max})

    @activity.defn
    async def call_governance_model(self, wanted: CallToMake) -> GovernanceCall:
        if self._is_broken:
            raise ApplicationError("401 invalid_api_key", type="GOVERNANCE_CALL_REFUSED", non_retryable=True)
        return GovernanceCall(
            key=wanted.key,
            scheduled_at=NOON,
            outcome=CallOutcome.ANSWERED,
            model="m",
            request_id="req_1",
            charged_credits=7,
            answer="yes",
        )

    @activity.defn
    async def expire_intents(self, wanted: IntentsToExpire) -> Done:
        if self._is_broken:
            raise ApplicationError("no database", type="DATABASE_UNAVAILABLE", non_retryable=True)
        return Done(counts={"self": 1})

    @activity.defn
    async def prune_expired_rows(self, wanted: RowsToPrune) -> Done:
        return Done(counts={"sessions": 1})

    @activity.defn
    async def pick_up_payments(self, wanted: PaymentsToPickUp) -> Done:
        return Done(counts={})

    @activity.defn
    async def decide_finality(self, wanted: FinalityToDecide) -> Done:
        return Done(counts={"final": 1})

    @activity.defn
    async def ensure_standing_workflows(self) -> SingletonWorkflows:
        return SingletonWorkflows()

    @activity.defn
    async def start_hold_resolutions(self, wanted: LapsedToResolve) -> Done:
        if self._is_broken:
            raise ApplicationError("no database", type="DATABASE_UNAVAILABLE", non_retryable=True)
        return Done(counts={"started": 1})

    @activity.defn
    async def open_findings_of_receipts(self, wanted: ReceiptsToCheck) -> ReceiptsChecked:
        return ReceiptsChecked(opened={"charge_doubtful": 1}, checked_to=NOON)

    @activity.defn
    async def list_billing_alerts(self) -> AlertsToPublish:
        event = PlatformEvent(id="a:1", type="billing.balance_exhausted", subject="account", time=NOON)
        return AlertsToPublish(events={1: event, 2: event.model_copy(update={"id": "a:2"})})

    @activity.defn
    async def note_billing_alerts(self, published: PublishedAlerts) -> None:
        pass

    @activity.defn
    async def open_receipt_months(self, wanted: MonthsToOpen) -> Done:
        return Done(counts={})

    @activity.defn
    async def reconcile(self, wanted: PeriodToReconcile) -> Report:
        period = Period(from_time=NOON, to_time=NOON)
        return Report(chain_id=1, period=period, totals=Totals(), closes=True, counts={}, assertion_id=1)

    @activity.defn
    async def reconcile_providers(self, wanted: DaysToReconcile) -> ProvidersReconciled:
        unread = {"other": "it is away"} if self._is_broken else {}
        return ProvidersReconciled(compared={"openai": wanted.days}, differences=("one",), unread=unread)

    @activity.defn
    async def book_swept(self, wanted: SweptToBook) -> SweptBooked:
        return SweptBooked(transfers=2)

    @activity.defn
    async def check_deposit_balances(self, wanted: BalancesToCheck) -> BalancesFound:
        return BalancesFound(block=7, addresses=3, found_transfers=1, problems=("one",))

    @activity.defn
    async def verify_addresses(self) -> AddressesVerified:
        return AddressesVerified(checked=7, wrong_count=1, problems=("one",))

    @activity.defn
    async def rescan_chain(self, rescan: Rescan) -> RescanReport:
        return RescanReport(first=1, last=rescan.blocks, endpoints=("node",), added=1)

    @activity.defn
    async def start_overdue_webhooks(self, wanted: DeliveriesToStart) -> Done:
        if self._is_broken:
            raise ApplicationError("no Temporal", type="TEMPORAL_UNAVAILABLE", non_retryable=True)
        return Done(counts={"started": 1})

    @activity.defn
    async def prune_webhooks(self, wanted: WebhooksToPrune) -> Done:
        return Done(counts={"webhook_events": 1})


async def walk(client: Client, path: str) -> WorkflowHandle[Any, Any]:
    """Walk one path to its end."""
    job = JOBS[PATHS[path]]
    async with Worker(
        client,
        task_queue=TASK_QUEUE,
        workflows=[job.workflow],
        activities=Script(path).activities(),
        identity=RECORDER,
    ):
        wanted: BaseModel = job.input_model()
        handle: WorkflowHandle[Any, Any] = await client.start_workflow(job.name, wanted, id=path, task_queue=TASK_QUEUE)
        with suppress(WorkflowFailureError):
            await handle.result()
    return handle


RECORDED: Final = Recorded(Path(__file__).parent / "histories", PATHS, walk, lambda path: JOBS[PATHS[path]].workflow)

if __name__ == "__main__":
    RECORDED.record(sys.argv[1:])
