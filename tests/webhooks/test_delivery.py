"""From an event to its receiver: until it is accepted, stopped, or given up."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import pytest
from standardwebhooks import WebhookVerificationError
from temporalio.client import WorkflowExecutionStatus, WorkflowHandle
from temporalio.testing import ActivityEnvironment

from activities.webhooks.delivery import PER_ACCOUNT_MAX
from activities.webhooks.housekeeping import WebhookHousekeepingActivities
from activities.webhooks.signatures import DeliveriesToStart, DeliveryEnd, WebhooksToPrune
from db.engine import ServiceDatabase
from db.webhooks import deliveries
from db.webhooks.deliveries import DueDelivery
from devstack.processes import quiet_port, wait_until
from domain.errors import TemporalUnavailable
from domain.operations.findings import FindingKind, Remedy
from domain.operations.resolutions import RemedyRequest
from domain.webhooks.signatures import make_secret, shown_secret
from services.operations.resolutions import take_remedy
from services.webhooks import outbox
from services.webhooks.delivery import Ended, Postponed, try_once
from services.webhooks.outbox import start_new
from services.webhooks.sender import Answer, WebhookSender
from telemetry.metrics.worker import WEBHOOK_TRIES
from tests.support.engine import Engine
from tests.support.payments import SHARE, RolePair
from tests.support.sql import connect, query, scalar
from tests.support.webhooks import Endpoint, deliveries_of, make_endpoint, types_of, written
from tests.webhooks.conftest import SECONDS_MAX, Hooks, Starter
from tests.webhooks.receiver import (
    Behave,
    accept_with_a_huge_body,
    answer,
    close,
    drip_a_head,
    hang,
    reset,
    running_receiver,
    speak_garbage,
)
from workflows.naming import webhook_delivery_workflow_id

TRIES: Final = "SELECT status_code, response_head, error FROM webhook_tries ORDER BY id"


@pytest.mark.slow
async def test_a_payment_of_the_whole_product_is_delivered_signed_and_in_order(engine: Engine) -> None:
    """Fault 13: no signature, no id, no order."""
    async with running_receiver() as receiver, engine.worker(WEBHOOK_ALLOW_PRIVATE="true"):
        payer, intent, tx_hash = await engine.buy()
        endpoint = make_endpoint(engine.database, payer, url=receiver.url)
        await engine.payments.submit(payer.user_id, intent.attempt_id, tx_hash)
        requests = await receiver.wait_for(2)
    documents = sorted((request.verified(endpoint.secret) for request in requests), key=lambda sent: sent["sequence"])
    assert [sent["type"] for sent in documents] == ["payment.submitted", "payment.credited"]
    assert {sent["data"]["attemptId"] for sent in documents} == {str(intent.attempt_id)}
    assert {sent["data"]["txHash"] for sent in documents} == {tx_hash}
    assert len(set(receiver.ids)) == 2


async def test_without_permission_nothing_is_sent_to_this_machine(engine: Engine) -> None:
    async with running_receiver() as receiver, engine.worker():
        payer, intent, tx_hash = await engine.buy()
        endpoint = make_endpoint(engine.database, payer, url=receiver.url, events=["payment.submitted"])
        await engine.payments.submit(payer.user_id, intent.attempt_id, tx_hash)

        def tried() -> list[Any]:
            return query(engine.database.service_url, "SELECT error FROM webhook_tries")

        async with asyncio.timeout(30):
            while not tried():
                await asyncio.sleep(0.05)
        assert "not sent" in tried()[0][0]
        assert receiver.connections == 0
        assert deliveries_of(engine.database, endpoint) == [("payment.submitted", "pending")]


FAILING: Final[dict[str, tuple[Behave, str]]] = {
    "500": (answer(500, b"it is broken"), "it is broken"),
    "404": (answer(404), ""),
    "redirect": (answer(302, b"", "Location: http://169.254.169.254/"), ""),
    "reset": (reset, "broke off"),
    "closed": (close, "broke off"),
    "garbage": (speak_garbage, "broke off"),
    "hangs": (hang, "no answer within"),
    "drips": (drip_a_head, "no answer within"),
}


@pytest.mark.usefixtures("soon")
async def test_a_receiver_that_fails_in_every_way_is_sent_the_same_until_it_accepts(
    hooks: Hooks, roles: RolePair
) -> None:
    payer = await roles.open_account(1)
    ways = iter([behave for behave, _ in FAILING.values()])

    async def fail_in_another_way(writer: asyncio.StreamWriter) -> None:
        await next(ways, accept_with_a_huge_body)(writer)

    async with running_receiver() as receiver, hooks.delivering():
        receiver.behave = fail_in_another_way
        endpoint = make_endpoint(roles.database, payer, url=receiver.url)
        await hooks.event(payer)
        await hooks.until(endpoint, "delivered")
    assert len(receiver.requests) == len(FAILING) + 1
    assert len(set(receiver.ids)) == 1
    assert {request.body for request in receiver.requests} == {written(roles.database)[0].body.encode()}
    for request in receiver.requests:
        request.verified(endpoint.secret)
    *failed, accepted = query(roles.database.service_url, TRIES)
    for (status, head, error), (name, (_, words)) in zip(failed, FAILING.items(), strict=True):
        assert (error is None) == (status is not None), name
        assert words in (head or error or ""), name
    assert accepted[0] == 200
    assert len(accepted[1]) <= 512
    assert scalar(roles.database.service_url, "SELECT failures FROM webhook_deliveries") == len(FAILING)


async def test_the_next_try_is_after_five_seconds_and_is_shown(hooks: Hooks, roles: RolePair) -> None:
    payer = await roles.open_account(1)
    async with running_receiver() as receiver, hooks.delivering():
        receiver.behave = answer(500)
        make_endpoint(roles.database, payer, url=receiver.url)
        await hooks.event(payer)
        await hooks.until_true(lambda: query(roles.database.service_url, TRIES), "a try")
    [(seconds, failures)] = query(
        roles.database.service_url,
        "SELECT extract(epoch FROM d.due_at - t.sent_at), d.failures FROM webhook_deliveries d, webhook_tries t",
    )
    assert 5 <= seconds < 10
    assert failures == 1
    [event] = written(roles.database)
    [(endpoint_id,)] = query(roles.database.service_url, "SELECT id FROM webhook_endpoints")
    handle = hooks.namespace.client.get_workflow_handle(webhook_delivery_workflow_id(event.id, endpoint_id))
    description = await handle.describe()
    assert description.status == WorkflowExecutionStatus.RUNNING
    pending = description.raw_description.pending_activities[0]
    assert pending.last_failure.message == "the receiver answered 500"


async def test_a_receiver_that_asks_to_wait_is_tried_then(hooks: Hooks, roles: RolePair) -> None:
    payer = await roles.open_account(1)
    async with running_receiver() as receiver, hooks.delivering():
        receiver.behave = answer(503, b"", "Retry-After: 600")
        make_endpoint(roles.database, payer, url=receiver.url)
        await hooks.event(payer)
        await hooks.until_true(lambda: query(roles.database.service_url, TRIES), "a try")
    [(seconds,)] = query(
        roles.database.service_url,
        "SELECT extract(epoch FROM d.due_at - t.sent_at) FROM webhook_deliveries d, webhook_tries t",
    )
    assert 600 <= seconds < 610


async def test_410_stops_the_endpoint_and_nothing_more_is_written_for_it(hooks: Hooks, roles: RolePair) -> None:
    payer = await roles.open_account(1)
    async with running_receiver() as receiver, running_receiver() as other, hooks.delivering():
        receiver.behave = answer(410)
        endpoint = make_endpoint(roles.database, payer, url=receiver.url)
        await hooks.event(payer)
        await hooks.until(endpoint, "stopped")
        await hooks.event(payer)
        assert types_of(roles.database) == ["payment.submitted"]
        second = make_endpoint(roles.database, payer, url=other.url)
        await hooks.event(payer)
        await hooks.until(second, "delivered")
    assert len(receiver.requests) == 1
    assert query(roles.database.service_url, "SELECT * FROM findings") == []


class CountingSender(WebhookSender):
    """Notes how many webhooks to one address it sends at a time."""

    def __init__(self, counted: str) -> None:
        super().__init__(allow_private=True, seconds_max=SECONDS_MAX)
        self._counted = counted
        self._at_once = 0
        self.most = 0

    async def send(self, url: str, body: bytes, headers: Mapping[str, str]) -> Answer:
        """As the product's."""
        if url != self._counted:
            return await super().send(url, body, headers)
        self._at_once += 1
        self.most = max(self.most, self._at_once)
        try:
            return await super().send(url, body, headers)
        finally:
            self._at_once -= 1


