"""Declarations of what is done about calls outside the gateway: lapsed holds, alerts, doubtful receipts."""

from __future__ import annotations

from abc import abstractmethod
from datetime import datetime
from decimal import Decimal
from uuid import UUID

from pydantic import Field
from temporalio import activity

from activities.messages import HoldRef, Message
from activities.operations.signatures import Done
from activities.signatures import Signatures
from domain.operations.events import PlatformEvent


class CallRecord(Message):
    """What the provider has on record of a call; `words` say why there is none."""

    is_there: bool = False
    units: dict[str, int] = Field(default_factory=dict)
    stated_cost_usd: Decimal | None = None
    implausible: str | None = None
    """Why the record cannot be true."""
    words: str = ""


class HoldToResolve(Message):
    """A hold to charge by this record."""

    hold_id: UUID
    billing_account_id: str
    record: CallRecord


class ResolvedHold(Message):
    """What became of a hold: `captured`, or what it was already (`repeated`, `voided`, `not_lapsed`)."""

    outcome: str
    charged_credits: int | None = None
    basis: str = ""


class LapsedToResolve(Message):
    """Most resolutions that one run starts."""

    limit: int


class AlertsToPublish(Message):
    """Crossings that are not published yet: the event of each, by its number."""

    events: dict[int, PlatformEvent] = Field(default_factory=dict)


class PublishedAlerts(Message):
    """The crossings whose events were accepted."""

    ids: tuple[int, ...]


class ReceiptsToCheck(Message):
    """Most findings that one transaction opens."""

    batch_size: int


class ReceiptsChecked(Message):
    """Findings opened, and up to when every receipt has been checked."""

    opened: dict[str, int] = Field(default_factory=dict)
    checked_to: datetime | None = None


class MonthsToOpen(Message):
    """How many months of receipts are prepared besides this one."""

    months_ahead: int


class DaysToReconcile(Message):
    """How many completed UTC days before this one."""

    days: int
    until: datetime
    """Of the run: the last day is the one before this time's."""


class ProvidersReconciled(Message):
    """Days compared, by upstream; what differs; and the upstreams whose bill could not be read."""

    compared: dict[str, int] = Field(default_factory=dict)
    differences: tuple[str, ...] = ()
    unread: dict[str, str] = Field(default_factory=dict)


class HoldSignatures(Signatures):
    """Implemented by `activities.billing.holds`."""

    @activity.defn(name="look_up_call")
    @abstractmethod
    async def look_up_call(self, hold: HoldRef) -> CallRecord:
        """What the provider has on record of a call whose gateway has died.

        Fails, to be retried, where the provider keeps records and has none of the call yet.
        """

    @activity.defn(name="resolve_hold")
    @abstractmethod
    async def resolve_hold(self, wanted: HoldToResolve) -> ResolvedHold:
        """Charge the call where its lease is over; otherwise say what became of the hold."""


class BillingHousekeepingSignatures(Signatures):
    """Implemented by `activities.billing.housekeeping`."""

    @activity.defn(name="start_hold_resolutions")
    @abstractmethod
    async def start_hold_resolutions(self, wanted: LapsedToResolve) -> Done:
        """Start a workflow for every hold whose lease is over and that has none."""

    @activity.defn(name="open_findings_of_receipts")
    @abstractmethod
    async def open_findings_of_receipts(self, wanted: ReceiptsToCheck) -> ReceiptsChecked:
        """A finding for each receipt that is in doubt, or that the account could not pay in full."""

    @activity.defn(name="list_billing_alerts")
    @abstractmethod
    async def list_billing_alerts(self) -> AlertsToPublish:
        """The events of crossings that are not published yet, the oldest first."""

    @activity.defn(name="note_billing_alerts")
    @abstractmethod
    async def note_billing_alerts(self, published: PublishedAlerts) -> None:
        """Mark crossings as published."""

    @activity.defn(name="open_receipt_months")
    @abstractmethod
    async def open_receipt_months(self, wanted: MonthsToOpen) -> Done:
        """Prepare the partitions of the coming months."""


class ProviderReconciliationSignatures(Signatures):
    """Implemented by `activities.billing.reconciliation`."""

    @activity.defn(name="reconcile_providers")
    @abstractmethod
    async def reconcile_providers(self, wanted: DaysToReconcile) -> ProvidersReconciled:
        """Compare what providers say they billed with receipts, ledger and holds, day by day."""
