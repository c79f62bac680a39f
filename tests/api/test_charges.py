"""Deposit addresses and charges by HTTP: by session or service key, each index once, and no cent as a fraction."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import aiohttp
import pytest

from chain.derivation.create2 import create2_address, init_code_hash, salt_of_account, salt_of_charge
from devstack.chain import payer_wallets
from domain.billing.keys import make_key
from tests.support.api import RunningApi, Visitor, running_api
from tests.support.deposits import (
    BITCOIN_ACCOUNT,
    BITCOIN_ADDRESSES,
    CHAIN_ID,
    EVM_ADDRESSES,
    METHOD,
    NEVER_DEPLOYED,
    add_method,
    add_ring,
    disable,
    next_index,
    see_deposit,
    settle_deposit,
    status_of,
)
from tests.support.engine import Engine
from tests.support.sql import connect, query, scalar

CHARGES = "/api/v1/charges"
ADDRESS = "/api/v1/deposit-address"
METHODS = "/api/v1/payment-methods"


@pytest.fixture
def api(shared_api: RunningApi) -> RunningApi:
    """One interface for the whole file."""
    return shared_api


@pytest.fixture
def payer(shared_payer: Visitor) -> Visitor:
    """Who is signed in at it already."""
    return shared_payer


async def charged(visitor: Visitor, cents: int = 2_500, method: str = METHOD, **options: Any) -> dict[str, Any]:
    """A new charge."""
    reply = await visitor.post(CHARGES, {"method": method, "amountUsdCents": cents}, **options)
    assert reply.status == 201, reply.body
    answer: dict[str, Any] = reply.body
    return answer


@asynccontextmanager
async def program(api: RunningApi, key: str, *, header: str = "Authorization") -> AsyncIterator[Visitor]:
    """A client with a service key and without a session."""
    headers = {header: f"Bearer {key}" if header == "Authorization" else key}
    async with aiohttp.ClientSession(api.url, headers=headers, cookie_jar=aiohttp.DummyCookieJar()) as session:
        yield Visitor(session, api.url)


async def key_of(payer: Visitor) -> dict[str, Any]:
    """A new service key of the payer's account."""
    answer: dict[str, Any] = (await payer.post("/api/v1/keys", {"label": "Shop"})).body
    return answer


def rows(api: RunningApi, table: str) -> int:
    return int(scalar(api.engine.database.superuser_url, f"SELECT count(*) FROM {table}"))


# -- what is made


async def test_a_charge_is_a_quote_and_an_address_of_its_own(api: RunningApi, payer: Visitor) -> None:
    add_method(api.engine.database)
    before = datetime.now(UTC)
    charge = await charged(payer)
    treasury = api.engine.chain.treasury_address
    expected = {
        "method": METHOD,
        "amountUsdCents": 2_500,
        "amountRaw": 25_000_000,
        "status": "new",
        "address": create2_address(salt_of_charge(UUID(charge["chargeId"])), init_code_hash(treasury)),
        "payUrl": f"{api.url}/pay/{charge['chargeId']}",
        "chainId": CHAIN_ID,
        "token": NEVER_DEPLOYED,
        "symbol": "USDC",
        "metadata": {},
        "deposits": [],
        "creditedCredits": 0,
    }
    assert expected.items() <= charge.items()
    lifetime = datetime.fromisoformat(charge["priceExpiresAt"]) - before
    assert timedelta(minutes=29) < lifetime < timedelta(minutes=31)
    assert (await payer.get(f"{CHARGES}/{charge['chargeId']}")).body == charge
    other = await charged(payer)
    assert other["address"] != charge["address"]


async def test_amounts_are_exact_in_a_token_of_eighteen_decimals(api: RunningApi, payer: Visitor) -> None:
    add_method(api.engine.database, "DAI:local", decimals=18)
    charge = await charged(payer, 101, "DAI:local")
    assert charge["amountRaw"] == 1_010_000_000_000_000_000


