"""What a receipt in doubt, and a crossing, are published as."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any
from uuid import uuid4

import pytest

from db.billing.alerts import DoubtfulReceipt, StoredAlert
from domain.operations.findings import FindingKind
from services.billing.alerts import event_of, finding_of

MOMENT = datetime(2026, 3, 1, tzinfo=UTC)


def receipt(**changes: Any) -> DoubtfulReceipt:
    """One whose usage cannot be true."""
    values: dict[str, Any] = {
        "id": uuid4(),
        "billing_account_id": "account",
        "reference": "gateway:1",
        "model": "m",
        "provider": "p",
        "charged_credits": 10,
        "uncollected_credits": 0,
        "doubt": "implausible_usage",
        "doubt_detail": "output_tokens is -5",
        "created_at": MOMENT,
    }
    return DoubtfulReceipt(**{**values, **changes})


def alert(**changes: Any) -> StoredAlert:
    """A limit of an account, in no key."""
    values: dict[str, Any] = {
        "id": 7,
        "kind": "account_limit",
        "billing_account_id": "account",
        "virtual_key_id": None,
        "period": "day",
        "period_start": MOMENT.date(),
        "threshold_percent": 80,
        "spent_credits": 80,
        "limit_credits": 100,
        "balance_credits": 5,
        "reference": "gateway:1",
        "created_at": MOMENT,
    }
    return StoredAlert(**{**values, **changes})


@pytest.mark.parametrize(("uncollected", "value"), [(0, None), (1, 1), (10, 1), (11, 2)])
def test_a_finding_is_worth_what_was_not_paid_rounded_up(uncollected: int, value: int | None) -> None:
    finding = finding_of(receipt(uncollected_credits=uncollected))
    assert finding.kind is FindingKind.CHARGE_DOUBTFUL
    assert finding.value_raw == value
    assert finding.details["uncollectedCredits"] == uncollected


def test_a_detail_that_a_provider_wrote_has_a_bound() -> None:
    assert len(finding_of(receipt(doubt_detail="x" * 10_000)).detail) == 2_000


def test_a_limit_of_the_account_itself_names_no_key() -> None:
    assert event_of(alert()).data["keyId"] is None
    key_id = uuid4()
    assert event_of(alert(virtual_key_id=key_id)).data["keyId"] == str(key_id)