async def test_an_endpoint_that_hangs_delays_no_other_accounts(hooks: Hooks, roles: RolePair) -> None:
    dead, alive = await roles.open_account(1), await roles.open_account(2)
    async with running_receiver() as hanging, running_receiver() as receiver:
        hanging.behave = hang
        hooks.sender = sender = CountingSender(hanging.url)
        make_endpoint(roles.database, dead, url=hanging.url)
        endpoint = make_endpoint(roles.database, alive, url=receiver.url)
        for _ in range(2 * PER_ACCOUNT_MAX):
            await hooks.event(dead)
        await hooks.event(alive)
        async with hooks.delivering():
            await hanging.wait_for(PER_ACCOUNT_MAX)
            await hooks.until(endpoint, "delivered")
    assert len(hanging.requests) < 2 * PER_ACCOUNT_MAX, "it was delivered before them"
    assert sender.most == PER_ACCOUNT_MAX


async def test_a_retry_keeps_its_body_and_is_signed_again_at_its_own_time(hooks: Hooks, roles: RolePair) -> None:
    payer = await roles.open_account(1)
    async with running_receiver() as receiver, hooks.worker():
        endpoint = make_endpoint(roles.database, payer, url=receiver.url)
        await hooks.event(payer)
        await start_new(roles.service, hooks.starter)
        await hooks.until(endpoint, "delivered")
        [sent] = await receiver.wait_for(1)
        sent_at = int(sent.headers["webhook-timestamp"])
        await wait_until(lambda: int(time.time()) > sent_at, timeout_seconds=SECONDS_MAX, what="another second")
        await redeliver(roles, payer.user_id)
        await start_new(roles.service, hooks.starter)
        first, second = await receiver.wait_for(2)
    assert first.body == second.body
    assert first.webhook_id == second.webhook_id
    assert int(second.headers["webhook-timestamp"]) > int(first.headers["webhook-timestamp"])
    assert second.headers["webhook-signature"] != first.headers["webhook-signature"]


