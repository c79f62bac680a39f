"""The OpenAPI document says what the interface does, and no more: Schemathesis asks everything that it promises."""

from __future__ import annotations

import asyncio
import json
import os
import re
import sys
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import jsonschema_rs
import pytest

from api.http.problems import INTERNAL, KINDS, PROBLEM_JSON
from devstack.chain import Wallet, payer_wallets
from domain.errors import NotSignedIn
from telemetry.metrics.api import REQUESTS
from tests.api.write_openapi import DOCUMENT, as_text, document
from tests.support.api import PATIENCE_SECONDS, RunningApi, Visitor, running_api, sign
from tests.support.deposits import add_method
from tests.support.engine import Engine

OPERATIONS: Final = {
    "createChallenge": "POST /api/v1/auth/challenge",
    "logIn": "POST /api/v1/auth/login",
    "logOut": "POST /api/v1/auth/logout",
    "getSession": "GET /api/v1/auth/session",
    "createIntent": "POST /api/v1/payments/intents",
    "submitTransaction": "POST /api/v1/payments/attempts/{id}/submit",
    "listAttempts": "GET /api/v1/payments/attempts",
    "getAttempt": "GET /api/v1/payments/attempts/{id}",
    "streamAttempt": "GET /api/v1/payments/attempts/{id}/events",
    "getCreditsSummary": "GET /api/v1/payments/credits/summary",
    "topUp": "POST /api/v1/payments/topups",
    "listPaymentMethods": "GET /api/v1/payment-methods",
    "getDepositAddress": "POST /api/v1/deposit-address",
    "createCharge": "POST /api/v1/charges",
    "getCharge": "GET /api/v1/charges/{id}",
    "payCharge": "POST /api/v1/charges/{id}/pay",
    "listKeys": "GET /api/v1/keys",
    "createKey": "POST /api/v1/keys",
    "rotateKey": "POST /api/v1/keys/{id}/rotate",
    "revokeKey": "DELETE /api/v1/keys/{id}",
    "getUsage": "GET /api/v1/usage",
    "listCalls": "GET /api/v1/usage/calls",
    "listWebhookEndpoints": "GET /api/v1/webhook-endpoints",
    "createWebhookEndpoint": "POST /api/v1/webhook-endpoints",
    "rotateWebhookSecret": "POST /api/v1/webhook-endpoints/{id}/rotate",
    "enableWebhookEndpoint": "POST /api/v1/webhook-endpoints/{id}/enable",
    "deleteWebhookEndpoint": "DELETE /api/v1/webhook-endpoints/{id}",
    "listWebhookDeliveries": "GET /api/v1/webhook-endpoints/{id}/deliveries",
    "redeliverWebhook": "POST /api/v1/webhook-endpoints/{id}/deliveries/{deliveryId}/redeliver",
    "getLiveness": "GET /livez",
    "getReadiness": "GET /readyz",
    "getMetrics": "GET /metrics",
}
"""Names that generated clients are made of: a new one is welcome, a changed one breaks clients."""

PROTECTED: Final = {
    "getSession",
    "createIntent",
    "submitTransaction",
    "listAttempts",
    "getAttempt",
    "topUp",
    "streamAttempt",
    "getCreditsSummary",
    "listKeys",
    "createKey",
    "rotateKey",
    "revokeKey",
    "getUsage",
    "listCalls",
    "listPaymentMethods",
    "getDepositAddress",
    "createCharge",
    "getCharge",
    "listWebhookEndpoints",
    "createWebhookEndpoint",
    "rotateWebhookSecret",
    "enableWebhookEndpoint",
    "deleteWebhookEndpoint",
    "listWebhookDeliveries",
    "redeliverWebhook",
}

# Over TLS the cookie has the name that the document gives. The amounts are any that the document allows, almost.
SETTINGS: Final = {
    "API_URL": "https://pay.example.com",
    "PAYMENT_MIN_USD_CENTS": "1",
    "PAYMENT_MAX_USD_CENTS": str(10**12),
    **{
        f"RATE_LIMIT_{what}_PER_{whom}": "1000000"
        for what in ("LOGINS", "INTENTS", "SUBMITS", "KEYS", "CHARGES", "TOPUPS")
        for whom in ("ADDRESS", "ACCOUNT")
    },
}

