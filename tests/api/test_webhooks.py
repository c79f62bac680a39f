"""Endpoints of webhooks by HTTP: by session or service key, whose they are, and what is refused."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import Any
from uuid import uuid4

import pytest

from api.webhooks.models import NewEndpointRequest
from devstack.chain import payer_wallets
from domain.billing.keys import make_key
from domain.webhooks.signatures import SECRET_PREFIX
from services.webhooks.endpoints import ENDPOINTS_MAX
from services.webhooks.outbox import start_new
from tests.support.api import Reply, RunningApi, Visitor, running_api
from tests.support.engine import Engine
from tests.support.sql import connect, query, scalar
from tests.webhooks.conftest import Starter
from tests.webhooks.receiver import answer, running_receiver

ENDPOINTS = "/api/v1/webhook-endpoints"
URL = "https://example.com/webhooks?key=1"


@pytest.fixture
def api(shared_api: RunningApi) -> RunningApi:
    """One interface for the whole file."""
    return shared_api


@pytest.fixture
def payer(shared_payer: Visitor) -> Visitor:
    """Who is signed in at it already."""
    return shared_payer


async def made(payer: Visitor, **body: Any) -> dict[str, Any]:
    """A new endpoint."""
    reply = await payer.post(ENDPOINTS, {"url": URL, **body})
    assert reply.status == 201, reply.body
    found: dict[str, Any] = reply.body
    return found


async def event(payer: Visitor, number: int = 1) -> None:
    """Cause a `payment.submitted`."""
    intent = await payer.intent()
    assert (await payer.submit(intent["attemptId"], f"0x{number:064x}")).status == 202


async def test_an_endpoint_is_made_with_a_secret_that_is_shown_once(api: RunningApi, payer: Visitor) -> None:
    endpoint = await made(payer, events=["payment.credited", "deposit.*"])
    account = (await payer.get("/api/v1/auth/session")).body["billingAccountId"]
    expected = {"url": URL, "events": ["payment.credited", "deposit.*"], "state": "active", "billingAccountId": account}
    assert expected.items() <= endpoint.items()
    assert endpoint["secret"].startswith(SECRET_PREFIX)
    listed = await payer.get(ENDPOINTS)
    [shown] = listed.body["endpoints"]
    assert {**shown, "secret": endpoint["secret"]} == endpoint
    assert endpoint["secret"] not in str(listed.body)


async def test_without_a_list_it_takes_everything(payer: Visitor) -> None:
    assert (await made(payer))["events"] is None


async def test_a_body_that_is_wrong_is_refused_by_its_field(payer: Visitor) -> None:
    cases: tuple[tuple[dict[str, Any], str], ...] = (
        ({}, "url"),
        ({"url": ""}, "url"),
        ({"url": 7}, "url"),
        ({"url": "https://example.com/\u0000"}, "url"),
        ({"url": "http://example.com/"}, "url"),
        ({"url": "https://10.0.0.1/"}, "url"),
        ({"url": "https://localhost/"}, "url"),
        ({"url": "https://user:password@example.com/"}, "url"),
        ({"url": "https://example.com:22/"}, "url"),
        ({"url": URL, "events": []}, "events"),
        ({"url": URL, "events": ["payment.unknown"]}, "events"),
        ({"url": URL, "events": "payment.credited"}, "events"),
        ({"url": URL, "secret": "mine"}, "secret"),
        ({"url": URL, "billingAccountId": "another"}, "billingAccountId"),
    )
    for body, field in cases:
        reply = await payer.post(ENDPOINTS, body)
        assert (reply.status, reply.code) == (422, "INVALID_INPUT"), body
        assert field in str(reply.body), body
    assert (await payer.get(ENDPOINTS)).body["endpoints"] == []


async def test_a_developer_may_name_this_machine(engine: Engine) -> None:
    async with (
        running_api(engine, WEBHOOK_ALLOW_PRIVATE="true") as api,
        api.visitor(payer_wallets()[0]) as payer,
    ):
        assert (await payer.post(ENDPOINTS, {"url": "http://127.0.0.1:8000/hook"})).status == 201
        assert (await payer.post(ENDPOINTS, {"url": "http://10.0.0.1/hook"})).status == 422


async def test_a_repetition_makes_no_other_endpoint_and_shows_no_secret(api: RunningApi, payer: Visitor) -> None:
    headers = {"Idempotency-Key": "once"}
    first = await payer.post(ENDPOINTS, {"url": URL}, headers=headers)
    again = await payer.post(ENDPOINTS, {"url": URL}, headers=headers)
    assert (first.status, again.status) == (201, 201)
    assert again.body == {**first.body, "secret": None}
    for body in ({"url": URL, "events": ["charge.*"]}, {"url": "https://example.com/another"}):
        other = await payer.post(ENDPOINTS, body, headers=headers)
        assert (other.status, other.code) == (422, "IDEMPOTENCY_KEY_REUSED")
    assert scalar(api.engine.database.superuser_url, "SELECT count(*) FROM webhook_endpoints") == 1


async def test_an_account_has_ten_and_a_deleted_one_does_not_count(payer: Visitor) -> None:
    endpoints = [await made(payer) for _ in range(ENDPOINTS_MAX)]
    refused = await payer.post(ENDPOINTS, {"url": URL})
    assert (refused.status, refused.code) == (409, "TOO_MANY_WEBHOOK_ENDPOINTS")
    assert (await payer.call("DELETE", f"{ENDPOINTS}/{endpoints[0]['endpointId']}")).status == 204
    assert (await payer.post(ENDPOINTS, {"url": URL})).status == 201


async def test_a_rotated_secret_is_another_and_the_old_one_signs_beside_it(api: RunningApi, payer: Visitor) -> None:
    endpoint = await made(payer)
    rotated = await payer.post(f"{ENDPOINTS}/{endpoint['endpointId']}/rotate", {"overlapSeconds": 3600})
    assert rotated.status == 201
    assert rotated.body == {**endpoint, "secret": rotated.body["secret"]}
    assert rotated.body["secret"] != endpoint["secret"]
    lasts = "SELECT expires_at - now() FROM webhook_secrets ORDER BY id"
    [(old,), (new,)] = query(api.engine.database.service_url, lasts)
    assert (timedelta(minutes=59) < old <= timedelta(hours=1), new) == (True, None)
    assert (await payer.post(f"{ENDPOINTS}/{endpoint['endpointId']}/rotate")).status == 201
    _, (second,), _ = query(api.engine.database.service_url, lasts)
    assert timedelta(hours=23) < second <= timedelta(hours=24), "a day where nothing else was asked for"
    assert (await payer.post(f"{ENDPOINTS}/{endpoint['endpointId']}/rotate", {"overlapSeconds": -1})).status == 422


async def test_what_is_deleted_is_not_there_any_more(payer: Visitor) -> None:
    endpoint = await made(payer)
    path = f"{ENDPOINTS}/{endpoint['endpointId']}"
    assert (await payer.call("DELETE", path)).status == 204
    assert (await payer.get(ENDPOINTS)).body["endpoints"] == []
    for reply in (
        await payer.call("DELETE", path),
        await payer.post(f"{path}/rotate"),
        await payer.get(f"{path}/deliveries"),
        await payer.post(f"{path}/deliveries/{uuid4()}/redeliver"),
    ):
        assert (reply.status, reply.code) == (404, "WEBHOOK_ENDPOINT_NOT_FOUND")


async def test_deliveries_are_shown_with_their_tries_page_by_page(api: RunningApi, payer: Visitor) -> None:
    endpoint = await made(payer)
    for number in range(1, 4):
        await event(payer, number)
    with connect(api.engine.database.superuser_url) as superuser:
        superuser.execute(
            "INSERT INTO webhook_tries (delivery_id, billing_account_id, sent_at, duration_ms, status_code,"
            " response_head) SELECT d.id, d.billing_account_id, now(), n, 500, 'no' FROM webhook_deliveries d,"
            " generate_series(1, 7) n"
        )
    path = f"{ENDPOINTS}/{endpoint['endpointId']}/deliveries"
    first = (await payer.get(f"{path}?limit=2")).body
    second = (await payer.get(f"{path}?limit=2&cursor={first['nextCursor']}")).body
    shown = [*first["deliveries"], *second["deliveries"]]
    assert (len(shown), second["nextCursor"]) == (3, None)
    assert len({delivery["deliveryId"] for delivery in shown}) == 3
    assert [delivery["createdAt"] for delivery in shown] == sorted((d["createdAt"] for d in shown), reverse=True)
    for delivery in shown:
        assert (delivery["type"], delivery["state"], delivery["triesCount"]) == ("payment.submitted", "pending", 7)
        assert [sent["durationMs"] for sent in delivery["tries"]] == [7, 6, 5, 4, 3]
        assert delivery["tries"][0].items() >= {"statusCode": 500, "responseHead": "no", "error": None}.items()
    [counted] = (await payer.get(ENDPOINTS)).body["endpoints"]
    assert (counted["pendingDeliveries"], counted["failedDeliveries"]) == (3, 0)


async def test_endpoints_are_listed_the_oldest_first_each_with_its_own_numbers(api: RunningApi, payer: Visitor) -> None:
    taken = ["payment.credited", "payment.submitted", "charge.*", "deposit.*", "payment.*"]
    endpoints = [await made(payer, events=[events]) for events in taken]
    await event(payer)
    with connect(api.engine.database.superuser_url) as superuser:
        superuser.execute(
            "UPDATE webhook_deliveries SET state = 'failed', due_at = NULL, ended_at = now() WHERE endpoint_id = %s",
            (endpoints[-1]["endpointId"],),
        )
    listed = (await payer.get(ENDPOINTS)).body["endpoints"]
    assert [shown["endpointId"] for shown in listed] == [endpoint["endpointId"] for endpoint in endpoints]
    numbers = [(shown["pendingDeliveries"], shown["failedDeliveries"]) for shown in listed]
    assert numbers == [(0, 0), (1, 0), (0, 0), (0, 0), (0, 1)]


async def test_a_redelivery_is_the_same_webhook_again_and_waits_for_an_endpoint_that_was_stopped(
    engine: Engine,
) -> None:
    async with (
        running_receiver() as receiver,
        running_api(engine, WEBHOOK_ALLOW_PRIVATE="true") as api,
        api.visitor(payer_wallets()[0]) as payer,
        engine.worker(WEBHOOK_ALLOW_PRIVATE="true"),
    ):
        endpoint = await made(payer, url=receiver.url, events=["payment.submitted"])
        await event(payer)
        await receiver.wait_for(1)
        path = f"{ENDPOINTS}/{endpoint['endpointId']}/deliveries"

        async def delivered() -> dict[str, Any]:
            async with asyncio.timeout(30):
                while True:
                    [delivery] = (await payer.get(path)).body["deliveries"]
                    if delivery["state"] == "delivered":
                        found: dict[str, Any] = delivery
                        return found
                    await asyncio.sleep(0.05)

        delivery = await delivered()
        reply = await payer.post(f"{path}/{delivery['deliveryId']}/redeliver")
        assert (reply.status, reply.body) == (202, {"deliveryId": delivery["deliveryId"], "state": "pending"})
        first, second = await receiver.wait_for(2)
        assert (await delivered())["triesCount"] == 2
        assert first.webhook_id == second.webhook_id == delivery["eventId"]
        assert first.body == second.body
        second.verified(endpoint["secret"])
        assert (await payer.call("DELETE", f"{ENDPOINTS}/{endpoint['endpointId']}")).status == 204

        # Nothing is sent again to an endpoint that its receiver has stopped.
        receiver.behave = answer(410)
        endpoint = await made(payer, url=receiver.url, events=["payment.submitted"])
        await event(payer, number=2)
        async with asyncio.timeout(30):
            while (await payer.get(ENDPOINTS)).body["endpoints"][0]["state"] != "stopped":
                await asyncio.sleep(0.05)
        assert (await payer.get(ENDPOINTS)).body["endpoints"][0]["stoppedAt"] is not None
        path = f"{ENDPOINTS}/{endpoint['endpointId']}/deliveries"
        [delivery] = (await payer.get(path)).body["deliveries"]
        assert delivery["state"] == "stopped"
        refused = await payer.post(f"{path}/{delivery['deliveryId']}/redeliver")
        assert (refused.status, refused.code) == (409, "WEBHOOK_ENDPOINT_STOPPED")
        receiver.behave = answer(204)
        enable = f"{ENDPOINTS}/{endpoint['endpointId']}/enable"
        for _ in range(2):
            enabled = await payer.post(enable)
            assert (enabled.status, enabled.body["state"], enabled.body["stoppedAt"]) == (200, "active", None)
        assert (await payer.post(f"{path}/{delivery['deliveryId']}/redeliver")).status == 202
        await receiver.wait_for(4)
        await event(payer, number=3)
        *_, last = await receiver.wait_for(5)
        last.verified(endpoint["secret"])


async def test_a_delivery_is_of_its_own_endpoint(api: RunningApi, payer: Visitor) -> None:
    first, second = await made(payer), await made(payer, events=["charge.*"])
    await event(payer)
    [(delivery_id,)] = query(api.engine.database.service_url, "SELECT id FROM webhook_deliveries")
    for endpoint, unknown in ((second, delivery_id), (first, uuid4())):
        reply = await payer.post(f"{ENDPOINTS}/{endpoint['endpointId']}/deliveries/{unknown}/redeliver")
        assert (reply.status, reply.code) == (404, "WEBHOOK_DELIVERY_NOT_FOUND")


# -- who


async def test_a_program_does_the_same_with_a_service_key(api: RunningApi, payer: Visitor) -> None:
    key = (await payer.post("/api/v1/keys", {"label": "shop"})).body["key"]
    headers = {"Authorization": f"Bearer {key}"}
    async with api.visitor() as program:
        reply = await program.post(ENDPOINTS, {"url": URL}, headers=headers)
        assert reply.status == 201, reply.body
        path = f"{ENDPOINTS}/{reply.body['endpointId']}"
        assert (await program.get(f"{path}/deliveries", headers=headers)).body["deliveries"] == []
        assert (await program.post(f"{path}/rotate", headers=headers)).status == 201
        assert len((await payer.get(ENDPOINTS)).body["endpoints"]) == 1
        assert (await program.call("DELETE", path, headers=headers)).status == 204


async def test_a_revoked_key_and_a_request_without_any_are_refused(api: RunningApi, payer: Visitor) -> None:
    key = (await payer.post("/api/v1/keys", {"label": "shop"})).body
    assert (await payer.call("DELETE", f"/api/v1/keys/{key['keyId']}")).status == 204
    async with api.visitor() as program:
        refused = await program.get(ENDPOINTS, headers={"x-api-key": key["key"]})
        assert (refused.status, refused.code) == (401, "KEY_REFUSED")
        anonymous = await program.post(ENDPOINTS, {"url": URL})
        assert (anonymous.status, anonymous.code) == (401, "UNAUTHENTICATED")


async def test_another_accounts_endpoint_does_not_exist(api: RunningApi, payer: Visitor) -> None:
    endpoint = await made(payer)
    await event(payer)
    [(delivery_id,)] = query(api.engine.database.service_url, "SELECT id FROM webhook_deliveries")
    path = f"{ENDPOINTS}/{endpoint['endpointId']}"
    async with api.visitor(payer_wallets()[1]) as stranger:
        assert (await stranger.get(ENDPOINTS)).body["endpoints"] == []

        async def refused(reply: Reply) -> None:
            assert (reply.status, reply.code) == (404, "WEBHOOK_ENDPOINT_NOT_FOUND")

        await refused(await stranger.get(f"{path}/deliveries"))
        await refused(await stranger.post(f"{path}/rotate"))
        await refused(await stranger.post(f"{path}/enable"))
        await refused(await stranger.post(f"{path}/deliveries/{delivery_id}/redeliver"))
        await refused(await stranger.call("DELETE", path))
    [kept] = (await payer.get(ENDPOINTS)).body["endpoints"]
    assert kept["state"] == "active"


async def test_a_key_of_another_account_of_the_same_person_has_its_own_endpoints_only(
    api: RunningApi, payer: Visitor
) -> None:
    """The person manages both accounts, so that the database lets the key's request at either."""
    endpoint = await made(payer)
    await event(payer)
    service_url = api.engine.database.service_url
    [(delivery_id,)] = query(service_url, "SELECT id FROM webhook_deliveries")
    user_id = (await payer.get("/api/v1/auth/session")).body["userId"]
    query(service_url, "SELECT open_account('shop', %s, 'organization', NULL, 'Shop')", user_id)
    key = make_key()
    query(
        service_url,
        "SELECT create_key(gen_random_uuid(), 'shop', 'Shop', %s, %s, NULL, NULL, NULL, NULL, false)",
        *(key.key_hash, key.key_hint),
    )
    headers = {"Authorization": f"Bearer {key.key}"}
    path = f"{ENDPOINTS}/{endpoint['endpointId']}"
    async with api.visitor() as program:
        own = await program.post(ENDPOINTS, {"url": URL}, headers=headers)
        assert (own.status, own.body["billingAccountId"]) == (201, "shop")
        for reply in (
            await program.get(f"{path}/deliveries", headers=headers),
            await program.post(f"{path}/rotate", headers=headers),
            await program.post(f"{path}/enable", headers=headers),
            await program.post(f"{path}/deliveries/{delivery_id}/redeliver", headers=headers),
            await program.call("DELETE", path, headers=headers),
        ):
            assert (reply.status, reply.code) == (404, "WEBHOOK_ENDPOINT_NOT_FOUND")
        listed = (await program.get(ENDPOINTS, headers=headers)).body["endpoints"]
        assert [shown["endpointId"] for shown in listed] == [own.body["endpointId"]]
    listed = (await payer.get(ENDPOINTS)).body["endpoints"]
    assert [(shown["endpointId"], shown["state"]) for shown in listed] == [(endpoint["endpointId"], "active")]
    assert query(service_url, "SELECT count(*), max(expires_at) FROM webhook_secrets") == [(2, None)]


async def test_a_delivery_waits_for_no_worker_of_the_api(api: RunningApi, payer: Visitor) -> None:
    """The interface only writes: what starts a delivery is found by a worker."""
    await made(payer)
    await event(payer)
    assert await start_new(api.engine.service, Starter(api.engine.namespace.client)) == 1


def test_the_document_names_every_group_and_type_at_most_once() -> None:
    assert NewEndpointRequest.model_json_schema()["properties"]["events"]["anyOf"][0]["maxItems"] >= 14