async def test_the_accounts_own_address_is_the_same_at_every_call(api: RunningApi, payer: Visitor) -> None:
    add_method(api.engine.database)
    replies = [await payer.post(ADDRESS, {"method": METHOD}) for _ in range(2)]
    account = (await payer.get("/api/v1/auth/session")).body["billingAccountId"]
    address = create2_address(salt_of_account(account), init_code_hash(api.engine.chain.treasury_address))
    for reply in replies:
        assert (reply.status, reply.body) == (
            200,
            {
                "address": address,
                "method": METHOD,
                "chainId": CHAIN_ID,
                "token": NEVER_DEPLOYED,
                "symbol": "USDC",
            },
        )
    assert rows(api, "deposit_addresses") == 1


@pytest.mark.parametrize("by", ["create2", "xpub"])
async def test_also_when_it_is_asked_for_forty_times_at_once(api: RunningApi, payer: Visitor, by: str) -> None:
    ring_id = add_ring(api.engine.database) if by == "xpub" else None
    add_method(api.engine.database, ring_id=ring_id)
    replies = await asyncio.gather(*(payer.post(ADDRESS, {"method": METHOD}) for _ in range(40)))
    assert {reply.status for reply in replies} == {200}
    assert len({reply.body["address"] for reply in replies}) == 1
    assert rows(api, "deposit_addresses") == 1
    if ring_id is not None:
        assert next_index(api.engine.database, ring_id) == 1


async def test_addresses_of_a_key_are_those_that_its_wallet_has(api: RunningApi, payer: Visitor) -> None:
    ring_id = add_ring(api.engine.database)
    add_method(api.engine.database, ring_id=ring_id)
    charges = [await charged(payer) for _ in range(2)]
    assert tuple(charge["address"] for charge in charges) == EVM_ADDRESSES


async def test_methods_of_one_key_share_its_indices_and_never_an_address(api: RunningApi, payer: Visitor) -> None:
    """Fault: each method of a key counted for itself, and the second one ran into the first one's addresses."""
    database = api.engine.database
    ring_id = add_ring(database)
    methods = [
        add_method(database, name, ring_id=ring_id, address=f"0x{number:040x}")
        for number, name in enumerate(("USDC:one", "DAI:two"), start=1)
    ]
    charges = [await charged(payer, method=method) for method in methods * 3]
    assert len({charge["address"] for charge in charges}) == 6
    assert next_index(database, ring_id) == 6


async def test_open_methods_are_listed(api: RunningApi, payer: Visitor) -> None:
    database = api.engine.database
    add_method(database, min_raw=1_000_000)
    disable(database, add_method(database, "DAI:old", decimals=18))
    add_method(database, "USDC:elsewhere", chain_id=8453)
    reply = await payer.get(METHODS)
    assert reply.status == 200
    assert reply.body == {
        "methods": [
            {
                "id": METHOD,
                "chainId": CHAIN_ID,
                "token": "USDC",
                "address": NEVER_DEPLOYED,
                "decimals": 6,
                "kind": "erc20",
                "scheme": "create2",
                "minAmountRaw": 1_000_000,
                "confirmations": 2,
            }
        ]
    }


# -- metadata


async def test_metadata_is_stored_as_given(api: RunningApi, payer: Visitor) -> None:
    add_method(api.engine.database)
    given: tuple[dict[str, Any], ...] = (
        {},
        {"orderId": "7f3a", "lines": [{"sku": "a", "count": 2, "price": 1.25}], "gift": None, "note": "für Œ 🎁"},
        {"n": 2**80, "empty": [], "": "no name"},
    )
    for metadata in given:
        body = {"method": METHOD, "amountUsdCents": 100, "metadata": metadata}
        charge = (await payer.post(CHARGES, body)).body
        assert charge["metadata"] == metadata
        assert (await payer.get(f"{CHARGES}/{charge['chargeId']}")).body["metadata"] == metadata


def nested(levels: int) -> dict[str, Any]:
    return {"a": nested(levels - 1)} if levels else {}


