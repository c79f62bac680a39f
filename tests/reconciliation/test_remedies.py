"""Operators' remedies on the database: each twice and at once, and a transfer pays once, by whatever path."""

from __future__ import annotations

import asyncio
from decimal import Decimal
from uuid import UUID, uuid4

import psycopg
import pytest
from psycopg.errors import CheckViolation, FeatureNotSupported, RestrictViolation, UniqueViolation

from db.operations import findings, resolutions
from db.transfers.identity import find_known_transfers
from db.transfers.observed import orphan_transfers
from devstack.processes import wait_until
from domain.errors import BookkeepingError, FindingNotFound, InvalidInput, RemedyRefused, TransferAlreadySettled
from domain.identifiers import SYSTEM_TENANT_ACCOUNT_ID
from domain.operations.findings import REMEDIES, Finding, FindingKind, Remedy, transfer_key
from domain.operations.resolutions import TakenRemedy, parse_request
from domain.payments.verification import terms_of
from services.operations import resolutions as remedies
from tests.reconciliation.planting import (
    OPERATOR,
    REASON,
    confirm_all,
    find_transfer,
    mint,
    observe,
    observe_payment,
    stored,
    system_tenant_balance,
    take,
)
from tests.support.payments import CHAIN_ID, SHARE, RolePair, transfer_for, tx_hash, wallet
from tests.support.sql import connect, query, refused, scalar

VALUE_RAW = 5_000_000
CREDITS = 50_000_000
BONUS = 37_500_000


async def audit_trail(roles: RolePair, finding_id: UUID) -> list[resolutions.Action]:
    async with roles.service.transaction() as connection:
        return await resolutions.list_actions(connection, finding_id=finding_id)


# -- each remedy, twice and at once


@pytest.mark.parametrize("remedy", list(Remedy))
async def test_a_remedy_twice_and_at_once_is_taken_once_and_answers_the_same(roles: RolePair, remedy: Remedy) -> None:
    finding_id = await find_transfer(roles.service, 1)
    answers = await asyncio.gather(*(take(roles.service, finding_id, remedy) for _ in range(8)))
    answers.append(await take(roles.service, finding_id, remedy, operator="another operator"))
    assert sum(not answer.is_repeated for answer in answers) == 1
    assert len({answer.model_dump_json(exclude={"is_repeated"}) for answer in answers}) == 1
    [action] = await audit_trail(roles, finding_id)
    assert (action.action, action.operator, action.reason) == (remedy.value, OPERATOR, REASON)
    finding = await stored(roles.service, finding_id)
    assert (finding.is_open, finding.resolution) == (False, remedy.value)
    rows = scalar(roles.database.superuser_url, "SELECT count(*) FROM credit_ledger")
    assert rows == (1 if remedy is Remedy.CREDIT else 0)
    assert await roles.books(pending_bonus_ok=True) == []


@pytest.mark.parametrize("first", list(Remedy))
async def test_another_remedy_for_a_resolved_finding_is_refused_with_its_resolution(
    roles: RolePair, first: Remedy
) -> None:
    finding_id = await find_transfer(roles.service, 1)
    await take(roles.service, finding_id, first)
    for second in set(Remedy) - {first}:
        with pytest.raises(RemedyRefused, match=rf"resolved: {first.value}.* by ada at .*: {REASON}"):
            await take(roles.service, finding_id, second)
    assert len(await audit_trail(roles, finding_id)) == 1


async def test_two_remedies_at_once_leave_one_and_the_other_is_refused(roles: RolePair) -> None:
    finding_id = await find_transfer(roles.service, 1)
    outcomes = await asyncio.gather(
        *(take(roles.service, finding_id, remedy) for remedy in Remedy for _ in range(3)), return_exceptions=True
    )
    done = {outcome.remedy for outcome in outcomes if isinstance(outcome, TakenRemedy)}
    assert len(done) == 1
    assert all(isinstance(outcome, TakenRemedy | RemedyRefused) for outcome in outcomes)
    assert len(await audit_trail(roles, finding_id)) == 1


