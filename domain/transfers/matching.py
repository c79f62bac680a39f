"""Matching: which attempt an observed transfer pays that was not submitted, and what an operator has to decide.

A transfer pays the oldest attempt of its sender with exactly its amount that was payable when it was mined; nothing
else is inferred. An attempt that was refused because of a wrong hash stays refused: where no other attempt matches, an
exact payment in time pays a new attempt that replaces it, once.
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
from domain.transfers.income import MOVES_OWN_MONEY, NON_PAYER_DESCRIPTIONS, NonPayer, is_too_old

CLOCK_SLACK: Final = timedelta(minutes=2)
"""How much earlier than its intent a payment may appear to be: an intent has the database's time, a block its
producer's (docs/decisions/clocks.md)."""

RECENT: Final = timedelta(days=1)
"""An intent that expired longer ago does not explain a transfer of another amount."""

NAMED_ATTEMPTS_MAX: Final = 5
"""Attempts that a finding's message names; its details list all that were considered."""

_RENEWAL_NAMESPACE: Final = UUID("6f0c1f5e-4a0e-5d8b-9c53-0b8f8a3f7d21")
"""Namespace of the ids of renewals: attempts that replace refused ones."""

_FAILED_AFTER_SUBMISSION: Final = frozenset({ErrorCode.TX_REVERTED, ErrorCode.RECEIPT_NOT_FOUND})
"""Error codes of attempts that FAILED after they were submitted."""


def renewal_id(attempt_id: UUID) -> UUID:
    """Id of the only attempt that may replace this one: as a primary key it exists once."""
    return uuid5(_RENEWAL_NAMESPACE, str(attempt_id))


class Value(BaseModel):
    """Immutable value."""

    model_config = ConfigDict(frozen=True, from_attributes=True)


class Candidate(Value):
    """An attempt to consider for a transfer: one of its sender, or one with its transaction's hash."""

    attempt_id: UUID
    owner_user_id: str
    billing_account_id: str
    from_address: Address
    amount_raw: int
    status: AttemptStatus
    error_code: ErrorCode | None = None
    tx_hash: TxHash | None = None
    hash_is_observed: bool = False
    """Whether a transfer to the treasury with the attempt's hash was observed."""
    hash_is_own_payment: bool = True
    """Of an observed hash: whether one of its transfers is from the payer and large enough. If not, it is refused."""
    created_at: datetime
    expires_at: datetime | None = None
    payable_until: datetime | None = None
    """The time before which a transfer pays it in time, whatever was submitted; None where it is unknown."""
    nonce: str | None = None
    """Of a payment by signature: the nonce that pays it. Neither sender nor amount does."""
    is_renewed: bool = False
    """Whether its renewal exists and has been submitted: it was paid, refused, or is waiting."""

    @property
    def ended_without_payment(self) -> bool:
        """Whether it was submitted and refused: the submitted transaction did not pay it."""
        failed = self.status is AttemptStatus.FAILED and self.error_code in _FAILED_AFTER_SUBMISSION
        return failed or self.status is AttemptStatus.REJECTED


class MatchContext(Value):
    """The attempts and payments of a transfer's sender and transaction, read together."""

    candidates: tuple[Candidate, ...] = ()
    paid: tuple[PaidTransfer, ...] = ()
    """The transfers of this transaction that have paid attempts, then those that an operator has credited."""
    siblings: tuple[Transfer, ...] = ()
    """The observed transfers of this transaction that are alike, where any of them has paid."""
    senders_account_id: str | None = None
    sender_kind: NonPayer | None = None
    """Why the sender cannot be a payer; None for a payer."""
    first_block: int | None = None
    """The first block whose transfers are accepted, where it is known."""
    nonce: str | None = None
    """The nonce of the authorization that has caused the transfer, where its receipt was asked for that."""


class AlreadyPaid(Value):
    """The transfer has paid this attempt; None where an operator has credited it."""

    attempt_id: UUID | None


class Undecided(Value):
    """An attempt waits for this transaction; the transfer is matched once that attempt has ended."""

    attempt_id: UUID


