"""Declarations of operators' remedies, of the platform's jobs, and of publishing events."""

from __future__ import annotations

from abc import abstractmethod
from datetime import datetime

from pydantic import Field
from temporalio import activity

from activities.messages import Message, MintedBonus
from activities.signatures import Signatures
from domain.operations.events import PlatformEvent
from domain.operations.governance import Heartbeat, Income
from domain.operations.governance_call import GovernanceCall
from domain.operations.reconciliation.report import Report
from domain.operations.resolutions import RemedyRequest, TakenRemedy


class HeartbeatToTake(Message):
    """Input of a heartbeat (`key` is derived from its workflow)."""

    key: str
    scheduled_at: datetime
    low_balance_credits: int
    head_age_seconds_max: int


class TakenHeartbeat(Message):
    """Result of a heartbeat, and the crossings of the threshold that are not published yet."""

    heartbeat: Heartbeat
    low_balances: tuple[Heartbeat, ...] = Field(default=())


class HeartbeatRef(Message):
    """Which heartbeat."""

    key: str


class SpanToReport(Message):
    """Period of a report."""

    since: datetime
    until: datetime


class CallToPrepare(Message):
    """What a governance call shows the model: movements of a period. And how long its answer may be."""

    since: datetime
    until: datetime
    output_tokens_max: int


class CallToMake(Message):
    """A governance call (`key` is derived from its workflow) with its body."""

    key: str
    scheduled_at: datetime
    body: str


class IntentsToExpire(Message):
    """Grace period: intents are due this long after their expiry by the database's clock."""

    due_at: datetime
    """The due time by the caller's clock; used without a grace period, as in earlier runs."""
    batch_size: int
    grace_seconds: int | None = None


class RowsToPrune(Message):
    """How to prune."""

    idempotency_keys_hours: int
    batch_size: int


class PaymentsToPickUp(Message):
    """Payments that have waited for long enough that they must have a workflow."""

    submitted_before: datetime
    credited_since: datetime
    limit: int
    waiting_seconds: int | None = None
    """With `look_back_seconds` the same two times, by the database's clock; earlier runs have neither."""
    look_back_seconds: int | None = None
    chain_id: int | None = None
    """None is the chain of the worker that runs it."""


class FinalityToDecide(Message):
    """The chain whose credited payments are to be decided."""

    chain_id: int | None = None
    """None is the chain of the worker that runs it."""


class Done(Message):
    """Number of changes, by kind."""

    counts: dict[str, int]


class SingletonWorkflows(Message):
    """Ids of the singleton workflows that had to be started."""

    started: tuple[str, ...] = ()


class PeriodToReconcile(Message):
    """Minimum length of the period."""

    hours: int
    chain_id: int | None = None
    """None is the chain of the worker that runs it."""


class EventSignatures(Signatures):
    """Implemented by `activities.operations.events`."""

    @activity.defn(name="announce")
    @abstractmethod
    async def announce(self, event: PlatformEvent) -> None:
        """Publish one event."""


class GovernanceSignatures(Signatures):
    """Implemented by `activities.operations.governance`."""

    @activity.defn(name="take_heartbeat")
    @abstractmethod
    async def take_heartbeat(self, wanted: HeartbeatToTake) -> TakenHeartbeat:
        """Read everything once and store the heartbeat; a second run of the same heartbeat finds it stored."""

    @activity.defn(name="low_balance_announced")
    @abstractmethod
    async def low_balance_announced(self, heartbeat: HeartbeatRef) -> None:
        """Mark the event of a crossing as published."""

    @activity.defn(name="read_income")
    @abstractmethod
    async def read_income(self, span: SpanToReport) -> Income:
        """Movements of the system tenant's account in a period."""


class GovernanceLoopSignatures(Signatures):
    """Implemented by `activities.operations.governance_loop`."""

    @activity.defn(name="prepare_governance_call")
    @abstractmethod
    async def prepare_governance_call(self, wanted: CallToPrepare) -> str:
        """The call's body. It is kept in the workflow's history, so that each try sends the same."""

    @activity.defn(name="call_governance_model")
    @abstractmethod
    async def call_governance_model(self, wanted: CallToMake) -> GovernanceCall:
        """Make the call, and record its answer and charge; of a call that is on record already, that.

        Fails, to be retried, where the gateway gives no answer, or still makes the same call.
        """


class HousekeepingSignatures(Signatures):
    """Implemented by `activities.operations.housekeeping`."""

    @activity.defn(name="expire_intents")
    @abstractmethod
    async def expire_intents(self, wanted: IntentsToExpire) -> Done:
        """End every unpaid intent that is due, batch by batch."""

    @activity.defn(name="prune_expired_rows")
    @abstractmethod
    async def prune_expired_rows(self, wanted: RowsToPrune) -> Done:
        """Delete expired sessions, sign-in challenges, rate limits and idempotency keys, batch by batch."""

    @activity.defn(name="pick_up_payments")
    @abstractmethod
    async def pick_up_payments(self, wanted: PaymentsToPickUp) -> Done:
        """Start a workflow for every payment that should have one and has none."""

    @activity.defn(name="decide_finality")
    @abstractmethod
    async def decide_finality(self, wanted: FinalityToDecide) -> Done:
        """Record the credited payments that are final, and start reversals: what the watcher does at each block."""

    @activity.defn(name="ensure_standing_workflows")
    @abstractmethod
    async def ensure_standing_workflows(self) -> SingletonWorkflows:
        """Start the singleton workflows that do not run."""


class ReconciliationSignatures(Signatures):
    """Implemented by `activities.operations.reconciliation`."""

    @activity.defn(name="reconcile")
    @abstractmethod
    async def reconcile(self, wanted: PeriodToReconcile) -> Report:
        """Reconcile everything since the last time, and write the CSV if a folder is set."""


class RemedySignatures(Signatures):
    """Implemented by `activities.operations.resolutions`."""

    @activity.defn(name="take_remedy")
    @abstractmethod
    async def take_remedy(self, request: RemedyRequest) -> TakenRemedy:
        """Execute an operator's decision: its effect, the resolution and the audit trail in one transaction.

        Before a transfer is credited all nodes are asked for it, because it was observed by one. Raises `RemedyRefused`
        where they do not have it, `ChainUnavailable` (to be retried) where they disagree, and `PreconditionNotMet`
        where the token is not confirmed to be USDC.
        """

    @activity.defn(name="mint_bonus_of_credit")
    @abstractmethod
    async def mint_bonus_of_credit(self, taken: TakenRemedy) -> MintedBonus:
        """The system tenant's bonus on an operator's credit."""
