"""What a transfer to the treasury pays, when nobody has said so: the rule, and what is left to an operator.

Exactly the amount, of the sender's own, paid in time, the oldest first; nothing is guessed beyond that. An attempt that
ended without its payment, because a wrong hash was handed in, stays ended: where nothing else fits, an exact payment in
time pays an attempt that is made in its place, once.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from datetime import datetime, timedelta
from types import MappingProxyType
from typing import Any, Final
from uuid import UUID, uuid5

from pydantic import BaseModel, ConfigDict

from domain.chain import Transfer
from domain.identifiers import Address, TxHash, same_address
from domain.money import format_usdc
from domain.operations.findings import Finding, FindingKind
from domain.payments.attempt import AttemptStatus, ErrorCode
from domain.transfers.identity import PaidTransfer, assign_places, is_alike, place_of
from domain.transfers.income import NON_PAYERS_IN_WORDS, NonPayer, is_too_old

CLOCK_SLACK: Final = timedelta(minutes=2)
"""How much earlier than its intent a payment may seem to be: an intent has the database's time, a block that of who
made it (docs/decisions/clocks.md)."""

RECENT: Final = timedelta(days=1)
"""An intent that expired longer ago says nothing about what a transfer of another amount was meant for."""


NAMED_ATTEMPTS_MAX: Final = 5
"""Attempts that a finding's words name; its details have all that were looked at."""

_RENEWALS: Final = UUID("6f0c1f5e-4a0e-5d8b-9c53-0b8f8a3f7d21")
"""Namespace of the ids of attempts that are made in the place of others."""

_NOT_PAID_BY_ITS_HASH: Final = frozenset({ErrorCode.TX_REVERTED, ErrorCode.RECEIPT_NOT_FOUND})
"""Why an attempt is FAILED although it was submitted."""


def renewal_id(attempt_id: UUID) -> UUID:
    """Id of the one attempt that may be made in the place of this one: the database holds it once."""
    return uuid5(_RENEWALS, str(attempt_id))


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
    hash_is_own_payment: bool = True
    """Of an observed hash: whether a transfer of it is the attempt's payer's, and enough. Without one it is refused."""
    created_at: datetime
    expires_at: datetime | None = None
    payable_until: datetime | None = None
    """Until when a transfer pays it in time, whatever was submitted; None where nobody knows any more."""
    is_renewed: bool = False
    """Whether an attempt in its place has been paid, refused, or waits for a transaction."""

    @property
    def ended_without_payment(self) -> bool:
        """Whether it was submitted and refused: what was handed in did not pay it."""
        failed = self.status is AttemptStatus.FAILED and self.error_code in _NOT_PAID_BY_ITS_HASH
        return failed or self.status is AttemptStatus.REJECTED


class MatchContext(Value):
    """All that is known about a transfer's sender and transaction, read at one moment."""

    candidates: tuple[Candidate, ...] = ()
    paid: tuple[PaidTransfer, ...] = ()
    """The transfers of this transaction that have paid attempts; behind them, those that an operator has credited."""
    siblings: tuple[Transfer, ...] = ()
    """The observed transfers of this transaction that are like this one, where any of them has paid."""
    senders_account_id: str | None = None
    sender_kind: NonPayer | None = None
    """Why the sender pays for nobody; None for a payer."""
    first_block: int | None = None
    """The first block that settle answers for, as far as that is known."""


class AlreadyPaid(Value):
    """The transfer has paid this attempt; None where an operator has credited it."""

    attempt_id: UUID | None


class Undecided(Value):
    """An attempt waits for this very transaction; what becomes of it decides."""

    attempt_id: UUID


class Pays(Value):
    """The transfer pays this attempt, which has not been told yet."""

    attempt: Candidate


class Renews(Value):
    """The transfer pays an attempt to be made in the place of this one, which has ended without it."""

    attempt: Candidate


class NoIncome(Value):
    """Nothing came in that settle answers for: the treasury paid itself, or it was before its time."""

    message: str


Decision = AlreadyPaid | Undecided | Pays | Renews | NoIncome | Finding


