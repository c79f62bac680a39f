"""Fees of the relay's transactions: pure rules. All amounts in wei per gas."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

PRIORITY_FEE_WEI: Final = 1_000_000
"""A thousandth of a gwei: what a rollup's sequencer takes; a fee market's blocks take it while they are not full."""

BASE_FEE_FACTOR: Final = 2
"""The base fee grows by an eighth a block at most: this lasts for six full ones."""

GAS_MARGIN_PERCENT: Final = 20
"""On top of the estimate: state that it depends on may change until the transaction is mined."""

BUMP_PERCENT: Final = 13
"""Nodes take a replacement from ten percent more on, some from twelve and a half."""


@dataclass(frozen=True, slots=True)
class Fees:
    """What a transaction offers for a unit of gas."""

    max_fee_wei: int
    priority_fee_wei: int


def first_fees(base_fee_wei: int, *, max_fee_wei: int) -> Fees | None:
    """Fees of a first transaction; None where the base fee alone is above what the relay pays."""
    if base_fee_wei + PRIORITY_FEE_WEI > max_fee_wei:
        return None
    return Fees(min(BASE_FEE_FACTOR * base_fee_wei + PRIORITY_FEE_WEI, max_fee_wei), PRIORITY_FEE_WEI)


def replacing_fees(before: Fees, base_fee_wei: int, *, max_fee_wei: int) -> Fees | None:
    """Fees that replace a transaction with the fees `before`; None where they are more than the relay pays."""
    wanted = BASE_FEE_FACTOR * base_fee_wei + PRIORITY_FEE_WEI
    bumped = Fees(max(_bump(before.max_fee_wei), min(wanted, max_fee_wei)), _bump(before.priority_fee_wei))
    return bumped if bumped.max_fee_wei <= max_fee_wei else None


def with_margin(gas: int) -> int:
    """The gas limit of a transaction for which that much was estimated."""
    return gas + gas * GAS_MARGIN_PERCENT // 100


def _bump(wei: int) -> int:
    return wei + wei * BUMP_PERCENT // 100 + 1
