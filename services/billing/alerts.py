"""What is published about charges: crossings of thresholds as events, doubtful receipts as findings."""

from __future__ import annotations

from collections import Counter
from datetime import datetime
from typing import Final

from db.billing.alerts import DoubtfulReceipt, StoredAlert, list_doubtful_receipts, move_receipts_cursor
from db.engine import ServiceDatabase
from db.operations.findings import open_finding
from domain.billing.charges import Doubt
from domain.money import CREDITS_PER_RAW
from domain.operations.events import BALANCE_EXHAUSTED, LIMIT_REACHED, PlatformEvent
from domain.operations.findings import Finding, FindingKind

CURSOR_BEHIND_SECONDS: Final = 600.0
"""How far the cursor stays behind the newest receipts: a transaction that is open for longer is ended by the server."""

_WHAT_TO_DO: Final = {
    Doubt.IMPLAUSIBLE_USAGE: "an estimate was charged: compare it with the provider's own record of the call",
    Doubt.ZERO_USAGE: "an estimate was charged: ask the provider why it reports no usage",
    Doubt.ZERO_COST: "the price book's price was charged: compare it with the provider's bill",
    Doubt.UNKNOWN_COST: "nothing was charged: add a price for the model to UPSTREAMS_FILE or the price book",
}
"""Remedy of each doubt, in its finding."""


async def open_findings_of_receipts(
    database: ServiceDatabase, *, batch_size: int
) -> tuple[dict[str, int], bool, datetime | None]:
    """One batch of findings: how many of each kind are new, whether that was all, and up to when all is checked."""
    async with database.transaction() as connection:
        receipts = await list_doubtful_receipts(connection, limit=batch_size)
        opened: Counter[str] = Counter()
        for receipt in receipts:
            finding = finding_of(receipt)
            if await open_finding(connection, finding):
                opened[finding.kind.value] += 1
        if len(receipts) == batch_size:
            return dict(opened), False, None
        seen_to = await move_receipts_cursor(connection, behind_seconds=CURSOR_BEHIND_SECONDS)
    return dict(opened), True, seen_to


def finding_of(receipt: DoubtfulReceipt) -> Finding:
    """The finding about a receipt, with what can be done about it: one, also where it is doubtful and unpaid."""
    unpaid = f"{receipt.uncollected_credits} credits were beyond what the account had, and the platform bears them"
    if receipt.doubt is None:
        kind, why = FindingKind.CHARGE_UNCOLLECTED, f"{unpaid}: if that is frequent, let the gateway clamp max_tokens"
    else:
        remedy = _WHAT_TO_DO.get(Doubt(receipt.doubt), "see the receipt") if receipt.doubt in set(Doubt) else ""
        also = f"; {unpaid}" if receipt.uncollected_credits else ""
        kind = FindingKind.CHARGE_DOUBTFUL
        why = f"{receipt.doubt}: {receipt.doubt_detail or 'no detail'}; {remedy or 'see the receipt'}{also}"
    return Finding(
        kind=kind,
        detail=f"receipt {receipt.id} of {receipt.model} at {receipt.provider}: {why}"[:2_000],
        billing_account_id=receipt.billing_account_id,
        value_raw=-(-receipt.uncollected_credits // CREDITS_PER_RAW) if receipt.uncollected_credits else None,
        ledger_reference=receipt.reference,
        details={
            "receiptId": str(receipt.id),
            "doubt": receipt.doubt,
            "chargedCredits": receipt.charged_credits,
            "uncollectedCredits": receipt.uncollected_credits,
        },
    )


def event_of(alert: StoredAlert) -> PlatformEvent:
    """The event of a crossing. Its id is the crossing's, so that one sent twice is recognised."""
    kind = BALANCE_EXHAUSTED if alert.kind == "balance_exhausted" else LIMIT_REACHED
    data = {"billingAccountId": alert.billing_account_id, "balanceCredits": alert.balance_credits}
    if alert.period is not None and alert.period_start is not None:
        data |= {
            "limit": alert.kind,
            "keyId": str(alert.virtual_key_id) if alert.virtual_key_id else None,
            "period": alert.period,
            "periodStart": alert.period_start.isoformat(),
            "thresholdPercent": alert.threshold_percent,
            "spentCredits": alert.spent_credits,
            "limitCredits": alert.limit_credits,
        }
    return PlatformEvent(
        id=f"{kind}:{alert.id}",
        type=kind,
        subject=alert.billing_account_id,
        time=alert.created_at,
        data=data | {"reference": alert.reference},
    )
