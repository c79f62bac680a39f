"""What a reconciliation reports: differences, and what to do about each."""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum
from typing import Final
from uuid import UUID

from pydantic import BaseModel, ConfigDict, Field
from pydantic.alias_generators import to_camel

from domain.operations.findings import ALARMS, Finding
from domain.operations.reconciliation.totals import Totals

TOO_MANY: Final = "too_many"
"""More was found than one run examines."""

SHOWN_PER_KIND_MAX: Final = 200
"""Differences of one kind that a report lists; all are counted, and those for an operator are findings."""


class Severity(StrEnum):
    """What a difference asks for."""

    ALARM = "alarm"
    """The ledger is wrong: an operator has to act now."""

    OPERATOR = "operator"
    """Waits for an operator's decision; the books are right."""

    STARTED = "started"
    """A workflow was missing and has been started: it is being fixed."""

    NOTICE = "notice"
    """Nothing is wrong, but the period is not all that there is to say."""


OPERATOR_BONUS_MISSING: Final = "operator_bonus_missing"
TRANSFER_REORGANISED: Final = "transfer_reorganised"
TRANSFER_UNDECIDED: Final = "transfer_undecided"
TOTALS_DO_NOT_CLOSE: Final = "totals_do_not_close"
WATCHER_BEHIND: Final = "watcher_behind"
WORKFLOWS_NOT_ASKED: Final = "workflows_not_asked"
"""Kinds of differences beside those of findings."""


class Part(BaseModel):
    """Immutable part of a report, in camelCase on the wire."""

    model_config = ConfigDict(frozen=True, alias_generator=to_camel, populate_by_name=True)


class Difference(Part):
    """One thing that does not agree, with what to do about it."""

    kind: str
    severity: Severity
    detail: str
    remedy: str
    finding_id: UUID | None = None
    chain_id: int | None = None
    tx_hash: str | None = None
    log_index: int | None = None
    attempt_id: UUID | None = None
    billing_account_id: str | None = None
    value_raw: int | None = None


def difference_of(found: Finding, finding_id: UUID, *, detail: str | None = None) -> Difference:
    """A finding as a line of the report."""
    return Difference(
        kind=found.kind.value,
        severity=Severity.ALARM if found.kind in ALARMS else Severity.OPERATOR,
        detail=detail or found.detail,
        remedy=f"settle findings show {finding_id}",
        finding_id=finding_id,
        chain_id=found.chain_id,
        tx_hash=found.tx_hash,
        log_index=found.log_index,
        attempt_id=found.attempt_id,
        billing_account_id=found.billing_account_id,
        value_raw=found.value_raw,
    )


class Period(Part):
    """From a moment to another, which is not in it."""

    from_time: datetime = Field(alias="from")
    to_time: datetime = Field(alias="to")


class Report(Part):
    """What a reconciliation found. `differences` lists some of each kind, `counts` counts all."""

    chain_id: int
    period: Period
    totals: Totals
    closes: bool
    counts: dict[str, int]
    values_raw: dict[str, int] = Field(default_factory=dict)
    """What the differences of each kind are about, in token units, as far as that is known."""
    alarms: int = 0
    """How many differences say that the books are wrong."""
    differences: tuple[Difference, ...] = ()
    started: tuple[str, ...] = ()
    """Ids of workflows that were missing and have been started."""
    assertion_id: int | None = None
    csv: str | None = None
    seconds: int = 0

    @property
    def is_well(self) -> bool:
        """Whether nothing is wrong: what waits for an operator, or has been started, is not."""
        return self.closes and not self.alarms
