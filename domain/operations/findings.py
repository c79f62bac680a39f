"""What nobody but an operator may decide: the kinds of findings, and what can be done about each.

A finding's key comes from facts (a transfer, an attempt), so that the same thing is found once, by whoever looks.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Any, Final
from uuid import UUID

from pydantic import BaseModel, ConfigDict, Field

from domain.identifiers import Address, TxHash
from domain.money import raw_for_usd_cents


class FindingKind(StrEnum):
    """What was found."""

    TRANSFER_WITHOUT_INTENT = "transfer_without_intent"
    """The treasury was paid by a wallet that had no intent to pay."""

    WRONG_AMOUNT = "wrong_amount"
    """The sender has an intent, of another amount than came."""

    UNDERPAYMENT = "underpayment"
    """A submitted payment was refused because too little came; the money is there."""

    LATE_PAYMENT = "late_payment"
    """The transfer was mined after its intent had expired."""

    WRONG_SENDER = "wrong_sender"
    """Somebody submitted a transfer that another wallet sent, and nobody else claims it."""

    SURPLUS = "surplus"
    """More came than was asked; what was asked is credited."""

    RETURNED_AFTER_REVERSAL = "returned_after_reversal"
    """A payment that was reversed is on the chain again."""

    PAYMENT_REVERSED = "payment_reversed"
    """The chain took a credited payment back, and its credits were taken back."""

    LEDGER_WITHOUT_TRANSFER = "ledger_without_transfer"
    """Credits were posted for a payment that the chain does not show: an alarm."""

    LEDGER_DISAGREES = "ledger_disagrees"
    """A payment, its transfer and its ledger entries contradict each other: an alarm."""

    CHAIN_GAP = "chain_gap"
    """No chain node shows the transfers of some blocks; the watcher goes on behind them."""


class Remedy(StrEnum):
    """What an operator can do about a finding; each needs a name and a reason, and is safe to repeat."""

    RETRY = "retry"
    """Look at it again: match the transfer anew, or start the attempt's workflow anew."""

    CREDIT = "credit"
    """Credit the transfer's whole value to an account; a purchase like any other, with the system tenant's bonus."""

    REFUND_RECORDED = "refund_recorded"
    """The money was sent back by a human's hand; this writes it down."""

    WRITE_OFF = "write_off"
    """Nothing will be done about it."""


REMEDIES: Final[dict[FindingKind, tuple[Remedy, ...]]] = {
    FindingKind.TRANSFER_WITHOUT_INTENT: (Remedy.CREDIT, Remedy.REFUND_RECORDED, Remedy.RETRY, Remedy.WRITE_OFF),
    FindingKind.WRONG_AMOUNT: (Remedy.CREDIT, Remedy.REFUND_RECORDED, Remedy.RETRY, Remedy.WRITE_OFF),
    FindingKind.UNDERPAYMENT: (Remedy.CREDIT, Remedy.REFUND_RECORDED, Remedy.WRITE_OFF),
    FindingKind.LATE_PAYMENT: (Remedy.CREDIT, Remedy.REFUND_RECORDED, Remedy.WRITE_OFF),
    FindingKind.WRONG_SENDER: (Remedy.CREDIT, Remedy.REFUND_RECORDED, Remedy.RETRY, Remedy.WRITE_OFF),
    FindingKind.SURPLUS: (Remedy.REFUND_RECORDED, Remedy.CREDIT, Remedy.WRITE_OFF),
    FindingKind.RETURNED_AFTER_REVERSAL: (Remedy.CREDIT, Remedy.REFUND_RECORDED, Remedy.WRITE_OFF),
    FindingKind.PAYMENT_REVERSED: (Remedy.WRITE_OFF,),
    FindingKind.LEDGER_WITHOUT_TRANSFER: (Remedy.RETRY, Remedy.WRITE_OFF),
    FindingKind.LEDGER_DISAGREES: (Remedy.RETRY, Remedy.WRITE_OFF),
    FindingKind.CHAIN_GAP: (Remedy.RETRY, Remedy.WRITE_OFF),
}
"""What can be done about each kind, the likeliest first."""


class Finding(BaseModel):
    """One thing found. `detail` is one line that a person can act on."""

    model_config = ConfigDict(frozen=True)

    kind: FindingKind
    detail: str
    chain_id: int | None = None
    tx_hash: TxHash | None = None
    log_index: int | None = None
    attempt_id: UUID | None = None
    billing_account_id: str | None = None
    sender: Address | None = None
    value_raw: int | None = None
    """Raw token units that it is about: of a surplus, the surplus."""
    ledger_reference: str | None = None
    """Of the ledger entries that it is about, where no attempt is."""
    gap_id: int | None = None
    """Of the row of `chain_gaps` that it is about."""
    details: dict[str, Any] = Field(default_factory=dict)

    @property
    def key(self) -> str:
        """What makes two findings the same one: the transfer, or the attempt, and the kind only where both may be."""
        if self.kind is FindingKind.CHAIN_GAP:
            return gap_key(self.gap_id)
        if self.kind in _OF_AN_ATTEMPT:
            return f"{self.kind.value}:{self.attempt_id or self.ledger_reference}"
        return transfer_key(self.chain_id, self.tx_hash, self.log_index)


_OF_AN_ATTEMPT: Final = frozenset(
    {
        FindingKind.SURPLUS,
        FindingKind.PAYMENT_REVERSED,
        FindingKind.LEDGER_WITHOUT_TRANSFER,
        FindingKind.LEDGER_DISAGREES,
    }
)

ALARMS: Final = frozenset({FindingKind.LEDGER_WITHOUT_TRANSFER, FindingKind.LEDGER_DISAGREES})
"""Kinds that say that the books are wrong, not that somebody paid in an unexpected way."""

DEFAULT_DUST_BELOW_RAW: Final = raw_for_usd_cents(1)
"""One cent. Whoever sends less pays more for sending it, and a thousand of them are no ten dollars."""

_OF_A_TRANSFER: Final = frozenset(
    {
        FindingKind.TRANSFER_WITHOUT_INTENT,
        FindingKind.WRONG_AMOUNT,
        FindingKind.UNDERPAYMENT,
        FindingKind.LATE_PAYMENT,
        FindingKind.WRONG_SENDER,
    }
)


def is_dust(finding: Finding, dust_below_raw: int) -> bool:
    """Whether it is about a transfer of so little that it is counted, and no operator asked about it.

    Only of what anybody can send us for next to nothing: what has to do with a credited payment is never dust.
    """
    return finding.kind in _OF_A_TRANSFER and finding.value_raw is not None and finding.value_raw < dust_below_raw


SETTLED: Final = "settled"
"""The resolution of a finding that nobody had to resolve: its transfer has paid an attempt since."""

REOPENING_RESOLUTIONS: Final = (Remedy.RETRY.value, SETTLED)
"""A finding that was resolved so is open again when the same thing is found again."""


def gap_key(gap_id: int | None) -> str:
    """The key of the finding about a row of `chain_gaps`."""
    return f"{FindingKind.CHAIN_GAP.value}:{gap_id}"


def transfer_key(chain_id: int | None, tx_hash: str | None, log_index: int | None) -> str:
    """A transfer as one word: the key of its finding, and the reference of what an operator credits for it."""
    return f"transfer:{chain_id}:{tx_hash}:{log_index}"