async def redeliver(roles: RolePair, user_id: str) -> None:
    """As the account's owner, every delivery."""
    [(delivery_id,)] = query(roles.database.service_url, "SELECT id FROM webhook_deliveries")
    assert scalar(roles.database.app_url, "SELECT redeliver_webhook(%s)", delivery_id, user_id=user_id)


async def test_a_redelivery_does_not_wait_for_the_next_try(hooks: Hooks, roles: RolePair) -> None:
    payer = await roles.open_account(1)
    async with running_receiver() as receiver, hooks.delivering():
        receiver.behave = answer(500)
        endpoint = make_endpoint(roles.database, payer, url=receiver.url)
        await hooks.event(payer)
        await hooks.until_true(lambda: query(roles.database.service_url, TRIES), "a try")
        with connect(roles.database.superuser_url) as superuser:  # its next try, by its workflow, is in 5 s
            superuser.execute("UPDATE webhook_deliveries SET due_at = now() + interval '1 hour', failures = 7")
        receiver.behave = answer(204)
        asked_at = datetime.now(UTC)
        await redeliver(roles, payer.user_id)
        await hooks.until(endpoint, "delivered")
        assert datetime.now(UTC) - asked_at < timedelta(seconds=4)
    assert len(receiver.requests) == 2


async def test_a_redelivery_that_is_asked_for_as_the_last_one_ends_is_not_lost(hooks: Hooks, roles: RolePair) -> None:
    """The try is recorded, and its run has not heard of it yet: that run is signalled, and has both to consider."""
    payer = await roles.open_account(1)
    async with running_receiver() as receiver:
        endpoint = make_endpoint(roles.database, payer, url=receiver.url)
        await hooks.event(payer)
        await start_new(roles.service, hooks.starter)
        [event] = written(roles.database)
        run = hooks.namespace.client.get_workflow_handle(webhook_delivery_workflow_id(event.id, endpoint.id))
        async with hooks.worker(with_activities=False), asyncio.timeout(30):
            while not (await run.describe()).raw_description.pending_activities:
                await asyncio.sleep(0.05)
        async with hooks.worker(with_workflows=False):
            await hooks.until(endpoint, "delivered")
        await redeliver(roles, payer.user_id)
        await start_new(roles.service, hooks.starter)
        async with hooks.worker():
            await hooks.until(endpoint, "delivered")
            await receiver.wait_for(2)
    assert len(receiver.requests) == 2


