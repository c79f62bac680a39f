"""Usage reports and recent calls: what was charged, by every grouping, for who may see it and for no other."""

from __future__ import annotations

from dataclasses import asdict
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from uuid import UUID, uuid4

import pytest

from db.accounts.wallets import Payer
from db.billing import reports
from db.billing.reports import UsageRow, UsageSums, page_calls, total_of, usage_report
from db.engine import TenantConnection
from domain.billing.reports import UsageBy, UsagePeriod
from tests.support.payments import RolePair
from tests.support.spending import Spender
from tests.support.sql import connect, query

TODAY = datetime.now(UTC).date()
THIS_MONTH = UsagePeriod(TODAY - timedelta(days=30), TODAY + timedelta(days=1))


@pytest.fixture
async def owner(roles: RolePair) -> Payer:
    """Who owns the account."""
    return await roles.open_account(1)


def spender_of(roles: RolePair, owner: Payer, *, label: str = "test") -> Spender:
    """A key of the account, which has credits."""
    spender = Spender(roles.database, owner.billing_account_id)
    spender.create_key()
    spender.add_credits(100_000)
    with connect(roles.database.superuser_url) as superuser:
        superuser.execute(
            "UPDATE virtual_keys SET label = %s, created_by_user_id = %s, may_attribute = true WHERE id = %s",
            (label, owner.user_id, spender.key_id),
        )
    return spender


async def report(
    roles: RolePair, owner: Payer, by: UsageBy, *, account: str | None = None, period: UsagePeriod = THIS_MONTH
) -> list[UsageRow]:
    """As the owner sees it."""
    async with roles.app.transaction(owner.user_id) as connection:
        return await usage_report(connection, by, period, billing_account_id=account or owner.billing_account_id)


def spent(rows: list[UsageRow]) -> list[tuple[str | None, int, int]]:
    """Name, calls and credits."""
    return [(row.name, row.sums.calls, row.sums.charged_credits) for row in rows]


async def test_each_grouping_adds_up_to_what_was_charged(roles: RolePair, owner: Payer) -> None:
    tenant = await roles.open_account(2)
    one, two = spender_of(roles, owner, label="One"), spender_of(roles, owner, label="Two")
    one.capture(one.hold(model="gpt-4o"), 300)
    one.capture(one.hold(model="o3"), 40)
    two.capture(two.hold(model="o3", attribute_to=tenant.billing_account_id), 5)
    two.capture(two.hold(model="o3"), 0, absorbed_cost_usd=Decimal("0.001"), provider_cost_usd=Decimal("0.001"))
    day = str(query(roles.database.service_url, "SELECT (now() AT TIME ZONE 'UTC')::date")[0][0])
    expected: dict[UsageBy, list[tuple[str | None, int, int]]] = {
        UsageBy.KEY: [(str(one.key_id), 2, 340), (str(two.key_id), 2, 5)],
        UsageBy.MODEL: [("gpt-4o", 1, 300), ("o3", 3, 45)],
        UsageBy.DAY: [(day, 4, 345)],
        UsageBy.MEMBER: [(owner.user_id, 4, 345)],
        UsageBy.ATTRIBUTED: [(None, 3, 340), (tenant.billing_account_id, 1, 5)],
        UsageBy.ACCOUNT: [(owner.billing_account_id, 4, 345)],
    }
    whole = UsageSums(
        calls=4,
        charged_credits=345,
        provider_cost_usd=Decimal("0.00101725"),
        absorbed_cost_usd=Decimal("0.001"),
        input_tokens=400,
        output_tokens=80,
    )
    for by, rows in expected.items():
        found = await report(roles, owner, by)
        assert spent(found) == rows, by
        assert total_of(found) == whole, by
    assert [row.label for row in await report(roles, owner, UsageBy.KEY)] == ["One", "Two"]
    [member] = await report(roles, owner, UsageBy.MEMBER)
    assert member.label == owner.wallet_address


