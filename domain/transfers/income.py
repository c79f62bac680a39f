"""Whether a transfer to the treasury is income: money that came in, in a block that settle answers for.

The rule is asked at every entrance: before an intent is made, when a payment is verified, when an observed transfer is
matched, before an operator's remedy, and in reconciliation. The database holds the same rule in triggers
(`check_settled_income`, `check_credited_income`), which have the last word.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Final

from domain.errors import PayerRefused
from domain.identifiers import Address, same_address

ZERO_ADDRESS: Final = "0x" + "00" * 20


class NonPayer(StrEnum):
    """Why an address is no payer's; table `non_payers` has the same words."""

    TREASURY = "treasury"
    """The treasury, of now or of before: what it sends never came in, and is credited by no path."""

    NOBODY = "nobody"
    """The zero address, which is the sender of every mint: credited only to an account that an operator names."""

    TOKEN = "token"
    """A token's own contract: it sends what others left there, and has no account. Like a mint."""


NON_PAYERS_IN_WORDS: Final[dict[NonPayer, str]] = {
    NonPayer.TREASURY: "the treasury's own address: what it sends is no income",
    NonPayer.NOBODY: "the zero address, which is nobody's: a mint",
    NonPayer.TOKEN: "the token's own contract, which is nobody's wallet",
}


def non_payer(sender: Address, *, treasury: Address, token: Address, known: NonPayer | None = None) -> NonPayer | None:
    """Why `sender` pays for nobody; None for a payer.

    `treasury` and `token` are those of the payment; `known` is what the database knows of the address, which
    remembers former treasuries.
    """
    if same_address(sender, ZERO_ADDRESS):
        return NonPayer.NOBODY
    if same_address(sender, treasury):
        return NonPayer.TREASURY
    if same_address(sender, token):
        return NonPayer.TOKEN
    return known


def require_payer(sender: Address, *, treasury: Address, token: Address, known: NonPayer | None = None) -> None:
    """Raise `PayerRefused` where no payment of `sender` could ever be credited."""
    kind = non_payer(sender, treasury=treasury, token=token, known=known)
    if kind is not None:
        raise PayerRefused(f"no payment is taken from {sender}: it is {NON_PAYERS_IN_WORDS[kind]}")


def is_too_old(block_number: int, first_block: int | None) -> bool:
    """Whether a transfer was mined before the first block that settle answers for; None: no block is too old."""
    return first_block is not None and block_number < first_block