def decide(
    chain_id: int, transfer: Transfer, context: MatchContext, *, refused: Collection[UUID] = frozenset()
) -> Decision:
    """What a confirmed transfer is for. Attempts in `refused` did not take it, for reasons of their own."""
    if context.sender_kind is NonPayer.TREASURY:
        return NoIncome(message=f"it is from {NON_PAYERS_IN_WORDS[context.sender_kind]}")
    paid = _paid_by(transfer, context)
    own = [candidate for candidate in context.candidates if same_address(candidate.from_address, transfer.from_address)]
    named = [candidate for candidate in own if candidate.tx_hash == transfer.tx_hash]
    report = _Report(chain_id, transfer, context)
    if paid is not None:
        if paid.attempt_id is not None and paid.status is AttemptStatus.REVERSED:
            return report.returned(paid.attempt_id)
        return AlreadyPaid(attempt_id=paid.attempt_id)
    if is_too_old(transfer.block_number, context.first_block):
        return NoIncome(message=f"it was mined before block {context.first_block}, from which on payments are taken")
    for candidate in named:
        if candidate.status is AttemptStatus.PENDING_UNVERIFIED:
            return Undecided(attempt_id=candidate.attempt_id)
        if candidate.status in {AttemptStatus.CREDITED, AttemptStatus.REVERSED}:
            if all(one.attempt_id != candidate.attempt_id for one in context.paid):
                # Somebody has removed what it was paid with: this may be it, and is nothing to credit once more.
                return AlreadyPaid(attempt_id=candidate.attempt_id)
            # A payer's hash is good for one payment of his; the database refuses it for a second one.
            return report.beside(candidate)
    if context.sender_kind is not None:
        return report.of_nobody(context.sender_kind)
    if (pays := _pays(transfer, own, refused)) is not None:
        return pays
    for candidate in context.candidates:
        if candidate.tx_hash == transfer.tx_hash and candidate.status is AttemptStatus.PENDING_UNVERIFIED:
            # Somebody else's, to be refused in a moment; then it says who claims the transfer.
            return Undecided(attempt_id=candidate.attempt_id)
    return report.unmatched(own)


def _pays(transfer: Transfer, own: Sequence[Candidate], refused: Collection[UUID]) -> Pays | Renews | Undecided | None:
    """Which of its sender's attempts the transfer pays, the likeliest first; None where it pays none."""
    open_to_it = [candidate for candidate in own if candidate.attempt_id not in refused]
    attempt = _oldest_paid_in_time(transfer, open_to_it) or _oldest_sped_up(transfer, open_to_it)
    if attempt is not None:
        return Pays(attempt=attempt)
    if (about_to_end := _oldest_about_to_be_refused(transfer, own)) is not None:
        return Undecided(attempt_id=about_to_end.attempt_id)
    if (ended := _oldest_ended_without_it(transfer, open_to_it)) is not None:
        return Renews(attempt=ended)
    return None


def _paid_by(transfer: Transfer, context: MatchContext) -> PaidTransfer | None:
    """What the transfer has paid, or was credited for by an operator; None where it is free."""
    paid = [one for one in context.paid if one.in_scope and is_alike(one, transfer)]
    twins = [
        one.log_index for one in context.siblings if one.block_hash == transfer.block_hash and is_alike(one, transfer)
    ]
    places = assign_places(transfer.block_hash, {transfer.log_index, *twins}, [place_of(one) for one in paid])
    number = places.get(transfer.log_index)
    return None if number is None else paid[number]


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


def _oldest_about_to_be_refused(transfer: Transfer, own: Sequence[Candidate]) -> Candidate | None:
    """The oldest attempt of that amount whose transaction is there and does not pay it: in a moment it has ended."""
    return _oldest(
        [
            candidate
            for candidate in own
            if _is_made_for(candidate, transfer)
            and _is_in_time(candidate, transfer)
            and candidate.status is AttemptStatus.PENDING_UNVERIFIED
            and candidate.hash_is_observed
            and not candidate.hash_is_own_payment
        ]
    )


