"""What a reconciliation compares, and which transfer was credited as what."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from uuid import UUID

from domain.operations.findings import FindingKind, Remedy
from domain.payments.attempt import AttemptStatus, Purpose
from domain.transfers.identity import Place, alike_key, assign_places


@dataclass(frozen=True, slots=True)
class KnownFinding:
    """A finding about a transfer, as it stands."""

    finding_id: UUID
    kind: FindingKind
    resolution: str | None
    detail: str = ""

    @property
    def is_open(self) -> bool:
        """Whether it waits for an operator."""
        return self.resolution is None

    @property
    def is_excused(self) -> bool:
        """Whether an operator has decided to leave it, or has sent the money back."""
        return self.resolution in {Remedy.WRITE_OFF, Remedy.REFUND_RECORDED}


@dataclass(frozen=True, slots=True)
class Observed:
    """A transfer to the treasury on the canonical chain."""

    log_index: int
    block_number: int
    block_time: str
    from_address: str
    value_raw: int
    in_period: bool
    is_past_grace_period: bool
    """Whether the watcher has had enough time to say what it is for."""
    finding: KnownFinding | None = None
    is_income: bool = True
    """Whether money came in; not where the treasury, of now or before, paid itself."""
    is_too_old: bool = False
    """Whether it was mined before the first block that settle answers for."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One ledger entry with its effect on the treasury's account."""

    reason: str
    billing_account_id: str
    amount_credits: int
    cash_debit_credits: int
    cash_credit_credits: int
    in_period: bool


@dataclass(frozen=True, slots=True)
class OperatorCredit:
    """What an operator credited of a transfer."""

    finding_id: UUID
    billing_account_id: str
    value_raw: int
    bonus_credits: int
    reference: str
    entries: tuple[Entry, ...]


@dataclass(frozen=True, slots=True)
class Application:
    """What a transfer was credited for: an attempt, or by an operator."""

    log_index: int
    """Where it is now, as far as is known."""
    block_number: int
    from_address: str
    value_raw: int
    attempt_id: UUID | None = None
    status: AttemptStatus | None = None
    purpose: Purpose | None = None
    billing_account_id: str = ""
    amount_raw: int = 0
    """What the attempt asked for."""
    bonus_credits: int = 0
    """What its bonus should be."""
    outcome: str | None = None
    """Of its finality: "final", "reversed", or not known yet."""
    is_covered: bool = True
    """Whether the watcher has been through its block; nothing is said of what it would not have seen."""
    was_orphaned: bool = False
    entries: tuple[Entry, ...] = ()
    surplus_raw: int = 0
    surplus_finding: KnownFinding | None = None
    alarm_finding: KnownFinding | None = None
    disagreement_finding: KnownFinding | None = None
    credit: OperatorCredit | None = None
    """Of the whole transfer, or of the surplus."""

    @property
    def is_operators(self) -> bool:
        """Whether an operator credited the transfer, and no attempt."""
        return self.attempt_id is None

    @property
    def stands(self) -> bool:
        """Whether it still is what the transfer was credited for."""
        return self.is_operators or self.status is AttemptStatus.CREDITED


@dataclass(frozen=True, slots=True)
class Transaction:
    """All transfers of one transaction, and all that was credited for them."""

    chain_id: int
    tx_hash: str
    observed: tuple[Observed, ...]
    applications: tuple[Application, ...]


def match(
    observed: Sequence[Observed], applications: Sequence[Application]
) -> tuple[list[tuple[Observed, Application]], list[Observed], list[Application]]:
    """Pairs of transfer and application, and what is left over on either side.

    By what they are (`domain.transfers.identity`); then by place alone, which is a contradiction and reported as one.
    """
    standing = [application for application in applications if application.stands]
    pairs = _pair_twins(observed, standing)
    left = [transfer for transfer in observed if all(transfer is not one for one, _ in pairs)]
    right = [application for application in standing if all(application is not one for _, one in pairs)]
    for transfer in list(left):
        for application in right:
            if transfer.log_index == application.log_index:
                pairs.append((transfer, application))
                left.remove(transfer)
                right.remove(application)
                break
    return pairs, left, right


def _pair_twins(
    observed: Sequence[Observed], applications: Sequence[Application]
) -> list[tuple[Observed, Application]]:
    pairs = []
    transfers: defaultdict[tuple[str, int], dict[int, Observed]] = defaultdict(dict)
    for transfer in observed:
        transfers[alike_key(transfer)][transfer.log_index] = transfer
    paid: defaultdict[tuple[str, int], list[Application]] = defaultdict(list)
    for application in applications:
        paid[alike_key(application)].append(application)
    for key, twins in transfers.items():
        # A log's index is where the transfer is now, as far as that is known: of which block is not asked.
        places = [Place(None, application.log_index) for application in paid[key]]
        assigned = assign_places(None, twins, places)
        pairs += [(twins[log_index], paid[key][number]) for log_index, number in assigned.items()]
    return pairs
