"""Events that the platform publishes to other systems."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from datetime import datetime
from typing import Any, Final

from pydantic import BaseModel, ConfigDict, Field

PAYMENT_REVERSED: Final = "payment.reversed"
FINDING_OPENED: Final = "finding.opened"
FINDINGS_OPENED_TOGETHER: Final = "findings.opened"
BOOKS_VIOLATED: Final = "books.violated"
BOOKS_RESTORED: Final = "books.restored"
HEARTBEAT: Final = "governance.heartbeat"
LOW_BALANCE: Final = "governance.heartbeat.low_balance"
GOVERNANCE_REPORT: Final = "governance.report"
GOVERNANCE_CALL: Final = "governance.call"
BALANCE_EXHAUSTED: Final = "billing.balance_exhausted"
LIMIT_REACHED: Final = "billing.limit_reached"
PROVIDERS_RECONCILED: Final = "billing.providers_reconciled"
RECONCILED: Final = "reconciliation.completed"


class PlatformEvent(BaseModel):
    """One event, with the attributes of CloudEvents.

    `id` is derived from facts, so that a receiver can detect a duplicate. `subject` is what it is about (an attempt, an
    account).
    """

    model_config = ConfigDict(frozen=True)

    id: str
    type: str
    subject: str
    time: datetime
    data: dict[str, Any] = Field(default_factory=dict)


Publish = Callable[[PlatformEvent], Awaitable[None]]
"""Deliver an event. Raises where it was not accepted, so that it is sent again."""