def _oldest_ended_without_it(transfer: Transfer, own: Sequence[Candidate]) -> Candidate | None:
    """The oldest attempt of that amount that was refused for what was handed in, and is paid in time by this transfer.

    Not one that was refused for this very transaction: that was looked at, and did not pay it. Unless it was given up
    because nobody saw the transaction in time, which says nothing about when it was mined.
    """
    return _oldest(
        [
            candidate
            for candidate in own
            if _is_made_for(candidate, transfer)
            and _is_in_time(candidate, transfer)
            and candidate.ended_without_payment
            and not candidate.is_renewed
            and (candidate.tx_hash != transfer.tx_hash or candidate.error_code is ErrorCode.RECEIPT_NOT_FOUND)
        ]
    )


def _is_in_time(candidate: Candidate, transfer: Transfer) -> bool:
    return candidate.payable_until is not None and transfer.block_time < candidate.payable_until


def _is_unpaid_intent(candidate: Candidate) -> bool:
    expired = candidate.status is AttemptStatus.FAILED and candidate.error_code is ErrorCode.INTENT_EXPIRED
    return expired or candidate.status is AttemptStatus.CREATED_INTENT


class _Report:
    """Findings about one transfer."""

    def __init__(self, chain_id: int, transfer: Transfer, context: MatchContext) -> None:
        self._chain_id = chain_id
        self._transfer = transfer
        self._around = context

    def returned(self, attempt_id: UUID) -> Finding:
        """Its payment was reversed, and it is on the chain again."""
        detail = f"{self._what} paid attempt {attempt_id}, was reversed as gone, and is on the chain again"
        return self._finding(FindingKind.RETURNED_AFTER_REVERSAL, detail, attempt_id)

    def beside(self, credited: Candidate) -> Finding:
        """Another transfer of its transaction has paid an attempt of the sender's."""
        detail = f"{self._what} came in one transaction with the payment of attempt {credited.attempt_id}, beside it"
        return self._finding(FindingKind.TRANSFER_WITHOUT_INTENT, detail, credited.attempt_id)

    def of_nobody(self, kind: NonPayer) -> Finding:
        """Money that came in and is nobody's: an operator names whose it is, or leaves it."""
        detail = f"{self._what}, {NON_PAYERS_IN_WORDS[kind]}: credited only to an account that an operator names"
        return self._finding(FindingKind.TRANSFER_WITHOUT_INTENT, detail, details={"senderKind": kind.value})

    def unmatched(self, own: Sequence[Candidate]) -> Finding:
        """Nothing that it may pay. The sender's own attempts say more about it than what a stranger claims."""
        transfer = self._transfer
        named = [candidate for candidate in own if candidate.tx_hash == transfer.tx_hash]
        known = [one for one in own if one.created_at <= transfer.block_time + CLOCK_SLACK]
        alike = [one for one in known if one.amount_raw == transfer.value_raw]
        if short := _latest([one for one in named if one.error_code is ErrorCode.INSUFFICIENT_AMOUNT]):
            wanted = format_usdc(short.amount_raw)
            detail = f"{self._what} was submitted for attempt {short.attempt_id}, which wants {wanted} USDC"
            return self._finding(FindingKind.UNDERPAYMENT, detail, short.attempt_id)
        if missed := _latest([one for one in named if one.error_code is ErrorCode.RECEIPT_NOT_FOUND]):
            detail = f"{self._what} was waited for by attempt {missed.attempt_id}, and came when it had been given up"
            return self._finding(FindingKind.LATE_PAYMENT, detail, missed.attempt_id)
        if late := _latest([one for one in alike if _has_expired(one, transfer)]):
            detail = (
                f"{self._what} was mined at {transfer.block_time:%Y-%m-%d %H:%M:%S} UTC, attempt {late.attempt_id} of "
                f"that amount expired at {_end_of(late):%Y-%m-%d %H:%M:%S} UTC"
            )
            return self._finding(FindingKind.LATE_PAYMENT, detail, late.attempt_id)
        recent = [one for one in known if _may_be_meant(one) and _is_recent(one, transfer)]
        if other := _latest([one for one in recent if one.amount_raw != transfer.value_raw]):
            detail = f"{self._what}, whose attempt {other.attempt_id} wants {format_usdc(other.amount_raw)} USDC"
            return self._finding(FindingKind.WRONG_AMOUNT, detail, other.attempt_id)
        claims = [one for one in self._around.candidates if one not in own and one.tx_hash == transfer.tx_hash]
        if claim := _latest([one for one in claims if one.error_code is ErrorCode.SENDER_MISMATCH]):
            detail = f"{self._what} was submitted for attempt {claim.attempt_id} of {claim.from_address}"
            return self._finding(FindingKind.WRONG_SENDER, detail, claim.attempt_id)
        return self._finding(FindingKind.TRANSFER_WITHOUT_INTENT, f"{self._what}, {self._own_in_words(known, alike)}")

    def _own_in_words(self, known: Sequence[Candidate], alike: Sequence[Candidate]) -> str:
        """What is known of the sender's attempts. Whoever has made some is not said to have made none."""
        named = _by_age(alike or known)
        if not named:
            return "who has no recent attempt that it could pay"
        words = "; ".join(_attempt_in_words(one) for one in named[:NAMED_ATTEMPTS_MAX])
        more = f"; and {len(named) - NAMED_ATTEMPTS_MAX} more" if len(named) > NAMED_ATTEMPTS_MAX else ""
        return f"which pays none of its sender's attempts{' of that amount' if alike else ''}: {words}{more}"

    @property
    def _what(self) -> str:
        return f"{format_usdc(self._transfer.value_raw)} USDC from {self._transfer.from_address}"

    def _finding(
        self,
        kind: FindingKind,
        detail: str,
        attempt_id: UUID | None = None,
        details: Mapping[str, Any] = MappingProxyType({}),
    ) -> Finding:
        transfer = self._transfer
        own = [one for one in self._around.candidates if same_address(one.from_address, transfer.from_address)]
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
                **({"sendersAttempts": [_attempt_in_details(one) for one in _by_age(own)]} if own else {}),
                **details,
            },
        )


