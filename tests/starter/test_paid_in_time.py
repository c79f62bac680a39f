"""A payment mined before its intent expired was paid in time, whatever the hour of its submission or discovery."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from uuid import UUID

import pytest

from composition import payment_policy
from db.accounts.wallets import Payer
from devstack.chain import LocalChain, payer_wallets
from domain.payments.attempt import AttemptStatus, ErrorCode
from services.payments import lifecycle as payments
from starter.models import Intent
from starter.payments import PaymentsClient
from tests.support.engine import Engine, open_engine
from tests.support.postgres import Database
from tests.support.servers import Namespace
from tests.support.sql import connect

TTL = timedelta(seconds=1)
A = "0x" + "aa" * 32


@pytest.fixture
async def engine(namespace: Namespace, database: Database, chain: LocalChain) -> AsyncIterator[Engine]:
    """An engine whose intents live for a second."""
    async with open_engine(namespace, database, chain, PAYMENT_INTENT_TTL_SECONDS="1") as opened:
        yield opened


async def _expired(engine: Engine) -> tuple[Payer, Intent]:
    """An intent that expired, as far as was known, unpaid."""
    payer, intent = await engine.intent()
    past = intent.expires_at - timedelta(hours=1)
    with connect(engine.database.superuser_url) as sql:
        sql.execute("UPDATE payment_attempts SET expires_at = %s WHERE id = %s", (past, intent.attempt_id))
    async with engine.tenants.transaction(payer.user_id) as connection:
        ending = await payments.submit(connection, intent.attempt_id, A, submitted_at=intent.expires_at)
    assert ending.attempt.error_code is ErrorCode.INTENT_EXPIRED
    return payer, intent.model_copy(update={"expires_at": past})


def _observe(engine: Engine, intent: Intent, sent: str, *, at: datetime, **changes: object) -> None:
    """What the chain watcher writes down."""
    values: dict[str, object] = {
        "chain_id": intent.chain_id,
        "tx_hash": sent,
        "log_index": 0,
        "block_number": 1,
        "block_hash": A,
        "block_time": at,
        "token": intent.token,
        "from_address": payer_wallets()[0].address,
        "to_address": intent.to,
        "value_raw": intent.amount_raw,
    } | changes
    with connect(engine.database.service_url) as sql:
        names, holes = ", ".join(values), ", ".join(["%s"] * len(values))
        sql.execute(f"INSERT INTO observed_transfers ({names}) VALUES ({holes})", list(values.values()))


async def _status(engine: Engine, attempt_id: UUID) -> tuple[AttemptStatus, ErrorCode | None]:
    attempt = await engine.attempt(attempt_id)
    return attempt.status, attempt.error_code


async def test_an_intent_that_ended_unpaid_is_taken_up_when_its_payment_turns_out_to_be_in_time(engine: Engine) -> None:
    payer, intent = await _expired(engine)
    sent = await engine.pay_and_confirm(intent)
    in_time = intent.expires_at - timedelta(microseconds=1)
    async with engine.worker():
        view = await engine.payments.submit(payer.user_id, intent.attempt_id, sent, mined_at=in_time)
        assert (view.status, view.error_code) == (AttemptStatus.PENDING_UNVERIFIED, None)
        await engine.result(intent.attempt_id)
    assert await _status(engine, intent.attempt_id) == (AttemptStatus.CREDITED, None)
    assert await engine.books() == []


async def test_a_payment_mined_when_the_intent_had_expired_is_late(engine: Engine) -> None:
    payer, intent = await _expired(engine)
    view = await engine.payments.submit(payer.user_id, intent.attempt_id, A, mined_at=intent.expires_at)
    assert (view.status, view.error_code) == (AttemptStatus.FAILED, ErrorCode.INTENT_EXPIRED)


async def test_a_late_submission_of_a_payment_that_the_watcher_saw_in_time_is_credited(engine: Engine) -> None:
    payer, intent = await _expired(engine)
    sent = await engine.pay_and_confirm(intent)
    _observe(engine, intent, sent, at=intent.expires_at - timedelta(microseconds=1))
    async with engine.worker():
        assert (await engine.submit(payer, intent, sent)).status is AttemptStatus.PENDING_UNVERIFIED
        await engine.result(intent.attempt_id)
    assert await _status(engine, intent.attempt_id) == (AttemptStatus.CREDITED, None)


async def test_the_same_without_a_worker_is_recorded_and_credited_later(engine: Engine) -> None:
    payer, intent = await _expired(engine)
    sent = await engine.pay_and_confirm(intent)
    _observe(engine, intent, sent, at=intent.expires_at - timedelta(microseconds=1))
    assert (await engine.submit(payer, intent, sent)).status is AttemptStatus.PENDING_UNVERIFIED
    async with engine.worker():
        await engine.result(intent.attempt_id)
    assert await _status(engine, intent.attempt_id) == (AttemptStatus.CREDITED, None)


@pytest.mark.slow(but=1)
@pytest.mark.parametrize(
    "changes",
    [
        {"from_address": "0x" + "01" * 20},
        {"to_address": "0x" + "01" * 20},
        {"token": "0x" + "01" * 20},
        {"value_raw": 99_999_999},
    ],
    ids=lambda changes: next(iter(changes)),
)
async def test_a_transfer_that_would_not_pay_the_intent_does_not_make_it_in_time(
    engine: Engine, changes: dict[str, object]
) -> None:
    payer, intent = await _expired(engine)
    _observe(engine, intent, A, at=intent.expires_at - timedelta(seconds=1), **changes)
    assert (await engine.submit(payer, intent, A)).error_code is ErrorCode.INTENT_EXPIRED


async def test_it_does_not_reveal_when_another_was_paid(engine: Engine) -> None:
    _, intent = await _expired(engine)
    _observe(engine, intent, A, at=datetime.now(UTC))
    stranger = await engine.payer(payer_wallets()[1])
    with connect(engine.database.app_url, user_id=stranger.user_id) as sql:
        row = sql.execute("SELECT observed_payment_time(%s, %s)", (intent.attempt_id, A)).fetchone()
    assert row == (None,)


async def test_the_payer_sees_confirmations_as_soon_as_the_watcher_has_the_transfer(engine: Engine) -> None:
    async def head() -> int:
        return 11

    payments_of_api = PaymentsClient(
        engine.tenants, engine.namespace.client, payment_policy(engine.settings), read_head=head
    )
    payer, intent = await engine.intent()
    async with engine.worker():
        await engine.submit(payer, intent, A)
        await engine.polled(intent.attempt_id, "not found yet")
        unseen = await payments_of_api.status(payer.user_id, intent.attempt_id)
        assert (unseen.confirmations, unseen.confirmations_needed) == (0, 2)
        _observe(engine, intent, A, at=datetime.now(UTC), block_number=11)
        seen = await payments_of_api.status(payer.user_id, intent.attempt_id)
    assert (seen.confirmations, seen.waiting_for) == (1, "1 of 2 confirmations")
