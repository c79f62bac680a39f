"""A machine pays without a person: the `x402` package's client, a wallet with test USDC, a call that was refused."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any
from uuid import UUID

import aiohttp
import pytest
import requests
from eth_account import Account
from x402 import x402ClientSync
from x402.http.clients.requests import x402_requests
from x402.http.utils import decode_payment_response_header
from x402.mechanisms.evm.exact import ExactEvmScheme

from devstack.processes import wait_until
from tests.gateway.support import MODEL, add_key, served
from tests.support.engine import MIN_CONFIRMATIONS
from tests.support.sql import query
from tests.topups.conftest import CENTS, HOLDER, PATH, PAYER, Till, with_worker

CALL = {"model": MODEL, "max_tokens": 10, "messages": [{"role": "user", "content": "hi"}]}


async def pay(till: Till, key: str, url: str, *, timeout_seconds: float = 20, **headers: str) -> requests.Response:
    """A request of the package's client, with the payer's wallet and a service key."""
    client = x402ClientSync()
    client.register(f"eip155:{till.chain.chain_id}", ExactEvmScheme(Account.from_key(PAYER.private_key)))
    client.set_spend_controls(False)  # it knows Base's USDC, not a local chain's

    def post() -> requests.Response:
        with x402_requests(client) as session:
            session.headers["Authorization"] = f"Bearer {key}"
            return session.post(url, json={"amountUsdCents": CENTS}, headers=headers, timeout=timeout_seconds)

    return await asyncio.to_thread(post)


@asynccontextmanager
async def at_work(till: Till) -> AsyncIterator[None]:
    """Worker, relay and chain, each going on by itself."""

    async def go_on() -> None:
        while True:
            await till.relay.run_once()
            await till.claims.submit_relayed()
            await till.chain.mine(1)
            await asyncio.sleep(0.2)

    async with till.engine.worker():
        task = asyncio.create_task(go_on())
        try:
            yield
        finally:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task


async def call(key: str, method: str, url: str, **options: Any) -> tuple[int, Any, Any]:
    """Status, headers and body of a request with a service key."""
    async with (
        aiohttp.ClientSession(headers={"Authorization": f"Bearer {key}"}) as session,
        session.request(method, url, **options) as response,
    ):
        return response.status, response.headers, await response.json(content_type=None)


async def status_of(till: Till, key: str, attempt_id: str) -> str:
    """How the payment stands, by the service key."""
    code, _, body = await call(key, "GET", f"{till.api.url}/api/v1/payments/attempts/{attempt_id}")
    assert code == 200, body
    return str(body["status"])


@pytest.fixture
async def key(till: Till) -> str:
    """Of an account without credits."""
    payee = await till.engine.payer(HOLDER)
    return add_key(till.engine.database, payee.billing_account_id).key


@with_worker
async def test_a_call_is_refused_topped_up_over_x402_and_answered(till: Till, key: str) -> None:
    async with served(till.engine.database, top_up_url=f"{till.api.url}{PATH}") as gateway, at_work(till):
        url = f"{gateway.client.url}/v1/chat/completions"
        code, _, refused = await call(key, "POST", url, json=CALL)
        assert (code, refused["error"]["code"]) == (402, "insufficient_credits")

        # All that the machine knows of settle is the address in the refusal.
        top_up = await pay(till, key, refused["error"]["top_up_url"])
        assert top_up.status_code in {200, 202}, top_up.text
        response = decode_payment_response_header(top_up.headers["PAYMENT-RESPONSE"])
        assert response.payer is not None
        assert response.payer.lower() == PAYER.address.lower()
        attempt_id = top_up.json()["attemptId"]

        async def is_credited() -> bool:
            return await status_of(till, key, attempt_id) == "CREDITED"

        await wait_until(is_credited, timeout_seconds=30, what="credit of the top-up")
        code, headers, answered = await call(key, "POST", url, json=CALL)
        assert code == 200, answered
        assert 0 < int(headers["X-Credits-Remaining"]) < CENTS * 100_000
    assert (await till.engine.attempt(UUID(attempt_id))).from_address == PAYER.address


@with_worker
@pytest.mark.slow
async def test_the_plain_client_waits_for_the_credit_where_it_asks_to(till: Till, key: str) -> None:
    async with at_work(till):
        done = await pay(till, key, f"{till.api.url}{PATH}", Prefer="wait=20")
    assert done.status_code == 200, done.text
    response = decode_payment_response_header(done.headers["PAYMENT-RESPONSE"])
    assert (response.success, response.transaction) == (True, done.json()["txHash"])
    assert response.network == f"eip155:{till.chain.chain_id}"


@with_worker
async def test_a_time_out_of_the_client_is_no_failure(till: Till, key: str) -> None:
    """It hangs up while its payment is on the way: nothing is lost, and nothing paid twice."""
    async with till.engine.worker():
        with pytest.raises(Exception, match="timed out"):
            await pay(till, key, f"{till.api.url}{PATH}", timeout_seconds=2, Prefer="wait=20")
        [(attempt_id,)] = await till.rows("SELECT id FROM payment_attempts WHERE authorization_nonce IS NOT NULL")
        await till.relay.run_once()
        await till.chain.mine(MIN_CONFIRMATIONS)
        await till.claims.submit_relayed()
        await till.engine.result(attempt_id)
        assert await status_of(till, key, str(attempt_id)) == "CREDITED"
    assert await till.rows("SELECT count(*) FROM relay_transactions") == [(1,)]


async def test_a_key_of_another_account_sees_no_attempt(till: Till, key: str) -> None:
    offer = await till.offer()
    other = await till.engine.payer(PAYER)
    strangers = add_key(till.engine.database, other.billing_account_id).key
    holder = (await till.engine.payer(HOLDER)).user_id
    open_account = "SELECT open_account('acme', %s, 'organization', NULL, NULL)"
    query(till.engine.database.service_url, open_account, holder)
    same_persons = add_key(till.engine.database, "acme").key
    url = f"{till.api.url}/api/v1/payments/attempts/{offer['attemptId']}"
    secrets = (key, strangers, same_persons, "sk-settle-none")
    assert [(await call(secret, "GET", url))[0] for secret in secrets] == [200, 404, 404, 401]
