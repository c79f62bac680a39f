"""What rows can say of a payment's chain, the database holds: attacked as the service role, which may write most."""

from __future__ import annotations

import pytest
from psycopg.errors import CheckViolation

from activities.messages import AttemptRef
from activities.own_chain import OwnChain
from domain.errors import WorkerOfAnotherChain
from domain.operations.findings import Remedy
from domain.operations.resolutions import RemedyRequest
from tests.reconciliation.planting import find_transfer, observe, take
from tests.support.payments import CHAIN_ID, RolePair, tx_hash, wallet
from tests.support.sql import connect, refused

OTHER = 8453


async def test_a_transfer_is_not_handed_to_an_attempt_of_another_chain(roles: RolePair) -> None:
    attempt = await roles.create_submitted(await roles.open_account(1), 1)
    await observe(roles.service, tx_hash(1), wallet(1), attempt.amount_raw, chain_id=OTHER)
    await observe(roles.service, tx_hash(1), wallet(1), attempt.amount_raw)
    hand = "UPDATE observed_transfers SET handled_at = now(), attempt_id = %s WHERE chain_id = %s"
    with (
        refused(CheckViolation, "observed_transfers_pays_attempt_of_its_chain"),
        connect(roles.database.service_url) as service,
    ):
        service.execute(hand, (attempt.id, OTHER))
    with connect(roles.database.service_url) as service:
        service.execute(hand, (attempt.id, CHAIN_ID))


async def test_a_finding_of_one_chain_credits_no_transfer_of_another(roles: RolePair) -> None:
    """The same hash on both, found on one: the credit names the other."""
    finding_id = await find_transfer(roles.service, 1)
    await observe(roles.service, tx_hash(1), wallet(1), 5_000_000, chain_id=OTHER)
    insert = (
        "INSERT INTO transfer_credits (chain_id, tx_hash, log_index, part, block_number, block_hash, from_address,"
        " finding_id, value_raw, amount_credits, revenue_share)"
        " VALUES (%s, %s, 0, 'refund', 7, %s, %s, %s, 5000000, 0, 0)"
    )
    with refused(CheckViolation, "transfer_credits_of_its_finding"), connect(roles.database.service_url) as service:
        service.execute(insert, (OTHER, tx_hash(1), tx_hash(7), wallet(1), finding_id))
    await take(roles.service, finding_id, Remedy.REFUND_RECORDED)


@pytest.mark.parametrize("outcome", ["final", "reversed"])
async def test_what_became_of_a_transfer_is_written_down_for_its_own_chain_only(roles: RolePair, outcome: str) -> None:
    attempt = await roles.settle(await roles.open_account(1), 1)
    with (
        refused(CheckViolation, "transfer_finality_agrees_with_attempt"),
        connect(roles.database.service_url) as service,
    ):
        service.execute(
            "INSERT INTO transfer_finality (attempt_id, outcome, chain_id, tx_hash, log_index, block_number,"
            " block_hash, level) VALUES (%s, %s, %s, %s, 0, 7, %s, 'finalized')",
            (attempt.id, outcome, OTHER, tx_hash(1), tx_hash(7)),
        )


async def test_work_that_names_no_chain_is_of_its_attempts_or_findings(roles: RolePair) -> None:
    payer = await roles.open_account(1)
    attempt = await roles.create(payer)
    finding_id = await find_transfer(roles.service, 1)
    of_attempt = AttemptRef(
        attempt_id=attempt.id, owner_user_id=payer.user_id, billing_account_id=payer.billing_account_id
    )
    of_finding = RemedyRequest(finding_id=finding_id, remedy=Remedy.RETRY, operator="ada", reason="asked")
    for message in (of_attempt, of_finding):
        await OwnChain(roles.service, CHAIN_ID).require(message)
        with pytest.raises(WorkerOfAnotherChain):
            await OwnChain(roles.service, CHAIN_ID + 1).require(message)