OF_OTHER_TESTS: Final = {"logOut", "topUp", "payCharge", "redeliverWebhook", "enableWebhookEndpoint"}
"""What succeeds with things that no request makes: another session, a signature, an event."""

SECONDS_MAX: Final = 240
"""A machine that does much else at the same time takes many times as long as a quiet one."""

CONFIGURATION: Final = """
color = false
continue-on-failure = true
# The stream of a payment that waits has no end: its first event is checked.
max-stream-events = 1
request-timeout = 30.0

[generation]
deterministic = true
database = "none"
max-examples = {examples}

[phases.stateful]
max-steps = 8

[warnings]
fail-on = ["missing_deserializer", "method_not_allowed", "unsupported_regex", "unmatched_filter", "rate_limited"]

# What JSON Schema cannot say: the checksum of an address, one of two fields, an amount within the settings' bounds, a
# time to come, printable names, days in their order, a page's own cursor, an idempotency key that is new.
[[operations]]
include-operation-id = ["createChallenge", "logIn", "createIntent", "createKey", "getUsage", "listCalls"]
[operations.checks.positive_data_acceptance]
expected-statuses = ["2xx", 401, 422]

# The method is one that there is; an account has ten endpoints at most.
[[operations]]
include-operation-id = ["getDepositAddress", "createCharge", "createWebhookEndpoint"]
[operations.checks.positive_data_acceptance]
expected-statuses = ["2xx", 401, 404, 409, 422]

# A signature cannot be guessed: the answer is what to sign, or why something else is none.
[[operations]]
include-operation-id = ["topUp", "payCharge"]
[operations.checks.positive_data_acceptance]
expected-statuses = ["2xx", 401, 402, 404, 422]

[[operations]]
include-operation-id = "rotateKey"
[operations.checks.positive_data_acceptance]
expected-statuses = ["2xx", 401, 404, 409, 422]
"""

SIGNED_IN: Final = """
# For Schemathesis the schema of a stream is that of each event; in OpenAPI 3.1 it is that of the whole, a text.
[[operations]]
include-operation-id = "streamAttempt"
[operations.checks.response_schema_conformance]
enabled = false

[auth.wfc]
path = "auth.json"
# Neither may see what is the other's.
peers = ["payer", "stranger"]

# It would end the sessions that the others are asked with.
[[operations]]
include-operation-id = "logOut"
enabled = false
"""


def test_the_committed_document_is_what_the_code_makes() -> None:
    assert DOCUMENT.read_text(encoding="utf-8") == as_text(), "run: python -m tests.api.write_openapi"


@pytest.mark.slow
def test_the_document_is_valid_openapi() -> None:
    assert document()["openapi"] == "3.1.0"
    import schemathesis  # 0.4 s of the processor's, in each process that collects the tests

    schemathesis.openapi.from_dict(document()).validate()


def test_every_operation_has_a_name_for_clients_and_words_for_people() -> None:
    found = {operation["operationId"]: label for label, operation in operations()}
    assert found == OPERATIONS
    for _, operation in operations():
        assert operation["summary"] and operation["description"]
        assert operation["tags"] in (
            ["auth"],
            ["payments"],
            ["deposits"],
            ["keys"],
            ["usage"],
            ["webhooks"],
            ["health"],
        )


def test_a_cookie_is_required_exactly_where_a_session_is() -> None:
    with_scheme = {operation["operationId"] for _, operation in operations() if "security" in operation}
    refusing = {
        operation["operationId"]
        for _, operation in operations()
        if NotSignedIn.code in operation["responses"].get("401", {}).get("description", "")
    }
    assert with_scheme == refusing == PROTECTED


