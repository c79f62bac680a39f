"""What QR codes of payments say, to the letter: what a wallet misreads is money on another way."""

from __future__ import annotations

from datetime import UTC, datetime
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from domain.deposits.methods import MethodKind, PaymentMethod, Scheme
from domain.deposits.payment_uri import payment_uri
from domain.money import format_token

TOKEN = "0x833589fCD6eDb6E08f4c7C32D4f71b54bdA02913"
ADDRESS = "0x70997970C51812dc3A010C7d01b50e0d17dc79C8"


def method(kind: MethodKind, token: str = "USDC", decimals: int = 6) -> PaymentMethod:
    return PaymentMethod(
        id=f"{token}:base",
        chain_id=8453,
        token=token,
        address=TOKEN if kind is MethodKind.ERC20 else None,
        decimals=decimals,
        kind=kind,
        scheme=Scheme.CREATE2,
        ring_id=None,
        min_amount_raw=1,
        confirmations=None,
        enabled=True,
        created_at=datetime(2026, 1, 1, tzinfo=UTC),
    )


@pytest.mark.parametrize(
    ("asked", "address", "raw", "uri"),
    [
        (
            method(MethodKind.ERC20),
            ADDRESS,
            25_000_000,
            f"ethereum:{TOKEN}@8453/transfer?address={ADDRESS}&uint256=25000000",
        ),
        (method(MethodKind.NATIVE, "ETH", 18), ADDRESS, 10**18, f"ethereum:{ADDRESS}@8453?value=1000000000000000000"),
        (method(MethodKind.UTXO, "BTC", 8), "bc1qabc", 20_300_000, "bitcoin:bc1qabc?amount=0.203"),
        (method(MethodKind.UTXO, "DOGE", 8), "DAbc", 5_000_000_000, "dogecoin:DAbc?amount=50"),
        (method(MethodKind.UTXO, "ZZZ", 8), "zzz", 1, None),
    ],
)
def test_a_payment_is_written_as_wallets_read_it(asked: PaymentMethod, address: str, raw: int, uri: str | None) -> None:
    assert payment_uri(asked, address, raw) == uri


@given(raw=st.integers(0, 10**40), decimals=st.integers(0, 36))
def test_an_amount_of_tokens_is_exact_and_has_no_zero_too_many(raw: int, decimals: int) -> None:
    text = format_token(raw, decimals)
    whole, _, fraction = text.partition(".")
    assert int(whole + fraction.ljust(decimals, "0")) == raw
    assert not fraction.endswith("0") and not text.endswith(".")


@pytest.mark.parametrize(
    ("raw", "decimals", "text"),
    [(0, 6, "0"), (1, 6, "0.000001"), (25_000_000, 6, "25"), (1_234_560_000, 6, "1234.56"), (7, 0, "7")],
)
def test_amounts_of_tokens(raw: int, decimals: int, text: str) -> None:
    assert format_token(raw, decimals) == text
    assert Decimal(text).scaleb(decimals) == raw