class Pays(Value):
    """The transfer pays this attempt, to which it was not submitted."""

    attempt: Candidate


class Renews(Value):
    """The transfer pays a renewal of this attempt, which was refused."""

    attempt: Candidate


class NoIncome(Value):
    """The transfer is not income: the treasury paid itself, or its block is before the first accepted one."""

    message: str


Decision = AlreadyPaid | Undecided | Pays | Renews | NoIncome | Finding


def decide(
    chain_id: int, transfer: Transfer, context: MatchContext, *, refused: Collection[UUID] = frozenset()
) -> Decision:
    """What a confirmed transfer pays. Attempts in `refused` have refused its submission."""
    if context.sender_kind in MOVES_OWN_MONEY:
        return NoIncome(message=f"it is from {NON_PAYER_DESCRIPTIONS[context.sender_kind]}")
    paid = _paid_by(transfer, context)
    own = [candidate for candidate in context.candidates if same_address(candidate.from_address, transfer.from_address)]
    named = [candidate for candidate in own if candidate.tx_hash == transfer.tx_hash]
    findings = _FindingBuilder(chain_id, transfer, context)
    if paid is not None:
        if paid.attempt_id is not None and paid.status is AttemptStatus.REVERSED:
            return findings.returned_after_reversal(paid.attempt_id)
        return AlreadyPaid(attempt_id=paid.attempt_id)
    if is_too_old(transfer.block_number, context.first_block):
        return NoIncome(message=f"it was mined before block {context.first_block}, the first accepted one")
    if (signed := _signed_for(transfer, context)) is not None:
        return signed
    if (decided := _decide_by_hash(named, context, findings)) is not None:
        return decided
    own = [candidate for candidate in own if candidate.nonce is None]
    if context.sender_kind is not None:
        return findings.from_non_payer(context.sender_kind)
    if (pays := _pays(transfer, own, refused)) is not None:
        return pays
    for candidate in context.candidates:
        if candidate.nonce is not None:  # a wrong hash does not end it
            continue
        if candidate.tx_hash == transfer.tx_hash and candidate.status is AttemptStatus.PENDING_UNVERIFIED:
            # Another payer's attempt, about to be refused; its refusal then names the claimant of the transfer.
            return Undecided(attempt_id=candidate.attempt_id)
    return findings.unmatched(own)


def _decide_by_hash(
    named: Sequence[Candidate], context: MatchContext, findings: _FindingBuilder
) -> Undecided | AlreadyPaid | Finding | None:
    """By an attempt of its sender that names the transaction; None where none that waits or was credited does."""
    for candidate in named:
        if candidate.nonce is not None:
            continue
        if candidate.status is AttemptStatus.PENDING_UNVERIFIED:
            return Undecided(attempt_id=candidate.attempt_id)
        if candidate.status in {AttemptStatus.CREDITED, AttemptStatus.REVERSED}:
            if all(one.attempt_id != candidate.attempt_id for one in context.paid):
                # The row of its payment was deleted: this transfer may be that payment, and is not credited again.
                return AlreadyPaid(attempt_id=candidate.attempt_id)
            # A hash is unique per payer: the database refuses it for a second payment of theirs.
            return findings.second_transfer(candidate)
    return None


def _signed_for(transfer: Transfer, context: MatchContext) -> Pays | Undecided | None:
    """The attempt that the transfer's authorization was claimed for: it pays it at any time, from any transaction.

    None where it is claimed for none, or for one that has ended: an operator decides about that transfer.
    """
    if context.nonce is None:
        return None
    for candidate in context.candidates:
        if candidate.nonce != context.nonce or not same_address(candidate.from_address, transfer.from_address):
            continue
        if candidate.status is AttemptStatus.PENDING_UNVERIFIED and candidate.tx_hash == transfer.tx_hash:
            return Undecided(attempt_id=candidate.attempt_id)
        if candidate.status in {AttemptStatus.CREATED_INTENT, AttemptStatus.PENDING_UNVERIFIED}:
            return Pays(attempt=candidate)
    return None


