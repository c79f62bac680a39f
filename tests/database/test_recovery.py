"""Which payments are unfinished, and why: found by the database, and said by the domain in the same way."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from decimal import Decimal
from itertools import product
from uuid import UUID

from db.payments.recovery import Window, list_unfinished, list_unfinished_of, page_waiting
from domain.money import credits_for_usd_cents, revenue_share_credits
from domain.payments.attempt import AttemptStatus, Purpose
from domain.payments.recovery import Due, find_due
from tests.support.payments import RolePair, tx_hash
from tests.support.sql import connect

NO_GRACE = timedelta(0)
DAY = timedelta(days=1)
MINUTE = timedelta(minutes=1)


async def unfinished(
    roles: RolePair,
    *,
    older_than: timedelta = NO_GRACE,
    not_older_than: timedelta = DAY,
    finality_after: timedelta = NO_GRACE,
    chain_id: int = 31_337,
    limit: int = 9,
) -> dict[UUID, tuple[Due, ...]]:
    now = datetime.now(UTC)
    window = Window(now - not_older_than, now - older_than, now - finality_after)
    async with roles.service.transaction() as connection:
        found = await list_unfinished(connection, chain_id, window, limit=limit)
    return {one.attempt_id: one.due for one in found}


async def test_pending_payments_are_found_once_they_have_waited_and_only_those(roles: RolePair) -> None:
    payer = await roles.open_account(1)
    await roles.create(payer)
    unpaid = await roles.create(payer, expires_at=datetime.now(UTC))
    waits = (await roles.submit(unpaid, tx_hash(1), at=datetime.now(UTC) - 2 * MINUTE)).attempt
    await roles.refuse(await roles.create_submitted(payer, 3))
    found = {waits.id: (Due.VERIFICATION,)}
    assert await unfinished(roles) == found
    assert await unfinished(roles, older_than=MINUTE) == found
    assert await unfinished(roles, not_older_than=NO_GRACE) == found, "however long ago it was submitted"
    assert await unfinished(roles, older_than=3 * MINUTE) == {}
    assert await unfinished(roles, chain_id=1) == {}
    async with roles.service.transaction() as connection:
        [one] = await list_unfinished_of(connection, [waits.id, unpaid.id])
        [page] = await page_waiting(connection, 31_337, before=datetime.now(UTC), after=None, limit=2)
        assert await page_waiting(connection, 31_337, before=datetime.now(UTC), after=waits.id, limit=2) == []
    assert one == page
    assert (one.owner_user_id, one.tx_hash, one.status) == (payer.user_id, tx_hash(1), AttemptStatus.PENDING_UNVERIFIED)


async def test_credited_payments_lack_what_they_lack(roles: RolePair) -> None:
    payer = await roles.open_account(1)
    settled = await roles.settle(payer, 1)
    donated = await roles.settle(payer, 2, purpose=Purpose.SYSTEM)
    lacks = await roles.create_submitted(payer, 3)
    await roles.credit(lacks)
    wants_none = await roles.create_submitted(payer, 4)
    await roles.credit(wants_none, share=Decimal(0))
    no_outcome = {one.id: (Due.FINALITY,) for one in (settled, donated, wants_none)}
    assert await unfinished(roles) == no_outcome | {lacks.id: (Due.BONUS, Due.FINALITY)}
    assert await unfinished(roles, finality_after=MINUTE) == {lacks.id: (Due.BONUS,)}
    assert await unfinished(roles, finality_after=MINUTE, older_than=MINUTE) == {}
    assert await unfinished(roles, not_older_than=NO_GRACE) == {}
    assert await unfinished(roles, chain_id=1) == {}
    await roles.mint(lacks)
    assert await unfinished(roles) == no_outcome | {lacks.id: (Due.FINALITY,)}


async def test_a_reversal_lacks_its_second_half_until_it_is_there(roles: RolePair) -> None:
    payer = await roles.open_account(1)
    settled = await roles.settle(payer, 1)
    await roles.reverse(settled)
    assert await unfinished(roles) == {settled.id: (Due.BONUS_REVERSAL,)}
    await roles.reverse_bonus(settled)
    assert await unfinished(roles) == {}


async def test_where_there_are_more_than_the_limit_all_are_asked_about_in_rotation(roles: RolePair) -> None:
    payer = await roles.open_account(1)
    all_of_them = {(await roles.create_submitted(payer, number)).id for number in range(1, 6)}
    seen: set[UUID] = set()
    for _ in range(50):
        found = await unfinished(roles, limit=2)
        assert len(found) == 2
        seen |= found.keys()
    assert seen == all_of_them


async def test_database_and_domain_say_the_same_of_every_attempt(roles: RolePair) -> None:
    """Every combination of what there may be, also those that no path leads to."""
    payer = await roles.open_account(1)
    attempt = await roles.create(payer)
    bonus_credits = {
        share: revenue_share_credits(credits_for_usd_cents(attempt.amount_usd_cents), share)
        for share in (Decimal("0.75"), Decimal("0.0000000001"), Decimal(0))
    }
    assert sorted(bonus_credits.values())[:2] == [0, 0]
    with connect(roles.database.superuser_url, triggers=False) as owner:
        owner.execute("ALTER TABLE payment_attempts DROP CONSTRAINT payment_attempts_purchase_has_share")
        facts = list(product((False, True), repeat=3))
        for status, purpose, share, (has_bonus, has_reversal, has_outcome) in product(
            AttemptStatus, Purpose, bonus_credits, facts
        ):
            owner.execute("SAVEPOINT one")
            owner.execute(
                "UPDATE payment_attempts SET status = %s, purpose = %s, revenue_share = %s, submitted_at = now(),"
                " tx_hash = CASE %s WHEN 'CREATED_INTENT' THEN NULL ELSE %s END,"
                " expires_at = CASE %s WHEN 'CREATED_INTENT' THEN now() END,"
                " error_code = CASE WHEN %s IN ('REJECTED', 'FAILED') THEN 'TX_REVERTED' END WHERE id = %s",
                (status, purpose, share, status, tx_hash(1), status, status, attempt.id),
            )
            for reason, is_there in (("platform_revenue_share", has_bonus), ("payment_reversal", has_reversal)):
                if is_there:
                    owner.execute(
                        "INSERT INTO credit_ledger (billing_account_id, virtual_key_id, amount, balance_after, reason,"
                        " reference) SELECT billing_account_id, id, %s, 0, %s, %s FROM virtual_keys"
                        " WHERE billing_account_id = 'cogni_system'",
                        (-1 if reason == "payment_reversal" else 1, reason, str(attempt.id)),
                    )
            if has_outcome:
                owner.execute(
                    "INSERT INTO transfer_finality (attempt_id, outcome, chain_id, tx_hash, log_index, block_number,"
                    " block_hash, level) VALUES (%s, 'final', 31337, %s, 0, 7, %s, 'safe')",
                    (attempt.id, tx_hash(1), tx_hash(7)),
                )
            found = {due for (due,) in owner.execute("SELECT due FROM unfinished_payments()").fetchall()}
            said = find_due(
                status,
                purpose=purpose,
                bonus_credits=bonus_credits[share],
                has_bonus=has_bonus,
                has_bonus_reversal=has_reversal,
                has_outcome=has_outcome,
            )
            assert found == set(said), (status, purpose, share, has_bonus, has_reversal, has_outcome)
            owner.execute("ROLLBACK TO SAVEPOINT one")
        owner.rollback()
