"""Which transfers are income: not the treasury's own, none without a payer, none before the first accepted block."""

from __future__ import annotations

import pytest

from domain.errors import PayerRefused
from domain.transfers.income import ZERO_ADDRESS, NonPayer, is_too_old, non_payer, require_payer

TREASURY, TOKEN, PAYER = "0x" + "aB" * 20, "0x" + "cD" * 20, "0x" + "eF" * 20


@pytest.mark.parametrize("written", [str, str.lower, lambda address: "0x" + address[2:].upper()])
@pytest.mark.parametrize(
    ("sender", "known", "kind"),
    [
        (PAYER, None, None),
        (TREASURY, None, NonPayer.TREASURY),
        (ZERO_ADDRESS, None, NonPayer.NOBODY),
        (TOKEN, None, NonPayer.TOKEN),
        (PAYER, NonPayer.TREASURY, NonPayer.TREASURY),
        (PAYER, NonPayer.TOKEN, NonPayer.TOKEN),
        (ZERO_ADDRESS, NonPayer.TREASURY, NonPayer.NOBODY),
    ],
)
def test_who_cannot_be_a_payer(sender: str, known: NonPayer | None, kind: NonPayer | None, written: object) -> None:
    assert callable(written)
    address = written(sender)
    assert non_payer(address, treasury=TREASURY, token=TOKEN, known=known) is kind
    if kind is None:
        require_payer(address, treasury=TREASURY, token=TOKEN, known=known)
    else:
        with pytest.raises(PayerRefused):
            require_payer(address, treasury=TREASURY, token=TOKEN, known=known)


@pytest.mark.parametrize(
    ("block", "first", "too_old"), [(99, 100, True), (100, 100, False), (101, 100, False), (0, None, False)]
)
def test_the_first_block_itself_is_answered_for(block: int, first: int | None, too_old: bool) -> None:
    assert is_too_old(block, first) is too_old