async def test_days_are_in_their_order_and_only_those_of_the_period(roles: RolePair, owner: Payer) -> None:
    key_id = spender_of(roles, owner).key_id
    days = {date(2026, 1, 1): 1, date(2026, 1, 2): 500, date(2026, 1, 3): 20, date(2026, 1, 4): 3}
    with connect(roles.database.superuser_url) as superuser:
        for day, credits in days.items():
            superuser.execute(
                "INSERT INTO usage_by_day (day, billing_account_id, virtual_key_id, model, calls, charged_credits)"
                " VALUES (%s, %s, %s, 'o3', 1, %s)",
                (day, owner.billing_account_id, key_id, credits),
            )
    period = UsagePeriod(date(2026, 1, 2), date(2026, 1, 3))
    found = await report(roles, owner, UsageBy.DAY, period=period)
    assert spent(found) == [("2026-01-02", 1, 500), ("2026-01-03", 1, 20)]
    assert await report(roles, owner, UsageBy.MODEL, period=UsagePeriod(date(2025, 1, 1), date(2025, 1, 1))) == []


async def test_the_rows_beyond_the_limit_are_one_row(roles: RolePair, owner: Payer) -> None:
    spender = spender_of(roles, owner)
    for number, charged in enumerate((5, 400, 30, 2)):
        spender.capture(spender.hold(model=f"model-{number}"), charged)
    async with roles.app.transaction(owner.user_id) as connection:
        rows = await usage_report(
            connection, UsageBy.MODEL, THIS_MONTH, billing_account_id=owner.billing_account_id, rows_max=2
        )
    assert spent(rows) == [("model-1", 1, 400), ("model-2", 1, 30), (None, 2, 7)]
    assert [row.is_rest for row in rows] == [False, False, True]


@pytest.mark.parametrize("by", UsageBy)
async def test_what_another_account_spent_is_not_seen(roles: RolePair, owner: Payer, by: UsageBy) -> None:
    stranger = await roles.open_account(2)
    spender = spender_of(roles, owner)
    spender.capture(spender.hold(), 100)
    assert await report(roles, stranger, by, account=owner.billing_account_id) == []
    async with roles.app.transaction(stranger.user_id) as connection:
        assert await usage_report(connection, by, THIS_MONTH, billing_account_id=None) == []
        assert await page_calls(connection, owner.billing_account_id, limit=9) == []
    async with roles.app.unscoped() as unscoped:
        without_scope = TenantConnection(unscoped, "")
        assert await usage_report(without_scope, by, THIS_MONTH, billing_account_id=owner.billing_account_id) == []
        assert await usage_report(without_scope, by, THIS_MONTH, billing_account_id=None) == []
        assert await page_calls(without_scope, owner.billing_account_id, limit=9) == []


async def test_an_operator_sees_all_accounts_apart_and_together(roles: RolePair, owner: Payer) -> None:
    other = await roles.open_account(2)
    for payer, charged in ((owner, 70), (other, 900)):
        spender = spender_of(roles, payer)
        spender.capture(spender.hold(), charged)
    async with roles.service.transaction() as service:
        by_account = await usage_report(service, UsageBy.ACCOUNT, THIS_MONTH, billing_account_id=None)
        by_member = await usage_report(service, UsageBy.MEMBER, THIS_MONTH, billing_account_id=None)
        own = await usage_report(service, UsageBy.MEMBER, THIS_MONTH, billing_account_id=owner.billing_account_id)
    assert spent(by_account) == [(other.billing_account_id, 1, 900), (owner.billing_account_id, 1, 70)]
    assert [row.label for row in by_member] == [other.wallet_address, owner.wallet_address]
    assert spent(own) == [(owner.user_id, 1, 70)]


async def test_the_key_of_another_account_that_bills_this_one_has_no_label(roles: RolePair, owner: Payer) -> None:
    grantee = await roles.open_account(2)
    payer_key, foreign_key = spender_of(roles, owner), spender_of(roles, grantee, label="theirs")
    with connect(roles.database.service_url) as service:
        service.execute(
            "INSERT INTO billing_grants (payer_account_id, grantee_account_id) VALUES (%s, %s)",
            (owner.billing_account_id, grantee.billing_account_id),
        )
    foreign_key.capture(foreign_key.hold(bill_to=owner.billing_account_id), 60)
    payer_key.capture(payer_key.hold(), 5)
    rows = await report(roles, owner, UsageBy.KEY)
    assert [(row.name, row.label) for row in rows] == [
        (str(foreign_key.key_id), None),
        (str(payer_key.key_id), "test"),
    ]
    async with roles.app.transaction(owner.user_id) as connection:
        calls = await page_calls(connection, owner.billing_account_id, limit=9)
    assert [(call.charged_credits, call.key_label) for call in calls] == [(5, "test"), (60, None)]


