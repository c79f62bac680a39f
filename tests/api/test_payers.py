"""Whose payments are accepted over HTTP: not a current or former treasury's, and none without a payer."""

from __future__ import annotations

import pytest

from devstack.chain import dev_wallets, payer_wallets
from domain.errors import PayerRefused
from domain.transfers.income import ZERO_ADDRESS
from tests.support.api import RunningApi
from tests.support.payments import note_former_treasury
from tests.support.sql import connect, scalar

INTENTS = "/api/v1/payments/intents"
TREASURY = dev_wallets()[9]


@pytest.fixture
def api(shared_api: RunningApi) -> RunningApi:
    """One interface for the whole file."""
    return shared_api


@pytest.mark.parametrize("purpose", ["self", "system"])
async def test_the_treasury_signs_in_and_buys_nothing(api: RunningApi, purpose: str) -> None:
    assert TREASURY.address == api.engine.settings.treasury_address
    async with api.visitor(TREASURY) as visitor:
        reply = await visitor.post(INTENTS, {"amountUsdCents": 1_000, "purpose": purpose})
    assert (reply.status, reply.code) == (403, PayerRefused.code)
    assert scalar(api.engine.database.service_url, "SELECT count(*) FROM payment_attempts") == 0


async def test_a_wallet_that_has_become_a_treasury_buys_nothing_more(api: RunningApi) -> None:
    wallet = payer_wallets()[4]
    async with api.visitor(wallet) as visitor:
        assert (await visitor.post(INTENTS, {"amountUsdCents": 1_000})).status == 201
        with connect(api.engine.database.service_url) as service:
            note_former_treasury(service, wallet.address)
        reply = await visitor.post(INTENTS, {"amountUsdCents": 1_000})
    assert (reply.status, reply.code) == (403, PayerRefused.code)


async def test_nobodys_address_gets_no_challenge(api: RunningApi) -> None:
    async with api.visitor() as visitor:
        reply = await visitor.post("/api/v1/auth/challenge", {"address": ZERO_ADDRESS})
    assert (reply.status, reply.code) == (422, "INVALID_INPUT")
