"""Findings by the thousand: nothing small hides money, nothing is cut without a word, and none of it takes long."""

from __future__ import annotations

import time
from typing import Any, Final
from uuid import UUID, uuid4

import pytest

from db.operations import findings
from db.operations.findings import FindingFilter, FindingsPage, Sort
from domain.errors import FindingNotFound
from domain.operations.findings import FindingKind
from tests.support.payments import RolePair
from tests.support.sql import connect, query

SENDER: Final = "0x" + "Ab" * 20
MONEY_RAW: Final = 5_000_000

FLOOD: Final = """
    INSERT INTO findings (key, kind, chain_id, tx_hash, log_index, value_raw, detail, metadata, created_at, opened_at)
    SELECT 'transfer:1:flood:' || n, 'transfer_without_intent', 1, '0x' || lpad(to_hex(n), 64, '0'), n, 1, 'dust',
           jsonb_build_object('sender', %(sender)s::text), now() + n * interval '1 ms', now()
      FROM generate_series(1, %(number)s) n
"""


def flood(roles: RolePair, number: int) -> None:
    """So many findings of one raw unit, newer than what there is."""
    with connect(roles.database.superuser_url) as owner:
        owner.execute(FLOOD, {"number": number, "sender": SENDER})
        owner.execute("ANALYZE findings")


def plant(roles: RolePair, value_raw: int | None, kind: FindingKind = FindingKind.TRANSFER_WITHOUT_INTENT) -> UUID:
    """One finding, from an hour ago."""
    with connect(roles.database.superuser_url) as owner:
        row = owner.execute(
            "INSERT INTO findings (key, kind, chain_id, value_raw, detail, created_at, opened_at)"
            " VALUES (%s, %s, 1, %s, 'planted', now() - interval '1 h', now() - interval '1 h') RETURNING id",
            (str(uuid4()), kind.value, value_raw),
        ).fetchone()
    assert row is not None
    found: UUID = row[0]
    return found


async def page(roles: RolePair, wanted: FindingFilter | None = None, **options: Any) -> FindingsPage:
    """A page of the service's own."""
    async with roles.service.snapshot() as connection:
        return await findings.page_findings(connection, wanted or FindingFilter(), **{"limit": 100} | options)


async def every(roles: RolePair, **options: Any) -> list[UUID]:
    """All pages, one after the other."""
    seen: list[UUID] = []
    after: UUID | None = None
    while True:
        found = await page(roles, after=after, **options)
        seen += [finding.id for finding in found.findings]
        if found.next is None:
            return seen
        after = found.next


async def test_a_flood_of_dust_does_not_hide_money(roles: RolePair) -> None:
    money = plant(roles, MONEY_RAW)
    flood(roles, 1_080)
    assert (await page(roles)).findings[0].id == money
    async with roles.service.snapshot() as connection:
        [totals] = await findings.total_findings(connection, FindingFilter())
    assert (totals.findings, totals.value_raw, totals.without_value) == (1_081, MONEY_RAW + 1_080, 0)


async def test_findings_of_unknown_value_come_before_those_of_known_value(roles: RolePair) -> None:
    money, alarm = plant(roles, MONEY_RAW), plant(roles, None, FindingKind.LEDGER_DISAGREES)
    small, other_alarm = plant(roles, 3), plant(roles, None, FindingKind.LEDGER_WITHOUT_TRANSFER)
    listed = [finding.id for finding in (await page(roles)).findings]
    assert (set(listed[:2]), listed[2:]) == ({alarm, other_alarm}, [money, small])


@pytest.mark.slow(but=1)
@pytest.mark.parametrize("sort", list(Sort))
async def test_pages_show_everything_once_and_in_order(roles: RolePair, sort: Sort) -> None:
    for value in (7, None, 7, 100, None, 7):
        plant(roles, value, FindingKind.SURPLUS)
    flood(roles, 40)
    whole = [finding.id for finding in (await page(roles, sort=sort)).findings]
    for limit in (1, 2, 3, 7, 45, 46, 47):
        assert await every(roles, sort=sort, limit=limit) == whole
    assert len(set(whole)) == 46


async def test_a_page_continues_after_a_finding_that_was_resolved_concurrently(roles: RolePair) -> None:
    flood(roles, 10)
    first = await page(roles, limit=4)
    with connect(roles.database.superuser_url) as owner:
        owner.execute("UPDATE findings SET resolved_at = now(), resolution = 'write_off' WHERE id = %s", (first.next,))
    assert first.next is not None
    assert len((await page(roles, after=first.next)).findings) == 6
    with pytest.raises(FindingNotFound):
        await page(roles, after=uuid4())


async def test_filters_are_of_the_list_and_of_the_totals(roles: RolePair) -> None:
    flood(roles, 5)
    surplus, unknown = plant(roles, MONEY_RAW, FindingKind.SURPLUS), plant(roles, None, FindingKind.LEDGER_DISAGREES)
    asked = {
        FindingFilter(kinds=(FindingKind.SURPLUS,)): {surplus},
        FindingFilter(min_value_raw=2): {surplus},
        FindingFilter(below_raw=2): {finding.id for finding in (await page(roles, sort=Sort.NEWEST)).findings[:5]},
        FindingFilter(sender=SENDER.lower(), min_value_raw=2): set(),
        FindingFilter(billing_account_id="nobody"): set(),
        FindingFilter(kinds=(FindingKind.SURPLUS, FindingKind.LEDGER_DISAGREES)): {surplus, unknown},
    }
    for wanted, expected in asked.items():
        found = {finding.id for finding in (await page(roles, wanted)).findings}
        assert found == expected
        async with roles.service.snapshot() as connection:
            totals = await findings.total_findings(connection, wanted)
        assert sum(one.findings for one in totals) == len(expected)
    assert len((await page(roles, FindingFilter(sender=SENDER.lower()))).findings) == 5


@pytest.mark.slow
async def test_a_hundred_thousand_are_listed_in_less_than_a_second(roles: RolePair) -> None:
    flood(roles, 100_000)
    money = plant(roles, MONEY_RAW)
    async with roles.service.snapshot() as connection:
        started = time.monotonic()
        first = await findings.page_findings(connection, FindingFilter(), limit=100)
        listed = time.monotonic() - started
        await findings.total_findings(connection, FindingFilter())
        await findings.page_findings(connection, FindingFilter(), after=first.next, limit=100)
        assert time.monotonic() - started < 1
    assert first.findings[0].id == money
    assert listed < 0.3
    for column in ("resolved_at", "announced_at"):
        plan = "\n".join(
            str(row[0])
            for row in query(
                roles.database.superuser_url,
                f"EXPLAIN SELECT * FROM findings f WHERE f.{column} IS NULL"
                " ORDER BY f.value_raw DESC NULLS FIRST, f.created_at DESC, f.id DESC LIMIT 50",
            )
        )
        assert "Index Scan Backward" in plan
        assert "Sort" not in plan
