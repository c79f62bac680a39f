"""The client that takes payments, against real servers."""

from __future__ import annotations

import asyncio
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import pytest
from temporalio.client import WorkflowExecutionStatus

from composition import payment_policy
from devstack.chain import LocalChain, payer_wallets
from devstack.processes import quiet_port, wait_until
from devstack.temporal import EmbeddedTemporal
from domain.errors import (
    AttemptNotFound,
    HashInUse,
    InvalidInput,
    TemporalUnavailable,
    TooManyReplacements,
    WrongChain,
)
from domain.money import DEFAULT_REVENUE_SHARE
from domain.payments.attempt import MAX_SUBMISSIONS, AttemptStatus, ClientStatus, ErrorCode, Purpose
from services.payments import lifecycle as payments
from starter.payments import PaymentsClient
from starter.progress import read_workflow
from starter.submission import START_TIMEOUT
from starter.temporal import connect
from tests.support import sql
from tests.support.engine import PATIENCE_SECONDS, Engine, open_engine
from tests.support.payments import transfer_for
from tests.support.postgres import Database
from tests.support.servers import Namespace

A = "0x" + "aa" * 32
B = "0x" + "bb" * 32
SLACK_SECONDS = 6.0
"""Less than what the SDK would wait by itself."""


# -- intents


@pytest.mark.slow(but=2)
@pytest.mark.parametrize("cents", [100, 101, 999_999, 1_000_000])
async def test_an_amount_within_the_bounds_makes_an_intent(engine: Engine, cents: int) -> None:
    before = datetime.now(UTC)
    payer, intent = await engine.intent(cents)
    assert (intent.amount_usd_cents, intent.amount_raw) == (cents, cents * 10_000)
    assert (intent.token, intent.to) == (engine.chain.token_address, engine.chain.treasury_address)
    assert (intent.chain_id, intent.purpose) == (engine.chain.chain_id, Purpose.SELF)
    assert before + timedelta(minutes=30) <= intent.expires_at <= datetime.now(UTC) + timedelta(minutes=30)
    view = await engine.payments.status(payer.user_id, intent.attempt_id)
    assert (view.status, view.client_status) == (AttemptStatus.CREATED_INTENT, ClientStatus.PENDING_VERIFICATION)
    assert (view.tx_hash, view.error_code, view.confirmations) == (None, None, None)


@pytest.mark.slow(but=2)
@pytest.mark.parametrize("cents", [99, 1_000_001, 0, -100, 10**30, True, 100.0, "100", None])
async def test_an_amount_out_of_bounds_or_not_an_integer_is_refused_and_leaves_nothing(
    engine: Engine, cents: Any
) -> None:
    payer = await engine.payer()
    with pytest.raises(InvalidInput) as refused:
        await engine.payments.create_intent(payer, cents)
    assert refused.value.field == "amountUsdCents"
    assert sql.scalar(engine.database.superuser_url, "SELECT count(*) FROM payment_attempts") == 0


async def test_a_wallet_has_one_account_however_often_and_at_once_it_is_provisioned(engine: Engine) -> None:
    address = payer_wallets()[3].address
    payers = await asyncio.gather(*(engine.payments.provision(address) for _ in range(10)))
    payers.append(await engine.payments.provision(address))
    assert len(set(payers)) == 1
    assert await engine.payments.provision(payer_wallets()[4].address) not in payers


# -- submitting


async def test_a_hash_in_upper_case_is_the_same_hash(engine: Engine) -> None:
    async with engine.worker():
        payer, intent, sent = await engine.buy()
        shouted = "0x" + sent[2:].upper()
        assert (await engine.submit(payer, intent, shouted)).tx_hash == sent
        assert (await engine.submit(payer, intent, sent)).tx_hash == sent
        assert (await engine.result(intent.attempt_id)).tx_hash == sent
    assert (await engine.attempt(intent.attempt_id)).submission_count == 1


