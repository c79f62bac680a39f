"""Receipts computed again: each amount, each field of the entry, on both sides of what decides it."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any, Final
from uuid import UUID

import pytest

from domain.billing.charges import CallEnd
from domain.billing.receipts import PostedCharge, StoredReceipt, verify

KEY: Final = UUID(int=1)
COST: Final = Decimal("0.001")
"""10,000 credits; the price is twice that."""

LINES: Final = [{"unit": "input_tokens", "count": 1_000, "usd": "1", "per": 1_000_000}]


def posted(**credits: int) -> PostedCharge:
    """The entry of a charge, with its lines' credits by a short name."""
    names = {
        "account": "credits:acct debit",
        "revenue": "revenue:usage credit",
        "providers": "expense:providers debit",
        "absorbed": "expense:absorbed debit",
        "owed": "payable:providers credit",
    }
    charged = credits.get("account")
    return PostedCharge(
        amount_credits=None if charged is None else -charged,
        billing_account_id="acct" if charged else None,
        virtual_key_id=KEY if charged else None,
        reason="llm_usage" if charged else "absorbed_cost",
        reference="gateway:hold",
        lines={names[name]: amount for name, amount in credits.items()},
    )


WHOLE: Final = posted(account=20_000, revenue=20_000, providers=10_000, owed=10_000)
BORNE: Final = posted(absorbed=10_000, owed=10_000)


def receipt(charged: int, user_usd: str, absorbed_usd: str = "0", **changes: Any) -> StoredReceipt:
    """A receipt of 1,000 tokens; 20,000 credits where nothing else is said."""
    values: dict[str, Any] = {
        **dict.fromkeys(("request_id", "source_system", "source_reference", "model", "provider"), ""),
        **dict.fromkeys(("cached_input_tokens", "cache_write_tokens", "output_tokens", "reasoning_tokens"), 0),
        **dict.fromkeys(("hold_id", "held_credits", "doubt", "doubt_detail", "price_version", "attributed_to")),
        "id": UUID(int=2),
        "billing_account_id": "acct",
        "virtual_key_id": KEY,
        "charged_credits": charged,
        "uncollected_credits": 0,
        "provider_cost_usd": COST,
        "user_cost_usd": Decimal(user_usd),
        "absorbed_cost_usd": Decimal(absorbed_usd),
        "source_system": "gateway",
        "source_reference": "hold",
        "charge_reason": CallEnd.COMPLETED.value,
        "input_tokens": 1_000,
        "estimated": False,
        "unit_prices": {"markup_factor": "2", "lines": LINES},
        "entry_id": UUID(int=3),
        "upstream_id": None,
        "called_at": datetime.now(UTC),
        "created_at": datetime.now(UTC),
        "entry": WHOLE,
    }
    return StoredReceipt(**(values | changes))


FREE: Final[dict[str, Any]] = {
    "unit_prices": {"markup_factor": "2", "lines": []},
    "provider_cost_usd": Decimal(0),
    "entry": None,
}


@pytest.mark.parametrize(
    "stored",
    [
        pytest.param(receipt(20_000, "0.002"), id="a whole charge"),
        pytest.param(receipt(20_000, "0.002", charge_reason="of an external proxy"), id="a reason of its own"),
        pytest.param(receipt(20_000, "0.002", held_credits=15_000), id="reported, beyond its hold"),
        pytest.param(receipt(20_000, "0.002", estimated=True), id="estimated, without a hold"),
        pytest.param(receipt(20_000, "0.002", estimated=True, held_credits=25_000), id="estimated, within its hold"),
        pytest.param(
            receipt(
                *(15_000, "0.0015"),
                estimated=True,
                held_credits=15_000,
                entry=posted(account=15_000, revenue=15_000, providers=10_000, owed=10_000),
            ),
            id="estimated, beyond its hold",
        ),
        pytest.param(
            receipt(
                *(8_000, "0.0008", "0.0002"),
                estimated=True,
                held_credits=8_000,
                entry=posted(account=8_000, revenue=8_000, providers=8_000, absorbed=2_000, owed=10_000),
            ),
            id="estimated, and held less than it cost",
        ),
        pytest.param(
            receipt(
                *(5_000, "0.0005", "0.0005"),
                uncollected_credits=15_000,
                entry=posted(account=5_000, revenue=5_000, providers=5_000, absorbed=5_000, owed=10_000),
            ),
            id="less than it cost was collected",
        ),
        pytest.param(
            receipt(
                *(15_000, "0.0015"),
                uncollected_credits=5_000,
                entry=posted(account=15_000, revenue=15_000, providers=10_000, owed=10_000),
            ),
            id="more than it cost was collected",
        ),
        pytest.param(receipt(0, "0", "0.001", charge_reason="refused", entry=BORNE), id="the platform's own cost"),
        pytest.param(receipt(0, "0", entry_id=None, **FREE), id="nothing, in no entry"),
    ],
)
def test_what_follows_from_its_lines_is_right(stored: StoredReceipt) -> None:
    assert verify(stored) == ()


RIGHT: Final = receipt(20_000, "0.002")


@pytest.mark.parametrize(
    ("stored", "fields"),
    [
        (replace(RIGHT, provider_cost_usd=Decimal("0.0011")), ("provider_cost_usd", "entry.lines")),
        (replace(RIGHT, user_cost_usd=Decimal("0.0021")), ("user_cost_usd",)),
        (replace(RIGHT, absorbed_cost_usd=Decimal("0.0001")), ("absorbed_cost_usd", "entry.lines")),
        (replace(RIGHT, charged_credits=19_999), ("charged_credits", "entry.amount", "entry.lines")),
        (replace(RIGHT, entry=None), ("entry_id",)),
        (replace(RIGHT, entry=None, entry_id=None), ("entry_id",)),
        (receipt(0, "0", **FREE), ("entry_id",)),
        (receipt(0, "0", **(FREE | {"entry": BORNE})), ("entry_id",)),
        (replace(RIGHT, entry=replace(WHOLE, reference="gateway:other")), ("entry.reference",)),
        (replace(RIGHT, entry=replace(WHOLE, reason="gift")), ("entry.reason",)),
        (replace(RIGHT, entry=replace(WHOLE, amount_credits=20_000)), ("entry.amount",)),
        (replace(RIGHT, entry=replace(WHOLE, billing_account_id="other")), ("entry.billing_account_id",)),
        (replace(RIGHT, entry=replace(WHOLE, virtual_key_id=UUID(int=9))), ("entry.virtual_key_id",)),
        (replace(RIGHT, entry=replace(WHOLE, lines={**WHOLE.lines, "cash:usdc debit": 1})), ("entry.lines",)),
        (replace(RIGHT, unit_prices={"markup_factor": "2"}), ("unit_prices.lines",)),
        (replace(RIGHT, unit_prices=None), ("unit_prices",)),
    ],
)
def test_what_does_not_is_named(stored: StoredReceipt, fields: tuple[str, ...]) -> None:
    found = dict.fromkeys(difference.field.partition("[")[0] for difference in verify(stored))
    assert tuple(found) == fields