async def test_members_of_an_organization_are_known_to_who_manages_it(roles: RolePair, owner: Payer) -> None:
    admin = await roles.open_account(2)
    organization = str(uuid4())
    with connect(roles.database.service_url) as service:
        service.execute("SELECT open_account(%s, %s, 'organization', NULL, 'Team')", (organization, owner.user_id))
        service.execute(
            "INSERT INTO account_members (billing_account_id, user_id, role) VALUES (%s, %s, 'admin')",
            (organization, admin.user_id),
        )
    for payer, charged in ((owner, 10), (admin, 3)):
        spender = spender_of(roles, Payer(payer.user_id, organization, payer.wallet_address))
        spender.capture(spender.hold(), charged)
    for viewer in (owner, admin):
        rows = await report(roles, viewer, UsageBy.MEMBER, account=organization)
        assert spent(rows) == [(owner.user_id, 1, 10), (admin.user_id, 1, 3)]
        assert [row.label for row in rows] == [owner.wallet_address, admin.wallet_address]


async def test_recent_calls_are_paged_by_time_of_booking(roles: RolePair, owner: Payer) -> None:
    spender = spender_of(roles, owner)
    for number in range(5):
        spender.capture(spender.hold(request_id=f"req-{number}"), number)
    pages, before = [], None
    for _ in range(3):
        async with roles.app.transaction(owner.user_id) as connection:
            page = await page_calls(connection, owner.billing_account_id, limit=2, before=before)
        pages.append([call.request_id for call in page])
        before = page[-1].position
    assert pages == [["req-4", "req-3"], ["req-2", "req-1"], ["req-0"]]


async def test_calls_booked_at_the_same_moment_are_neither_lost_nor_repeated(roles: RolePair, owner: Payer) -> None:
    spender = spender_of(roles, owner)
    holds = [spender.hold(request_id=f"req-{number}") for number in range(5)]
    for hold in holds:
        spender.capture(hold, 1)
    with connect(roles.database.superuser_url, triggers=False) as superuser:
        superuser.execute("UPDATE charge_receipts SET created_at = '2026-01-05 12:00:00.123456Z'")
    seen: list[UUID] = []
    before = None
    while True:
        async with roles.app.transaction(owner.user_id) as connection:
            page = await page_calls(connection, owner.billing_account_id, limit=2, before=before)
        if not page:
            break
        seen += [call.receipt_id for call in page]
        before = page[-1].position
    assert len(seen) == len(set(seen)) == 5


async def test_a_call_is_shown_with_all_of_its_receipt(roles: RolePair, owner: Payer) -> None:
    spender = spender_of(roles, owner)
    captured = spender.capture(spender.hold(request_id="req-9", model="o3"), 40, tokens=[90, 30, 10, 20, 5])
    async with roles.app.transaction(owner.user_id) as connection:
        [call] = await page_calls(connection, owner.billing_account_id, limit=9)
    expected = {
        "receipt_id": captured["receipt_id"],
        "request_id": "req-9",
        "virtual_key_id": spender.key_id,
        "key_label": "test",
        "model": "o3",
        "charged_credits": 40,
        "user_cost_usd": Decimal("0.000004"),
        "provider_cost_usd": Decimal("0.000002"),
        "input_tokens": 90,
        "cached_input_tokens": 30,
        "cache_write_tokens": 10,
        "output_tokens": 20,
        "reasoning_tokens": 5,
        "unit_prices": {"markup_factor": "2", "lines": []},
        "estimated": False,
    }
    assert {name: value for name, value in asdict(call).items() if name in expected} == expected


def test_every_grouping_has_its_query() -> None:
    for by in UsageBy:
        assert "charge_receipts" not in reports.report_sql(by, of_account=True)
