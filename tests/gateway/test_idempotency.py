"""Calls with an Idempotency-Key: made once, charged once, answered again."""

from __future__ import annotations

import asyncio

import pytest

from db.billing import claims
from db.billing.claims import KEY_LENGTH_MAX
from devstack.upstream import Behaviour
from domain.billing.charges import CallEnd
from domain.errors import DatabaseUnavailable
from gateway.claims import CallClaim
from tests.gateway.support import Served, add_key, chat, faulty, open_account, served, until
from tests.support.postgres import Database
from tests.support.sql import connect

KEY = {"Idempotency_Key": "order-7"}


async def test_a_repeated_call_has_the_stored_answer(gateway: Served) -> None:
    first = await gateway.client.post(chat(), **KEY)
    again = await gateway.client.post(chat(), **KEY)
    assert (again.status, again.body, again.request_id) == (200, first.body, first.request_id)
    assert again.headers["Idempotent-Replayed"] == "true"
    assert again.headers["X-Credits-Charged"] == first.headers["X-Credits-Charged"]
    assert len(gateway.calls()) == len(gateway.books.receipts()) == 1


async def test_a_stored_answer_has_no_header_that_was_true_of_the_first_moment_only(gateway: Served) -> None:
    path = "/v1/messages"
    first = await gateway.client.post(chat(max_tokens=50), path, **KEY)
    again = await gateway.client.post(chat(max_tokens=50), path, **KEY)
    kept = ("Content-Type", "request-id", "X-Request-Id", "X-Credits-Charged")
    assert [again.headers[name] for name in kept] == [first.headers[name] for name in kept]
    passing = ("X-Credits-Remaining", "x-ratelimit-remaining-requests")
    assert [(name in first.headers, name in again.headers) for name in passing] == [(True, False)] * 2


async def test_another_request_under_the_same_key_is_refused(gateway: Served) -> None:
    await gateway.client.post(chat(), **KEY)
    answer = await gateway.client.post(chat("else"), **KEY)
    assert (answer.status, answer.error["code"]) == (422, "idempotency_key_reused")
    other = add_key(gateway.books.database, gateway.account.id)
    assert (await gateway.client.post(chat("else"), key=other.key, **KEY)).status == 200


async def test_another_path_or_account_is_another_request(database: Database) -> None:
    account = await open_account(database, may_attribute=True)
    async with served(database, account=account) as gateway:
        body = chat(max_tokens=50)
        assert (await gateway.client.post(body, **KEY)).status == 200
        path = await gateway.client.post(body, "/v1/messages", **KEY)
        attributed = await gateway.client.post(body, **KEY, X_Attribute_To=account.id)
        for answer in (path, attributed):
            assert (answer.status, answer.error["code"]) == (422, "idempotency_key_reused")
        assert len(gateway.calls()) == 1