def _pays(transfer: Transfer, own: Sequence[Candidate], refused: Collection[UUID]) -> Pays | Renews | Undecided | None:
    """Which of its sender's attempts the transfer pays, the best match first; None where it pays none."""
    eligible = [candidate for candidate in own if candidate.attempt_id not in refused]
    attempt = _oldest_paid_in_time(transfer, eligible) or _oldest_with_replaced_transaction(transfer, eligible)
    if attempt is not None:
        return Pays(attempt=attempt)
    if (about_to_end := _oldest_about_to_be_refused(transfer, own)) is not None:
        return Undecided(attempt_id=about_to_end.attempt_id)
    if (ended := _oldest_renewable(transfer, eligible)) is not None:
        return Renews(attempt=ended)
    return None


def _paid_by(transfer: Transfer, context: MatchContext) -> PaidTransfer | None:
    """The payment or operator's credit that this transfer was used for; None where it is unused."""
    paid = [one for one in context.paid if one.in_scope and is_alike(one, transfer)]
    twins = [
        one.log_index for one in context.siblings if one.block_hash == transfer.block_hash and is_alike(one, transfer)
    ]
    places = assign_places(transfer.block_hash, {transfer.log_index, *twins}, [place_of(one) for one in paid])
    number = places.get(transfer.log_index)
    return None if number is None else paid[number]


def _oldest(candidates: Sequence[Candidate]) -> Candidate | None:
    return min(candidates, key=lambda candidate: (candidate.created_at, candidate.attempt_id), default=None)


def _fits(candidate: Candidate, transfer: Transfer) -> bool:
    return candidate.amount_raw == transfer.value_raw and candidate.created_at <= transfer.block_time + CLOCK_SLACK


def _oldest_paid_in_time(transfer: Transfer, own: Sequence[Candidate]) -> Candidate | None:
    """The oldest intent of that amount that was open when the transfer was mined, even if it has expired since."""
    return _oldest(
        [
            candidate
            for candidate in own
            if _fits(candidate, transfer)
            and _is_unpaid_intent(candidate)
            and candidate.expires_at is not None
            and transfer.block_time < candidate.expires_at
        ]
    )


def _oldest_with_replaced_transaction(transfer: Transfer, own: Sequence[Candidate]) -> Candidate | None:
    """The oldest waiting attempt of that amount whose submitted transaction was never observed: it was replaced."""
    return _oldest(
        [
            candidate
            for candidate in own
            if _fits(candidate, transfer)
            and candidate.status is AttemptStatus.PENDING_UNVERIFIED
            and not candidate.hash_is_observed
        ]
    )


def _oldest_about_to_be_refused(transfer: Transfer, own: Sequence[Candidate]) -> Candidate | None:
    """The oldest waiting attempt of that amount whose observed transaction does not pay it: it will be refused."""
    return _oldest(
        [
            candidate
            for candidate in own
            if _fits(candidate, transfer)
            and _is_in_time(candidate, transfer)
            and candidate.status is AttemptStatus.PENDING_UNVERIFIED
            and candidate.hash_is_observed
            and not candidate.hash_is_own_payment
        ]
    )


