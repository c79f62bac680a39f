"""A worker that dies between a webhook and the record of it: sent again, as the same."""

from __future__ import annotations

from tests.crash.conftest import Systems
from tests.support.faults import Fault, Moment
from tests.support.sql import query
from tests.support.webhooks import deliveries_of, make_endpoint
from tests.webhooks.receiver import running_receiver

ALLOWED = {"WEBHOOK_ALLOW_PRIVATE": "true"}


async def test_a_webhook_that_a_killed_worker_had_sent_is_sent_again_with_the_same_id_and_body(
    systems: Systems,
) -> None:
    system = await systems(**ALLOWED)
    async with running_receiver() as receiver:
        payment = await system.purchase()
        endpoint = make_endpoint(system.database, payment.payer, url=receiver.url, events=["payment.credited"])
        doomed = system.start_worker(
            Fault(
                activity="deliver_webhook",
                moment=Moment.BEFORE_COMMIT,
                webhook_start_to_close_seconds=2,
                sticky_seconds=0.5,
            )
        )
        await system.submit_payment(payment)
        await doomed.killed_itself()
        [first] = receiver.requests
        assert deliveries_of(system.database, endpoint) == [("payment.credited", "pending")]
        assert query(system.database.service_url, "SELECT * FROM webhook_tries") == []

        system.start_worker()
        _, second = await receiver.wait_for(2)
        await system.until(
            lambda: deliveries_of(system.database, endpoint) == [("payment.credited", "delivered")],
            "the webhook recorded as delivered",
        )
    assert second.webhook_id == first.webhook_id
    assert second.body == first.body
    assert second.verified(endpoint.secret)["data"]["attemptId"] == str(payment.attempt_id)
    assert len(receiver.requests) == 2


async def test_an_event_whose_worker_died_before_it_started_a_delivery_is_delivered_by_the_next(
    systems: Systems,
) -> None:
    system = await systems(**ALLOWED)
    async with running_receiver() as receiver:
        payment = await system.purchase()
        make_endpoint(system.database, payment.payer, url=receiver.url, events=["payment.submitted"])
        await system.record_only(payment)  # committed, and nothing else: no worker has run
        system.start_worker()
        [request] = await receiver.wait_for(1)
    assert request.document["type"] == "payment.submitted"
