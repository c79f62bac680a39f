"""`settle attempt` on real servers: what it prints, and how it ends."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import uuid4

from devstack.chain import LocalChain, payer_wallets
from devstack.processes import quiet_port, wait_until
from domain.payments.attempt import AttemptStatus
from tests.cli.command import ResponseModel, settle
from tests.support import sql
from tests.support.engine import Engine
from tests.support.payments import note_former_treasury
from tests.support.postgres import ROLE_PASSWORD

HASH = "0x" + "ab" * 32
INTENT = {"attemptId", "chainId", "token", "to", "amountRaw", "amountUsdCents", "purpose", "expiresAt"}
VIEW = {
    "attemptId", "kind", "status", "clientStatus", "chainId", "txHash", "errorCode", "amountUsdCents", "amountCredits",
    "purpose", "signed", "finalityState", "finalityLevel",
    "createdAt", "expiresAt", "confirmations", "confirmationsNeeded", "waitingFor", "nextLookAt",
}  # fmt: skip
DIAGNOSIS = VIEW | {
    "explanation", "billingAccountId", "fromAddress", "token", "to", "amountRaw", "submittedAt", "surplusRaw",
    "unappliedRaw", "chain", "finality", "workflow", "workflowId", "workflowUrl", "events", "ledger",
}  # fmt: skip


async def _run(variables: Mapping[str, str], folder: Path, *arguments: str) -> ResponseModel:
    answer = await asyncio.to_thread(settle, arguments, variables, folder)
    assert ROLE_PASSWORD not in answer.stdout + answer.stderr
    return answer


async def _create(engine: Engine, folder: Path, *options: str, cents: int = 10_000, wallet: str | None = None) -> Any:
    answer = await _run(
        engine.variables,
        folder,
        *("attempt", "create", "--wallet", wallet or payer_wallets()[0].address, "--cents", str(cents), "--json"),
        *options,
    )
    assert (answer.exit_code, answer.stderr) == (0, "")
    return answer.json()


async def test_creating_for_one_wallet_twice_makes_two_attempts_of_one_account(engine: Engine, tmp_path: Path) -> None:
    wallet = payer_wallets()[0].address
    first = await _create(engine, tmp_path, wallet=wallet)
    second = await _create(engine, tmp_path, "--purpose", "system", wallet=wallet.lower())
    assert set(first) == set(second) == INTENT
    assert (first["amountUsdCents"], first["amountRaw"], first["purpose"]) == (10_000, 100_000_000, "self")
    assert second["purpose"] == "system"
    assert (first["chainId"], first["token"]) == (engine.chain.chain_id, engine.chain.token_address)
    assert first["to"] == engine.chain.treasury_address
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z", first["expiresAt"])
    assert first["attemptId"] != second["attemptId"]
    accounts = sql.query(engine.database.superuser_url, "SELECT DISTINCT billing_account_id FROM payment_attempts")
    users = sql.query(
        engine.database.superuser_url, "SELECT wallet_address FROM users WHERE wallet_address IS NOT NULL"
    )
    assert (len(accounts), users) == (1, [(wallet,)])


async def test_an_amount_out_of_bounds_is_a_usage_error_with_its_code(engine: Engine, tmp_path: Path) -> None:
    for cents in ("99", "1000001", "-5"):
        answer = await _run(
            engine.variables,
            tmp_path,
            *("attempt", "create", "--wallet", payer_wallets()[0].address, "--cents", cents, "--json"),
        )
        assert answer.exit_code == 2
        assert answer.json()["code"] == "INVALID_INPUT"
        assert answer.json()["detail"].startswith("amountUsdCents: ")


async def test_a_wallet_that_cannot_pay_is_a_usage_error_and_opens_no_account(engine: Engine, tmp_path: Path) -> None:
    former = payer_wallets()[5].address
    with sql.connect(engine.database.service_url) as service:
        note_former_treasury(service, former)
    for wallet in (engine.chain.treasury_address, former, engine.chain.token_address, "0x" + "0" * 40):
        answer = await _run(
            engine.variables, tmp_path, "attempt", "create", "--wallet", wallet.lower(), "--cents", "100", "--json"
        )
        assert (answer.exit_code, answer.json()["code"]) == (2, "INVALID_INPUT")
    users = "SELECT count(*) FROM users WHERE wallet_address IS NOT NULL"
    assert sql.scalar(engine.database.superuser_url, users) == 0


async def test_a_payment_by_commands_alone(engine: Engine, chain: LocalChain, tmp_path: Path) -> None:
    intent = await _create(engine, tmp_path)
    attempt_id = intent["attemptId"]
    sent = await chain.pay(payer_wallets()[0].private_key, intent["to"], intent["amountRaw"])
    await chain.mine(2)
    async with engine.worker():
        submitted = await _run(
            engine.variables, tmp_path, "attempt", "submit", attempt_id, "0x" + sent[2:].upper(), "--json"
        )
        assert (submitted.exit_code, submitted.stderr) == (0, "")
        view = submitted.json()
        assert set(view) == VIEW
        assert (view["attemptId"], view["txHash"], view["chainId"]) == (attempt_id, sent, chain.chain_id)
        assert view["status"] in {"PENDING_UNVERIFIED", "CREDITED"}
        await engine.namespace.client.get_workflow_handle(f"verify-and-settle-{attempt_id}").result()

    shown = await _run(
        {**engine.variables, "TEMPORAL_UI_URL": "http://ui.example"}, tmp_path, "attempt", "show", attempt_id, "--json"
    )
    assert (shown.exit_code, shown.stderr) == (0, "")
    found = shown.json()
    assert set(found) == DIAGNOSIS
    assert (found["status"], found["clientStatus"], found["errorCode"]) == ("CREDITED", "CONFIRMED", None)
    assert found["workflowUrl"].startswith(f"http://ui.example/namespaces/{engine.namespace.name}/workflows/")
    assert {event["eventType"] for event in found["events"]} == {"intent_created", "submitted", "credited"}
    assert {row["reason"]: row["amount"] for row in found["ledger"]} == {
        "credits_purchase": 1_000_000_000,
        "platform_revenue_share": 750_000_000,
    }

    in_words = await _run(engine.variables, tmp_path, "attempt", "show", attempt_id)
    assert in_words.exit_code == 0
    assert in_words.stdout.startswith(found["explanation"])
    again = await _run(engine.variables, tmp_path, "attempt", "submit", attempt_id, sent)
    assert (again.exit_code, again.stdout) == (0, f"{attempt_id} CREDITED (CONFIRMED) {sent}\n")


async def test_a_submission_that_ends_without_credits_is_a_no(engine: Engine, tmp_path: Path) -> None:
    variables = {**engine.variables, "PAYMENT_INTENT_TTL_SECONDS": "1"}
    created = await _run(
        variables, tmp_path, "attempt", "create", "--wallet", payer_wallets()[0].address, "--cents", "100", "--json"
    )
    attempt_id = created.json()["attemptId"]
    expires_at = datetime.fromisoformat(created.json()["expiresAt"])
    await wait_until(lambda: datetime.now(UTC) >= expires_at, timeout_seconds=5, what="the intent's expiry")
    answer = await _run(variables, tmp_path, "attempt", "submit", attempt_id, HASH, "--json")
    assert answer.exit_code == 1
    view = answer.json()
    assert (view["status"], view["clientStatus"], view["errorCode"]) == ("FAILED", "FAILED", "INTENT_EXPIRED")


async def test_an_attempt_that_does_not_exist_is_a_no(engine: Engine, tmp_path: Path) -> None:
    attempt_id = str(uuid4())
    for arguments in (("show", attempt_id), ("submit", attempt_id, HASH)):
        answer = await _run(engine.variables, tmp_path, "attempt", *arguments, "--json")
        assert answer.exit_code == 1
        assert answer.json()["code"] == "ATTEMPT_NOT_FOUND"
        assert attempt_id in answer.json()["detail"]
        assert answer.stderr.splitlines() == [f"settle: ATTEMPT_NOT_FOUND: {answer.json()['detail']}"]


async def test_servers_that_are_down_are_a_no_in_one_line(engine: Engine, tmp_path: Path) -> None:
    _, intent = await engine.intent()
    dead = f"127.0.0.1:{quiet_port()}"
    without_temporal = await _run(
        {**engine.variables, "TEMPORAL_ADDRESS": dead}, tmp_path, "attempt", "submit", str(intent.attempt_id), HASH
    )
    without_database = await _run(
        {**engine.variables, "DATABASE_URL": f"postgresql://settle_app:{ROLE_PASSWORD}@{dead}/settle"},
        *(tmp_path, "attempt", "submit", str(intent.attempt_id), HASH),
    )
    for answer, code in ((without_temporal, "TEMPORAL_UNAVAILABLE"), (without_database, "DATABASE_UNAVAILABLE")):
        assert (answer.exit_code, answer.stdout) == (1, "")
        [line] = answer.stderr.splitlines()
        assert line.startswith(f"settle: {code}: ")
    # Recorded without Temporal; a run is started for it later.
    assert (await engine.attempt(intent.attempt_id)).status is AttemptStatus.PENDING_UNVERIFIED


async def test_without_a_worker_a_submission_is_taken_all_the_same(engine: Engine, tmp_path: Path) -> None:
    _, intent = await engine.intent()
    answer = await _run(engine.variables, tmp_path, "attempt", "submit", str(intent.attempt_id), HASH, "--json")
    assert answer.exit_code == 0
    assert (answer.json()["status"], answer.json()["txHash"]) == ("PENDING_UNVERIFIED", HASH)
    assert len(answer.stderr.splitlines()) <= 1
