"""What becomes of a hold when its call is over: nothing is owed, or something is, however little."""

from __future__ import annotations

from dataclasses import replace
from decimal import Decimal
from uuid import UUID

import pytest

from domain.billing.charges import CallEnd, Charge, Doubt
from domain.billing.keys import hash_key
from domain.billing.usage import Usage
from gateway.books import CallBooks, Settled
from tests.gateway.support import Books, open_account
from tests.support.payments import RolePair
from tests.support.spending import HELD, LEASE_SECONDS, ServiceKey, hold

NOTHING = Charge(
    user_cost_usd=Decimal(0),
    provider_cost_usd=Decimal(0),
    absorbed_cost_usd=Decimal(0),
    charged_credits=0,
    usage=Usage(),
    lines=(),
    is_estimated=False,
)
A_CENT = Decimal("0.01")


@pytest.mark.parametrize(
    ("changes", "state"),
    [
        ({}, "voided"),
        ({"usage": Usage({"input_tokens": 7})}, "captured"),  # of a model that costs nothing
        ({"doubt": Doubt.ZERO_USAGE}, "captured"),
        # The provider states a cost, and counts nothing: with a price, or where the platform bears it.
        ({"charged_credits": 200_000, "user_cost_usd": A_CENT * 2, "provider_cost_usd": A_CENT}, "captured"),
        ({"absorbed_cost_usd": A_CENT, "provider_cost_usd": A_CENT}, "captured"),
    ],
)
async def test_a_hold_is_released_where_nothing_is_owed_counted_or_doubted(
    roles: RolePair, changes: dict[str, object], state: str
) -> None:
    account = await open_account(roles.database)
    key = ServiceKey(UUID(account.key_id), hash_key(account.key), account.id)
    held = hold(roles.database, key, 300_000)
    books = CallBooks(roles.app, owner=str(HELD["owner"]), lease_seconds=LEASE_SECONDS, grace_credits=0)
    charge = replace(NOTHING, **changes)  # type: ignore[arg-type]
    settled = await books.settle(
        held["hold_id"],
        charge,
        end=CallEnd.COMPLETED,
        markup_factor=Decimal(2),
        provider="first",
        upstream_id=None,
        balance_before=1_000_000,
    )
    assert Books(roles.database).states() == [state]
    assert settled.charged == charge.charged_credits
    assert len(Books(roles.database).receipts()) == (state == "captured")
    if state == "voided":
        assert settled == Settled(0, 1_000_000)
