"""What a transfer to the treasury pays, when nobody has said so: the rule, and what is left to an operator.

Exactly the amount, of the sender's own, paid in time, the oldest first; nothing is guessed beyond that.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from datetime import datetime, timedelta
from typing import Final
from uuid import UUID

from pydantic import BaseModel, ConfigDict

from domain.attempt import AttemptStatus, ErrorCode
from domain.chain import Transfer
from domain.findings import Finding, FindingKind
from domain.identifiers import Address, TxHash, same_address

CLOCK_SLACK: Final = timedelta(minutes=2)
"""How much earlier than its intent a payment may seem to be: blocks have the clock of whoever mined them."""

RECENT: Final = timedelta(days=1)
"""An intent that expired longer ago says nothing about what a transfer of another amount was meant for."""


class Value(BaseModel):
    """Immutable value."""

    model_config = ConfigDict(frozen=True, from_attributes=True)


class Candidate(Value):
    """An attempt that has to do with a transfer: the sender's own, or one that names its transaction."""

    attempt_id: UUID
    owner_user_id: str
    billing_account_id: str
    from_address: Address
    amount_raw: int
    status: AttemptStatus
    error_code: ErrorCode | None = None
    tx_hash: TxHash | None = None
    hash_is_observed: bool = False
    """Whether a transfer to the treasury of the attempt's own transaction is on the chain."""
    created_at: datetime
    expires_at: datetime | None = None


class PaidTransfer(Value):
    """A transfer that paid an attempt, as it was when it did; the log's index changes when its transaction moves.

    Without an attempt: an operator has credited it.
    """

    attempt_id: UUID | None = None
    status: AttemptStatus | None = None
    log_index: int
    from_address: Address
    value_raw: int
    in_scope: bool = True
    """Whether it is of the same token to the same treasury as the transfer that is decided about."""


class Surroundings(Value):
    """All that is known about a transfer's sender and transaction, read at one moment."""

    candidates: tuple[Candidate, ...] = ()
    paid: tuple[PaidTransfer, ...] = ()
    """The transfers of this transaction that have paid attempts; behind them, those that an operator has credited."""
    siblings: tuple[Transfer, ...] = ()
    """The observed transfers of this transaction that are like this one, where any of them has paid."""
    senders_account_id: str | None = None


class AlreadyPaid(Value):
    """The transfer has paid this attempt; None where an operator has credited it."""

    attempt_id: UUID | None


class Undecided(Value):
    """An attempt waits for this very transaction; what becomes of it decides."""

    attempt_id: UUID


class Pays(Value):
    """The transfer pays this attempt, which has not been told yet."""

    attempt: Candidate


Decision = AlreadyPaid | Undecided | Pays | Finding


def decide(
    chain_id: int, transfer: Transfer, around: Surroundings, *, refused: Collection[UUID] = frozenset()
) -> Decision:
    """What a confirmed transfer is for. Attempts in `refused` did not take it, for reasons of their own."""
    paid = _paid_by(transfer, around)
    own = [candidate for candidate in around.candidates if same_address(candidate.from_address, transfer.from_address)]
    named = [candidate for candidate in own if candidate.tx_hash == transfer.tx_hash]
    report = _Report(chain_id, transfer, around)
    if paid is not None:
        if paid.attempt_id is not None and paid.status is AttemptStatus.REVERSED:
            return report.returned(paid.attempt_id)
        return AlreadyPaid(attempt_id=paid.attempt_id)
    for candidate in named:
        if candidate.status is AttemptStatus.PENDING_UNVERIFIED:
            return Undecided(attempt_id=candidate.attempt_id)
        if candidate.status in {AttemptStatus.CREDITED, AttemptStatus.REVERSED}:
            if all(one.attempt_id != candidate.attempt_id for one in around.paid):
                # Somebody has removed what it was paid with: this may be it, and is nothing to credit once more.
                return AlreadyPaid(attempt_id=candidate.attempt_id)
            # A payer's hash is good for one payment of his; the database refuses it for a second one.
            return report.beside(candidate)
    open_to_it = [candidate for candidate in own if candidate.attempt_id not in refused]
    attempt = _oldest_paid_in_time(transfer, open_to_it) or _oldest_sped_up(transfer, open_to_it)
    if attempt is not None:
        return Pays(attempt=attempt)
    for candidate in around.candidates:
        if candidate.tx_hash == transfer.tx_hash and candidate.status is AttemptStatus.PENDING_UNVERIFIED:
            # Somebody else's, to be refused in a moment; then it says who claims the transfer.
            return Undecided(attempt_id=candidate.attempt_id)
    return report.unmatched(own)


