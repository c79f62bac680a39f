"""After the credit: is the payment final, may it still go, or is it gone?

Gone is decided as carefully as paid: by a chain that is final above the height where the payment was, in which that
height has another block, and after the payment had as long again to come back in a later one.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Final

from pydantic import BaseModel, ConfigDict


class FinalityLevel(StrEnum):
    """How sure of a block one has to be, in a node's own words; the first is counted by us."""

    CONFIRMATIONS = "confirmations"
    SAFE = "safe"
    FINALIZED = "finalized"

    @property
    def rank(self) -> int:
        """A stronger level has a higher one."""
        return _RANKS[self]


_RANKS: Final = {FinalityLevel.CONFIRMATIONS: 0, FinalityLevel.SAFE: 1, FinalityLevel.FINALIZED: 2}


class Value(BaseModel):
    """Immutable value that also travels through Temporal."""

    model_config = ConfigDict(frozen=True)


class FinalityPolicy(Value):
    """From when on a credited payment is not looked after any more; a larger one may need a stronger level."""

    level: FinalityLevel = FinalityLevel.FINALIZED
    large_level: FinalityLevel = FinalityLevel.FINALIZED
    large_from_usd_cents: int | None = None
    confirmations: int = 64
    """Blocks that level `confirmations` wants, the one with the payment included."""

    def level_for(self, amount_usd_cents: int) -> FinalityLevel:
        """The level that a payment of this size needs."""
        is_large = self.large_from_usd_cents is not None and amount_usd_cents >= self.large_from_usd_cents
        return self.large_level if is_large else self.level