async def test_metadata_that_cannot_be_kept_is_refused(api: RunningApi, payer: Visitor) -> None:
    add_method(api.engine.database)
    given: tuple[object, ...] = (
        {"text": "x" * 4_096},
        nested(8),
        {"a": "nul\u0000"},
        {"a\u0000": 1},
        {"a": float("nan")},
        {"a": [float("inf")]},
        {"a": 10**400},
        [],
        "text",
        7,
    )
    for metadata in given:
        refused = await payer.post(CHARGES, {"method": METHOD, "amountUsdCents": 100, "metadata": metadata})
        assert (refused.status, refused.code) == (422, "INVALID_INPUT"), (metadata, refused.body)
        assert rows(api, "charges") == 0, metadata


# -- what is refused


async def test_an_amount_is_a_whole_number_of_cents_within_bounds(api: RunningApi, payer: Visitor) -> None:
    """Fault 8: 0.004 US dollars were a charge of 0 cents."""
    add_method(api.engine.database)
    for cents in (0, -1, 99, 1_000_001, 1.5, 0.004, "100", True, None, 2**70, [100]):
        refused = await payer.post(CHARGES, {"method": METHOD, "amountUsdCents": cents})
        assert (refused.status, refused.body["errors"][0]["field"]) == (422, "amountUsdCents"), cents


@pytest.mark.slow(but="each value")
@pytest.mark.parametrize("path", [CHARGES, ADDRESS])
@pytest.mark.parametrize("method", ["USDC:nowhere", "", "x" * 200, "a\u0000b", "USDC:locål", "%s'\"", "USDC:elsewhere"])
async def test_an_unknown_method_is_not_found(api: RunningApi, payer: Visitor, path: str, method: str) -> None:
    """Fault 18: an unknown chain was an internal error."""
    add_method(api.engine.database, "USDC:elsewhere", chain_id=8453)
    body = {"method": method} | ({"amountUsdCents": 100} if path == CHARGES else {})
    refused = await payer.post(path, body)
    assert (refused.status, refused.code) == (404, "METHOD_NOT_FOUND")


async def test_a_disabled_method_gives_out_nothing_new(api: RunningApi, payer: Visitor) -> None:
    """Fault 18: addresses and charges were made for disabled methods."""
    ring_id = add_ring(api.engine.database)
    add_method(api.engine.database, ring_id=ring_id)
    charge = await charged(payer)
    disable(api.engine.database)
    for path, body in ((CHARGES, {"method": METHOD, "amountUsdCents": 100}), (ADDRESS, {"method": METHOD})):
        refused = await payer.post(path, body)
        assert (refused.status, refused.code) == (409, "METHOD_DISABLED")
    assert next_index(api.engine.database, ring_id) == 1
    # What it has given out is watched and shown as before.
    see_deposit(api.engine.database, charge["address"], charge["amountRaw"])
    assert (await payer.get(f"{CHARGES}/{charge['chargeId']}")).body["status"] == "confirming"


async def test_the_credits_page_has_the_open_methods_and_what_is_on_its_way(api: RunningApi, payer: Visitor) -> None:
    add_method(api.engine.database)
    own = (await payer.post(ADDRESS, {"method": METHOD})).body["address"]
    see_deposit(api.engine.database, own, 1_000_000)
    needed = api.engine.settings.min_confirmations
    page = (await payer.get("/credits")).body
    assert own in page
    assert f"of {needed} confirmations" in page
    query(api.engine.database.superuser_url, "UPDATE payment_methods SET confirmations = %s RETURNING 1", needed + 7)
    disable(api.engine.database)
    page = (await payer.get("/credits")).body
    assert own not in page, "no one is to send anything there any more"
    assert f"of {needed + 7} confirmations" in page, "what was sent is shown as before"


async def test_what_is_no_dollar_token_has_no_price_and_burns_no_index(api: RunningApi, payer: Visitor) -> None:
    """Faults 7 and 19: a failing price burned an index, and a token without one was taken for a dollar."""
    ring_id = add_ring(api.engine.database)
    add_method(api.engine.database, "WETH:local", decimals=18, ring_id=ring_id)
    refused = await payer.post(CHARGES, {"method": "WETH:local", "amountUsdCents": 5_000})
    assert (refused.status, refused.code) == (503, "PRICE_UNAVAILABLE")
    assert next_index(api.engine.database, ring_id) == 0