def test_every_body_has_examples_that_fit_its_schema() -> None:
    bodies = [
        (f"{label}: {where}", media_type, content)
        for label, operation in operations()
        for where, body in (
            ("request", operation.get("requestBody", {})),
            *((f"answer {status}", answer) for status, answer in operation["responses"].items()),
        )
        for media_type, content in body.get("content", {}).items()
    ]
    for where, _, content in bodies:
        schema = {**content["schema"], "components": document()["components"]}
        validator = jsonschema_rs.Draft202012Validator(schema, validate_formats=True)
        assert content["examples"], where
        for name, example in content["examples"].items():
            wrong = [error.message for error in validator.iter_errors(example["value"])]
            assert not wrong, f"{where}: {name}: {wrong}"
    assert len(bodies) > len(OPERATIONS)


def test_every_error_is_a_problem_with_a_known_code() -> None:
    codes = {kind.code: kind for kind in KINDS}
    for label, operation in operations():
        for status, answer in operation["responses"].items():
            if int(status) < 400 or label == "GET /readyz":
                continue
            if int(status) == 402:  # of x402: what to pay, which is no error
                assert label in {OPERATIONS["topUp"], OPERATIONS["payCharge"]}
                continue
            assert set(answer["content"]) == {PROBLEM_JSON}, label
            for name, example in answer["content"][PROBLEM_JSON]["examples"].items():
                assert example["value"]["code"] == name
                assert codes[name].status == int(status) == example["value"]["status"]
        if label.startswith(("POST /api", "GET /api")):
            assert INTERNAL.code in operation["responses"]["500"]["description"]


@pytest.mark.slow
@pytest.mark.parametrize("examples", [9, 30])
async def test_everything_that_the_document_promises_holds_for_those_who_are_signed_in(
    engine: Engine, tmp_path: Path, examples: int
) -> None:
    async with running_api(engine, **SETTINGS) as api, engine.worker():
        before = succeeded()
        cookies = {
            name: await cookie(api, wallet)
            for name, wallet in zip(("payer", "stranger"), payer_wallets()[:2], strict=True)
        }
        (tmp_path / "auth.json").write_text(
            json.dumps(
                {
                    "auth": [
                        {"name": name, "fixedHeaders": [{"name": "Cookie", "value": value}]}
                        for name, value in cookies.items()
                    ]
                }
            )
        )
        await rotate_and_revoke_a_key(api, cookies["payer"])
        # The one of the document's examples.
        add_method(engine.database, "USDC:base")
        await use_an_endpoint(api, cookies["payer"])
        await asked_everything(api, tmp_path, CONFIGURATION.format(examples=examples) + SIGNED_IN)
    # An operation that only refused was not tested. A signature cannot be guessed, and few links lead to a key in
    # force: the two logins, a rotation and a revocation are our own.
    assert set(succeeded() - before) == {label for name, label in OPERATIONS.items() if name not in OF_OTHER_TESTS}
    assert await engine.books() == []


@pytest.mark.slow
async def test_everything_that_the_document_promises_holds_for_those_who_are_not(
    engine: Engine, tmp_path: Path
) -> None:
    async with running_api(engine, **SETTINGS) as api:
        before = succeeded()
        await asked_everything(api, tmp_path, CONFIGURATION.format(examples=15))
    assert set(succeeded() - before) == {
        label for name, label in OPERATIONS.items() if name not in PROTECTED and name not in {"logIn", "payCharge"}
    }


async def test_the_data_of_an_event_is_an_attempt_as_documented(api: RunningApi, payer: Visitor) -> None:
    attempt_id = (await payer.intent())["attemptId"]
    async with (
        asyncio.timeout(PATIENCE_SECONDS),
        payer.session.get(f"/api/v1/payments/attempts/{attempt_id}/events") as stream,
    ):
        assert stream.headers["Content-Type"].startswith("text/event-stream")
        event = (await stream.content.readuntil(b"\n\n")).decode()
    data = next(line.removeprefix("data: ") for line in event.splitlines() if line.startswith("data: "))
    schema = {"$ref": "#/components/schemas/AttemptView", "components": document()["components"]}
    jsonschema_rs.Draft202012Validator(schema, validate_formats=True).validate(json.loads(data))