def _oldest_renewable(transfer: Transfer, own: Sequence[Candidate]) -> Candidate | None:
    """The oldest attempt of that amount that was refused for its submitted hash, and that this transfer pays in time.

    Except one that was refused for this transaction, which was verified and did not pay it; unless the transaction
    was only not found in time, which does not depend on when it was mined.
    """
    return _oldest(
        [
            candidate
            for candidate in own
            if _fits(candidate, transfer)
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


class _FindingBuilder:
    """Builds the finding about one transfer."""

    def __init__(self, chain_id: int, transfer: Transfer, context: MatchContext) -> None:
        self._chain_id = chain_id
        self._transfer = transfer
        self._context = context

    def returned_after_reversal(self, attempt_id: UUID) -> Finding:
        """The transfer paid an attempt whose payment was reversed, and is on the canonical chain again."""
        detail = f"{self._subject} paid attempt {attempt_id}, was reversed as reorged out, and is on the chain again"
        return self._finding(FindingKind.RETURNED_AFTER_REVERSAL, detail, attempt_id)

    def second_transfer(self, credited: Candidate) -> Finding:
        """Another transfer of the same transaction has paid an attempt of the sender."""
        detail = f"{self._subject} is a second transfer in the transaction that paid attempt {credited.attempt_id}"
        return self._finding(FindingKind.TRANSFER_WITHOUT_INTENT, detail, credited.attempt_id)

    def from_non_payer(self, kind: NonPayer) -> Finding:
        """Income without a payer: an operator names the account to credit, or writes it off."""
        detail = f"{self._subject}, {NON_PAYER_DESCRIPTIONS[kind]}: credited only to an account that an operator names"
        return self._finding(FindingKind.TRANSFER_WITHOUT_INTENT, detail, details={"senderKind": kind.value})

    def unmatched(self, own: Sequence[Candidate]) -> Finding:
        """No attempt that it may pay. The sender's own attempts explain it better than another payer's claim."""
        known = [one for one in own if one.created_at <= self._transfer.block_time + CLOCK_SLACK]
        alike = [one for one in known if one.amount_raw == self._transfer.value_raw]
        return (
            self._submitted_for_refused_attempt(own)
            or self._late(alike)
            or self._wrong_amount(known)
            or self._wrong_sender(own)
            or self._finding(
                FindingKind.TRANSFER_WITHOUT_INTENT, f"{self._subject}, {self._format_own_attempts(known, alike)}"
            )
        )

    def _submitted_for_refused_attempt(self, own: Sequence[Candidate]) -> Finding | None:
        """The transfer was submitted for an attempt that requires more, or that had failed before it was found."""
        named = [one for one in own if one.tx_hash == self._transfer.tx_hash]
        if short := _latest([one for one in named if one.error_code is ErrorCode.INSUFFICIENT_AMOUNT]):
            required = format_usdc(short.amount_raw)
            detail = f"{self._subject} was submitted for attempt {short.attempt_id}, which requires {required} USDC"
            return self._finding(FindingKind.UNDERPAYMENT, detail, short.attempt_id)
        if missed := _latest([one for one in named if one.error_code is ErrorCode.RECEIPT_NOT_FOUND]):
            detail = f"{self._subject} was submitted for attempt {missed.attempt_id}, which failed before it was found"
            return self._finding(FindingKind.LATE_PAYMENT, detail, missed.attempt_id)
        return None

    def _late(self, alike: Sequence[Candidate]) -> Finding | None:
        """The sender has an attempt of that amount that had expired."""
        late = _latest([one for one in alike if _has_expired(one, self._transfer)])
        if late is None:
            return None
        detail = (
            f"{self._subject} was mined at {self._transfer.block_time:%Y-%m-%d %H:%M:%S} UTC, "
            f"attempt {late.attempt_id} of that amount expired at {_end_of(late):%Y-%m-%d %H:%M:%S} UTC"
        )
        return self._finding(FindingKind.LATE_PAYMENT, detail, late.attempt_id)

    def _wrong_amount(self, known: Sequence[Candidate]) -> Finding | None:
        """The sender has a recent attempt of another amount."""
        recent = [one for one in known if _may_be_meant(one) and _is_recent(one, self._transfer)]
        other = _latest([one for one in recent if one.amount_raw != self._transfer.value_raw])
        if other is None:
            return None
        required = format_usdc(other.amount_raw)
        detail = f"{self._subject}, whose attempt {other.attempt_id} requires {required} USDC"
        return self._finding(FindingKind.WRONG_AMOUNT, detail, other.attempt_id)

    def _wrong_sender(self, own: Sequence[Candidate]) -> Finding | None:
        """Another payer submitted the transfer."""
        claims = [one for one in self._context.candidates if one not in own and one.tx_hash == self._transfer.tx_hash]
        claim = _latest([one for one in claims if one.error_code is ErrorCode.SENDER_MISMATCH])
        if claim is None:
            return None
        detail = f"{self._subject} was submitted for attempt {claim.attempt_id} of {claim.from_address}"
        return self._finding(FindingKind.WRONG_SENDER, detail, claim.attempt_id)

    def _format_own_attempts(self, known: Sequence[Candidate], alike: Sequence[Candidate]) -> str:
        """The sender's attempts as text, those of the transfer's amount where there are any."""
        named = _by_age(alike or known)
        if not named:
            return "whose sender has no recent attempt that it could pay"
        listed = "; ".join(_format_attempt(one) for one in named[:NAMED_ATTEMPTS_MAX])
        more = f"; and {len(named) - NAMED_ATTEMPTS_MAX} more" if len(named) > NAMED_ATTEMPTS_MAX else ""
        return f"which pays none of its sender's attempts{' of that amount' if alike else ''}: {listed}{more}"

    @property
    def _subject(self) -> str:
        return f"{format_usdc(self._transfer.value_raw)} USDC from {self._transfer.from_address}"

    def _finding(
        self,
        kind: FindingKind,
        detail: str,
        attempt_id: UUID | None = None,
        details: Mapping[str, Any] = MappingProxyType({}),
    ) -> Finding:
        transfer = self._transfer
        own = [one for one in self._context.candidates if same_address(one.from_address, transfer.from_address)]
        return Finding(
            kind=kind,
            detail=detail,
            chain_id=self._chain_id,
            tx_hash=transfer.tx_hash,
            log_index=transfer.log_index,
            attempt_id=attempt_id,
            # The sender's own: of a transfer that a stranger submitted, not the stranger's.
            billing_account_id=self._context.senders_account_id,
            sender=transfer.from_address,
            value_raw=transfer.value_raw,
            details={
                "blockNumber": transfer.block_number,
                "blockHash": transfer.block_hash,
                "minedAt": transfer.block_time.isoformat(),
                **({"sendersAttempts": [_attempt_details(one) for one in _by_age(own)]} if own else {}),
                **details,
            },
        )


def _by_age(candidates: Sequence[Candidate]) -> list[Candidate]:
    return sorted(candidates, key=lambda one: (one.created_at, one.attempt_id))


def _attempt_details(candidate: Candidate) -> dict[str, Any]:
    return {
        "attemptId": str(candidate.attempt_id),
        "status": candidate.status.value,
        "errorCode": candidate.error_code.value if candidate.error_code else None,
        "amountRaw": str(candidate.amount_raw),
        "txHash": candidate.tx_hash,
        "createdAt": candidate.created_at.isoformat(),
    }


def _format_attempt(candidate: Candidate) -> str:
    """One attempt as text: amount, creation time, status, error code and transaction."""
    code = f" {candidate.error_code.value}" if candidate.error_code else ""
    transaction = f" with transaction {candidate.tx_hash}" if candidate.tx_hash else ""
    return (
        f"attempt {candidate.attempt_id} of {format_usdc(candidate.amount_raw)} USDC, made "
        f"{candidate.created_at:%Y-%m-%d %H:%M:%S} UTC, is {candidate.status.value}{code}{transaction}"
    )


def _latest(candidates: Sequence[Candidate]) -> Candidate | None:
    return max(candidates, key=lambda candidate: (candidate.created_at, candidate.attempt_id), default=None)


def _may_be_meant(candidate: Candidate) -> bool:
    """Whether the transfer may be meant for it: an unpaid intent, or refused for its submitted hash and not renewed."""
    return _is_unpaid_intent(candidate) or (candidate.ended_without_payment and not candidate.is_renewed)


def _end_of(candidate: Candidate) -> datetime | None:
    """The time before which a transfer pays it in time."""
    return candidate.expires_at or candidate.payable_until


def _has_expired(candidate: Candidate, transfer: Transfer) -> bool:
    """Whether it could not be paid any more when the transfer was mined."""
    end = _end_of(candidate)
    return _may_be_meant(candidate) and end is not None and transfer.block_time >= end


def _is_recent(candidate: Candidate, transfer: Transfer) -> bool:
    end = _end_of(candidate)
    return end is not None and transfer.block_time < end + RECENT