async def test_the_same_remedy_to_other_effect_is_another_one(roles: RolePair) -> None:
    other = await roles.open_account(2)
    credited = await find_transfer(roles.service, 1)
    await take(roles.service, credited, Remedy.CREDIT)
    with pytest.raises(RemedyRefused, match=f"{CREDITS} credits to account"):
        await take(roles.service, credited, Remedy.CREDIT, billing_account_id=other.billing_account_id)
    refunded = await find_transfer(roles.service, 3)
    await take(roles.service, refunded, Remedy.REFUND_RECORDED, refund_tx_hash=tx_hash(71))
    # When two people both send the money back, the second hash shows it.
    with pytest.raises(RemedyRefused, match=f"refund_recorded with transaction {tx_hash(71)}"):
        await take(roles.service, refunded, Remedy.REFUND_RECORDED, refund_tx_hash=tx_hash(72))
    assert (await take(roles.service, refunded, Remedy.REFUND_RECORDED)).is_repeated


async def test_only_the_remedies_of_its_kind_are_for_a_finding(roles: RolePair) -> None:
    for number, kind in enumerate(FindingKind):
        place = {"chain_id": CHAIN_ID, "tx_hash": tx_hash(number), "log_index": 0, "ledger_reference": str(number)}
        async with roles.service.transaction() as connection:
            finding = Finding.model_validate({"kind": kind, "detail": "x", **place})
            finding_id = (await findings.write_finding(connection, finding)).finding_id
        for remedy in set(Remedy) - set(REMEDIES[kind]):
            with pytest.raises(RemedyRefused, match=f"{remedy.value} does not apply to {kind.value}"):
                await take(roles.service, finding_id, remedy)
        assert (await stored(roles.service, finding_id)).is_open, kind


async def test_a_finding_that_is_not_there(roles: RolePair) -> None:
    with pytest.raises(FindingNotFound):
        await take(roles.service, uuid4(), Remedy.WRITE_OFF)


@pytest.mark.parametrize(
    ("field", "words"),
    [("operator", ""), ("operator", " \t "), ("operator", "x" * 101), ("reason", ""), ("reason", "  "),
     ("reason", "two\nlines"), ("reason", "x" * 2001)],
)  # fmt: skip
def test_every_remedy_requires_a_name_and_a_reason(field: str, words: str) -> None:
    given = {"operator": "ada", "reason": "why"} | {field: words}
    with pytest.raises(InvalidInput) as caught:
        parse_request(uuid4(), Remedy.WRITE_OFF, operator=given["operator"], reason=given["reason"])
    assert caught.value.field == f"--{field}"


def test_the_longest_name_and_reason_are_taken() -> None:
    request = parse_request(uuid4(), Remedy.WRITE_OFF, operator=" " + "x" * 100, reason="x" * 2000 + " ")
    assert (len(request.operator), len(request.reason)) == (100, 2000)


def test_options_go_with_their_remedy_only() -> None:
    with pytest.raises(InvalidInput, match="--account"):
        parse_request(uuid4(), Remedy.WRITE_OFF, operator="a", reason="b", billing_account_id="x")
    with pytest.raises(InvalidInput, match="--refund-tx"):
        parse_request(uuid4(), Remedy.CREDIT, operator="a", reason="b", refund_tx_hash=tx_hash(1))


@pytest.mark.parametrize("column", ["operator", "reason"])
async def test_the_audit_trail_itself_requires_a_name_and_a_reason(roles: RolePair, column: str) -> None:
    finding_id = await find_transfer(roles.service, 1)
    values = {"operator": "ada", "reason": "why"} | {column: " "}
    with connect(roles.database.service_url) as service, refused(CheckViolation):
        service.execute(
            "INSERT INTO operator_actions (action, operator, reason, finding_id, opening, outcome)"
            " VALUES ('write_off', %(operator)s, %(reason)s, %(id)s, 1, '{}')",
            values | {"id": finding_id},
        )


# -- credit


async def test_a_credit_is_all_of_the_transfer_to_the_sender_and_the_bonus_comes_on_top(roles: RolePair) -> None:
    finding_id = await find_transfer(roles.service, 1)
    taken = await take(roles.service, finding_id, Remedy.CREDIT)
    payer = await roles.open_account(1)
    assert (taken.billing_account_id, taken.amount_credits) == (payer.billing_account_id, CREDITS)
    assert taken.reference == transfer_key(CHAIN_ID, tx_hash(1), 0)
    assert (await roles.balance(payer.billing_account_id), await system_tenant_balance(roles)) == (CREDITS, 0)
    assert [await mint(roles.service, finding_id) for _ in range(2)] == [BONUS, BONUS]
    assert await asyncio.gather(*(mint(roles.service, finding_id) for _ in range(6))) == [BONUS] * 6
    assert (await system_tenant_balance(roles), taken.bonus_credits) == (BONUS, BONUS)
    assert await roles.books() == []


