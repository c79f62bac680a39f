"""Reconciliation: chain, attempts, ledger and operators' credits laid side by side, transaction by transaction.

Each observed transfer of a period is applied to what its value was credited for, and what is left of it is unapplied.
Everything is attributed to the time of the transfer's block, whenever it was credited. Two equations must hold:

    inflow = purchases + donations + operators' credits + unapplied

The inflow and what is unapplied come from the chain and from what the attempts agreed; the credits come from the
ledger. And of the ledger's own account of the treasury, by the time of posting:

    debits = credited for transfers of the period - posted outside it + posted in it for transfers outside it
    credits = reversals

The left sides are sums over the journal, the right sides are found by walking through transfers and attempts: an entry
that nothing explains keeps them apart.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, Final
from uuid import UUID

from domain.identifiers import SYSTEM_TENANT_ACCOUNT_ID
from domain.ledger.entries import Reason
from domain.money import credits_for_raw
from domain.operations.findings import REOPENING_RESOLUTIONS, Finding, FindingKind, Remedy, transfer_key
from domain.operations.reconciliation.matching import (
    Application,
    Entry,
    KnownFinding,
    Observed,
    OperatorCredit,
    Transaction,
    match,
)
from domain.operations.reconciliation.report import (
    TRANSFER_REORGANISED,
    Difference,
    Severity,
    difference_of,
)
from domain.operations.reconciliation.totals import Totals
from domain.payments.attempt import AttemptStatus, Purpose
from domain.payments.recovery import find_due
from domain.transfers.identity import is_alike

DUST: Final = "dust"
"""What a line of the books calls a transfer that is too small for a finding."""


@dataclass(frozen=True, slots=True)
class Line:
    """How one observed transfer was applied: one line of the books. The four parts make up its value."""

    observed: Observed
    kind: str
    attempt_id: UUID | None = None
    billing_account_id: str | None = None
    purchase_credits: int = 0
    donation_credits: int = 0
    operator_credits: int = 0
    unapplied_raw: int = 0
    finding_id: UUID | None = None


@dataclass(slots=True)
class Outcome:
    """What one transaction contributes."""

    totals: Totals = field(default_factory=Totals)
    lines: list[Line] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)
    """To be written down."""
    known: list[Difference] = field(default_factory=list)
    """Findings that are open already."""
    undecided: list[Observed] = field(default_factory=list)
    """Transfers without a decision although their grace period is over."""
    notices: list[Difference] = field(default_factory=list)
    unfinished: list[UUID] = field(default_factory=list)
    """Attempts for which something is due and not there, but may be in progress: their workflows know."""
    unfinished_credits: list[UUID] = field(default_factory=list)
    """Findings that were credited and whose bonus is due."""


def reconcile(transaction: Transaction, *, dust_below_raw: int = 0) -> Outcome:
    """Lay one transaction's transfers and what was credited for them side by side.

    A transfer of less than `dust_below_raw` that pays nothing is counted, and becomes no finding.
    """
    return _Reconciler(transaction, dust_below_raw).run()


class _Reconciler:
    """One transaction at a time."""

    def __init__(self, transaction: Transaction, dust_below_raw: int) -> None:
        self._transaction = transaction
        self._dust_below_raw = dust_below_raw
        self._outcome = Outcome()
        self._counted: list[Application] = []

    def run(self) -> Outcome:
        # What the treasury pays itself is no inflow; what was credited for it has no transfer behind it.
        income = [transfer for transfer in self._transaction.observed if transfer.is_income]
        pairs, unapplied, unobserved = match(income, self._transaction.applications)
        for transfer, application in pairs:
            self._applied(transfer, application)
        for transfer in unapplied:
            self._unapplied(transfer)
        for application in unobserved:
            self._unobserved(application)
        for application in self._transaction.applications:
            self._ledger_of(application)
        return self._outcome

    # -- transfers

    def _applied(self, transfer: Observed, application: Application) -> None:
        credited = _posted(application.entries, _PAID)
        line = Line(
            transfer,
            kind="operator_credit"
            if application.is_operators
            else _KIND_OF_PURPOSE[application.purpose or Purpose.SELF],
            attempt_id=application.attempt_id,
            billing_account_id=application.billing_account_id,
            purchase_credits=credited if application.purpose is Purpose.SELF else 0,
            donation_credits=credited if application.purpose is Purpose.SYSTEM else 0,
            operator_credits=_posted(application.credit.entries, _PAID) if application.credit else 0,
            unapplied_raw=transfer.value_raw - self._agreed_raw(application),
            finding_id=self._finding_id_of(application),
        )
        if not is_alike(transfer, application):
            self._disagrees(
                application,
                f"it was credited for {application.value_raw} raw units from {application.from_address}, the chain "
                f"shows {transfer.value_raw} from {transfer.from_address}",
            )
        self._add_line(line)
        if not transfer.in_period:
            return
        self._counted.append(application)
        surplus_raw = line.unapplied_raw
        if surplus_raw > 0:
            self._overpayment(transfer, application, surplus_raw)

    def _agreed_raw(self, application: Application) -> int:
        """What of the transfer is applied, by what was agreed: the attempt's amount, and what operators credited."""
        return application.amount_raw + (application.credit.value_raw if application.credit else 0)

    def _finding_id_of(self, application: Application) -> UUID | None:
        if application.credit:
            return application.credit.finding_id
        return application.surplus_finding.finding_id if application.surplus_finding else None

    def _overpayment(self, transfer: Observed, application: Application, surplus_raw: int) -> None:
        self._outcome.totals.surplus_raw += surplus_raw
        self._count_unapplied(application.surplus_finding, surplus_raw)
        self._find(
            FindingKind.SURPLUS,
            application.surplus_finding,
            f"{transfer.from_address} sent {surplus_raw} raw units more than attempt {application.attempt_id} requires",
            log_index=transfer.log_index,
            attempt_id=application.attempt_id,
            billing_account_id=application.billing_account_id,
            sender=transfer.from_address,
            value_raw=surplus_raw,
        )

    def _unapplied(self, transfer: Observed) -> None:
        known = transfer.finding
        if transfer.is_too_old and known is None:
            return
        self._add_line(
            Line(
                transfer,
                kind=DUST if self._is_dust(transfer) else _kind_of_unapplied(known),
                unapplied_raw=transfer.value_raw,
                finding_id=known.finding_id if known else None,
            )
        )
        if not transfer.in_period:
            return
        facts = {
            "log_index": transfer.log_index,
            "sender": transfer.from_address,
            "value_raw": transfer.value_raw,
        }
        if known is not None and known.resolution == Remedy.CREDIT:
            self._outcome.totals.open_raw += transfer.value_raw
            self._find(
                FindingKind.LEDGER_DISAGREES,
                None,
                f"finding {known.finding_id} says that an operator credited the transfer, and nothing was",
                ledger_reference=transfer_key(
                    self._transaction.chain_id, self._transaction.tx_hash, transfer.log_index
                ),
                **facts,
            )
        elif known is not None and (known.is_open or known.is_excused):
            self._count_unapplied(known, transfer.value_raw)
            self._find(known.kind, known, known.detail, **facts)
        elif self._is_dust(transfer):
            self._outcome.totals.dust_transfers += 1
            self._outcome.totals.dust_raw += transfer.value_raw
        elif transfer.is_past_grace_period:
            self._outcome.totals.open_raw += transfer.value_raw
            self._outcome.undecided.append(transfer)
        else:
            self._outcome.totals.in_progress_raw += transfer.value_raw

    def _is_dust(self, transfer: Observed) -> bool:
        """Too little for a finding. One that there is already, from when the floor was lower, counts as it did."""
        known = transfer.finding
        is_free = known is None or known.resolution in REOPENING_RESOLUTIONS
        return is_free and transfer.is_past_grace_period and transfer.value_raw < self._dust_below_raw

    def _count_unapplied(self, known: KnownFinding | None, value_raw: int) -> None:
        totals = self._outcome.totals
        match known.resolution if known else None:
            case Remedy.REFUND_RECORDED:
                totals.refunded_raw += value_raw
            case Remedy.WRITE_OFF:
                totals.written_off_raw += value_raw
            case _:
                totals.open_raw += value_raw

    # -- what was credited for no transfer that is there

    def _unobserved(self, application: Application) -> None:
        if not application.is_covered:
            self._outcome.totals.unobserved_raw += application.value_raw
            return
        what = f"{application.value_raw} raw units from {application.from_address} in block {application.block_number}"
        if application.was_orphaned and application.outcome is None and not application.is_operators:
            self._outcome.notices.append(
                Difference(
                    kind=TRANSFER_REORGANISED,
                    severity=Severity.NOTICE,
                    detail=f"a reorganisation took {what} away; it may return, or be reorged out for good",
                    remedy="none: its workflow decides, and reverses the credits if it does not return",
                    chain_id=self._transaction.chain_id,
                    tx_hash=self._transaction.tx_hash,
                    log_index=application.log_index,
                    attempt_id=application.attempt_id,
                    value_raw=application.value_raw,
                )
            )
            return
        is_own = self._is_own(application)
        why = "the treasury sent it itself: no money came in" if is_own else "the chain does not show it"
        self._find(
            FindingKind.LEDGER_WITHOUT_TRANSFER,
            application.alarm_finding,
            f"{what} was credited, and {why}",
            log_index=application.log_index,
            attempt_id=application.attempt_id,
            ledger_reference=application.credit.reference if application.is_operators and application.credit else None,
            billing_account_id=application.billing_account_id,
            sender=application.from_address,
            value_raw=application.value_raw,
        )

    def _is_own(self, application: Application) -> bool:
        """Whether it was credited for a transfer of the treasury's own."""
        return any(
            not transfer.is_income and is_alike(transfer, application) for transfer in self._transaction.observed
        )

    # -- the ledger

    def _ledger_of(self, application: Application) -> None:
        counted = any(application is other for other in self._counted)
        entries = (*application.entries, *(application.credit.entries if application.credit else ()))
        totals = self._outcome.totals
        for entry in entries:
            if counted and not entry.in_period:
                totals.posted_outside_credits += entry.cash_debit_credits
            if not counted and entry.in_period:
                totals.posted_for_others_credits += entry.cash_debit_credits
            if entry.in_period:
                totals.reversed_credits += entry.cash_credit_credits
        if not application.is_operators:
            self._entries_of_attempt(application)
        if application.credit is not None:
            self._entries_of_credit(application, application.credit)

    def _entries_of_attempt(self, application: Application) -> None:
        account = SYSTEM_TENANT_ACCOUNT_ID if application.purpose is Purpose.SYSTEM else application.billing_account_id
        reason = Reason.SYSTEM_DONATION if application.purpose is Purpose.SYSTEM else Reason.CREDITS_PURCHASE
        amount = credits_for_raw(application.amount_raw)
        must = {(reason.value, account, amount)}
        may = set()
        bonus = (Reason.PLATFORM_REVENUE_SHARE.value, SYSTEM_TENANT_ACCOUNT_ID, application.bonus_credits)
        back = (Reason.PAYMENT_REVERSAL.value, SYSTEM_TENANT_ACCOUNT_ID, -application.bonus_credits)
        there = {(entry.reason, entry.billing_account_id, entry.amount_credits) for entry in application.entries}
        if application.bonus_credits:
            may.add(bonus)
        if application.status is AttemptStatus.REVERSED:
            must.add((Reason.PAYMENT_REVERSAL.value, account, -amount))
            if bonus in there:
                may.add(back)
        elif application.status is not AttemptStatus.CREDITED:
            self._disagrees(application, f"its attempt is {application.status}, and a transfer was settled for it")
            return
        due = find_due(
            application.status,
            purpose=application.purpose,
            bonus_credits=application.bonus_credits,
            has_bonus=bonus in there,
            has_bonus_reversal=back in there,
            has_outcome=application.outcome is not None,
        )
        if due and application.attempt_id is not None:
            self._outcome.unfinished.append(application.attempt_id)
        missing, excess = must - there, there - must - may
        if missing or excess or len(there) != len(application.entries):
            self._disagrees(application, _entries_in_words(missing, excess))

    def _entries_of_credit(self, application: Application, credit: OperatorCredit) -> None:
        if not application.is_operators and application.status is not AttemptStatus.CREDITED:
            self._disagrees(application, "its surplus was credited by an operator, and the payment was reversed")
        must = {(Reason.OPERATOR_CREDIT.value, credit.billing_account_id, credits_for_raw(credit.value_raw))}
        bonus = (Reason.PLATFORM_REVENUE_SHARE.value, SYSTEM_TENANT_ACCOUNT_ID, credit.bonus_credits)
        there = {(entry.reason, entry.billing_account_id, entry.amount_credits) for entry in credit.entries}
        if credit.bonus_credits and bonus not in there:
            self._outcome.unfinished_credits.append(credit.finding_id)
        missing, excess = must - there, there - must - {bonus}
        if missing or excess or len(there) != len(credit.entries):
            self._disagrees(application, _entries_in_words(missing, excess))

    def _disagrees(self, application: Application, words: str) -> None:
        reference = application.credit.reference if application.is_operators and application.credit else None
        subject = f"attempt {application.attempt_id}" if application.attempt_id else f"operator's credit of {reference}"
        self._find(
            FindingKind.LEDGER_DISAGREES,
            application.disagreement_finding,
            f"{subject}: {words}",
            log_index=application.log_index,
            attempt_id=application.attempt_id,
            ledger_reference=reference,
            billing_account_id=application.billing_account_id,
            sender=application.from_address,
            value_raw=application.value_raw,
        )

    # -- putting it together

    def _add_line(self, line: Line) -> None:
        if not line.observed.in_period:
            return
        self._outcome.lines.append(line)
        self._outcome.totals.add(
            Totals(
                transfers=1,
                inflow_raw=line.observed.value_raw,
                purchases_credits=line.purchase_credits,
                donations_credits=line.donation_credits,
                operator_credits=line.operator_credits,
                unapplied_raw=line.unapplied_raw,
            )
        )

    def _find(self, kind: FindingKind, known: KnownFinding | None, detail: str, **facts: Any) -> None:
        """Something for an operator: to be recorded, or known and open. What they have decided to leave is neither."""
        if known is not None and known.is_excused:
            return
        place = {"chain_id": self._transaction.chain_id, "tx_hash": self._transaction.tx_hash}
        found = Finding(kind=kind, detail=detail, **place, **facts)
        if known is not None and known.is_open:
            self._outcome.known.append(difference_of(found, known.finding_id, detail=known.detail or detail))
        elif all(other.key != found.key for other in self._outcome.findings):
            self._outcome.findings.append(found)


