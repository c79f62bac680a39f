"""Governance of the system tenant's account: what a heartbeat reports, and which events follow from it."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any, Final

from pydantic import BaseModel, ConfigDict

from domain.identifiers import SYSTEM_TENANT_ACCOUNT_ID
from domain.money import credits_for_usd_cents
from domain.operations.events import HEARTBEAT, LOW_BALANCE, PlatformEvent

DEFAULT_LOW_BALANCE_CREDITS: Final = credits_for_usd_cents(1_000)

TENANT_NOT_FLAGGED: Final = f"account {SYSTEM_TENANT_ACCOUNT_ID} is not flagged as the system tenant"
TENANT_NOT_VISIBLE: Final = f"the platform's principal sees no account {SYSTEM_TENANT_ACCOUNT_ID}"


class HeartbeatStatus(StrEnum):
    """Overall state of a heartbeat."""

    OK = "ok"
    LOW = "low"
    """Everything works, but the balance is below the threshold."""

    FAILED = "failed"
    """A required part is missing or could not be read; `problems` names it."""


class Value(BaseModel):
    """Immutable value."""

    model_config = ConfigDict(frozen=True)


class Reading(Value):
    """Readings of a heartbeat. A value that could not be read is None, with a line in `problems`."""

    account_present: bool = False
    is_flagged: bool = False
    balance_credits: int | None = None
    last_revenue_share_at: datetime | None = None
    schema_revision: str | None = None
    chain_id: int
    head_number: int | None = None
    head_mined_at: datetime | None = None
    problems: tuple[str, ...] = ()


class Heartbeat(Value):
    """One heartbeat as stored. `key` is derived from the workflow that it belongs to."""

    key: str
    scheduled_at: datetime
    status: HeartbeatStatus
    account_present: bool
    is_flagged: bool
    balance_credits: int | None
    threshold_credits: int
    is_low: bool
    """Below the threshold; where the balance could not be read, as in the previous heartbeat."""
    crossed: bool
    """The first heartbeat below the threshold after one that was not."""
    last_revenue_share_at: datetime | None
    schema_revision: str | None
    worker_version: str
    chain_id: int
    head_number: int | None
    head_age_seconds: int | None
    problems: tuple[str, ...]


def evaluate_heartbeat(
    reading: Reading,
    *,
    key: str,
    scheduled_at: datetime,
    now: datetime,
    threshold_credits: int,
    head_age_max: timedelta,
    worker_version: str,
    was_low: bool,
) -> Heartbeat:
    """Evaluate the readings; `was_low` is the previous heartbeat's state."""
    head_age = now - reading.head_mined_at if reading.head_mined_at is not None else None
    problems = [*reading.problems]
    if reading.balance_credits is not None and not reading.is_flagged:
        problems.append(TENANT_NOT_FLAGGED)
    if head_age is not None and head_age > head_age_max:
        problems.append(f"the chain's newest block is {_seconds(head_age)} s old, more than {_seconds(head_age_max)} s")
    is_low = was_low if reading.balance_credits is None else reading.balance_credits < threshold_credits
    return Heartbeat(
        key=key,
        scheduled_at=scheduled_at,
        status=HeartbeatStatus.FAILED if problems else HeartbeatStatus.LOW if is_low else HeartbeatStatus.OK,
        account_present=reading.account_present,
        is_flagged=reading.is_flagged,
        balance_credits=reading.balance_credits,
        threshold_credits=threshold_credits,
        is_low=is_low,
        crossed=is_low and not was_low,
        last_revenue_share_at=reading.last_revenue_share_at,
        schema_revision=reading.schema_revision,
        worker_version=worker_version,
        chain_id=reading.chain_id,
        head_number=reading.head_number,
        # Clocks differ slightly: a block from the future counts as new.
        head_age_seconds=None if head_age is None else max(_seconds(head_age), 0),
        problems=tuple(problems),
    )


def heartbeat_event(heartbeat: Heartbeat) -> PlatformEvent:
    """The event of every heartbeat."""
    return _event(HEARTBEAT, heartbeat, _facts(heartbeat))


def low_balance_event(heartbeat: Heartbeat) -> PlatformEvent:
    """The event of the heartbeat that first found the balance below the threshold."""
    facts = _facts(heartbeat)
    return _event(LOW_BALANCE, heartbeat, {name: facts[name] for name in ("balanceCredits", "thresholdCredits")})


def _event(type_: str, heartbeat: Heartbeat, data: Mapping[str, Any]) -> PlatformEvent:
    return PlatformEvent(
        id=f"{type_}:{heartbeat.key}",
        type=type_,
        subject=SYSTEM_TENANT_ACCOUNT_ID,
        time=heartbeat.scheduled_at,
        data=dict(data),
    )


def _facts(heartbeat: Heartbeat) -> dict[str, Any]:
    share_at = heartbeat.last_revenue_share_at
    return {
        "status": heartbeat.status.value,
        "accountPresent": heartbeat.account_present,
        "isFlagged": heartbeat.is_flagged,
        "balanceCredits": heartbeat.balance_credits,
        "thresholdCredits": heartbeat.threshold_credits,
        "isLow": heartbeat.is_low,
        "lastRevenueShareAt": share_at.isoformat() if share_at else None,
        "schemaRevision": heartbeat.schema_revision,
        "workerVersion": heartbeat.worker_version,
        "chainId": heartbeat.chain_id,
        "headNumber": heartbeat.head_number,
        "headAgeSeconds": heartbeat.head_age_seconds,
        "problems": list(heartbeat.problems),
    }


class Income(Value):
    """Movements of the system tenant's account in a period, by reason (credits; negative where spent)."""

    since: datetime
    until: datetime
    balance_credits: int
    by_reason: dict[str, int]

    @property
    def spent_credits(self) -> int:
        """Credits spent. Reversals of earlier income are not spending."""
        return -sum(amount for reason, amount in self.by_reason.items() if amount < 0 and reason != "payment_reversal")

    @property
    def runway_days(self) -> int | None:
        """Whole days that the balance lasts at this rate; None where nothing was spent."""
        if self.spent_credits == 0:
            return None
        seconds = int((self.until - self.since).total_seconds())
        return max(self.balance_credits, 0) * seconds // (self.spent_credits * 86_400)


def _seconds(span: timedelta) -> int:
    return int(span.total_seconds())