async def test_a_charge_below_the_methods_minimum_is_refused(api: RunningApi, payer: Visitor) -> None:
    add_method(api.engine.database, min_raw=2_000_000)
    refused = await payer.post(CHARGES, {"method": METHOD, "amountUsdCents": 199})
    assert (refused.status, refused.body["errors"][0]["field"]) == (422, "amountUsdCents")
    await charged(payer, 200)


# -- idempotency


async def test_a_repeated_request_is_the_same_charge_and_takes_no_index(api: RunningApi, payer: Visitor) -> None:
    """Fault 7: each retry burned an index."""
    ring_id = add_ring(api.engine.database)
    add_method(api.engine.database, ring_id=ring_id)
    headers = {"Idempotency-Key": "order-7"}
    first = await charged(payer, headers=headers)
    assert await charged(payer, headers=headers) == first
    again = await asyncio.gather(*(charged(payer, headers=headers) for _ in range(12)))
    assert {charge["chargeId"] for charge in again} == {first["chargeId"]}
    assert (next_index(api.engine.database, ring_id), rows(api, "charges")) == (1, 1)
    # Also when the method has been disabled since.
    disable(api.engine.database)
    assert (await charged(payer, headers=headers))["chargeId"] == first["chargeId"]


async def test_the_same_key_at_the_same_moment_makes_one_charge(api: RunningApi, payer: Visitor) -> None:
    ring_id = add_ring(api.engine.database)
    add_method(api.engine.database, ring_id=ring_id)
    replies = await asyncio.gather(*(charged(payer, headers={"Idempotency-Key": "k"}) for _ in range(12)))
    assert len({charge["address"] for charge in replies}) == 1
    assert (next_index(api.engine.database, ring_id), rows(api, "charges")) == (1, 1)


async def test_another_body_under_the_same_key_is_a_conflict(api: RunningApi, payer: Visitor) -> None:
    add_method(api.engine.database)
    add_method(api.engine.database, "DAI:local")
    body = {"method": METHOD, "amountUsdCents": 100, "metadata": {"orderId": 1}}
    headers = {"Idempotency-Key": "order-7"}
    assert (await payer.post(CHARGES, body, headers=headers)).status == 201
    others: tuple[Mapping[str, Any], ...] = (
        {"amountUsdCents": 101},
        {"method": "DAI:local"},
        {"metadata": {"orderId": 2}},
    )
    for other in others:
        refused = await payer.post(CHARGES, {**body, **other}, headers=headers)
        assert (refused.status, refused.code) == (409, "IDEMPOTENCY_CONFLICT"), other
        assert (rows(api, "charges"), rows(api, "deposit_addresses")) == (1, 1)
    # The key of an intent is not free either.
    intents = {"Idempotency-Key": "intent-1"}
    await payer.post("/api/v1/payments/intents", {"amountUsdCents": 500}, headers=intents)
    refused = await payer.post(CHARGES, body, headers=intents)
    assert (refused.status, refused.code) == (409, "IDEMPOTENCY_CONFLICT")


async def test_a_refused_request_keeps_no_key(api: RunningApi, payer: Visitor) -> None:
    headers = {"Idempotency-Key": "order-7"}
    body = {"method": METHOD, "amountUsdCents": 100}
    assert (await payer.post(CHARGES, body, headers=headers)).status == 404
    add_method(api.engine.database)
    assert (await payer.post(CHARGES, body, headers=headers)).status == 201


# -- a key's budget of unpaid addresses