@pytest.mark.slow(but=2)
@pytest.mark.parametrize("bad", ["", "0x", A[:-1], A + "0", "0X" + A[2:], A[2:], "0x" + "g" * 64, f" {A}", f"{A}\n"])
async def test_a_malformed_hash_is_refused_by_name(engine: Engine, bad: str) -> None:
    payer, intent = await engine.intent()
    with pytest.raises(InvalidInput) as refused:
        await engine.submit(payer, intent, bad)
    assert refused.value.field == "txHash"
    assert (await engine.attempt(intent.attempt_id)).status is AttemptStatus.CREATED_INTENT


async def test_another_accounts_attempt_does_not_exist(engine: Engine) -> None:
    _, intent = await engine.intent()
    stranger = await engine.payer(payer_wallets()[1])
    for call in (
        engine.payments.submit(stranger.user_id, intent.attempt_id, A),
        engine.payments.status(stranger.user_id, intent.attempt_id),
        engine.payments.status(stranger.user_id, uuid4()),
    ):
        with pytest.raises(AttemptNotFound):
            await call
    assert await read_workflow(engine.namespace.client, intent.attempt_id) is None


async def test_an_attempt_for_another_chain_is_refused_before_anything_is_written(
    engine: Engine, other_chain: PaymentsClient
) -> None:
    payer, intent = await engine.intent()
    with pytest.raises(WrongChain, match="chain 31337; .* chain 8453"):
        await other_chain.submit(payer.user_id, intent.attempt_id, A)
    assert (await engine.attempt(intent.attempt_id)).status is AttemptStatus.CREATED_INTENT
    assert await read_workflow(engine.namespace.client, intent.attempt_id) is None


async def test_an_expired_intent_ends_with_its_code_and_the_late_hash_is_kept_in_the_trail(
    namespace: Namespace, database: Database, chain: LocalChain
) -> None:
    async with open_engine(namespace, database, chain, PAYMENT_INTENT_TTL_SECONDS="1") as engine:
        payer, intent = await engine.intent()
        await asyncio.sleep((intent.expires_at - datetime.now(UTC)).total_seconds() + 0.01)
        for _ in range(2):
            view = await engine.submit(payer, intent, A)
            assert (view.status, view.client_status) == (AttemptStatus.FAILED, ClientStatus.FAILED)
            assert (view.error_code, view.tx_hash) == (ErrorCode.INTENT_EXPIRED, None)
        [_, expired] = await engine.events(intent.attempt_id)
        assert (expired.error_code, expired.details) == ("INTENT_EXPIRED", {"submittedTxHash": A})
        assert await read_workflow(namespace.client, intent.attempt_id) is None
        assert await engine.books() == []


async def test_a_hash_that_another_attempt_of_the_payer_holds_is_refused_and_starts_nothing(engine: Engine) -> None:
    async with engine.worker():
        payer, first = await engine.intent()
        second = await engine.payments.create_intent(payer, 500)
        await engine.submit(payer, first, A)
        with pytest.raises(HashInUse):
            await engine.submit(payer, second, A)
        assert await read_workflow(engine.namespace.client, second.attempt_id) is None
        # Another payer who names the same hash gains nothing and is not blocked.
        stranger, theirs = await engine.intent(wallet=payer_wallets()[1])
        assert (await engine.submit(stranger, theirs, A)).status is AttemptStatus.PENDING_UNVERIFIED


def _set_submission_count(engine: Engine, attempt_id: UUID, count: int) -> None:
    with sql.connect(engine.database.superuser_url, triggers=False) as connection:
        connection.execute("UPDATE payment_attempts SET submission_count = %s WHERE id = %s", (count, attempt_id))


