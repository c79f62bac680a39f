"""Replay notices a delivery that takes other steps."""

from __future__ import annotations

import pytest
from temporalio import workflow
from temporalio.workflow import NondeterminismError

from activities.messages import WebhookDelivery
from activities.webhooks.signatures import DeliveryEnd
from tests.support.histories import replay
from tests.webhooks.record_histories import RECORDED
from workflows.deliver_webhook import DeliverWebhook
from workflows.naming import DELIVER_WEBHOOK


@workflow.defn(name=DELIVER_WEBHOOK)
class _WithoutSending(DeliverWebhook):
    """The event is not sent."""

    @workflow.run
    async def run(self, delivery: WebhookDelivery) -> DeliveryEnd:
        return DeliveryEnd(state="delivered")


async def test_replay_notices_an_event_that_is_not_sent() -> None:
    with pytest.raises(NondeterminismError):
        await replay(RECORDED.read("accepted"), _WithoutSending, in_sandbox=False)