_PAID: Final = frozenset({Reason.CREDITS_PURCHASE.value, Reason.SYSTEM_DONATION.value, Reason.OPERATOR_CREDIT.value})
_KIND_OF_PURPOSE: Final = {Purpose.SELF: "purchase", Purpose.SYSTEM: "donation"}


def _posted(entries: Iterable[Entry], reasons: frozenset[str]) -> int:
    return sum(entry.cash_debit_credits for entry in entries if entry.reason in reasons)


def _kind_of_unapplied(known: KnownFinding | None) -> str:
    if known is None or known.resolution in REOPENING_RESOLUTIONS:
        return "unapplied"
    if known.resolution is None:
        return known.kind.value
    return "refunded" if known.resolution == Remedy.REFUND_RECORDED else "written_off"


def _entries_in_words(missing: Iterable[tuple[str, str, int]], excess: Iterable[tuple[str, str, int]]) -> str:
    def words(entries: Iterable[tuple[str, str, int]]) -> Iterator[str]:
        return (f"{reason} of {amount} on {account}" for reason, account, amount in sorted(entries))

    parts = [("is missing", list(words(missing))), ("is too much", list(words(excess)))]
    told = [f"{', '.join(entries)} {what}" for what, entries in parts if entries]
    return "; ".join(told) or "an entry is there twice"