async def test_the_last_replacement_that_is_allowed_is_taken_and_the_next_is_refused(engine: Engine) -> None:
    async with engine.worker():
        payer, intent = await engine.intent()
        await engine.submit(payer, intent, A)
        _set_submission_count(engine, intent.attempt_id, MAX_SUBMISSIONS - 1)
        assert (await engine.submit(payer, intent, B)).tx_hash == B
        with pytest.raises(TooManyReplacements):
            await engine.submit(payer, intent, A)
        assert (await engine.submit(payer, intent, B)).tx_hash == B


async def _credit(engine: Engine, user_id: str, attempt_id: UUID) -> None:
    """The buyer is credited; the bonus is still due."""
    async with engine.settlement.transaction(user_id) as connection:
        submitted = await payments.submit(connection, attempt_id, A, submitted_at=datetime.now(UTC))
        await payments.credit_buyer(
            connection, attempt_id, transfer_for(submitted.attempt), revenue_share=DEFAULT_REVENUE_SHARE
        )


# -- without a worker, without Temporal


async def test_without_a_worker_the_hash_is_recorded_in_bounded_time_and_settles_later(engine: Engine) -> None:
    payer, intent, sent = await engine.buy()
    started = time.monotonic()
    view = await engine.submit(payer, intent, sent)
    took = time.monotonic() - started
    assert took < START_TIMEOUT.total_seconds() + SLACK_SECONDS
    assert (view.status, view.tx_hash) == (AttemptStatus.PENDING_UNVERIFIED, sent)
    assert (await engine.attempt(intent.attempt_id)).tx_hash == sent
    assert (await engine.state(intent.attempt_id)).is_running
    async with engine.worker():
        assert (await engine.result(intent.attempt_id)).status is AttemptStatus.CREDITED
    assert (await engine.attempt(intent.attempt_id)).submission_count == 1
    assert await engine.books() == []


async def test_with_temporal_down_a_submission_is_recorded_and_refused_in_bounded_time(
    engine: Engine, cut_off: PaymentsClient
) -> None:
    payer, intent = await engine.intent()
    started = time.monotonic()
    with pytest.raises(TemporalUnavailable):
        await cut_off.submit(payer.user_id, intent.attempt_id, A)
    assert time.monotonic() - started < 2 * START_TIMEOUT.total_seconds() + SLACK_SECONDS
    attempt = await engine.attempt(intent.attempt_id)
    assert (attempt.status, attempt.tx_hash) == (AttemptStatus.PENDING_UNVERIFIED, A)
    assert await read_workflow(engine.namespace.client, intent.attempt_id) is None
    # The same call again, when it is back.
    async with engine.worker():
        assert (await engine.submit(payer, intent, A)).status is AttemptStatus.PENDING_UNVERIFIED
        assert (await engine.state(intent.attempt_id)).is_running


@pytest.mark.slow
async def test_a_temporal_that_dies_after_it_was_connected_is_unavailable_in_bounded_time(
    engine: Engine, tmp_path: Path
) -> None:
    server = EmbeddedTemporal(tmp_path, quiet_port())
    await server.start()
    try:
        client = await connect({"TEMPORAL_ADDRESS": server.address})
    finally:
        await server.kill()
    cut_off = PaymentsClient(engine.tenants, client, payment_policy(engine.settings))
    payer, intent = await engine.intent()
    started = time.monotonic()
    with pytest.raises(TemporalUnavailable):
        await cut_off.submit(payer.user_id, intent.attempt_id, A)
    assert time.monotonic() - started < 2 * START_TIMEOUT.total_seconds() + SLACK_SECONDS
    assert (await engine.attempt(intent.attempt_id)).status is AttemptStatus.PENDING_UNVERIFIED

    # A credited purchase is answered from the database, though its bonus cannot be ensured now.
    await _credit(engine, payer.user_id, intent.attempt_id)
    started = time.monotonic()
    assert (await cut_off.submit(payer.user_id, intent.attempt_id, A)).status is AttemptStatus.CREDITED
    assert time.monotonic() - started < 2 * START_TIMEOUT.total_seconds(), "it waited twice"