async def test_without_the_database_no_call_is_claimed_and_an_answer_is_given_all_the_same(
    gateway: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def lose_the_connection(*_: object, **__: object) -> None:
        raise DatabaseUnavailable("the connection was lost")

    with monkeypatch.context() as broken:
        broken.setattr(claims, "finish", lose_the_connection)
        answer = await gateway.client.post(chat(), **KEY)
        charged = gateway.books.receipt()["charged_credits"]
        assert (answer.status, answer.headers["X-Credits-Charged"]) == (200, str(charged))
        broken.setattr(claims, "claim", lose_the_connection)
        answer = await gateway.client.post(chat(), Idempotency_Key="order-8")
        assert (answer.status, answer.error["code"]) == (503, "unavailable")
        assert answer.headers["x-should-retry"] == "true"
    assert len(gateway.calls()) == 1


async def test_who_was_charged_gets_the_answer_whatever_keeps_it_from_being_stored(database: Database) -> None:
    with connect(database.superuser_url) as owner:
        owner.execute("REVOKE EXECUTE ON FUNCTION finish_call FROM settle_app")
    async with served(database) as gateway:
        whole = await gateway.client.post(chat("one two"), **KEY)
        charged = gateway.books.receipt()["charged_credits"]
        assert (whole.status, whole.headers.get("X-Credits-Charged")) == (200, str(charged))
        assert whole.json["choices"][0]["message"]["content"] == "You said: one two"
        stream = await gateway.client.post(chat(stream=True), Idempotency_Key="order-8")
        assert stream.body.endswith(b"data: [DONE]\n\n")
        assert (await gateway.client.post(chat("one two"), **KEY)).status == 409
        assert len(gateway.books.receipts()) == len(gateway.calls()) == 2


async def test_a_call_that_fails_after_its_charge_says_what_was_charged(
    gateway: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No such failure is known; the account of the call knows what it has charged, whatever may come."""
    failures = iter([RuntimeError("unforeseen")])

    async def fail_once(*_: object) -> None:
        for failure in failures:
            raise failure

    monkeypatch.setattr(CallClaim, "finish", fail_once)
    answer = await gateway.client.post(chat(), **KEY)
    receipt = gateway.books.receipt()
    balance, _ = gateway.books.balance(gateway.account.id)
    said = (answer.headers["X-Credits-Charged"], answer.headers["X-Credits-Remaining"])
    assert (answer.status, said) == (502, (str(receipt["charged_credits"]), str(balance)))


async def test_a_key_is_a_few_printable_ascii_characters(gateway: Served) -> None:
    for key in ("", "k" * (KEY_LENGTH_MAX + 1), "a\tb", "ß"):
        answer = await gateway.client.post(chat(), Idempotency_Key=key)
        assert (answer.status, answer.error["code"]) == (400, "invalid_request"), key
    assert gateway.calls() == []
    assert (await gateway.client.post(chat(), Idempotency_Key="k" * KEY_LENGTH_MAX)).status == 200


async def test_an_answer_that_is_too_long_is_not_kept(gateway: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gateway.claims.STORED_ANSWER_BYTES_MAX", 10)
    first = await gateway.client.post(chat(), **KEY)
    again = await gateway.client.post(chat(), **KEY)
    assert (first.status, again.status, again.error["code"]) == (200, 409, "idempotency_key_used")
    assert len(gateway.calls()) == 1


async def test_a_call_in_flight_is_not_made_twice(gateway: Served) -> None:
    body = faulty(delay=0.5)
    first = asyncio.create_task(gateway.client.post(body, **KEY))
    await until(gateway.calls)
    answer = await gateway.client.post(body, **KEY)
    assert (answer.status, answer.error["code"]) == (409, "idempotency_key_in_use")
    assert (answer.headers["x-should-retry"], bool(answer.headers["Retry-After"])) == ("true", True)
    assert answer.error["request_id"] == (await first).request_id
    assert len(gateway.calls()) == 1


async def test_who_hangs_up_and_repeats_gets_the_answer_of_the_first_call(gateway: Served) -> None:
    body = faulty("one two", delay=0.5)
    first = asyncio.create_task(gateway.client.post(body, **KEY))
    await until(gateway.calls)
    first.cancel()
    await gateway.is_quiet()
    answer = await gateway.client.post(body, **KEY)
    assert (answer.status, answer.json["choices"][0]["message"]["content"]) == (200, "You said: one two")
    assert len(gateway.calls()) == 1
    assert gateway.books.receipt()["charge_reason"] == "client_left"


async def test_a_stream_is_not_given_again(gateway: Served) -> None:
    first = await gateway.client.post(chat(stream=True), **KEY)
    again = await gateway.client.post(chat(stream=True), **KEY)
    assert (again.status, again.error["code"]) == (409, "idempotency_key_used")
    assert (again.error["request_id"], again.headers["x-should-retry"]) == (first.request_id, "false")
    assert len(gateway.calls()) == 1


async def test_a_stream_that_broke_off_can_be_repeated_and_one_whose_client_left_cannot(gateway: Served) -> None:
    broken = faulty(stream=True, tokens=9, break_after=3)
    for _ in range(2):
        assert (await gateway.client.post(broken, **KEY)).status == 200
    left = faulty(stream=True, tokens=2_000, tokens_per_second=200)
    async with gateway.client.open(left, Idempotency_Key="order-8") as response:
        await response.content.readuntil(b"\n\n")
        response.close()
    await gateway.is_quiet()
    answer = await gateway.client.post(left, Idempotency_Key="order-8")
    assert (answer.status, answer.error["code"]) == (409, "idempotency_key_used")
    assert len(gateway.calls()) == 3


async def test_what_was_refused_or_failed_can_be_repeated(database: Database) -> None:
    async with served(database, cents=0) as gateway:
        assert (await gateway.client.post(chat(), **KEY)).status == 402
        await open_account(database, cents=100)
        gateway.upstream.order(Behaviour(status=503))
        assert (await gateway.client.post(chat(), **KEY)).status == 503
        assert (await gateway.client.post(chat(), **KEY)).status == 200
        assert (await gateway.client.post(chat(model="nowhere"), Idempotency_Key="b")).status == 404
        assert (await gateway.client.post(chat(model="nowhere"), Idempotency_Key="b")).status == 404


async def test_a_key_that_was_revoked_gets_no_stored_answer(gateway: Served) -> None:
    await gateway.client.post(chat(), **KEY)
    with connect(gateway.books.database.superuser_url) as owner:
        owner.execute("UPDATE virtual_keys SET revoked_at = now() WHERE id = %s", (gateway.account.key_id,))
    assert (await gateway.client.post(chat(), **KEY)).status == 401


async def test_the_claim_of_an_owner_that_died_ends_with_its_hold(gateway: Served) -> None:
    body = faulty(delay=60)
    call = asyncio.create_task(gateway.client.post(body, **KEY))
    await until(gateway.calls)
    superuser = gateway.books.database.superuser_url
    with connect(superuser) as owner:
        owner.execute("UPDATE call_claims SET lease_until = now() - interval '1 second'")
    assert (await gateway.client.post(body, **KEY)).status == 409
    with connect(superuser, triggers=False) as owner:
        owner.execute("UPDATE credit_holds SET state = 'voided', resolved_at = now() - interval '31 seconds'")
        owner.execute("UPDATE billing_accounts SET held_credits = 0")
    again = asyncio.create_task(gateway.client.post(body, **KEY))
    await until(lambda: len(gateway.calls()) == 2)
    for task in (call, again):
        task.cancel()
    for running in list(gateway.gateway.calls):
        running.interrupt(CallEnd.CLIENT_LEFT)
    await gateway.is_quiet()