async def test_a_sender_with_an_account_gets_it_there_and_another_account_can_be_named(roles: RolePair) -> None:
    sender, other = await roles.open_account(1), await roles.open_account(2)
    first = await take(roles.service, await find_transfer(roles.service, 1), Remedy.CREDIT)
    second = await take(
        roles.service,
        await find_transfer(roles.service, 3, kind=FindingKind.WRONG_SENDER, sender=wallet(1)),
        Remedy.CREDIT,
        billing_account_id=other.billing_account_id,
    )
    assert (first.billing_account_id, second.billing_account_id) == (
        sender.billing_account_id,
        other.billing_account_id,
    )
    assert [await roles.balance(payer.billing_account_id) for payer in (sender, other)] == [CREDITS, CREDITS]


async def test_the_share_is_the_one_of_the_credit_whatever_the_setting_is_later(roles: RolePair) -> None:
    finding_id = await find_transfer(roles.service, 1)
    request = parse_request(finding_id, Remedy.CREDIT, operator="ada", reason="why")
    async with roles.service.transaction() as connection:
        taken = await remedies.take_remedy(connection, request, revenue_share=Decimal("0.1"))
    assert taken.bonus_credits == await mint(roles.service, finding_id) == CREDITS // 10


async def test_a_share_of_nothing_mints_nothing(roles: RolePair) -> None:
    finding_id = await find_transfer(roles.service, 1)
    request = parse_request(finding_id, Remedy.CREDIT, operator="ada", reason="why")
    async with roles.service.transaction() as connection:
        await remedies.take_remedy(connection, request, revenue_share=Decimal(0))
    assert await mint(roles.service, finding_id) == 0
    assert await system_tenant_balance(roles) == 0


async def test_there_is_no_bonus_without_a_credit(roles: RolePair) -> None:
    finding_id = await find_transfer(roles.service, 1)
    with pytest.raises(BookkeepingError, match="was not credited"):
        await mint(roles.service, finding_id)


async def test_the_platforms_own_account_and_no_account_are_refused(roles: RolePair) -> None:
    finding_id = await find_transfer(roles.service, 1)
    with pytest.raises(RemedyRefused, match="system tenant's account"):
        await take(roles.service, finding_id, Remedy.CREDIT, billing_account_id=SYSTEM_TENANT_ACCOUNT_ID)
    with pytest.raises(RemedyRefused, match="account unknown not found"):
        await take(roles.service, finding_id, Remedy.CREDIT, billing_account_id="unknown")
    assert (await stored(roles.service, finding_id)).is_open
    assert scalar(roles.database.superuser_url, "SELECT count(*) FROM credit_ledger") == 0


