"""Whether a transfer to the treasury is income: money that came in, in an accepted block.

The rule is applied before an intent is made, when a payment is verified, when an observed transfer is matched, before
an operator's remedy, and in reconciliation. Triggers of the database (`check_settled_income`, `check_credited_income`)
enforce it.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Final

from domain.errors import PayerRefused
from domain.identifiers import Address, Recipient, same_address

ZERO_ADDRESS: Final = "0x" + "00" * 20


class NonPayer(StrEnum):
    """Why an address cannot be a payer; `non_payer_kind` in `db/functions/transfers.sql` returns the same values."""

    TREASURY = "treasury"
    """A current or former treasury: its transfers never came in, and no path credits them."""

    NOBODY = "nobody"
    """The zero address, sender of every mint: credited only to an account that an operator names."""

    TOKEN = "token"
    """A token's own contract, which sends what others left there and has no account: credited like a mint."""

    DEPOSIT_ADDRESS = "deposit_address"
    """An address that was given out and paid into: what it sends came in before."""


NON_PAYER_DESCRIPTIONS: Final[dict[NonPayer, str]] = {
    NonPayer.TREASURY: "the treasury's own address: its transfers are not income",
    NonPayer.NOBODY: "the zero address: a mint",
    NonPayer.TOKEN: "the token's own contract",
    NonPayer.DEPOSIT_ADDRESS: "a deposit address: what it sends has come in before",
}


MOVES_OWN_MONEY: Final = frozenset({NonPayer.TREASURY, NonPayer.DEPOSIT_ADDRESS})
"""Senders whose transfers are no income: no path credits them, and they are no finding."""


def non_payer(
    sender: Address, *, treasury: Recipient, token: Address, known: NonPayer | None = None
) -> NonPayer | None:
    """Why `sender` cannot pay; None for a payer.

    `treasury` and `token` are those of the payment; `known` is the database's record of the address, which includes
    former treasuries.
    """
    if same_address(sender, ZERO_ADDRESS):
        return NonPayer.NOBODY
    if same_address(sender, treasury):
        return NonPayer.TREASURY
    if same_address(sender, token):
        return NonPayer.TOKEN
    return known


def require_payer(sender: Address, *, treasury: Address, token: Address, known: NonPayer | None = None) -> None:
    """Refuse a sender whose payments can never be credited. Raises `PayerRefused`."""
    kind = non_payer(sender, treasury=treasury, token=token, known=known)
    if kind is not None:
        raise PayerRefused(f"payments from {sender} are not accepted: it is {NON_PAYER_DESCRIPTIONS[kind]}")


def is_too_old(block_number: int, first_block: int | None) -> bool:
    """Whether a transfer was mined before the first accepted block; with None no block is too old."""
    return first_block is not None and block_number < first_block
