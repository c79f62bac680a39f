"""Paying through the HTTP interface: intents, submissions, status, events, credits."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from socket import create_server
from typing import Any

import pytest

from devstack.chain import LocalChain
from devstack.processes import wait_until
from domain.identifiers import SYSTEM_TENANT_ACCOUNT_ID
from starter import progress
from starter.payments import CHAIN_UNREADABLE
from starter.progress import DESCRIBE_TIMEOUT
from tests.support.api import PATIENCE_SECONDS, RunningApi, Visitor, first_wallet, running_api
from tests.support.engine import MIN_CONFIRMATIONS, Engine, open_engine
from tests.support.postgres import Database
from tests.support.servers import Namespace
from tests.support.sql import connect, scalar
from workflows.naming import workflow_id

INTENTS = "/api/v1/payments/intents"
HASH = "0x" + "5e" * 32


async def test_a_payment_from_sign_in_to_credits(api: RunningApi, payer: Visitor) -> None:
    intent = await payer.intent(2_500)
    engine = api.engine
    async with engine.worker():
        sent = await api.pay(intent)
        submitted = await payer.submit(intent["attemptId"], sent)
        assert submitted.status == 202, submitted.body
        assert submitted.body["status"] == "PENDING_UNVERIFIED"
        assert submitted.body["clientStatus"] == "PENDING_VERIFICATION"
        assert submitted.body["txHash"] == sent
        assert submitted.body["chainId"] == engine.chain.chain_id
        await engine.chain.mine(MIN_CONFIRMATIONS)
        end = await payer.ends(intent["attemptId"])
        await engine.result(intent["attemptId"])
    assert (end["status"], end["clientStatus"]) == ("CREDITED", "CONFIRMED")
    summary = (await payer.get("/api/v1/payments/credits/summary")).body
    assert summary["balanceCredits"] == 250_000_000
    assert [(row["amount"], row["reason"], row["txHash"]) for row in summary["ledger"]] == [
        (250_000_000, "credits_purchase", sent)
    ]
    assert await engine.books() == []


async def test_an_intent_says_what_to_send_where_and_until_when(api: RunningApi, payer: Visitor) -> None:
    intent = await payer.intent(2_500, purpose="system")
    settings = api.engine.settings
    assert intent.pop("attemptId")
    assert intent.pop("expiresAt").endswith("Z")
    assert intent == {
        "chainId": settings.chain_id,
        "token": settings.usdc_token_address,
        "to": settings.treasury_address,
        "amountRaw": 25_000_000,
        "amountUsdCents": 2_500,
        "purpose": "system",
    }


async def test_a_donation_goes_to_the_system_tenant_and_leaves_the_donors_balance(
    api: RunningApi, payer: Visitor
) -> None:
    intent = await payer.intent(1_000, purpose="system")
    async with api.engine.worker():
        sent = await api.pay(intent)
        await api.engine.chain.mine(MIN_CONFIRMATIONS)
        await payer.submit(intent["attemptId"], sent)
        assert (await payer.ends(intent["attemptId"]))["status"] == "CREDITED"
    summary = (await payer.get("/api/v1/payments/credits/summary")).body
    assert (summary["balanceCredits"], summary["ledger"]) == (0, [])
    balance = "SELECT balance_credits FROM billing_accounts WHERE id = %s"
    assert scalar(api.engine.database.service_url, balance, SYSTEM_TENANT_ACCOUNT_ID) == 100_000_000


async def test_submitting_answers_although_no_worker_runs_and_no_node_answers(engine: Engine) -> None:
    async with running_api(engine, CHAIN_RPC_URLS="http://127.0.0.1:1") as api, api.visitor(first_wallet()) as payer:
        intent = await payer.intent()
        submitted = await payer.submit(intent["attemptId"], HASH)
        assert (submitted.status, submitted.body["status"]) == (202, "PENDING_UNVERIFIED")
        status = await payer.status(intent["attemptId"])
        assert (status["confirmations"], status["confirmationsNeeded"]) == (0, MIN_CONFIRMATIONS)
    assert (await engine.attempt(intent["attemptId"])).tx_hash == HASH
    assert (await engine.state(intent["attemptId"])).is_running


async def test_confirmations_are_counted_block_by_block_between_two_polls(engine: Engine) -> None:
    # A long block time keeps the worker from polling again: what is counted comes from the chain's head.
    slow = {"MIN_CONFIRMATIONS": "6", "CHAIN_BLOCK_TIME_SECONDS": "0.4"}
    async with running_api(engine, **slow) as api, api.visitor(first_wallet()) as payer:
        intent = await payer.intent()
        sent = await api.pay(intent)
        await engine.chain.mine(1)
        async with engine.worker(MIN_CONFIRMATIONS="6", CHAIN_BLOCK_TIME_SECONDS="20"):
            await payer.submit(intent["attemptId"], sent)
            for block in range(1, 6):
                await sees(payer, intent, confirmations=block, confirmationsNeeded=6)
                await engine.chain.mine(1)
            (waiting,) = (await engine.state(intent["attemptId"])).pending
            assert waiting.last_failure == "1 of 6 confirmations", "the worker polled again, the test shows nothing"


async def test_the_same_submission_again_gets_the_same_answer(api: RunningApi, payer: Visitor) -> None:
    intent = await payer.intent()
    async with api.engine.worker():
        replies = [await payer.submit(intent["attemptId"], HASH.upper().replace("0X", "0x")) for _ in range(2)]
    assert [reply.status for reply in replies] == [202, 202]
    assert replies[0].body == replies[1].body
    assert replies[0].body["txHash"] == HASH


async def test_a_hash_of_another_own_payment_is_a_conflict(api: RunningApi, payer: Visitor) -> None:
    first, second = await payer.intent(), await payer.intent()
    async with api.engine.worker():
        assert (await payer.submit(first["attemptId"], HASH)).status == 202
        refused = await payer.submit(second["attemptId"], HASH)
    assert (refused.status, refused.code) == (409, "TX_HASH_IN_USE")


async def test_an_intent_that_expired_answers_with_its_end(engine: Engine) -> None:
    async with running_api(engine, PAYMENT_INTENT_TTL_SECONDS="1") as api, api.visitor(first_wallet()) as payer:
        intent = await payer.intent()
        expires_at = datetime.fromisoformat(intent["expiresAt"])
        await wait_until(
            lambda: datetime.now(UTC) > expires_at, timeout_seconds=PATIENCE_SECONDS, what="the intent's end"
        )
        reply = await payer.submit(intent["attemptId"], HASH)
    assert (reply.status, reply.body["status"], reply.body["errorCode"]) == (202, "FAILED", "INTENT_EXPIRED")


async def test_the_requests_id_is_in_the_answer_and_in_the_workflow(api: RunningApi, payer: Visitor) -> None:
    intent = await payer.intent()
    reply = await payer.submit(intent["attemptId"], HASH, headers={"X-Request-ID": "checkout-42.a"})
    assert reply.headers["X-Request-ID"] == "checkout-42.a"
    handle = api.engine.namespace.client.get_workflow_handle(workflow_id(intent["attemptId"]))
    assert await (await handle.describe()).memo() == {"requestId": "checkout-42.a"}


async def test_a_request_id_that_could_spoil_a_log_is_replaced(payer: Visitor) -> None:
    for hostile in ("a" * 65, "a b", "<script>", "-a"):
        reply = await payer.get("/api/v1/auth/session", headers={"X-Request-ID": hostile})
        assert len(reply.headers["X-Request-ID"]) == 16
        assert reply.headers["X-Request-ID"] != hostile


@pytest.mark.slow
async def test_what_was_counted_stays_counted_while_the_credit_is_under_way(
    api: RunningApi, payer: Visitor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress, "ASKED_AGAIN_AFTER", timedelta(0))
    intent = await payer.intent()
    engine = api.engine
    sent = await api.pay(intent)
    async with engine.worker():
        await payer.submit(intent["attemptId"], sent)
        await engine.chain.mine(1)
        await sees(payer, intent, confirmations=1)
        with connect(engine.database.superuser_url) as superuser:
            # The credit waits for this row.
            superuser.execute("SELECT 1 FROM payment_attempts WHERE id = %s FOR UPDATE", (intent["attemptId"],))
            await engine.chain.mine(MIN_CONFIRMATIONS)
            await engine.waits(
                intent["attemptId"],
                lambda state: any(pending.name == "credit_buyer" for pending in state.pending),
                what="the credit",
            )
            for _ in range(3):
                status = await payer.status(intent["attemptId"])
                assert (status["status"], status["confirmations"]) == ("PENDING_UNVERIFIED", MIN_CONFIRMATIONS)
        assert (await payer.ends(intent["attemptId"]))["status"] == "CREDITED"


async def test_a_payer_is_not_shown_which_node_answered_what(
    namespace: Namespace, database: Database, chain: LocalChain
) -> None:
    async with (
        open_engine(namespace, database, chain, CHAIN_RPC_URLS="http://127.0.0.1:1") as engine,
        engine.worker(),
        running_api(engine) as api,
        api.visitor(first_wallet()) as payer,
    ):
        intent = await payer.intent()
        await payer.submit(intent["attemptId"], HASH)
        await engine.polled(intent["attemptId"], "127.0.0.1")

        async def says_why() -> bool:
            return (await payer.status(intent["attemptId"]))["waitingFor"] is not None

        await wait_until(says_why, timeout_seconds=PATIENCE_SECONDS, what="a reason")
        assert (await payer.status(intent["attemptId"]))["waitingFor"] == CHAIN_UNREADABLE


@pytest.mark.slow
async def test_a_temporal_that_hangs_costs_a_page_full_of_payments_seconds_not_its_answer(engine: Engine) -> None:
    async with running_api(engine) as api, engine.worker(), api.visitor(first_wallet()) as payer:
        for number in range(12):
            intent = await payer.intent()
            assert (await payer.submit(intent["attemptId"], f"0x{number:064x}")).status == 202
    with create_server(("127.0.0.1", 0)) as silent:
        nowhere = f"127.0.0.1:{silent.getsockname()[1]}"
        async with running_api(engine, TEMPORAL_ADDRESS=nowhere) as api, api.visitor(first_wallet()) as payer:
            listed = await payer.get("/api/v1/payments/attempts?open=true")
            # After one time-out, no request waits again for a while.
            async with asyncio.timeout(DESCRIBE_TIMEOUT.total_seconds() * 0.9):
                page = await payer.get("/credits")
    assert [found["status"] for found in listed.body["attempts"]] == ["PENDING_UNVERIFIED"] * 12
    assert page.status == 200


async def sees(payer: Visitor, intent: dict[str, Any], **fields: int) -> None:
    """Wait until the status says so."""

    async def says() -> bool:
        status = await payer.status(intent["attemptId"])
        return all(status.get(name) == value for name, value in fields.items())

    await wait_until(says, timeout_seconds=PATIENCE_SECONDS, what=f"status with {fields}")