async def test_an_answer_to_the_round_before_does_not_end_the_one_that_was_asked_for(
    hooks: Hooks, roles: RolePair
) -> None:
    payer = await roles.open_account(1)
    asked = False

    async def ask_again_and_accept(writer: asyncio.StreamWriter) -> None:
        nonlocal asked
        if not asked:
            asked = True
            await redeliver(roles, payer.user_id)
        await answer(204)(writer)

    async with running_receiver() as receiver, hooks.delivering():
        receiver.behave = ask_again_and_accept
        endpoint = make_endpoint(roles.database, payer, url=receiver.url)
        await hooks.event(payer)
        await receiver.wait_for(2)
        await hooks.until(endpoint, "delivered")
    assert len(set(receiver.ids)) == 1


async def test_a_start_of_the_round_before_is_no_start_of_the_next(hooks: Hooks, roles: RolePair) -> None:
    payer = await roles.open_account(1)
    make_endpoint(roles.database, payer)
    await hooks.event(payer)
    async with roles.service.transaction() as connection:
        listed = await deliveries.list_to_start(connection, limit=10)
    await redeliver(roles, payer.user_id)
    async with roles.service.transaction() as connection:
        await deliveries.note_started(connection, listed)
        [left] = await deliveries.list_to_start(connection, limit=10)
        await deliveries.note_started(connection, [left])
        assert await deliveries.list_to_start(connection, limit=10) == []
    assert left.round == listed[0].round + 1


async def test_secrets_rotate_without_a_webhook_that_a_receiver_refuses(hooks: Hooks, roles: RolePair) -> None:
    payer = await roles.open_account(1)
    new = make_secret()
    rotated = "SELECT rotate_webhook_secret(%s, %s, %s::interval)"
    async with running_receiver() as receiver, hooks.delivering():
        endpoint = make_endpoint(roles.database, payer, url=receiver.url)
        await hooks.event(payer)
        await hooks.until(endpoint, "delivered")
        assert scalar(roles.database.app_url, rotated, endpoint.id, new, "1 hour", user_id=payer.user_id)
        await hooks.event(payer)
        await hooks.until(endpoint, "delivered", "delivered")
        with connect(roles.database.superuser_url) as superuser:
            superuser.execute("UPDATE webhook_secrets SET expires_at = now() WHERE expires_at IS NOT NULL")
        await hooks.event(payer)
        await hooks.until(endpoint, "delivered", "delivered", "delivered")
    before, during, after = receiver.requests
    before.verified(endpoint.secret)
    during.verified(endpoint.secret)
    during.verified(shown_secret(new))
    after.verified(shown_secret(new))
    with pytest.raises(WebhookVerificationError):
        after.verified(endpoint.secret)


async def test_what_is_deleted_while_it_waits_is_sent_no_more(hooks: Hooks, roles: RolePair) -> None:
    payer = await roles.open_account(1)
    async with running_receiver() as receiver, hooks.worker():
        endpoint = make_endpoint(roles.database, payer, url=receiver.url)
        await hooks.event(payer)
        assert scalar(roles.database.app_url, "SELECT delete_webhook_endpoint(%s)", endpoint.id, user_id=payer.user_id)
        async with hooks.following():
            await hooks.until(endpoint, "stopped")
    assert receiver.requests == []


