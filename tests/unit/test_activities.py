"""What workflows call is what workers register: names and messages of activities are declared once."""

from __future__ import annotations

import importlib
import inspect
from typing import Any, Final, get_type_hints

import pytest

from activities.billing import signatures as billing
from activities.deposits import signatures as deposits
from activities.ledger import signatures as ledger
from activities.operations import signatures as operations
from activities.payments import signatures as payments
from activities.signatures import Signatures
from activities.transfers import signatures as transfers
from activities.webhooks import signatures as webhooks

DECLARATIONS: Final = [
    value
    for module in (billing, deposits, ledger, operations, payments, transfers, webhooks)
    for value in vars(module).values()
    if isinstance(value, type) and issubclass(value, Signatures) and value is not Signatures
]

NAMES: Final = {
    "advance_sweep", "announce", "await_confirmation", "await_finality", "book_swept", "call_governance_model",
    "check_books", "check_deposit_balances", "credit_buyer", "credit_donation", "decide_finality", "deliver_webhook",
    "end_without_credits", "ensure_standing_workflows", "expire_intents", "follow_chain", "list_billing_alerts",
    "look_up_call", "low_balance_announced", "mint_bonus", "mint_bonus_of_credit", "note_billing_alerts",
    "note_books_announced", "open_findings_of_receipts", "open_receipt_months", "pick_up_payments",
    "prepare_governance_call",
    "prune_expired_rows", "prune_webhooks", "read_income", "reconcile", "reconcile_providers", "record_submission",
    "rescan_chain", "resolve_hold", "reverse_bonus", "reverse_payment", "start_hold_resolutions",
    "start_overdue_webhooks", "take_heartbeat", "take_remedy", "verify_addresses",
}  # fmt: skip
"""Recorded histories have these: renaming one strands every run that has called it."""


def definition_of(method: Any) -> Any:
    """What the SDK has noted about a decorated method."""
    return method.__temporal_activity_definition


def implementation_of(declaration: type[Signatures]) -> type[Any]:
    name = (declaration.__doc__ or "").split("`")[1]
    found = [
        value
        for value in vars(importlib.import_module(name)).values()
        if inspect.isclass(value) and issubclass(value, declaration) and value is not declaration
    ]
    assert len(found) == 1, f"{name} implements {declaration.__name__} {len(found)} times"
    return found[0]


def test_activities_keep_the_names_that_histories_have() -> None:
    declared = [definition_of(getattr(each, name)).name for each in DECLARATIONS for name in each.declared()]
    assert sorted(declared) == sorted(NAMES)


@pytest.mark.parametrize("declaration", DECLARATIONS, ids=lambda declaration: declaration.__name__)
def test_an_activity_is_registered_under_the_name_and_with_the_messages_that_workflows_use(
    declaration: type[Signatures],
) -> None:
    implementation = implementation_of(declaration)
    assert not inspect.isabstract(implementation)
    for name in declaration.declared():
        declared, implemented = getattr(declaration, name), getattr(implementation, name)
        assert definition_of(implemented).name == definition_of(declared).name
        assert get_type_hints(implemented) == get_type_hints(declared)