async def test_a_bitcoin_wallet_is_never_given_more_unpaid_addresses_than_it_searches(
    api: RunningApi, payer: Visitor
) -> None:
    """Fault 7: one customer could push an account thousands of indices out of any wallet's sight."""
    database = api.engine.database
    ring_id = add_ring(database, BITCOIN_ACCOUNT, gap_limit=7)
    # A dollar token on such a chain, so that it has a price.
    add_method(database, "USDT:liquid", address=None, decimals=8, kind="utxo", ring_id=ring_id)
    charges = [await charged(payer, method="USDT:liquid") for _ in range(2)]
    assert tuple(charge["address"] for charge in charges) == BITCOIN_ADDRESSES
    body = {"method": "USDT:liquid", "amountUsdCents": 100}
    for path, asked in ((CHARGES, body), (ADDRESS, {"method": "USDT:liquid"})):
        refused = await payer.post(path, asked)
        assert (refused.status, refused.code) == (503, "ADDRESS_BUDGET_EXHAUSTED")
        assert "Retry-After" in refused.headers
    # The budget is the key's, of all accounts together.
    async with api.visitor(payer_wallets()[1]) as other:
        assert (await other.post(CHARGES, body)).code == "ADDRESS_BUDGET_EXHAUSTED"
        assert next_index(database, ring_id) == 2
        see_deposit(database, charges[1]["address"], 1, method_id="USDT:liquid")
        for visitor in (other, payer):
            await charged(visitor, method="USDT:liquid")
        for visitor in (other, payer):
            assert (await visitor.post(CHARGES, body)).code == "ADDRESS_BUDGET_EXHAUSTED"


async def test_keys_of_evm_chains_have_no_such_budget(api: RunningApi, payer: Visitor) -> None:
    add_method(api.engine.database, ring_id=add_ring(api.engine.database, gap_limit=6))
    for _ in range(8):
        await charged(payer)


# -- who may


async def test_a_program_makes_and_reads_charges_with_its_key(api: RunningApi, payer: Visitor) -> None:
    add_method(api.engine.database)
    key = await key_of(payer)
    own = await charged(payer)
    for header in ("Authorization", "x-api-key"):
        async with program(api, key["key"], header=header) as caller:
            assert (await caller.get(METHODS)).status == 200
            charge = await charged(caller)
            assert (await caller.get(f"{CHARGES}/{own['chargeId']}")).body == own
            address = (await caller.post(ADDRESS, {"method": METHOD})).body
        assert (await payer.get(f"{CHARGES}/{charge['chargeId']}")).body == charge
        assert (await payer.post(ADDRESS, {"method": METHOD})).body == address


async def test_a_revoked_key_is_refused_at_once(api: RunningApi, payer: Visitor) -> None:
    add_method(api.engine.database)
    key = await key_of(payer)
    async with program(api, key["key"]) as caller:
        await charged(caller)
        await payer.call("DELETE", f"/api/v1/keys/{key['keyId']}")
        refused = await caller.post(CHARGES, {"method": METHOD, "amountUsdCents": 100})
        assert (refused.status, refused.code) == (401, "KEY_REFUSED")
        assert "revoked" in refused.body["detail"]


async def test_an_unknown_key_is_refused_whatever_session_comes_with_it(payer: Visitor) -> None:
    for key in ("sk-settle-unknown", "x", "ß"):
        refused = await payer.get(METHODS, headers={"Authorization": f"Bearer {key}"})
        assert (refused.status, refused.code) == (401, "KEY_REFUSED"), key


async def test_without_session_and_key_nothing_is_answered(api: RunningApi) -> None:
    async with api.visitor() as stranger:
        for reply in (
            await stranger.get(METHODS),
            await stranger.post(ADDRESS, {"method": METHOD}),
            await stranger.post(CHARGES, {"method": METHOD, "amountUsdCents": 100}),
            await stranger.get(f"{CHARGES}/{uuid4()}"),
        ):
            assert (reply.status, reply.code) == (401, "UNAUTHENTICATED")


async def test_a_key_opens_none_of_the_routes_of_people(api: RunningApi, payer: Visitor) -> None:
    key = await key_of(payer)
    async with program(api, key["key"]) as caller:
        for method, path, body in (
            ("GET", "/api/v1/keys", None),
            ("POST", "/api/v1/keys", {"label": "Another"}),
            ("DELETE", f"/api/v1/keys/{key['keyId']}", None),
            ("POST", f"/api/v1/keys/{key['keyId']}/rotate", {}),
            ("GET", "/api/v1/auth/session", None),
            ("GET", "/api/v1/payments/credits/summary", None),
            ("POST", "/api/v1/payments/intents", {"amountUsdCents": 500}),
            ("GET", "/api/v1/usage", None),
        ):
            reply = await caller.call(method, path, body)
            assert (reply.status, reply.code) == (401, "UNAUTHENTICATED"), path


