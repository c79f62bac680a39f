"""What receivers of webhooks learn of a deposit and its charge: each step once, also when it leaves the chain."""

from __future__ import annotations

from db.deposits.charges import find_charge
from domain.money import credits_for_raw
from domain.operations.findings import Remedy
from domain.operations.resolutions import RemedyRequest
from domain.payments.attempt import AttemptStatus
from services.operations.resolutions import mint_bonus_of_credit, take_remedy
from tests.deposits.conftest import MIN_CONFIRMATIONS, Deposits
from tests.deposits.given import Given
from tests.deposits.test_reorganisations import raw, reversed_deposit
from tests.support.payments import SHARE
from tests.support.sql import connect
from tests.support.webhooks import make_endpoint, types_of, written


async def given_with_endpoint(deposits: Deposits, **options: int) -> Given:
    """An address of an account that takes all events."""
    given = await deposits.give(**options)
    make_endpoint(deposits.roles.database, given.account)
    return given


def types_of_subject(deposits: Deposits, subject: str) -> list[str]:
    """What has happened to one, in order."""
    return [event.type for event in written(deposits.roles.database) if event.subject.startswith(subject)]


async def test_a_charge_that_is_paid_is_seen_confirmed_and_credited(deposits: Deposits) -> None:
    given = await given_with_endpoint(deposits, charge_cents=500)
    await deposits.pay(given, 5_000_000, blocks=1)
    await deposits.act()
    assert sorted(types_of(deposits.roles.database)) == ["charge.confirming", "deposit.seen"]
    await deposits.chain.mine(MIN_CONFIRMATIONS)
    await deposits.act()
    assert types_of_subject(deposits, "deposit:") == ["deposit.seen", "deposit.credited"]
    assert types_of_subject(deposits, "charge:") == ["charge.confirming", "charge.paid"]
    assert types_of_subject(deposits, "payment:") == ["payment.submitted", "payment.credited"]
    last = {event.type: event.data for event in written(deposits.roles.database)}
    assert last["deposit.credited"]["attemptId"] == last["payment.credited"]["attemptId"]
    assert last["deposit.credited"]["chargeId"] == last["charge.paid"]["chargeId"] == str(given.charge_id)
    assert last["payment.credited"]["kind"] == "deposit"
    for kind in ("deposit.credited", "payment.credited"):
        assert (last[kind]["amountRaw"], last[kind]["amountCredits"]) == ("5000000", 50_000_000)
    assert (last["charge.paid"]["receivedRaw"], last["charge.paid"]["creditedRaw"]) == ("5000000", "5000000")


async def test_a_second_payment_of_a_part_is_an_event_of_its_own(deposits: Deposits) -> None:
    given = await given_with_endpoint(deposits, charge_cents=500)
    for value_raw in (1_000_000, 1_000_000):
        await deposits.pay(given, value_raw, blocks=1)
        await deposits.act()
    seen = [event for event in written(deposits.roles.database) if event.type == "deposit.seen"]
    assert [event.data["amountRaw"] for event in seen] == ["1000000", "1000000"]
    assert len({event.data["depositId"] for event in seen}) == 2
    assert types_of_subject(deposits, "charge:") == ["charge.partial"]


async def test_a_deposit_that_leaves_the_chain_before_its_credit_is_reversed_and_its_charge_is_new(
    deposits: Deposits,
) -> None:
    given = await given_with_endpoint(deposits, charge_cents=500)
    await deposits.pay(given, 5_000_000, blocks=1)
    await deposits.act()
    await deposits.chain.reorg(1)
    await deposits.chain.mine(MIN_CONFIRMATIONS)
    await deposits.act()
    await deposits.act()
    assert types_of_subject(deposits, "deposit:") == ["deposit.seen", "deposit.reversed"]
    assert types_of_subject(deposits, "charge:") == ["charge.confirming", "charge.new"]
    assert types_of_subject(deposits, "payment:") == []


async def test_a_credited_deposit_that_is_reorged_out_is_reversed_once(deposits: Deposits) -> None:
    given = await given_with_endpoint(deposits)
    await reversed_deposit(deposits, given)
    await deposits.act()
    assert types_of_subject(deposits, "deposit:") == ["deposit.seen", "deposit.credited", "deposit.reversed"]
    assert types_of_subject(deposits, "payment:") == ["payment.submitted", "payment.credited", "payment.reversed"]


