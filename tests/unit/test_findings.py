"""What is dust."""

from __future__ import annotations

from typing import Final

import pytest

from domain.operations.findings import DEFAULT_DUST_BELOW_RAW, Finding, FindingKind, is_dust

FLOOR: Final = DEFAULT_DUST_BELOW_RAW


@pytest.mark.parametrize("kind", list(FindingKind))
@pytest.mark.parametrize(("value_raw", "below"), [(FLOOR - 1, True), (FLOOR, False), (None, False)])
def test_only_transfers_below_the_floor_are_dust(kind: FindingKind, value_raw: int | None, below: bool) -> None:
    of_a_transfer = kind in {
        FindingKind.TRANSFER_WITHOUT_INTENT,
        FindingKind.WRONG_AMOUNT,
        FindingKind.UNDERPAYMENT,
        FindingKind.LATE_PAYMENT,
        FindingKind.WRONG_SENDER,
    }
    assert is_dust(Finding(kind=kind, detail="x", value_raw=value_raw), FLOOR) == (below and of_a_transfer)