async def test_another_accounts_charge_is_not_found(api: RunningApi, payer: Visitor) -> None:
    """Fault 18: any product read any tenant's charge."""
    add_method(api.engine.database)
    charge = await charged(payer)
    async with api.visitor(payer_wallets()[1]) as other:
        key = await key_of(other)
        replies = [await other.get(f"{CHARGES}/{charge['chargeId']}")]
        async with program(api, key["key"]) as caller:
            replies.append(await caller.get(f"{CHARGES}/{charge['chargeId']}"))
        unknown = await other.get(f"{CHARGES}/{uuid4()}")
        for reply in (*replies, unknown):
            assert (reply.status, reply.code) == (404, "CHARGE_NOT_FOUND")
        mine = (await payer.post(ADDRESS, {"method": METHOD})).body["address"]
        assert (await other.post(ADDRESS, {"method": METHOD})).body["address"] != mine


async def test_a_key_of_another_account_of_the_same_person_sees_its_own_charges_only(
    api: RunningApi, payer: Visitor
) -> None:
    database = api.engine.database
    add_method(database)
    charge = await charged(payer)
    user_id = (await payer.get("/api/v1/auth/session")).body["userId"]
    query(database.service_url, "SELECT open_account('shop', %s, 'organization', NULL, 'Shop')", user_id)
    key = make_key()
    query(
        database.service_url,
        "SELECT create_key(gen_random_uuid(), 'shop', 'Shop', %s, %s, NULL, NULL, NULL, NULL, false)",
        *(key.key_hash, key.key_hint),
    )
    async with program(api, key.key) as caller:
        own = await charged(caller)
        refused = await caller.get(f"{CHARGES}/{charge['chargeId']}")
        assert (refused.status, refused.code) == (404, "CHARGE_NOT_FOUND")
        address = (await caller.post(ADDRESS, {"method": METHOD})).body["address"]
    assert address == create2_address(salt_of_account("shop"), init_code_hash(api.engine.chain.treasury_address))
    assert (await payer.get(f"{CHARGES}/{own['chargeId']}")).status == 404


async def test_the_same_idempotency_key_of_two_accounts_makes_two_charges(api: RunningApi, payer: Visitor) -> None:
    add_method(api.engine.database)
    headers = {"Idempotency-Key": "order-7"}
    async with api.visitor(payer_wallets()[1]) as other:
        charges = [await charged(visitor, headers=headers) for visitor in (payer, other)]
    assert charges[0]["chargeId"] != charges[1]["chargeId"]


async def test_charges_are_limited_by_account_for_people_and_programs_together(engine: Engine) -> None:
    add_method(engine.database)
    async with (
        running_api(engine, RATE_LIMIT_CHARGES_PER_ACCOUNT="3") as api,
        api.visitor(payer_wallets()[0]) as payer,
        program(api, (await key_of(payer))["key"]) as caller,
    ):
        await charged(payer)
        await charged(caller)
        await payer.post(ADDRESS, {"method": METHOD})
        for visitor in (payer, caller):
            refused = await visitor.post(CHARGES, {"method": METHOD, "amountUsdCents": 100})
            assert (refused.status, refused.code) == (429, "RATE_LIMITED")
        async with api.visitor(payer_wallets()[1]) as other:
            await charged(other)


# -- what a charge says


