"""Every workflow that a worker runs, and the scheduled jobs among them.

Not in `workflows.jobs`: the sandbox loads a workflow's package again for every run, and needs one module of it only.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Final

from pydantic import BaseModel

from activities.deposits.signatures import BalancesToCheck, SweptToBook
from activities.messages import Rescan
from workflows.deliver_webhook import DeliverWebhook
from workflows.jobs.billing_housekeeping import BillingHousekeeping, BillingHousekeepingInput
from workflows.jobs.book_sweeps import BookSweeps
from workflows.jobs.check_books import CheckBooks, CheckBooksInput
from workflows.jobs.check_deposits import CheckDeposits
from workflows.jobs.governance_heartbeat import GovernanceHeartbeat, HeartbeatInput
from workflows.jobs.governance_loop import GovernanceLoop, GovernanceLoopInput
from workflows.jobs.governance_report import GovernanceReport, ReportInput
from workflows.jobs.housekeeping import Housekeeping, HousekeepingInput
from workflows.jobs.reconcile import Reconcile, ReconcileInput
from workflows.jobs.reconcile_providers import ReconcileProviders, ReconcileProvidersInput
from workflows.jobs.rescan_chain import RescanChain
from workflows.jobs.verify_addresses import VerifyAddresses, VerifyAddressesInput
from workflows.jobs.webhook_housekeeping import WebhookHousekeeping, WebhookHousekeepingInput
from workflows.naming import (
    BILLING_HOUSEKEEPING,
    BOOK_SWEEPS,
    CHECK_BOOKS,
    CHECK_DEPOSITS,
    GOVERNANCE_HEARTBEAT,
    GOVERNANCE_LOOP,
    GOVERNANCE_REPORT,
    HOUSEKEEPING,
    RECONCILE,
    RECONCILE_PROVIDERS,
    RESCAN_CHAIN,
    VERIFY_ADDRESSES,
    WEBHOOK_HOUSEKEEPING,
)
from workflows.resolve_finding import ResolveFinding
from workflows.resolve_hold import ResolveHold
from workflows.reverse_payment import ReversePayment
from workflows.sweep import Sweep
from workflows.verify_and_settle import VerifyAndSettle
from workflows.watch_chain import WatchChain

CHAIN_FIELD: Final = "chain_id"
"""Field of a job's input with its chain; a job without it works for the platform."""


@dataclass(frozen=True, slots=True)
class Job:
    """One kind of scheduled workflow. `input_model` can be made without arguments."""

    name: str
    workflow: type[Any]
    input_model: type[BaseModel]

    @property
    def is_of_one_chain(self) -> bool:
        """Whether each chain has a schedule of its own for it."""
        return CHAIN_FIELD in self.input_model.model_fields


JOBS: Final[Mapping[str, Job]] = MappingProxyType(
    {
        job.name: job
        for job in (
            Job(BILLING_HOUSEKEEPING, BillingHousekeeping, BillingHousekeepingInput),
            Job(BOOK_SWEEPS, BookSweeps, SweptToBook),
            Job(CHECK_BOOKS, CheckBooks, CheckBooksInput),
            Job(CHECK_DEPOSITS, CheckDeposits, BalancesToCheck),
            Job(GOVERNANCE_HEARTBEAT, GovernanceHeartbeat, HeartbeatInput),
            Job(GOVERNANCE_LOOP, GovernanceLoop, GovernanceLoopInput),
            Job(GOVERNANCE_REPORT, GovernanceReport, ReportInput),
            Job(HOUSEKEEPING, Housekeeping, HousekeepingInput),
            Job(RECONCILE, Reconcile, ReconcileInput),
            Job(RECONCILE_PROVIDERS, ReconcileProviders, ReconcileProvidersInput),
            Job(RESCAN_CHAIN, RescanChain, Rescan),
            Job(VERIFY_ADDRESSES, VerifyAddresses, VerifyAddressesInput),
            Job(WEBHOOK_HOUSEKEEPING, WebhookHousekeeping, WebhookHousekeepingInput),
        )
    }
)
"""The jobs that `settle schedules apply` accepts as `job:`, with the model's fields as `input:`."""

WORKFLOWS: Final[tuple[type[Any], ...]] = (
    VerifyAndSettle,
    ReversePayment,
    WatchChain,
    ResolveFinding,
    ResolveHold,
    Sweep,
    DeliverWebhook,
    *(job.workflow for job in JOBS.values()),
)
