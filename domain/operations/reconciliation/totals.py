"""Sums over a period, and the equations that must hold between them."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import ClassVar

from pydantic import ConfigDict
from pydantic.alias_generators import to_camel

from domain.money import credits_for_raw


@dataclass(slots=True)
class Totals:
    """Sums over a period. `..._raw` are token units, `..._credits` credits; ten credits are one unit."""

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(alias_generator=to_camel, populate_by_name=True)

    transfers: int = 0
    inflow_raw: int = 0
    purchases_credits: int = 0
    donations_credits: int = 0
    operator_credits: int = 0
    unapplied_raw: int = 0
    surplus_raw: int = 0
    """Part of what is unapplied: more than was asked, and not credited."""
    refunded_raw: int = 0
    """Part of what is unapplied: sent back by hand, as operators recorded it."""
    written_off_raw: int = 0
    in_progress_raw: int = 0
    """Part of what is unapplied: an attempt or the watcher is at work on it."""
    open_raw: int = 0
    """Part of what is unapplied: waits for an operator."""
    dust_transfers: int = 0
    dust_raw: int = 0
    """Part of what is unapplied: transfers too small for a finding, which no operator is asked about."""
    unobserved_raw: int = 0
    """Not in the inflow: paid attempts from blocks that the watcher has not been through."""
    ledger_debit_credits: int = 0
    ledger_credit_credits: int = 0
    posted_outside_credits: int = 0
    """Credited for transfers of the period, posted before or after it."""
    posted_for_others_credits: int = 0
    """Posted in the period for transfers of other periods."""
    reversed_credits: int = 0
    excused_debit_credits: int = 0
    """Posted in the period without a transfer, and written off by an operator."""
    excused_credit_credits: int = 0

    def add(self, other: Totals) -> None:
        """Add another one's sums."""
        for name, value in other.by_name().items():
            if value:
                setattr(self, name, getattr(self, name) + value)

    def by_name(self) -> dict[str, int]:
        """The sums by their names."""
        return {one.name: getattr(self, one.name) for one in fields(self)}

    @property
    def applied_credits(self) -> int:
        """Credited for transfers of the period."""
        return self.purchases_credits + self.donations_credits + self.operator_credits

    def contradictions(self) -> list[str]:
        """A message for each equation that does not hold."""
        found = []
        accounted_credits = self.applied_credits + credits_for_raw(self.unapplied_raw)
        inflow_credits = credits_for_raw(self.inflow_raw)
        if inflow_credits != accounted_credits:
            found.append(
                f"inflow of {self.inflow_raw} raw units = {inflow_credits} credits, but credited "
                f"{self.applied_credits} + unapplied {self.unapplied_raw} raw units make {accounted_credits}"
            )
        explained = (
            self.applied_credits
            - self.posted_outside_credits
            + self.posted_for_others_credits
            + self.excused_debit_credits
        )
        if self.ledger_debit_credits != explained:
            found.append(
                f"the ledger took {self.ledger_debit_credits} credits' worth into the treasury's account, "
                f"transfers explain {explained}"
            )
        if self.ledger_credit_credits != self.reversed_credits + self.excused_credit_credits:
            found.append(
                f"the ledger took {self.ledger_credit_credits} credits' worth out of the treasury's account, "
                f"reversals explain {self.reversed_credits + self.excused_credit_credits}"
            )
        return found
