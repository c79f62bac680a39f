"""What operators decide, what the platform's own jobs do, and events."""

from __future__ import annotations

from abc import abstractmethod
from datetime import datetime

from pydantic import Field
from temporalio import activity

from activities.messages import Message, MintedBonus
from activities.signatures import Signatures
from domain.operations.events import PlatformEvent
from domain.operations.governance import Heartbeat, Income
from domain.operations.reconciliation import Report
from domain.operations.resolutions import RemedyRequest, TakenRemedy


class HeartbeatToTake(Message):
    """Which heartbeat (`key` comes from its workflow), and what it measures with."""

    key: str
    scheduled_at: datetime
    low_balance_credits: int
    head_age_seconds_max: int


class TakenHeartbeat(Message):
    """What was found, and which crossings of the threshold nobody has heard of yet."""

    heartbeat: Heartbeat
    low_balances: tuple[Heartbeat, ...] = Field(default=())


class HeartbeatRef(Message):
    """Which heartbeat."""

    key: str


class SpanToReport(Message):
    """From when until when."""

    since: datetime
    until: datetime


class IntentsToExpire(Message):
    """Which intents are over: those whose time was up `grace_seconds` ago by the database's clock."""

    due_at: datetime
    """The same by the clock of whoever asked; it counts where there is no grace, as runs before that one have it."""
    batch_size: int
    grace_seconds: int | None = None


class RowsToPrune(Message):
    """How to prune."""

    idempotency_keys_hours: int
    batch_size: int


class PaymentsToPickUp(Message):
    """Which payments are asked about: those that have waited for long enough that a workflow must have them."""

    submitted_before: datetime
    credited_since: datetime
    limit: int
    waiting_seconds: int | None = None
    """With `look_back_seconds` the same two times, by the database's clock; runs before these have none."""
    look_back_seconds: int | None = None
    chain_id: int | None = None
    """None is the chain of the worker that takes it."""


class Done(Message):
    """How many, of what."""

    counts: dict[str, int]


class SingletonWorkflows(Message):
    """Ids of the workflows that run for ever and had to be started."""

    started: tuple[str, ...] = ()


class PeriodToReconcile(Message):
    """How long a period is, at least."""

    hours: int
    chain_id: int | None = None
    """None is the chain of the worker that takes it."""


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
        """Look at everything once and keep what was found; a second run of the same heartbeat finds it kept."""

    @activity.defn(name="low_balance_announced")
    @abstractmethod
    async def low_balance_announced(self, heartbeat: HeartbeatRef) -> None:
        """Write down that the event of a crossing has arrived."""

    @activity.defn(name="read_income")
    @abstractmethod
    async def read_income(self, span: SpanToReport) -> Income:
        """What moved the system tenant's account in a span of time."""


class HousekeepingSignatures(Signatures):
    """Implemented by `activities.operations.housekeeping`."""

    @activity.defn(name="expire_intents")
    @abstractmethod
    async def expire_intents(self, wanted: IntentsToExpire) -> Done:
        """End every unpaid intent whose time is up, batch by batch."""

    @activity.defn(name="prune_expired_rows")
    @abstractmethod
    async def prune_expired_rows(self, wanted: RowsToPrune) -> Done:
        """Delete sessions, sign-in challenges, rate limits and idempotency keys that are over, batch by batch."""

    @activity.defn(name="pick_up_payments")
    @abstractmethod
    async def pick_up_payments(self, wanted: PaymentsToPickUp) -> Done:
        """Give a workflow to every payment that should have one and has none."""

    @activity.defn(name="ensure_standing_workflows")
    @abstractmethod
    async def ensure_standing_workflows(self) -> SingletonWorkflows:
        """Start what runs for ever and does not run: nobody else looks again."""


class ReconciliationSignatures(Signatures):
    """Implemented by `activities.operations.reconciliation`."""

    @activity.defn(name="reconcile")
    @abstractmethod
    async def reconcile(self, wanted: PeriodToReconcile) -> Report:
        """Reconcile what has come since the last time, and write the CSV where a folder is set."""


class RemedySignatures(Signatures):
    """Implemented by `activities.operations.resolutions`."""

    @activity.defn(name="take_remedy")
    @abstractmethod
    async def take_remedy(self, request: RemedyRequest) -> TakenRemedy:
        """Do what the operator decided: what it changes, the finding's end and the audit trail in one transaction.

        Before a transfer is credited all nodes are asked for it: what was observed is the word of one. Raises
        `RemedyRefused` where they do not have it, `ChainUnavailable` (to be tried again) where they do not agree, and
        `PreconditionNotMet` where the token is not known to be USDC.
        """

    @activity.defn(name="mint_bonus_of_credit")
    @abstractmethod
    async def mint_bonus_of_credit(self, taken: TakenRemedy) -> MintedBonus:
        """The system tenant's share of what an operator credited, minted on top."""
