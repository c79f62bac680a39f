"""What the gateway says of a call, as the database's functions are given it."""

from __future__ import annotations

import json
from decimal import Decimal
from uuid import uuid4

from db.billing import holds
from db.billing.holds import HoldRequest, Progress
from domain.billing.charges import CallEnd, Charge
from domain.billing.usage import Usage
from tests.support.payments import RolePair
from tests.support.spending import ServiceKey
from tests.support.sql import query

RATES = {"input_tokens": {"usd": "1"}, "output_tokens": {"usd": "2"}}


async def test_a_hold_has_the_terms_of_its_call_and_a_renewal_names_those_that_are_lost(
    roles: RolePair, key: ServiceKey
) -> None:
    asked = HoldRequest(
        hold_id=uuid4(),
        key_hash=key.key_hash,
        request_id="req-7",
        amount_credits=600,
        amount_min_credits=None,
        dialect="responses",
        model="dev-large",
        upstream="upstream-1",
        is_streamed=True,
        attribute_to=None,
        bill_to=None,
        owner="gateway-1",
        lease_seconds=60.0,
        rate_bucket="chat",
        rate_per_minute=100,
        markup_factor=Decimal("2.5"),
        price_version="7",
        rates=json.dumps(RATES),
        input_tokens=30,
        output_tokens_limit=40,
    )
    async with roles.app.hot_statement() as connection:
        assert (await holds.hold(connection, asked)).outcome == "held"
        gone = uuid4()
        progress = [Progress(one, 5, None) for one in (asked.hold_id, gone)]
        assert await holds.renew(connection, progress, owner="gateway-1", lease_seconds=60.0) == [gone]
        assert await holds.renew(connection, progress[:1], owner="gateway-1", lease_seconds=60.0) == []
    stored = (
        "SELECT id, request_id, amount_credits, dialect, model, upstream, is_streamed, owner, markup_factor,"
        " price_version, rates, input_tokens_estimate, output_tokens_limit, output_bytes FROM credit_holds"
    )
    assert query(roles.database.superuser_url, stored) == [
        (
            *(asked.hold_id, "req-7", 600, "responses", "dev-large", "upstream-1", True, "gateway-1"),
            *(Decimal("2.5"), "7", RATES, 30, 40, 5),
        )
    ]


def test_a_charge_names_the_tokens_of_each_kind() -> None:
    units = {"input_tokens": 16, "cache_read_tokens": 2, "cache_write_tokens": 3, "output_tokens": 8}
    nothing = Decimal(0)
    charged = Charge(nothing, nothing, nothing, 0, Usage({**units, "output_reasoning_tokens": 4}), (), False)
    end, factor = CallEnd.COMPLETED, Decimal(2)
    values = holds.charge_values(charged, end=end, provider="openai", upstream_id=None, markup_factor=factor)
    assert values["tokens"] == [16, 2, 3, 8, 4]