def _paid_by(transfer: Transfer, around: Surroundings) -> PaidTransfer | None:
    """What the transfer has paid: by its place in the block, or where its transaction has moved, by what it is."""

    def is_like(other: Transfer | PaidTransfer) -> bool:
        return other.value_raw == transfer.value_raw and same_address(other.from_address, transfer.from_address)

    paid = {one.log_index: one for one in around.paid if one.in_scope and is_like(one)}
    places = sorted(other.log_index for other in around.siblings if is_like(other))
    moved = [paid[place] for place in sorted(paid) if place not in places]
    unpaid = [place for place in places if place not in paid]
    return (paid | dict(zip(unpaid, moved, strict=False))).get(transfer.log_index)


def _oldest(candidates: Sequence[Candidate]) -> Candidate | None:
    return min(candidates, key=lambda candidate: (candidate.created_at, candidate.attempt_id), default=None)


def _is_made_for(candidate: Candidate, transfer: Transfer) -> bool:
    return candidate.amount_raw == transfer.value_raw and candidate.created_at <= transfer.block_time + CLOCK_SLACK


def _oldest_paid_in_time(transfer: Transfer, own: Sequence[Candidate]) -> Candidate | None:
    """The oldest intent of that amount that was open when the transfer was mined, expired since or not."""
    return _oldest(
        [
            candidate
            for candidate in own
            if _is_made_for(candidate, transfer)
            and _is_unpaid_intent(candidate)
            and candidate.expires_at is not None
            and transfer.block_time < candidate.expires_at
        ]
    )


def _oldest_sped_up(transfer: Transfer, own: Sequence[Candidate]) -> Candidate | None:
    """The oldest attempt of that amount whose own transaction has never appeared: its wallet replaced it."""
    return _oldest(
        [
            candidate
            for candidate in own
            if _is_made_for(candidate, transfer)
            and candidate.status is AttemptStatus.PENDING_UNVERIFIED
            and not candidate.hash_is_observed
        ]
    )


def _is_unpaid_intent(candidate: Candidate) -> bool:
    expired = candidate.status is AttemptStatus.FAILED and candidate.error_code is ErrorCode.INTENT_EXPIRED
    return expired or candidate.status is AttemptStatus.CREATED_INTENT


