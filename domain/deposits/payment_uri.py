"""What a QR code says: an address alone, or a payment as wallets read it (ERC-681, BIP-21)."""

from __future__ import annotations

from typing import Final

from domain.deposits.methods import MethodKind, PaymentMethod
from domain.money import format_token

UTXO_SCHEMES: Final = {"BTC": "bitcoin", "LTC": "litecoin", "DOGE": "dogecoin"}
"""By symbol: BIP-21, and what wallets of Bitcoin's family made of it."""


def payment_uri(method: PaymentMethod, address: str, amount_raw: int) -> str | None:
    """A payment of `amount_raw` to `address`; None where the chain's wallets read no such thing.

    An ERC-681 amount is in raw units, which some wallets take for whole tokens: it is offered, and never the first
    choice. A BIP-21 amount is in whole coins.
    """
    match method.kind:
        case MethodKind.ERC20:
            return f"ethereum:{method.address}@{method.chain_id}/transfer?address={address}&uint256={amount_raw}"
        case MethodKind.NATIVE:
            return f"ethereum:{address}@{method.chain_id}?value={amount_raw}"
        case MethodKind.UTXO:
            scheme = UTXO_SCHEMES.get(method.token.upper())
            amount = format_token(amount_raw, method.decimals)
            return f"{scheme}:{address}?amount={amount}" if scheme else None