@pytest.mark.parametrize(
    ("change", "state"),
    [
        ("UPDATE webhook_endpoints SET disabled_at = now(), disabled_reason = 'stopped_by_receiver'", "stopped"),
        ("DELETE FROM webhook_secrets", "stopped"),
        ("UPDATE webhook_deliveries SET state = 'delivered', due_at = NULL, ended_at = now()", "delivered"),
        ("DELETE FROM webhook_deliveries", "deleted"),
        ("SELECT 1", None),
    ],
)
async def test_a_try_is_made_where_one_is_due_and_the_endpoint_takes_it(
    roles: RolePair, change: str, state: str | None
) -> None:
    """At a port that nothing listens on: where it is tried, it is put off, shown, and counted."""
    payer = await roles.open_account(1)
    endpoint = make_endpoint(roles.database, payer, url=f"http://127.0.0.1:{quiet_port()}/")
    await roles.create_submitted(payer, 1)
    [(event_id,)] = query(roles.database.service_url, "SELECT event_id FROM webhook_deliveries")
    with connect(roles.database.superuser_url, triggers=False) as superuser:
        superuser.execute(change.encode())
    counter, before = WEBHOOK_TRIES.labels("unreachable"), WEBHOOK_TRIES.labels("unreachable")._value.get()
    sender = WebhookSender(allow_private=True, seconds_max=SECONDS_MAX)
    outcome = await try_once(roles.service, sender, event_id, endpoint.id)
    tried = query(roles.database.service_url, TRIES)
    if state is None:
        assert isinstance(outcome, Postponed)
        assert (len(tried), counter._value.get() - before) == (1, 1)
        assert outcome.detail == tried[0][2]
    else:
        assert isinstance(outcome, Ended)
        assert (outcome.state, tried, counter._value.get() - before) == (state, [], 0)
    left = [kept for _, kept in deliveries_of(roles.database, endpoint)]
    assert left == ([] if state == "deleted" else [state or "pending"])


# -- given up


async def age(roles: RolePair) -> None:
    """Three days of failures have passed."""
    with connect(roles.database.superuser_url) as superuser:
        superuser.execute("UPDATE webhook_deliveries SET tried_since = now() - interval '3 days', failures = 76")


async def give_up(hooks: Hooks, roles: RolePair, endpoint: Endpoint, *, events: int = 1) -> None:
    for _ in range(events):
        await hooks.event(endpoint.payer)
    await age(roles)
    async with hooks.delivering():
        await hooks.until(endpoint, *["failed"] * events)


async def test_after_three_days_it_is_given_up_with_one_finding_whose_remedy_sends_all_of_it_again(
    hooks: Hooks, roles: RolePair
) -> None:
    payer = await roles.open_account(1)
    async with running_receiver() as receiver:
        receiver.behave = answer(503)
        endpoint = make_endpoint(roles.database, payer, url=receiver.url)
        await give_up(hooks, roles, endpoint, events=2)
        [(finding_id, kind, key, account, detail)] = query(
            roles.database.service_url, "SELECT id, kind, key, billing_account_id, detail FROM findings"
        )
        assert (kind, account) == (FindingKind.WEBHOOK_UNDELIVERED, payer.billing_account_id)
        assert key == f"webhook_undelivered:{endpoint.id}:{datetime.now(UTC).date()}"
        assert "the receiver answered 503" in detail
        assert receiver.url not in detail

        receiver.behave = answer(204)
        request = RemedyRequest(finding_id=finding_id, remedy=Remedy.RETRY, operator="op", reason="it is back")
        async with roles.service.transaction() as connection:
            await take_remedy(connection, request, revenue_share=SHARE)
        async with hooks.delivering():
            await hooks.until(endpoint, "delivered", "delivered")
    assert sorted(receiver.ids[2:]) == sorted(receiver.ids[:2])


