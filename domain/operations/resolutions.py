"""Resolution of a finding by an operator: the request, whether it is allowed, and the record of what was done."""

from __future__ import annotations

from datetime import datetime
from decimal import Decimal
from typing import Any, Final
from uuid import UUID

from pydantic import BaseModel, ConfigDict, Field

from domain.errors import InvalidInput, RemedyRefused
from domain.identifiers import SYSTEM_TENANT_ACCOUNT_ID, TxHash, parse_tx_hash, same_address
from domain.ledger.entries import CASH_ACCOUNT, Posting, Reason
from domain.money import revenue_share_credits
from domain.operations.findings import REMEDIES, SETTLED, FindingKind, Remedy
from domain.transfers.income import MOVES_OWN_MONEY, NON_PAYER_DESCRIPTIONS, ZERO_ADDRESS, NonPayer

OPERATOR_LENGTH_MAX: Final = 100
REASON_LENGTH_MAX: Final = 2000
CREDITS_MAX: Final = 2**63 - 1
"""Largest amount of one ledger entry."""


class Value(BaseModel):
    """Immutable value that also travels through Temporal."""

    model_config = ConfigDict(frozen=True, from_attributes=True)


class StoredFinding(Value):
    """One row of `findings`."""

    id: UUID
    key: str
    kind: FindingKind
    chain_id: int | None = None
    tx_hash: TxHash | None = None
    log_index: int | None = None
    attempt_id: UUID | None = None
    billing_account_id: str | None = None
    value_raw: int | None = None
    detail: str
    details: dict[str, Any] = Field(default_factory=dict)
    created_at: datetime
    last_seen_at: datetime
    opened_at: datetime
    times_opened: int
    resolved_at: datetime | None = None
    resolution: str | None = None

    @property
    def is_open(self) -> bool:
        """Whether it is open."""
        return self.resolved_at is None


class RemedyRequest(Value):
    """An operator's decision about a finding."""

    finding_id: UUID
    remedy: Remedy
    operator: str
    reason: str
    billing_account_id: str | None = None
    """Of a credit: the account; None for the account of the sender's own wallet."""
    refund_tx_hash: TxHash | None = None
    """Of a refund: the transaction that sent the money back."""
    chain_id: int | None = None
    """The finding's chain, whose workers execute it. None where it has none, or where the row is to be read for it."""


class TakenRemedy(Value):
    """A remedy as recorded in the audit trail."""

    finding_id: UUID
    kind: FindingKind
    remedy: Remedy
    operator: str
    reason: str
    taken_at: datetime
    billing_account_id: str | None = None
    reference: str | None = None
    amount_credits: int = 0
    bonus_credits: int = 0
    """The system tenant's bonus on a credit."""
    refund_tx_hash: TxHash | None = None
    chain_id: int | None = None
    is_repeated: bool = False
    """Whether an identical request had been executed before."""


def parse_request(
    finding_id: UUID,
    remedy: Remedy,
    *,
    operator: str,
    reason: str,
    billing_account_id: str | None = None,
    refund_tx_hash: str | None = None,
    chain_id: int | None = None,
) -> RemedyRequest:
    """Validate a request as typed by the operator. Raises `InvalidInput` naming the option."""
    if remedy is not Remedy.CREDIT and billing_account_id is not None:
        raise InvalidInput("--account", f"applies to remedy {Remedy.CREDIT.value} only")
    if remedy is not Remedy.REFUND_RECORDED and refund_tx_hash is not None:
        raise InvalidInput("--refund-tx", f"applies to remedy {Remedy.REFUND_RECORDED.value} only")
    return RemedyRequest(
        finding_id=finding_id,
        remedy=remedy,
        operator=parse_operator(operator),
        reason=parse_reason(reason),
        billing_account_id=billing_account_id,
        refund_tx_hash=None if refund_tx_hash is None else parse_tx_hash(refund_tx_hash, field="--refund-tx"),
        chain_id=chain_id,
    )


def parse_operator(operator: str) -> str:
    """Validate the operator's name. Raises `InvalidInput` naming `--operator`."""
    return _words("--operator", operator, "your name", OPERATOR_LENGTH_MAX)


def parse_reason(reason: str) -> str:
    """Validate the reason. Raises `InvalidInput` naming `--reason`."""
    return _words("--reason", reason, "a reason", REASON_LENGTH_MAX)


