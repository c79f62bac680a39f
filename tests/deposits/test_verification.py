"""A deposit's attempt is verified where a worker has recorded the deposit, by its own token's number of digits."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any, Final
from uuid import UUID

import pytest
from temporalio.exceptions import ApplicationError
from temporalio.testing import ActivityEnvironment

from activities.messages import PaymentToVerify
from activities.payments import verification
from activities.payments.verification import VerificationActivities
from chain.preconditions import SettlementPreconditions
from chain.reader import ChainReader
from db.payments import attempts
from devstack.chain import payer_wallets
from domain.payments.verification import Refused, Verified, Waiting, WaitReason, terms_of
from tests.chain.faulty_node import FaultyNode
from tests.deposits.conftest import MIN_CONFIRMATIONS, Deposits
from tests.support.sql import connect

DAY: Final = timedelta(days=1)


async def waiting_attempt(deposits: Deposits) -> UUID:
    """The attempt of a confirmed deposit whose workflow does nothing."""
    deposits.settling.is_idle = True
    await deposits.act()
    [attempt_id] = deposits.settling.resumed
    return attempt_id


async def poll(
    deposits: Deposits, attempt_id: UUID, preconditions: SettlementPreconditions | None = None
) -> Verified | Refused | Waiting:
    """One poll of its workflow's activity."""
    async with deposits.roles.service.autocommit() as connection:
        attempt = await attempts.find_attempt(connection, attempt_id)
    assert attempt is not None
    activities = VerificationActivities(
        deposits.reader,
        deposits.roles.service,
        preconditions or SettlementPreconditions(deposits.reader.contracts, deposits.chain.treasury_address),
        min_confirmations=MIN_CONFIRMATIONS,
        block_time=timedelta(seconds=1),
        verification_timeout=DAY,
    )
    now = datetime.now(UTC)
    payment = PaymentToVerify(
        attempt_id=attempt.id,
        owner_user_id=attempt.owner_user_id,
        billing_account_id=attempt.billing_account_id,
        terms=terms_of(attempt),
        submitted_at=now,
        verify_until=now + DAY,
    )
    try:
        found: Any = await ActivityEnvironment().run(activities.await_confirmation, payment)
    except ApplicationError as error:
        (found,) = error.details
    assert isinstance(found, Verified | Refused | Waiting)
    return found


async def test_an_attempt_of_a_deposit_that_no_worker_has_recorded_is_not_credited(deposits: Deposits) -> None:
    await deposits.pay(await deposits.give(), 1_000_000)
    attempt_id = await waiting_attempt(deposits)
    assert isinstance(await poll(deposits, attempt_id), Verified)
    for named in (None, attempt_id):
        with connect(deposits.roles.database.superuser_url, triggers=False) as superuser:
            superuser.execute("UPDATE deposits SET attempt_id = %s", (named,))
        if named is None:
            found = await poll(deposits, attempt_id)
    assert isinstance(found, Waiting)
    assert found.reason is WaitReason.UNKNOWN_TREASURY


async def test_a_token_of_other_decimals_than_usdc_is_the_methods_own(deposits: Deposits) -> None:
    chain, owner = deposits.chain, payer_wallets()[-1]
    dai = await chain.deploy_token("PlainToken", "DAI", 18)
    deposits.method("DAI:test", dai, decimals=18)
    given = await deposits.give()
    await chain.mint(owner.address, 10**18, token=dai, owner=owner)
    await chain.mine()
    sent = await chain.pay(owner.private_key, given.address, 10**18, token=dai)
    await chain.mine(MIN_CONFIRMATIONS)
    await chain.wait_for_receipt(sent)
    assert isinstance(await poll(deposits, await waiting_attempt(deposits)), Verified)


async def test_a_poll_that_ends_while_the_token_is_asked_about_waits_for_the_token(
    deposits: Deposits, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And not for the chain: on the final poll, that would give up a payment that is there."""
    await deposits.pay(await deposits.give(), 1_000_000)
    attempt_id = await waiting_attempt(deposits)
    monkeypatch.setattr(verification, "POLL_TIMEOUT", timedelta(seconds=1))
    async with (
        FaultyNode.in_front_of(deposits.chain.url) as node,
        ChainReader([node.url], deposits.chain.chain_id, timeout_seconds=5.0) as reader,
    ):
        preconditions = SettlementPreconditions(reader.contracts, deposits.chain.treasury_address)
        node.hang()
        found = await poll(deposits, attempt_id, preconditions)
        node.heal()
        await preconditions.check(deposits.chain.token_address)  # after the one that the poll left behind
    assert isinstance(found, Waiting)
    assert found.reason is WaitReason.PRECONDITION