async def test_the_last_failure_before_the_end_is_tried_again(hooks: Hooks, roles: RolePair) -> None:
    payer = await roles.open_account(1)
    async with running_receiver() as receiver:
        receiver.behave = answer(503)
        endpoint = make_endpoint(roles.database, payer, url=receiver.url)
        await hooks.event(payer)
        with connect(roles.database.superuser_url) as superuser:
            superuser.execute("UPDATE webhook_deliveries SET tried_since = now() - interval '70 hours', failures = 75")
        async with hooks.delivering():
            await hooks.until_true(lambda: query(roles.database.service_url, TRIES), "a try")
    [(_, state)] = deliveries_of(roles.database, endpoint)
    assert state == "pending"
    assert query(roles.database.service_url, "SELECT * FROM findings") == []


# -- the outbox, and housekeeping


class Broken:
    """A starter that cannot reach Temporal."""

    async def start_webhook_delivery(self, *_: object, **__: object) -> bool:
        raise TemporalUnavailable("it is down")


async def test_what_could_not_be_started_is_started_when_temporal_is_back(hooks: Hooks, roles: RolePair) -> None:
    payer = await roles.open_account(1)
    async with running_receiver() as receiver, hooks.worker():
        endpoint = make_endpoint(roles.database, payer, url=receiver.url)
        await hooks.event(payer)
        with pytest.raises(TemporalUnavailable):
            await start_new(roles.service, Broken())
        assert (
            scalar(roles.database.service_url, "SELECT count(*) FROM webhook_deliveries WHERE started_at IS NULL") == 1
        )
        assert await start_new(roles.service, hooks.starter) == 1
        assert await start_new(roles.service, hooks.starter) == 0
        await hooks.until(endpoint, "delivered")


@dataclass
class Faltering:
    """A starter that fails in each of these ways, one after the other, before it works."""

    starter: Starter
    failures: list[Exception]

    async def start_webhook_delivery(self, delivery: DueDelivery, *, at_once: bool) -> bool:
        """Fail, or start it."""
        if self.failures:
            raise self.failures.pop()
        return await self.starter.start_webhook_delivery(delivery, at_once=at_once)