@pytest.mark.slow
async def test_a_promise_that_is_not_kept_is_noticed(engine: Engine, tmp_path: Path) -> None:
    lie = json.loads(as_text())
    lie["paths"] = {"/livez": lie["paths"]["/livez"]}
    lie["components"]["schemas"]["Health"]["properties"]["status"] = {"type": "integer"}
    (tmp_path / "lie.json").write_text(json.dumps(lie))
    async with running_api(engine, **SETTINGS) as api:
        configuration = re.sub(r"(?s)\[\[operations\]\].*", "", CONFIGURATION.format(examples=1))
        code, said = await schemathesis_run(tmp_path, configuration, "lie.json", "--url", api.url)
    assert code == 1, said
    assert "Response violates schema" in said


async def asked_everything(api: RunningApi, folder: Path, configuration: str) -> None:
    code, said = await schemathesis_run(folder, configuration, f"{api.url}/openapi.json")
    if code != 0:
        pytest.fail(said, pytrace=False)


async def schemathesis_run(folder: Path, configuration: str, *arguments: str) -> tuple[int, str]:
    """Its own command, as a process of its own: all its phases and checks, and our event loop stays free to answer."""
    (folder / "schemathesis.toml").write_text(configuration)
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "schemathesis.cli", "--config-file", "schemathesis.toml", "run", *arguments),
        cwd=folder,
        env={name: os.environ[name] for name in ("PATH", "HOME", "LANG") if name in os.environ},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    try:
        output, _ = await asyncio.wait_for(process.communicate(), SECONDS_MAX)
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    assert process.returncode is not None
    return process.returncode, output.decode(errors="replace")


async def rotate_and_revoke_a_key(api: RunningApi, session: str) -> None:
    """Make a key, replace it, and revoke both."""
    headers = {"Cookie": session}
    async with api.visitor() as visitor:
        made = await visitor.post("/api/v1/keys", {"label": "Short-lived"}, headers=headers)
        assert made.status == 201, made.body
        rotated = await visitor.post(f"/api/v1/keys/{made.body['keyId']}/rotate", {}, headers=headers)
        assert rotated.status == 201, rotated.body
        for key in (made, rotated):
            revoked = await visitor.call("DELETE", f"/api/v1/keys/{key.body['keyId']}", headers=headers)
            assert revoked.status == 204, revoked.body


async def use_an_endpoint(api: RunningApi, session: str) -> None:
    """Make an endpoint of webhooks, list its deliveries, give it another secret, and delete it."""
    headers = {"Cookie": session}
    async with api.visitor() as visitor:
        made = await visitor.post("/api/v1/webhook-endpoints", {"url": "https://example.com/"}, headers=headers)
        assert made.status == 201, made.body
        path = f"/api/v1/webhook-endpoints/{made.body['endpointId']}"
        for method, asked, status in (("GET", "/deliveries", 200), ("POST", "/rotate", 201), ("DELETE", "", 204)):
            reply = await visitor.call(method, path + asked, headers=headers)
            assert reply.status == status, reply.body


async def cookie(api: RunningApi, wallet: Wallet) -> str:
    """The session's cookie. A jar would not send it to an address without TLS."""
    async with api.visitor() as visitor:
        challenge = await visitor.challenge(wallet.address)
        reply = await visitor.log_in(challenge["nonce"], sign(wallet, challenge["message"]))
        assert reply.status == 200, reply.body
        return str(reply.headers["Set-Cookie"]).partition(";")[0]


def operations() -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Every operation of the document, by method and path."""
    for path, methods in document()["paths"].items():
        for method, operation in methods.items():
            yield f"{method.upper()} {path}", operation


def succeeded() -> Counter[str]:
    """How often each operation was answered with a success, as this process has counted until now."""
    found: Counter[str] = Counter()
    for sample in next(iter(REQUESTS.collect())).samples:
        label = f"{sample.labels['method']} {sample.labels['route']}"
        if sample.name.endswith("_total") and sample.labels["status"].startswith("2") and label in OPERATIONS.values():
            found[label] += int(sample.value)
    return found