class _Report:
    """Findings about one transfer."""

    def __init__(self, chain_id: int, transfer: Transfer, around: Surroundings) -> None:
        self._chain_id = chain_id
        self._transfer = transfer
        self._around = around

    def returned(self, attempt_id: UUID) -> Finding:
        """Its payment was reversed, and it is on the chain again."""
        detail = f"{self._what} paid attempt {attempt_id}, was reversed as gone, and is on the chain again"
        return self._finding(FindingKind.RETURNED_AFTER_REVERSAL, detail, attempt_id)

    def beside(self, credited: Candidate) -> Finding:
        """Another transfer of its transaction has paid an attempt of the sender's."""
        detail = f"{self._what} came in one transaction with the payment of attempt {credited.attempt_id}, beside it"
        return self._finding(FindingKind.TRANSFER_WITHOUT_INTENT, detail, credited.attempt_id)

    def unmatched(self, own: Sequence[Candidate]) -> Finding:
        """Nothing that it may pay. The sender's own attempts say more about it than what a stranger claims."""
        transfer = self._transfer
        named = [candidate for candidate in own if candidate.tx_hash == transfer.tx_hash]
        known = [one for one in own if one.created_at <= transfer.block_time + CLOCK_SLACK]
        alike = [one for one in known if one.amount_raw == transfer.value_raw]
        if short := _latest([one for one in named if one.error_code is ErrorCode.INSUFFICIENT_AMOUNT]):
            detail = f"{self._what} was submitted for attempt {short.attempt_id}, which wants {_usdc(short.amount_raw)}"
            return self._finding(FindingKind.UNDERPAYMENT, detail, short.attempt_id)
        if missed := _latest([one for one in named if one.error_code is ErrorCode.RECEIPT_NOT_FOUND]):
            detail = f"{self._what} was waited for by attempt {missed.attempt_id}, and came when it had been given up"
            return self._finding(FindingKind.LATE_PAYMENT, detail, missed.attempt_id)
        if late := _latest([one for one in alike if _has_expired(one, transfer)]):
            detail = (
                f"{self._what} was mined at {transfer.block_time:%Y-%m-%d %H:%M:%S} UTC, attempt {late.attempt_id} of "
                f"that amount expired at {late.expires_at:%Y-%m-%d %H:%M:%S} UTC"
            )
            return self._finding(FindingKind.LATE_PAYMENT, detail, late.attempt_id)
        recent = [one for one in known if _is_unpaid_intent(one) and _is_recent(one, transfer)]
        if other := _latest([one for one in recent if one.amount_raw != transfer.value_raw]):
            detail = f"{self._what}, whose attempt {other.attempt_id} wants {_usdc(other.amount_raw)}"
            return self._finding(FindingKind.WRONG_AMOUNT, detail, other.attempt_id)
        claims = [one for one in self._around.candidates if one not in own and one.tx_hash == transfer.tx_hash]
        if claim := _latest([one for one in claims if one.error_code is ErrorCode.SENDER_MISMATCH]):
            detail = f"{self._what} was submitted for attempt {claim.attempt_id} of {claim.from_address}"
            return self._finding(FindingKind.WRONG_SENDER, detail, claim.attempt_id)
        return self._finding(FindingKind.TRANSFER_WITHOUT_INTENT, f"{self._what}, who had no intent that it pays")

    @property
    def _what(self) -> str:
        return f"{_usdc(self._transfer.value_raw)} from {self._transfer.from_address}"

    def _finding(self, kind: FindingKind, detail: str, attempt_id: UUID | None = None) -> Finding:
        transfer = self._transfer
        return Finding(
            kind=kind,
            detail=detail,
            chain_id=self._chain_id,
            tx_hash=transfer.tx_hash,
            log_index=transfer.log_index,
            attempt_id=attempt_id,
            # The sender's own: of a transfer that a stranger submitted, not the stranger's.
            billing_account_id=self._around.senders_account_id,
            sender=transfer.from_address,
            value_raw=transfer.value_raw,
            details={
                "blockNumber": transfer.block_number,
                "blockHash": transfer.block_hash,
                "minedAt": transfer.block_time.isoformat(),
            },
        )


def _latest(candidates: Sequence[Candidate]) -> Candidate | None:
    return max(candidates, key=lambda candidate: (candidate.created_at, candidate.attempt_id), default=None)


def _has_expired(candidate: Candidate, transfer: Transfer) -> bool:
    """Whether it is an intent that was over when the transfer was mined."""
    return (
        _is_unpaid_intent(candidate)
        and candidate.expires_at is not None
        and transfer.block_time >= candidate.expires_at
    )


def _is_recent(candidate: Candidate, transfer: Transfer) -> bool:
    return candidate.expires_at is not None and transfer.block_time < candidate.expires_at + RECENT


def _usdc(value_raw: int) -> str:
    """Raw units as people read them."""
    whole, rest = divmod(value_raw, 10**6)
    return f"{whole}.{rest:06}".rstrip("0").rstrip(".") + " USDC"
