"""A provider's bill of one day, compared with what was booked."""

from __future__ import annotations

from datetime import date
from decimal import Decimal

from pydantic import BaseModel, ConfigDict

from domain.money import CREDITS_PER_USD, raw_for_credits
from domain.operations.findings import Finding, FindingKind


class DayOfProvider(BaseModel):
    """Both sides of one UTC day, and what may differ without being a difference."""

    model_config = ConfigDict(frozen=True)

    upstream: str
    day: date
    billed_usd: Decimal
    receipts: int
    receipts_usd: Decimal
    receipts_credits: int
    ledger_credits: int
    open_holds: int
    tolerance_usd: Decimal
    tolerance_percent: Decimal

    @property
    def difference_usd(self) -> Decimal:
        """What the provider billed beyond what was booked; negative where it billed less."""
        return self.billed_usd - self.receipts_usd

    @property
    def problems(self) -> tuple[str, ...]:
        """What does not agree, each in one phrase."""
        found = []
        allowed = max(self.tolerance_usd, abs(self.billed_usd) * self.tolerance_percent / 100)
        if abs(self.difference_usd) > allowed:
            more = "more" if self.difference_usd > 0 else "less"
            found.append(
                f"the provider billed {self.billed_usd:f} USD, {abs(self.difference_usd):f} {more} than the "
                f"{self.receipts_usd:f} of {self.receipts} receipts"
            )
        if self.ledger_credits != self.receipts_credits:
            found.append(
                f"the ledger owes {self.ledger_credits} credits for these receipts, which cost {self.receipts_credits}"
            )
        if self.open_holds:
            found.append(f"{self.open_holds} holds of that day are still open")
        return tuple(found)

    @property
    def key(self) -> str:
        """The reference of its finding."""
        return f"{self.upstream}:{self.day.isoformat()}"

    def finding(self) -> Finding:
        """The finding about the day."""
        return Finding(
            kind=FindingKind.PROVIDER_COST_DIFFERS,
            detail=f"upstream {self.upstream}, {self.day.isoformat()} (UTC): {'; '.join(self.problems)}",
            ledger_reference=self.key,
            value_raw=raw_for_credits(int(abs(self.difference_usd) * CREDITS_PER_USD)),
            details={
                "billedUsd": f"{self.billed_usd:f}",
                "receiptsUsd": f"{self.receipts_usd:f}",
                "ledgerCredits": self.ledger_credits,
                "openHolds": self.open_holds,
            },
        )