async def test_more_than_a_ledger_entry_holds_is_refused(roles: RolePair) -> None:
    fits = await find_transfer(roles.service, 1, value_raw=(2**63 - 1) // 10)
    beyond = await find_transfer(roles.service, 2, value_raw=(2**63 - 1) // 10 + 1)
    with pytest.raises(RemedyRefused, match="one ledger entry"):
        await take(roles.service, beyond, Remedy.CREDIT)
    assert (await take(roles.service, fits, Remedy.CREDIT)).amount_credits == 2**63 - 8


async def test_what_the_chain_does_not_show_any_more_is_not_credited(roles: RolePair) -> None:
    finding_id = await find_transfer(roles.service, 1, observed=False)
    with pytest.raises(RemedyRefused, match=remedies.NOT_CREDITABLE["transfer_credits_of_transfer_on_chain"]):
        await take(roles.service, finding_id, Remedy.CREDIT)


# -- a surplus


async def _settled_with_surplus(roles: RolePair, surplus_raw: int) -> UUID:
    attempt = await roles.create_submitted(await roles.open_account(1), 1)
    transfer = transfer_for(attempt, value_raw=attempt.amount_raw + surplus_raw)
    await roles.credit(attempt, transfer)
    await roles.mint(attempt)
    await observe_payment(roles, attempt, value_raw=transfer.value_raw)
    finding = Finding(
        kind=FindingKind.SURPLUS,
        detail="more came than was asked",
        chain_id=CHAIN_ID,
        tx_hash=attempt.tx_hash,
        log_index=0,
        attempt_id=attempt.id,
        sender=attempt.from_address,
        value_raw=surplus_raw,
    )
    async with roles.service.transaction() as connection:
        return (await findings.write_finding(connection, finding)).finding_id


async def test_a_surplus_is_credited_beside_what_it_came_with(roles: RolePair) -> None:
    finding_id = await _settled_with_surplus(roles, 700)
    with pytest.raises(RemedyRefused, match="not final yet"):
        await take(roles.service, finding_id, Remedy.CREDIT)
    confirm_all(roles)
    taken = await take(roles.service, finding_id, Remedy.CREDIT)
    payer = await roles.open_account(1)
    assert (taken.amount_credits, taken.bonus_credits) == (7_000, 5_250)
    assert await mint(roles.service, finding_id) == 5_250
    assert await roles.balance(payer.billing_account_id) == 1_000_000_000 + 7_000
    assert (await take(roles.service, finding_id, Remedy.CREDIT)).is_repeated
    assert await roles.books() == []


# -- a transfer pays once, by whatever path


async def test_a_settled_transfer_is_not_credited(roles: RolePair) -> None:
    attempt = await roles.settle(await roles.open_account(1), 1)
    await observe_payment(roles, attempt)
    finding_id = await find_transfer(roles.service, 1, observed=False, value_raw=attempt.amount_raw)
    with pytest.raises(RemedyRefused, match=remedies.NOT_CREDITABLE["transfer_credits_not_settled"]):
        await take(roles.service, finding_id, Remedy.CREDIT)
    assert await roles.books() == []


async def test_a_credited_transfer_does_not_settle(roles: RolePair) -> None:
    attempt = await roles.create_submitted(await roles.open_account(1), 1)
    finding_id = await find_transfer(roles.service, 1, value_raw=attempt.amount_raw)
    await take(roles.service, finding_id, Remedy.CREDIT)
    with pytest.raises(TransferAlreadySettled, match="credited by an operator"):
        await roles.credit(attempt)
    assert await roles.books(pending_bonus_ok=True) == []


async def test_crediting_while_it_settles_leaves_one_of_both(roles: RolePair) -> None:
    payer = await roles.open_account(1)
    for number in range(1, 13):
        attempt = await roles.create_submitted(payer, number)
        finding_id = await find_transfer(roles.service, number, sender=wallet(1), value_raw=attempt.amount_raw)
        steps = [roles.credit(attempt), take(roles.service, finding_id, Remedy.CREDIT)]
        outcomes = await asyncio.gather(*(steps if number % 2 else steps[::-1]), return_exceptions=True)
        failed = [outcome for outcome in outcomes if isinstance(outcome, BaseException)]
        assert len(failed) == 1, outcomes
        assert isinstance(failed[0], TransferAlreadySettled | RemedyRefused)
        applied = scalar(
            roles.database.superuser_url,
            "SELECT (SELECT count(*) FROM settled_transfers WHERE tx_hash = %s)"
            " + (SELECT count(*) FROM transfer_credits WHERE tx_hash = %s)",
            tx_hash(number),
            tx_hash(number),
        )
        assert applied == 1


async def test_each_side_waits_for_the_other_to_commit(roles: RolePair) -> None:
    """Two open transactions: the second sees what the first wrote only after it was committed, and not before."""
    attempt = await roles.create_submitted(await roles.open_account(1), 1)
    finding_id = await find_transfer(roles.service, 1, value_raw=attempt.amount_raw)
    request = parse_request(finding_id, Remedy.CREDIT, operator="ada", reason="why")
    async with roles.service.transaction() as connection:
        await remedies.take_remedy(connection, request, revenue_share=SHARE)
        settling = asyncio.create_task(roles.credit(attempt))
        await _waits_for_a_lock(roles)
        assert not settling.done()
    with pytest.raises(TransferAlreadySettled):
        await settling


async def _waits_for_a_lock(roles: RolePair) -> None:
    async def waits() -> bool:
        found = scalar(
            roles.database.superuser_url,
            "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'",
        )
        return bool(found)

    await wait_until(waits, timeout_seconds=20, what="a session that waits for a lock")


async def test_a_settled_transfer_that_moved_is_not_credited_at_its_new_place(roles: RolePair) -> None:
    """Its transaction is in another block, its log has another index, and nothing has been said about finality yet."""
    attempt = await roles.settle(await roles.open_account(1), 1)
    finding_id = await find_transfer(roles.service, 1, value_raw=attempt.amount_raw, log_index=5)
    with pytest.raises(RemedyRefused, match=remedies.NOT_CREDITABLE["transfer_credits_not_settled"]):
        await take(roles.service, finding_id, Remedy.CREDIT)


async def test_a_credited_transfer_that_moved_does_not_settle_at_its_new_place(roles: RolePair) -> None:
    attempt = await roles.create_submitted(await roles.open_account(1), 1)
    await take(roles.service, await find_transfer(roles.service, 1, value_raw=attempt.amount_raw), Remedy.CREDIT)
    moved = transfer_for(attempt, log_index=5, block_number=9, block_hash=tx_hash(9))
    with pytest.raises(TransferAlreadySettled):
        await roles.credit(attempt, moved)


async def test_another_transfer_of_the_same_transaction_settles_and_is_credited(roles: RolePair) -> None:
    """Two alike in one block: one pays the attempt, the other is an operator's to credit; and not a third time."""
    attempt = await roles.create_submitted(await roles.open_account(1), 1)
    credited = await find_transfer(roles.service, 1, value_raw=attempt.amount_raw, log_index=0)
    settled = await find_transfer(roles.service, 1, value_raw=attempt.amount_raw, log_index=1)
    await take(roles.service, credited, Remedy.CREDIT)
    await roles.credit(attempt, transfer_for(attempt, log_index=1))
    with pytest.raises(RemedyRefused, match=remedies.NOT_CREDITABLE["transfer_credits_not_settled"]):
        await take(roles.service, settled, Remedy.CREDIT)
    assert await roles.books(pending_bonus_ok=True) == []


@pytest.mark.parametrize(("log_index", "settles"), [(5, False), (6, True)])
async def test_of_two_alike_that_moved_one_was_credited_and_the_other_settles(
    roles: RolePair, log_index: int, settles: bool
) -> None:
    """Which of them the operator credited cannot be known any more; one is left, and pays."""
    attempt = await roles.create_submitted(await roles.open_account(1), 1)
    for before in (0, 1):
        finding = await find_transfer(roles.service, 1, value_raw=attempt.amount_raw, log_index=before)
        if before == 0:
            await take(roles.service, finding, Remedy.CREDIT)
    scope = terms_of(attempt).scope
    async with roles.service.transaction() as connection:
        await orphan_transfers(connection, scope, [tx_hash(7)])
    moved = {"block_number": 9, "block_hash": tx_hash(9)}
    with pytest.raises(TransferAlreadySettled):  # the watcher has not seen yet that there are two
        await roles.credit(attempt, transfer_for(attempt, log_index=6, **moved))
    for now in (5, 6):
        await observe(roles.service, tx_hash(1), wallet(1), attempt.amount_raw, log_index=now, block_number=9)
    if settles:
        assert (await roles.credit(attempt, transfer_for(attempt, log_index=log_index, **moved))).changed
    else:
        with pytest.raises(TransferAlreadySettled):
            await roles.credit(attempt, transfer_for(attempt, log_index=log_index, **moved))


async def test_a_payment_that_returns_after_its_reversal_is_an_operators_to_credit(roles: RolePair) -> None:
    payer = await roles.open_account(1)
    attempt = await roles.settle(payer, 1)
    await roles.reverse(attempt)
    again = await roles.create_submitted(payer, 1)
    returned = await find_transfer(
        roles.service, 1, kind=FindingKind.RETURNED_AFTER_REVERSAL, value_raw=attempt.amount_raw, log_index=5
    )
    with pytest.raises(TransferAlreadySettled):
        await roles.credit(again, transfer_for(again, log_index=5))
    assert (await take(roles.service, returned, Remedy.CREDIT)).billing_account_id == payer.billing_account_id


async def test_a_final_payment_is_where_its_finality_says(roles: RolePair) -> None:
    """Its log was the first in its block, and is another one in the block that became final; its twin was not paid."""
    attempt = await roles.settle(await roles.open_account(1), 1)
    with connect(roles.database.service_url) as service:
        service.execute(
            "INSERT INTO transfer_finality (attempt_id, outcome, chain_id, tx_hash, log_index, block_number,"
            " block_hash, level) VALUES (%s, 'final', %s, %s, 5, 7, %s, 'finalized')",
            (attempt.id, CHAIN_ID, tx_hash(1), tx_hash(7)),
        )
    twin = await find_transfer(roles.service, 1, value_raw=attempt.amount_raw, log_index=0)
    paid = await find_transfer(roles.service, 1, value_raw=attempt.amount_raw, log_index=5)
    with pytest.raises(RemedyRefused):
        await take(roles.service, paid, Remedy.CREDIT)
    await take(roles.service, twin, Remedy.CREDIT)


async def test_a_payment_that_the_chain_lacks_stays_found_while_only_its_twin_is_there(roles: RolePair) -> None:
    """Two alike were credited, one is on the chain: the finding about the other one is not resolved by it."""
    attempt = await roles.create_submitted(await roles.open_account(1), 1)
    await take(roles.service, await find_transfer(roles.service, 1, value_raw=attempt.amount_raw), Remedy.CREDIT)
    second = await find_transfer(roles.service, 1, value_raw=attempt.amount_raw, log_index=1)
    await roles.credit(attempt, transfer_for(attempt, log_index=1))
    lost = Finding(
        kind=FindingKind.LEDGER_WITHOUT_TRANSFER,
        detail="the chain does not show it",
        chain_id=CHAIN_ID,
        tx_hash=tx_hash(1),
        log_index=1,
        attempt_id=attempt.id,
    )
    with connect(roles.database.service_url) as service:
        service.execute("DELETE FROM observed_transfers WHERE log_index = 0")
    async with roles.service.transaction() as connection:
        lost_id = (await findings.write_finding(connection, lost)).finding_id
        await findings.close_settled_findings(connection, CHAIN_ID)
        assert (await findings.find_finding(connection, lost_id)).is_open
    await observe(roles.service, tx_hash(1), wallet(1), attempt.amount_raw)
    async with roles.service.transaction() as connection:
        await findings.close_settled_findings(connection, CHAIN_ID)
        assert not (await findings.find_finding(connection, lost_id)).is_open
        assert not (await findings.find_finding(connection, second)).is_open


async def test_what_was_credited_is_left_out_of_a_poll(roles: RolePair) -> None:
    attempt = await roles.create_submitted(await roles.open_account(1), 1)
    await take(roles.service, await find_transfer(roles.service, 1, value_raw=attempt.amount_raw), Remedy.CREDIT)
    async with roles.service.transaction() as connection:
        known = await find_known_transfers(connection, terms_of(attempt).scope, tx_hash(1), of_others_than=attempt.id)
    [credited] = known.paid
    assert (credited.log_index, credited.value_raw, credited.from_address) == (0, attempt.amount_raw, wallet(1))


# -- the database, attacked in SQL


async def test_an_operators_credit_without_its_transfer_is_refused(roles: RolePair) -> None:
    payer = await roles.open_account(1)
    for reason, account in (("operator_credit", payer.billing_account_id), ("platform_revenue_share", "cogni_system")):
        with (
            refused(CheckViolation, "credit_ledger_operator_credit_has_transfer"),
            connect(roles.database.service_url) as service,
        ):
            service.execute("SELECT post_entry(%s, 10, %s, 'transfer:1:0xabc:0', 'cash:usdc', '{}')", (account, reason))


async def test_a_credit_of_a_transfer_without_its_ledger_entry_is_refused(roles: RolePair) -> None:
    payer = await roles.open_account(1)
    finding_id = await find_transfer(roles.service, 1)
    with refused(CheckViolation, "transfer_credits_in_ledger"), connect(roles.database.service_url) as service:
        service.execute(INSERT_CREDIT, _credit_values(finding_id, payer.billing_account_id))


INSERT_CREDIT = """
    INSERT INTO transfer_credits (chain_id, tx_hash, log_index, part, block_number, block_hash, from_address,
        finding_id, billing_account_id, value_raw, amount_credits, revenue_share, reference)
    VALUES (%(chain_id)s, %(tx_hash)s, 0, 'whole', 7, %(block_hash)s, %(sender)s, %(finding_id)s, %(account)s,
        %(value)s, %(value)s * 10, 0, 'transfer:' || %(chain_id)s::text || ':' || %(tx_hash)s || ':0')
"""


def _credit_values(finding_id: UUID, account: str, *, value: int = VALUE_RAW) -> dict[str, object]:
    return {
        "chain_id": CHAIN_ID,
        "tx_hash": tx_hash(1),
        "block_hash": tx_hash(7),
        "sender": wallet(1),
        "finding_id": finding_id,
        "account": account,
        "value": value,
    }


async def test_more_than_the_transfers_value_is_refused(roles: RolePair) -> None:
    payer = await roles.open_account(1)
    finding_id = await find_transfer(roles.service, 1)
    with connect(roles.database.service_url) as service:
        values = _credit_values(finding_id, payer.billing_account_id, value=VALUE_RAW + 1)
        with refused(CheckViolation, "transfer_credits_of_transfer_on_chain"):
            service.execute(INSERT_CREDIT, values)
        service.rollback()


async def test_the_platforms_own_account_is_refused_by_the_table_too(roles: RolePair) -> None:
    finding_id = await find_transfer(roles.service, 1)
    with connect(roles.database.service_url) as service:
        with refused(CheckViolation, "transfer_credits_billing_account_id_check"):
            service.execute(INSERT_CREDIT, _credit_values(finding_id, SYSTEM_TENANT_ACCOUNT_ID))
        service.rollback()


async def test_a_snapshot_that_is_older_than_the_lock_is_refused(roles: RolePair) -> None:
    """In REPEATABLE READ the check would not see what the other side committed while this one waited."""
    payer = await roles.open_account(1)
    finding_id = await find_transfer(roles.service, 1)
    with psycopg.connect(roles.database.service_url) as service:
        service.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
        with refused(FeatureNotSupported):
            service.execute(INSERT_CREDIT, _credit_values(finding_id, payer.billing_account_id))
        service.rollback()


async def test_what_was_decided_stays_even_for_the_owner(roles: RolePair) -> None:
    await take(roles.service, await find_transfer(roles.service, 1), Remedy.CREDIT)
    with connect(roles.database.migration_url) as owner:
        for table in ("operator_actions", "transfer_credits", "balance_assertions"):
            for statement in ("UPDATE {} SET created_at = now()", "DELETE FROM {}", "TRUNCATE {} CASCADE"):
                with refused(RestrictViolation, match="append-only"):
                    owner.execute(statement.format(table).encode())
                owner.rollback()


async def test_a_finding_ends_once_for_each_time_it_was_open(roles: RolePair) -> None:
    finding_id = await find_transfer(roles.service, 1)
    await take(roles.service, finding_id, Remedy.WRITE_OFF)
    with connect(roles.database.service_url) as service:
        with refused(UniqueViolation, "operator_actions_one_per_opening"):
            service.execute(
                "INSERT INTO operator_actions (action, operator, reason, finding_id, opening, outcome)"
                " VALUES ('credit', 'x', 'x', %s, 1, '{}')",
                (finding_id,),
            )
        service.rollback()


# -- retry


async def test_a_retry_lets_the_watcher_match_again_and_what_it_finds_again_is_open_again(roles: RolePair) -> None:
    finding_id = await find_transfer(roles.service, 1)
    await take(roles.service, finding_id, Remedy.RETRY)
    assert query(roles.database.superuser_url, "SELECT handled_at, attempt_id FROM observed_transfers") == [
        (None, None)
    ]
    assert not (await stored(roles.service, finding_id)).is_open
    again = await find_transfer(roles.service, 1, observed=False, kind=FindingKind.LATE_PAYMENT)
    finding = await stored(roles.service, again)
    assert (again, finding.is_open, finding.times_opened, finding.kind) == (
        finding_id,
        True,
        2,
        FindingKind.LATE_PAYMENT,
    )
    # Resolved again, by whatever fits now; both decisions are in the audit trail.
    assert not (await take(roles.service, finding_id, Remedy.WRITE_OFF)).is_repeated
    assert [action.action for action in await audit_trail(roles, finding_id)] == ["retry", "write_off"]


@pytest.mark.parametrize("remedy", [Remedy.CREDIT, Remedy.REFUND_RECORDED, Remedy.WRITE_OFF])
async def test_what_was_decided_for_good_stays_closed_when_it_is_found_again(roles: RolePair, remedy: Remedy) -> None:
    finding_id = await find_transfer(roles.service, 1)
    await take(roles.service, finding_id, remedy)
    assert await find_transfer(roles.service, 1, observed=False) == finding_id
    finding = await stored(roles.service, finding_id)
    assert (finding.is_open, finding.times_opened, finding.resolution) == (False, 1, remedy.value)


async def test_a_finding_that_is_found_again_says_so_once(roles: RolePair) -> None:
    finding = Finding(
        kind=FindingKind.WRONG_AMOUNT, detail="x", chain_id=CHAIN_ID, tx_hash=tx_hash(1), log_index=0, value_raw=1
    )
    told = []
    for _ in range(2):
        for _ in range(2):
            async with roles.service.transaction() as connection:
                told.append(await findings.open_finding(connection, finding))
        async with roles.service.transaction() as connection:
            [open_] = (await findings.page_findings(connection, findings.FindingFilter(), limit=5)).findings
        await take(roles.service, open_.id, Remedy.RETRY)
    assert told == [True, False, True, False]


async def test_a_finding_whose_transfer_has_paid_since_closes_by_itself_and_needs_no_remedy(roles: RolePair) -> None:
    finding_id = await find_transfer(roles.service, 1, value_raw=100_000_000)
    other = await find_transfer(roles.service, 2)
    await roles.settle(await roles.open_account(1), 1)
    async with roles.service.transaction() as connection:
        assert await findings.close_settled_findings(connection, CHAIN_ID) == 1
    assert (await stored(roles.service, finding_id)).resolution == "settled"
    assert (await stored(roles.service, other)).is_open
    with pytest.raises(RemedyRefused, match="has paid an attempt"):
        await take(roles.service, finding_id, Remedy.CREDIT)


async def test_an_id_may_be_abbreviated_where_it_is_clear(roles: RolePair) -> None:
    ids = [await find_transfer(roles.service, number) for number in (1, 2)]
    async with roles.service.transaction() as connection:
        for finding_id in ids:
            assert await findings.find_id_beginning_with(connection, str(finding_id)) == finding_id
            assert await findings.find_id_beginning_with(connection, str(finding_id)[:13].upper()) == finding_id
        for wrong in ("", "abc", "zzzz", "0" * 33, f"{ids[0]}0"):
            with pytest.raises(FindingNotFound):
                await findings.find_id_beginning_with(connection, wrong)
    with connect(roles.database.superuser_url) as owner:
        owner.execute("INSERT INTO findings (id, key, kind, detail) VALUES"
                      " ('aaaa0000-0000-4000-8000-000000000001', 'a', 'surplus', 'x'),"
                      " ('aaaa0000-0000-4000-8000-000000000002', 'b', 'surplus', 'x')")  # fmt: skip
    async with roles.service.transaction() as connection:
        with pytest.raises(FindingNotFound, match="2 findings begin with aaaa"):
            await findings.find_id_beginning_with(connection, "aaaa")


async def test_observed_twice_is_still_once(roles: RolePair) -> None:
    """Two alike in the transaction of one settled payment: one is free, and only one."""
    attempt = await roles.create_submitted(await roles.open_account(1), 1)
    await roles.credit(attempt)
    await observe_payment(roles, attempt)
    await observe(roles.service, tx_hash(1), wallet(1), attempt.amount_raw, log_index=4)
    first = await find_transfer(roles.service, 1, observed=False, log_index=4, value_raw=attempt.amount_raw)
    second = await find_transfer(roles.service, 1, observed=False, log_index=0, value_raw=attempt.amount_raw)
    # The one that has paid is refused although its like is free; then that one, and nothing after it.
    with pytest.raises(RemedyRefused, match=remedies.NOT_CREDITABLE["transfer_credits_not_settled"]):
        await take(roles.service, second, Remedy.CREDIT)
    await take(roles.service, first, Remedy.CREDIT)
    with pytest.raises(RemedyRefused, match=remedies.NOT_CREDITABLE["transfer_credits_not_settled"]):
        await take(roles.service, second, Remedy.CREDIT)


async def test_what_an_attempt_was_paid_with_is_not_credited_though_its_record_was_deleted(roles: RolePair) -> None:
    attempt = await roles.settle(await roles.open_account(1), 1)
    await observe_payment(roles, attempt)
    with connect(roles.database.superuser_url) as owner:
        owner.execute("SET session_replication_role = replica")
        owner.execute("DELETE FROM settled_transfers")
    finding_id = await find_transfer(roles.service, 1, observed=False, value_raw=attempt.amount_raw)
    with pytest.raises(RemedyRefused, match=remedies.NOT_CREDITABLE["transfer_credits_not_settled"]):
        await take(roles.service, finding_id, Remedy.CREDIT)