async def test_what_has_been_seen_is_shown_before_it_is_credited(api: RunningApi, payer: Visitor) -> None:
    add_method(api.engine.database)
    charge = await charged(payer)
    height = await api.engine.reader.heads.height()
    see_deposit(api.engine.database, charge["address"], 10_000_000, block_number=height)
    found = (await payer.get(f"{CHARGES}/{charge['chargeId']}")).body
    assert {
        "status": "partial",
        "receivedRaw": 10_000_000,
        "confirmingRaw": 10_000_000,
        "creditedRaw": 0,
        "missingRaw": 15_000_000,
        "creditedCredits": 0,
    }.items() <= found.items()
    [deposit] = found["deposits"]
    assert {
        "state": "confirming",
        "valueRaw": 10_000_000,
        "credits": 100_000_000,
        "confirmations": 1,
        "confirmationsNeeded": 2,
        "attemptId": None,
    }.items() <= deposit.items()
    see_deposit(api.engine.database, charge["address"], 16_000_000, block_number=height)
    found = (await payer.get(f"{CHARGES}/{charge['chargeId']}")).body
    assert (found["status"], found["missingRaw"], len(found["deposits"])) == ("confirming", 0, 2)


async def test_what_is_credited_is_shown_with_its_payment_and_whether_that_is_final(
    api: RunningApi, payer: Visitor
) -> None:
    database = api.engine.database
    add_method(database)
    charge = await charged(payer)
    deposit_id = see_deposit(database, charge["address"], charge["amountRaw"])
    settle_deposit(database, deposit_id)
    [(tx_hash, from_address)] = query(database.superuser_url, "SELECT tx_hash, from_address FROM deposits")

    async def shown() -> tuple[str, str]:
        """How final it is, and how the charge's page says so."""
        found = (await payer.get(f"{CHARGES}/{charge['chargeId']}")).body
        assert {
            "status": "paid",
            "creditedRaw": charge["amountRaw"],
            "creditedCredits": charge["amountRaw"] * 10,
            "missingRaw": 0,
        }.items() <= found.items()
        [deposit] = found["deposits"]
        assert {
            "depositId": str(deposit_id),
            "attemptId": str(deposit_id),
            "txHash": tx_hash,
            "fromAddress": from_address,
            "state": "credited",
        }.items() <= deposit.items()
        page = (await payer.get(f"/pay/{charge['chargeId']}")).body
        return deposit["finalityState"], "not final yet" if "not final yet" in page else "received"

    assert await shown() == ("final", "received")
    with connect(database.superuser_url, triggers=False) as superuser:
        superuser.execute(
            "INSERT INTO transfers_awaiting_finality (attempt_id, chain_id, block_number)"
            " SELECT attempt_id, chain_id, block_number FROM deposits"
        )
    assert await shown() == ("pending", "not final yet")


async def test_confirmations_of_another_chain_are_those_that_its_worker_has_seen(
    api: RunningApi, payer: Visitor
) -> None:
    """No node of it is known here."""
    database = api.engine.database
    add_method(database, "USDC:elsewhere", chain_id=8453, ring_id=add_ring(database))
    charge = await charged(payer, method="USDC:elsewhere")
    see_deposit(database, charge["address"], 10_000_000, method_id="USDC:elsewhere", block_number=100)

    async def shown() -> int | None:
        [deposit] = (await payer.get(f"{CHARGES}/{charge['chargeId']}")).body["deposits"]
        confirmations: int | None = deposit["confirmations"]
        return confirmations

    assert await shown() is None, "no worker follows it"
    follow = (
        "INSERT INTO chain_cursors (chain_id, token, to_address, first_block, block_number, head_number, retired_at)"
        " VALUES (%s, 'x', %s, 0, 90, %s, %s) RETURNING 1"
    )
    for chain_id, scope, head, retired_at in (
        (8453, "a", 103, None),
        (8453, "b", 101, None),
        (8453, "c", 300, "2026-01-01"),
        (8454, "d", 200, None),
    ):
        query(database.superuser_url, follow, chain_id, scope, head, retired_at)
    assert await shown() == 4


async def test_another_token_at_the_address_does_not_pay_the_quote(api: RunningApi, payer: Visitor) -> None:
    """Fault 3: 0.00000000005 DAI filled a charge of 50 USDC."""
    add_method(api.engine.database)
    add_method(api.engine.database, "DAI:local", decimals=18, address=f"0x{'d' * 40}")
    charge = await charged(payer)
    see_deposit(api.engine.database, charge["address"], 50_000_000, method_id="DAI:local")
    found = (await payer.get(f"{CHARGES}/{charge['chargeId']}")).body
    assert (found["status"], found["receivedRaw"]) == ("new", 0)
    assert [deposit["symbol"] for deposit in found["deposits"]] == ["DAI"]