async def test_a_deposit_that_moves_while_its_attempt_waits_is_no_event(deposits: Deposits) -> None:
    given = await given_with_endpoint(deposits)
    sent = await deposits.pay(given, 5_000_000)
    deposits.settling.is_idle = True
    await deposits.act()
    [attempt_id] = deposits.settling.resumed
    transaction = await raw(deposits, sent)
    await deposits.chain.reorg(MIN_CONFIRMATIONS + 1, [(transaction, 1)])
    await deposits.chain.mine(MIN_CONFIRMATIONS)
    await deposits.act()
    await deposits.act()
    await deposits.settling.settle(attempt_id)
    seen = types_of_subject(deposits, "deposit:")
    assert (seen[0], seen[-1], seen.count("deposit.credited")) == ("deposit.seen", "deposit.credited", 1)
    # Between its two blocks it was in none: what is taken away is seen again.
    assert seen.count("deposit.seen") == seen.count("deposit.reversed") + 1


async def credited_by_operator(deposits: Deposits, given: Given, account: str) -> None:
    """A deposit that no payer sent, and that an operator credits to an account."""
    await deposits.chain.mint(given.address, 5_000_000)
    await deposits.chain.mine(MIN_CONFIRMATIONS)
    await deposits.act()
    [(finding_id,)] = deposits.rows("SELECT id FROM findings")
    request = RemedyRequest(
        finding_id=finding_id, remedy=Remedy.CREDIT, operator="ada", reason="it is theirs", billing_account_id=account
    )
    async with deposits.roles.service.transaction() as connection:
        await take_remedy(connection, request, revenue_share=SHARE)
    async with deposits.roles.service.transaction() as connection:
        await mint_bonus_of_credit(connection, finding_id)


async def test_a_deposit_that_an_operator_credits_is_credited_and_pays_its_charge(deposits: Deposits) -> None:
    given = await given_with_endpoint(deposits, charge_cents=500)
    await credited_by_operator(deposits, given, given.account.billing_account_id)
    assert deposits.status_of(given) == "paid"
    assert types_of_subject(deposits, "deposit:") == ["deposit.seen", "deposit.credited"]
    assert types_of_subject(deposits, "charge:") == ["charge.confirming", "charge.paid"]
    last = {event.type: event.data for event in written(deposits.roles.database)}
    assert last["deposit.credited"]["amountCredits"] == credits_for_raw(5_000_000)
    assert last["charge.paid"]["creditedRaw"] == "5000000"
    async with deposits.roles.app.transaction(given.account.user_id) as connection:
        assert given.charge_id is not None
        charge = await find_charge(connection, given.charge_id, given.account.billing_account_id)
    assert charge is not None
    assert (charge.received.credits, charge.received.waiting_raw) == (credits_for_raw(5_000_000), 0)
    assert [one.attempt_status for one in charge.deposits] == [AttemptStatus.CREDITED]


async def test_to_another_account_it_pays_no_charge(deposits: Deposits) -> None:
    given = await given_with_endpoint(deposits, charge_cents=500)
    other = await deposits.account(2)
    await credited_by_operator(deposits, given, other.billing_account_id)
    assert await deposits.roles.balance(other.billing_account_id) == credits_for_raw(5_000_000)
    assert deposits.status_of(given) == "confirming"
    assert types_of_subject(deposits, "deposit:") == ["deposit.seen"]


async def test_neither_another_place_in_its_block_nor_a_failed_attempt_is_an_event_of_a_deposit(
    deposits: Deposits,
) -> None:
    given = await given_with_endpoint(deposits)
    deposits.settling.is_idle = True
    await deposits.pay(given, 5_000_000)
    await deposits.act()
    with connect(deposits.roles.database.superuser_url) as superuser:
        superuser.execute("UPDATE deposits SET log_index = log_index + 1")
    with connect(deposits.roles.database.service_url) as service:
        service.execute("UPDATE payment_attempts SET status = 'FAILED', error_code = 'TX_REVERTED'")
        service.execute(
            "INSERT INTO payment_events (attempt_id, event_type, from_status, to_status, error_code)"
            " SELECT id, 'failed', 'PENDING_UNVERIFIED', 'FAILED', 'TX_REVERTED' FROM payment_attempts"
        )
    assert types_of_subject(deposits, "deposit:") == ["deposit.seen"]
    assert types_of_subject(deposits, "payment:") == ["payment.submitted", "payment.failed"]