def _words(field: str, given: str, wants: str, length_max: int) -> str:
    words = given.strip()
    if not 1 <= len(words) <= length_max or not words.isprintable():
        raise InvalidInput(field, f"expected {wants}, 1 to {length_max} characters on one line, got {words!r:.80}")
    return words


def check_remedy(finding: StoredFinding, request: RemedyRequest, taken: TakenRemedy | None) -> TakenRemedy | None:
    """The earlier execution of an identical request; None where the request is to be executed now.

    `taken` is the action that resolved the finding, if an operator did. Raises `RemedyRefused`.
    """
    if not finding.is_open:
        if finding.resolution == SETTLED:
            raise RemedyRefused(
                f"finding {finding.id} is already resolved: its transfer has paid an attempt "
                f"({finding.resolved_at:%Y-%m-%d %H:%M} UTC)"
            )
        if taken is None:
            raise RemedyRefused(f"finding {finding.id} is already resolved: {finding.resolution}")
        if not _is_same(request, taken):
            raise RemedyRefused(f"finding {finding.id} is already resolved: {describe(taken)}")
        return taken.model_copy(update={"is_repeated": True})
    allowed = REMEDIES[finding.kind]
    if request.remedy not in allowed:
        raise RemedyRefused(
            f"{request.remedy.value} does not apply to {finding.kind.value}; "
            f"expected one of: {', '.join(remedy.value for remedy in allowed)}"
        )
    if request.billing_account_id == SYSTEM_TENANT_ACCOUNT_ID:
        raise RemedyRefused("the system tenant's account cannot be credited by an operator")
    return None


def _is_same(request: RemedyRequest, taken: TakenRemedy) -> bool:
    """Whether two requests have the same effect. The account may be implicit, and the reasons may differ."""
    if request.remedy is not taken.remedy:
        return False
    if request.billing_account_id not in {None, taken.billing_account_id}:
        return False
    return request.refund_tx_hash in {None, taken.refund_tx_hash}


def describe(taken: TakenRemedy) -> str:
    """One line: what was done, by whom, when and why."""
    what = taken.remedy.value
    if taken.billing_account_id is not None:
        what += f" of {taken.amount_credits} credits to account {taken.billing_account_id}"
    if taken.refund_tx_hash is not None:
        what += f" with transaction {taken.refund_tx_hash}"
    return f"{what}, by {taken.operator} at {taken.taken_at:%Y-%m-%d %H:%M} UTC: {taken.reason}"


def operator_credit_posting(
    billing_account_id: str, reference: str, amount_credits: int, cash_account: str = CASH_ACCOUNT
) -> Posting:
    """The credits of a transfer's whole value. Raises `RemedyRefused` where one ledger entry cannot hold them."""
    if amount_credits > CREDITS_MAX:
        raise RemedyRefused(f"{amount_credits} credits exceed what one ledger entry can hold")
    if amount_credits <= 0:
        raise RemedyRefused("the transfer is worth less than a credit: there is nothing to credit")
    if billing_account_id == SYSTEM_TENANT_ACCOUNT_ID:
        raise RemedyRefused("the system tenant's account cannot be credited by an operator")
    return Posting(
        billing_account_id=billing_account_id,
        amount_credits=amount_credits,
        reason=Reason.OPERATOR_CREDIT,
        reference=reference,
        cash_account=cash_account,
    )


def require_account_of_nobodys(sender: str, known: NonPayer | None) -> None:
    """Refuse a credit without a named account where the transfer's sender has none. Raises `RemedyRefused`.

    `known` is the database's record of the address.
    """
    kind = NonPayer.NOBODY if same_address(sender, ZERO_ADDRESS) else known
    if kind is not None:
        raise RemedyRefused(
            f"the sender {sender} is {NON_PAYER_DESCRIPTIONS[kind]}: "
            + ("it cannot be credited" if kind in MOVES_OWN_MONEY else "name the account to credit with --account")
        )


def operator_bonus_posting(reference: str, amount_credits: int, share: Decimal) -> Posting | None:
    """The system tenant's bonus on an operator's credit, or None where its share mints nothing."""
    bonus_credits = revenue_share_credits(amount_credits, share)
    if bonus_credits == 0:
        return None
    return Posting(
        billing_account_id=SYSTEM_TENANT_ACCOUNT_ID,
        amount_credits=bonus_credits,
        reason=Reason.PLATFORM_REVENUE_SHARE,
        reference=reference,
    )