async def test_new_deliveries_are_followed_through_every_failure(
    hooks: Hooks, roles: RolePair, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(outbox, "AFTER_A_FAILURE_SECONDS", 0.01)
    payer = await roles.open_account(1)
    starter = Faltering(hooks.starter, [TemporalUnavailable("it is down"), TimeoutError(), ZeroDivisionError()])
    async with running_receiver() as receiver, hooks.worker(), outbox.following_outbox(roles.service, starter):
        endpoint = make_endpoint(roles.database, payer, url=receiver.url)
        await hooks.event(payer)
        await hooks.until(endpoint, "delivered")
    assert starter.failures == []


async def test_more_than_a_page_of_new_deliveries_is_started_without_a_pause(
    hooks: Hooks, roles: RolePair, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(outbox, "PAGE", 1)
    monkeypatch.setattr(outbox, "EVERY_SECONDS", 600.0)
    payer = await roles.open_account(1)
    async with running_receiver() as receiver, hooks.worker():
        endpoint = make_endpoint(roles.database, payer, url=receiver.url)
        for _ in range(3):
            await hooks.event(payer)
        async with hooks.following():
            await hooks.until(endpoint, *["delivered"] * 3)


async def test_two_workers_that_start_the_same_delivery_send_it_once(hooks: Hooks, roles: RolePair) -> None:
    payer = await roles.open_account(1)
    async with running_receiver() as receiver, hooks.worker():
        endpoint = make_endpoint(roles.database, payer, url=receiver.url)
        await hooks.event(payer)
        await asyncio.gather(*(start_new(roles.service, hooks.starter) for _ in range(4)))
        await hooks.until(endpoint, "delivered")
    assert len(receiver.requests) == 1


def housekeeping(hooks: Hooks, database: ServiceDatabase) -> WebhookHousekeepingActivities:
    return WebhookHousekeepingActivities(database, starter=hooks.starter)


async def test_a_delivery_that_has_lost_its_workflow_is_found_by_housekeeping_and_no_other(
    hooks: Hooks, roles: RolePair
) -> None:
    payer = await roles.open_account(1)
    async with running_receiver() as receiver, hooks.worker():
        receiver.behave = answer(500)
        endpoint = make_endpoint(roles.database, payer, url=receiver.url)
        await hooks.event(payer)
        await start_new(roles.service, hooks.starter)
        await hooks.until_true(lambda: query(roles.database.service_url, TRIES), "a try")
        await hooks.event(payer)
        with connect(roles.database.superuser_url) as superuser:
            # As if a start had been recorded that has never been: the first one has its run. Of a later round, which a
            # start that is asked for tries at once.
            superuser.execute(
                "UPDATE webhook_deliveries SET round = 2, started_at = now(), due_at = now() - interval '301 seconds'"
            )
        receiver.behave = answer(204)
        run = ActivityEnvironment().run
        keeper = housekeeping(hooks, roles.service)
        assert (await run(keeper.start_overdue_webhooks, DeliveriesToStart(overdue_seconds=600))).counts == {}
        done = await run(keeper.start_overdue_webhooks, DeliveriesToStart(overdue_seconds=300))
        assert done.counts == {"started": 1}
        await hooks.until(endpoint, "delivered", "delivered")


async def test_housekeeping_goes_by_page_after_page_of_what_is_overdue(
    hooks: Hooks, roles: RolePair, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(outbox, "PAGE", 1)
    payer = await roles.open_account(1)
    async with running_receiver() as receiver:
        endpoint = make_endpoint(roles.database, payer, url=receiver.url)
        for _ in range(3):
            await hooks.event(payer)
        with connect(roles.database.superuser_url) as superuser:
            superuser.execute(
                "UPDATE webhook_deliveries SET started_at = now(), due_at = now() - interval '301 seconds'"
            )
        # No worker delivers them yet: what was started stays overdue.
        async with asyncio.timeout(10):
            done = await ActivityEnvironment().run(
                housekeeping(hooks, roles.service).start_overdue_webhooks, DeliveriesToStart(overdue_seconds=300)
            )
        assert done.counts == {"started": 3}
        async with hooks.worker():
            await hooks.until(endpoint, *["delivered"] * 3)


async def test_housekeeping_deletes_what_is_old(hooks: Hooks, roles: RolePair) -> None:
    payer = await roles.open_account(1)
    async with running_receiver() as receiver, hooks.delivering():
        endpoint = make_endpoint(roles.database, payer, url=receiver.url)
        await hooks.event(payer)
        await hooks.until(endpoint, "delivered")
    keeper = housekeeping(hooks, roles.service)
    wanted = WebhooksToPrune(older_than_days=30, batch_size=10)
    assert (await ActivityEnvironment().run(keeper.prune_webhooks, wanted)).counts == {}
    with connect(roles.database.superuser_url, triggers=False) as superuser:
        superuser.execute("UPDATE webhook_deliveries SET ended_at = now() - interval '31 days'")
        superuser.execute("UPDATE webhook_events SET created_at = now() - interval '31 days'")
    done = await ActivityEnvironment().run(keeper.prune_webhooks, wanted)
    assert done.counts == {"webhook_deliveries": 1, "webhook_events": 1}


async def test_a_day_of_waiting_leaves_the_history_of_a_moment(hooks: Hooks, roles: RolePair) -> None:
    payer = await roles.open_account(1)
    failures = 0

    async def fail_often(writer: asyncio.StreamWriter) -> None:
        nonlocal failures
        failures += 1
        await answer(500 if failures < 6 else 204)(writer)

    async with running_receiver() as receiver, hooks.delivering():
        receiver.behave = fail_often
        endpoint = make_endpoint(roles.database, payer, url=receiver.url)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("domain.webhooks.retries.FIRST_DELAYS", (timedelta(milliseconds=10),) * 9)
            await hooks.event(payer)
            await hooks.until(endpoint, "delivered")
        [event] = written(roles.database)
        handle: WorkflowHandle[Any, DeliveryEnd] = hooks.namespace.client.get_workflow_handle(
            webhook_delivery_workflow_id(event.id, endpoint.id), result_type=DeliveryEnd
        )
        end = await handle.result()
        history = await handle.fetch_history()
    assert (end.state, end.detail) == ("delivered", "the receiver answered 204")
    assert len(history.events) < 15