async def test_with_temporal_down_a_repeated_submission_is_refused_and_the_status_reported_with_less_detail(
    engine: Engine, cut_off: PaymentsClient
) -> None:
    payer, intent = await engine.intent()
    async with engine.worker():
        await engine.submit(payer, intent, A)
    started = time.monotonic()
    with pytest.raises(TemporalUnavailable):
        await cut_off.submit(payer.user_id, intent.attempt_id, A)
    assert time.monotonic() - started < 2 * START_TIMEOUT.total_seconds() + SLACK_SECONDS
    started = time.monotonic()
    view = await cut_off.status(payer.user_id, intent.attempt_id)
    assert time.monotonic() - started < START_TIMEOUT.total_seconds() + SLACK_SECONDS
    assert view.status is AttemptStatus.PENDING_UNVERIFIED
    assert (view.confirmations, view.confirmations_needed) == (0, 2)
    assert view.waiting_for is None


async def test_with_temporal_down_a_finished_attempt_still_answers_with_its_end(
    engine: Engine, cut_off: PaymentsClient
) -> None:
    async with engine.worker():
        payer, intent, sent = await engine.buy()
        await engine.submit(payer, intent, sent)
        await engine.result(intent.attempt_id)
    view = await cut_off.submit(payer.user_id, intent.attempt_id, B)
    assert (view.status, view.tx_hash) == (AttemptStatus.CREDITED, sent)


# -- runs that are over


@pytest.mark.slow
async def test_the_same_hash_again_starts_another_run_each_time_one_was_terminated(
    engine: Engine, chain: LocalChain
) -> None:
    async with engine.worker():
        payer, intent = await engine.intent()
        sent = await engine.pay(intent)
        runs = set()
        for _ in range(3):
            await engine.submit(payer, intent, sent)
            state = await engine.state(intent.attempt_id)
            assert state.is_running
            runs.add(state.run_id)
            await engine.handle(intent.attempt_id).terminate("by an operator")
        assert len(runs) == 3
        await engine.submit(payer, intent, sent)
        await chain.mine(2)
        assert (await engine.result(intent.attempt_id)).status is AttemptStatus.CREDITED
    assert (await engine.attempt(intent.attempt_id)).submission_count == 1


async def test_a_purchase_whose_run_was_terminated_before_the_bonus_gets_it_when_submitted_again(
    engine: Engine,
) -> None:
    payer, intent = await engine.intent()
    sent = await engine.credit_without_bonus(payer, intent)
    async with engine.worker():
        view = await engine.submit(payer, intent, sent)
        assert view.status is AttemptStatus.CREDITED
        await engine.result(intent.attempt_id)
        run = (await engine.state(intent.attempt_id)).run_id
        await engine.submit(payer, intent, sent)
    state = await engine.state(intent.attempt_id)
    assert (state.status, state.run_id) == (WorkflowExecutionStatus.COMPLETED.name, run)
    assert await engine.credits(intent.attempt_id) == {
        "credits_purchase": 1_000_000_000,
        "platform_revenue_share": 750_000_000,
    }
    assert await engine.books() == []


async def test_the_confirmations_so_far_are_reported_while_the_payment_waits(engine: Engine, chain: LocalChain) -> None:
    async with engine.worker():
        payer, intent = await engine.intent()
        sent = await engine.pay(intent)
        await engine.submit(payer, intent, sent)
        await chain.mine(1)

        async def told() -> bool:
            view = await engine.payments.status(payer.user_id, intent.attempt_id)
            return view.confirmations == 1

        await wait_until(told, timeout_seconds=PATIENCE_SECONDS, what="1 confirmation")
        await chain.mine(1)
        await engine.result(intent.attempt_id)
    view = await engine.payments.status(payer.user_id, intent.attempt_id)
    assert (view.status, view.client_status, view.confirmations) == (
        AttemptStatus.CREDITED,
        ClientStatus.CONFIRMED,
        None,
    )