def _by_age(candidates: Sequence[Candidate]) -> list[Candidate]:
    return sorted(candidates, key=lambda one: (one.created_at, one.attempt_id))


def _attempt_in_details(candidate: Candidate) -> dict[str, Any]:
    return {
        "attemptId": str(candidate.attempt_id),
        "status": candidate.status.value,
        "errorCode": candidate.error_code.value if candidate.error_code else None,
        "amountRaw": str(candidate.amount_raw),
        "txHash": candidate.tx_hash,
        "createdAt": candidate.created_at.isoformat(),
    }


def _attempt_in_words(candidate: Candidate) -> str:
    """One attempt: what became of it, with what transaction, and when it was made."""
    code = f" {candidate.error_code.value}" if candidate.error_code else ""
    transaction = f" with transaction {candidate.tx_hash}" if candidate.tx_hash else ""
    return (
        f"attempt {candidate.attempt_id} of {format_usdc(candidate.amount_raw)} USDC, made "
        f"{candidate.created_at:%Y-%m-%d %H:%M:%S} UTC, is {candidate.status.value}{code}{transaction}"
    )


def _latest(candidates: Sequence[Candidate]) -> Candidate | None:
    return max(candidates, key=lambda candidate: (candidate.created_at, candidate.attempt_id), default=None)


def _may_be_meant(candidate: Candidate) -> bool:
    """Whether its payer may still think of it: an intent without a payment, or refused for what was handed in."""
    return _is_unpaid_intent(candidate) or (candidate.ended_without_payment and not candidate.is_renewed)


def _end_of(candidate: Candidate) -> datetime | None:
    """Until when a transfer paid it in time."""
    return candidate.expires_at or candidate.payable_until


def _has_expired(candidate: Candidate, transfer: Transfer) -> bool:
    """Whether it was over when the transfer was mined."""
    end = _end_of(candidate)
    return _may_be_meant(candidate) and end is not None and transfer.block_time >= end


def _is_recent(candidate: Candidate, transfer: Transfer) -> bool:
    end = _end_of(candidate)
    return end is not None and transfer.block_time < end + RECENT
