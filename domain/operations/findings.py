"""Findings: what only an operator may decide, by kind, with the remedies that apply to each.

A finding's key is derived from facts (a transfer, an attempt), so that the same case is recorded once, whichever
process finds it.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Any, Final
from uuid import UUID

from pydantic import BaseModel, ConfigDict, Field

from domain.identifiers import Address, TxHash
from domain.money import raw_for_usd_cents


class FindingKind(StrEnum):
    """Kind of a finding."""

    TRANSFER_WITHOUT_INTENT = "transfer_without_intent"
    """A wallet without an intent paid the treasury."""

    WRONG_AMOUNT = "wrong_amount"
    """The sender has an intent, of another amount than the transfer."""

    UNDERPAYMENT = "underpayment"
    """A submitted payment was refused because it was too small; the treasury has the money."""

    LATE_PAYMENT = "late_payment"
    """The transfer was mined after its intent had expired."""

    WRONG_SENDER = "wrong_sender"
    """A submitted transfer was sent by another wallet, which does not claim it."""

    SURPLUS = "surplus"
    """The transfer exceeds the amount due; the amount due is credited."""

    RETURNED_AFTER_REVERSAL = "returned_after_reversal"
    """A payment that was reversed is on the chain again."""

    PAYMENT_REVERSED = "payment_reversed"
    """A credited payment was reorged out and its credits were reversed."""

    LEDGER_WITHOUT_TRANSFER = "ledger_without_transfer"
    """Credits were posted for a payment that is not on the chain: an alarm."""

    LEDGER_DISAGREES = "ledger_disagrees"
    """A payment, its transfer and its ledger entries contradict each other: an alarm."""

    CHAIN_GAP = "chain_gap"
    """No chain node returns the transfers of some blocks; the watcher skips them and continues."""

    CHARGE_DOUBTFUL = "charge_doubtful"
    """A call was not charged as its provider reported it, because the report cannot be true."""

    CHARGE_UNCOLLECTED = "charge_uncollected"
    """A call cost more than its account could pay; the platform bears the rest."""

    PROVIDER_COST_DIFFERS = "provider_cost_differs"
    """A provider billed something else for a day than its calls' receipts say, or the books contradict each other."""

    ADDRESS_DIFFERS = "address_differs"
    """A deposit address does not follow from its owner and its key or treasury: an alarm."""

    DEPOSITS_DIFFER = "deposits_differ"
    """What deposit addresses hold is not what came to them less what was swept: a transfer was missed, or moved."""

    DEPOSIT_WITHOUT_PRICE = "deposit_without_price"
    """Deposits of a token that is no dollar are not credited, because its price has been unknown for an hour."""

    WEBHOOK_UNDELIVERED = "webhook_undelivered"
    """An endpoint has not accepted a webhook for three days; it is not tried any more."""


class Remedy(StrEnum):
    """What an operator can do about a finding; each remedy needs a name and a reason, and is safe to repeat."""

    RETRY = "retry"
    """Retry: match the transfer again, restart the attempt's workflow, or send the webhooks again."""

    CREDIT = "credit"
    """Credit the transfer's whole value to an account; a purchase like any other, with the system tenant's bonus."""

    REFUND_RECORDED = "refund_recorded"
    """Record that the money was sent back by hand."""

    WRITE_OFF = "write_off"
    """Take no action."""


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
    FindingKind.CHARGE_DOUBTFUL: (Remedy.WRITE_OFF,),
    FindingKind.CHARGE_UNCOLLECTED: (Remedy.WRITE_OFF,),
    FindingKind.PROVIDER_COST_DIFFERS: (Remedy.RETRY, Remedy.WRITE_OFF),
    FindingKind.ADDRESS_DIFFERS: (Remedy.RETRY, Remedy.WRITE_OFF),
    FindingKind.DEPOSITS_DIFFER: (Remedy.WRITE_OFF,),
    FindingKind.DEPOSIT_WITHOUT_PRICE: (Remedy.RETRY, Remedy.WRITE_OFF),
    FindingKind.WEBHOOK_UNDELIVERED: (Remedy.RETRY, Remedy.WRITE_OFF),
}
"""Remedies of each kind, the most likely first."""


class Finding(BaseModel):
    """A finding before it is recorded. `detail` is one line for the operator."""

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
    """Raw token units in question; of an overpayment, the excess."""
    ledger_reference: str | None = None
    """Of the ledger entries in question, where there is no attempt: of a charge, its source and the source's own.

    Of a deposit address, its id; of what they hold, the token and the address."""
    gap_id: int | None = None
    """Of the row of `chain_gaps` in question."""
    endpoint_day: str | None = None
    """Of webhooks that were not delivered: their endpoint, and the UTC day on which they were given up."""
    details: dict[str, Any] = Field(default_factory=dict)

    @property
    def key(self) -> str:
        """Identity of the finding: the transfer, attempt or charge, and the kind only where a subject can have findings
        of several kinds.
        """
        if self.kind is FindingKind.CHAIN_GAP:
            return gap_key(self.gap_id)
        if self.kind is FindingKind.WEBHOOK_UNDELIVERED:
            return f"{self.kind.value}:{self.endpoint_day}"
        if self.kind in _OF_AN_ENTRY:
            return f"{self.kind.value}:{self.attempt_id or self.ledger_reference}"
        return transfer_key(self.chain_id, self.tx_hash, self.log_index)


_OF_AN_ENTRY: Final = frozenset(
    {
        FindingKind.SURPLUS,
        FindingKind.PAYMENT_REVERSED,
        FindingKind.LEDGER_WITHOUT_TRANSFER,
        FindingKind.LEDGER_DISAGREES,
        FindingKind.CHARGE_DOUBTFUL,
        FindingKind.CHARGE_UNCOLLECTED,
        FindingKind.PROVIDER_COST_DIFFERS,
        FindingKind.ADDRESS_DIFFERS,
        FindingKind.DEPOSITS_DIFFER,
        FindingKind.DEPOSIT_WITHOUT_PRICE,
    }
)
"""About an attempt, or a ledger entry; of addresses, their key or treasury; of what they hold, the token; of what has
no price, the method."""

ALARMS: Final = frozenset(
    {FindingKind.LEDGER_WITHOUT_TRANSFER, FindingKind.LEDGER_DISAGREES, FindingKind.ADDRESS_DIFFERS}
)
"""Kinds that mean that the ledger is wrong, or an address another's, as opposed to an unexpected payment."""

DEFAULT_DUST_BELOW_RAW: Final = raw_for_usd_cents(1)
"""One cent. Sending less costs more in fees than it is worth, and a thousand such transfers are under ten dollars."""

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
    """Whether it is about a transfer so small that it is counted without asking an operator.

    Limited to kinds that anyone can cause at next to no cost: a finding about a credited payment is never dust.
    """
    return finding.kind in _OF_A_TRANSFER and finding.value_raw is not None and finding.value_raw < dust_below_raw


SETTLED: Final = "settled"
"""Resolution of a finding that closed itself: its transfer has paid an attempt since."""

REOPENING_RESOLUTIONS: Final = (Remedy.RETRY.value, SETTLED)
"""A finding closed this way is reopened when the same thing is found again."""


def gap_key(gap_id: int | None) -> str:
    """Key of the finding about a row of `chain_gaps`."""
    return f"{FindingKind.CHAIN_GAP.value}:{gap_id}"


def transfer_key(chain_id: int | None, tx_hash: str | None, log_index: int | None) -> str:
    """A transfer as one string: the key of its finding, and the reference of an operator's credit for it."""
    return f"transfer:{chain_id}:{tx_hash}:{log_index}"