async def test_less_than_the_minimum_says_that_it_waits_for_more(api: RunningApi, payer: Visitor) -> None:
    add_method(api.engine.database, min_raw=1_000_000)
    charge = await charged(payer)
    height = await api.engine.reader.heads.height()
    see_deposit(api.engine.database, charge["address"], 400_000, block_number=height - 1)

    async def states() -> list[str]:
        found = (await payer.get(f"{CHARGES}/{charge['chargeId']}")).body
        return [deposit["state"] for deposit in found["deposits"]]

    assert await states() == ["below_minimum"]
    see_deposit(api.engine.database, charge["address"], 600_000, block_number=height - 1)
    assert await states() == ["confirming", "confirming"]


async def test_a_price_that_has_run_out_is_shown_and_the_address_stays_good(engine: Engine) -> None:
    """Fault 9: expiry was never stored or enforced; fault 10: what came late was not credited."""
    add_method(engine.database)
    async with (
        running_api(engine, CHARGE_PRICE_TTL_SECONDS="1") as api,
        api.visitor(payer_wallets()[0]) as payer,
    ):
        charge = await charged(payer)

        async def status() -> str:
            return str((await payer.get(f"{CHARGES}/{charge['chargeId']}")).body["status"])

        async with asyncio.timeout(10):
            while await status() != "expired":
                await asyncio.sleep(0.05)
        assert status_of(engine.database, charge["chargeId"]) == "new"
        see_deposit(engine.database, charge["address"], 1)
        assert await status() == "partial"
        see_deposit(engine.database, charge["address"], charge["amountRaw"])
        assert await status() == "confirming"


async def test_asking_again_lets_the_address_be_watched_closely(api: RunningApi, payer: Visitor) -> None:
    add_method(api.engine.database)
    headers = {"Idempotency-Key": "order-7"}
    charge = await charged(payer, headers=headers)
    own = (await payer.post(ADDRESS, {"method": METHOD})).body["address"]
    long_ago = "UPDATE deposit_addresses SET active_at = now() - interval '40 days' RETURNING 1"
    assert len(query(api.engine.database.superuser_url, long_ago)) == 2

    def active(address: str) -> bool:
        found: bool = scalar(
            api.engine.database.superuser_url,
            "SELECT active_at > now() - interval '1 minute' FROM deposit_addresses WHERE address = %s",
            address,
        )
        return found

    assert not active(charge["address"])
    await charged(payer, headers=headers)
    assert active(charge["address"])
    assert not active(own)
    await payer.post(ADDRESS, {"method": METHOD})
    assert active(own)


async def test_opening_its_page_shows_two_codes_and_lets_the_address_be_watched_closely(
    api: RunningApi, payer: Visitor
) -> None:
    """Whether they are read as what they say, a browser tests."""
    add_method(api.engine.database)
    charge = await charged(payer)
    long_ago = "UPDATE deposit_addresses SET active_at = now() - interval '40 days' RETURNING 1"
    assert len(query(api.engine.database.superuser_url, long_ago)) == 1
    async with api.visitor() as stranger:
        page = await stranger.get(f"/pay/{charge['chargeId']}")
    assert page.status == 200
    assert charge["address"] in page.body
    assert page.body.count('<svg aria-hidden="true"') == 2
    is_active = "SELECT active_at > now() - interval '1 minute' FROM deposit_addresses"
    assert scalar(api.engine.database.superuser_url, is_active)


async def test_the_credits_page_gives_the_accounts_own_address_by_a_form(api: RunningApi, payer: Visitor) -> None:
    add_method(api.engine.database)
    given = await payer.call("POST", "/credits/address", data={"method": METHOD}, allow_redirects=False)
    assert (given.status, given.headers["Location"]) == (303, "/credits#exchange")
    address = scalar(api.engine.database.superuser_url, "SELECT address FROM deposit_addresses")
    assert address in (await payer.get("/credits")).body
