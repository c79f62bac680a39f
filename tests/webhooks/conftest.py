"""Deliveries by the product's own workflow, activities and outbox, without what payments need."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import pytest
from temporalio.client import Client
from temporalio.worker import UnsandboxedWorkflowRunner, Worker

from activities.interceptors import DomainErrors
from activities.webhooks.delivery import WebhookDeliveryActivities
from db.accounts.wallets import Payer
from db.webhooks.deliveries import DueDelivery
from devstack.processes import wait_until
from domain.webhooks import retries
from services.webhooks import outbox
from services.webhooks.outbox import following_outbox
from services.webhooks.sender import WebhookSender
from starter.webhook_deliveries import start_webhook_delivery
from tests.support.payments import RolePair
from tests.support.servers import Namespace
from tests.support.webhooks import Endpoint, deliveries_of
from workflows.deliver_webhook import DeliverWebhook
from workflows.naming import WEBHOOK_TASK_QUEUE

SECONDS_MAX = 1.0


@dataclass(frozen=True, slots=True)
class Starter:
    """The part of the product's starter that starts deliveries."""

    temporal: Client

    async def start_webhook_delivery(self, delivery: DueDelivery, *, at_once: bool) -> bool:
        """Start a delivery; False where it has a run."""
        return await start_webhook_delivery(self.temporal, delivery, at_once=at_once)


@dataclass
class Hooks:
    """A database whose payments are events, and a namespace in which they are delivered."""

    roles: RolePair
    namespace: Namespace
    sender: WebhookSender = field(default_factory=lambda: WebhookSender(allow_private=True, seconds_max=SECONDS_MAX))
    _numbers: int = 0

    @property
    def starter(self) -> Starter:
        """What starts deliveries."""
        return Starter(self.namespace.client)

    @asynccontextmanager
    async def worker(self, *, with_workflows: bool = True, with_activities: bool = True) -> AsyncIterator[None]:
        """A worker that delivers what it is given, or takes one half of the work."""
        activities = WebhookDeliveryActivities(self.roles.service, self.sender).activities()
        async with Worker(
            self.namespace.client,
            task_queue=WEBHOOK_TASK_QUEUE,
            workflows=[DeliverWebhook] if with_workflows else [],
            activities=activities if with_activities else [],
            interceptors=[DomainErrors()],
            workflow_runner=UnsandboxedWorkflowRunner(),
        ):
            yield

    def following(self) -> AbstractAsyncContextManager[None]:
        """What finds new deliveries."""
        return following_outbox(self.roles.service, self.starter)

    @asynccontextmanager
    async def delivering(self) -> AsyncIterator[None]:
        """Both."""
        async with self.worker(), self.following():
            yield

    async def event(self, payer: Payer) -> None:
        """Cause a `payment.submitted`."""
        self._numbers += 1
        await self.roles.create_submitted(payer, self._numbers)

    async def until(self, endpoint: Endpoint, *states: str) -> None:
        """Wait until an endpoint's deliveries are in these states."""
        await self.until_true(
            lambda: [state for _, state in deliveries_of(self.roles.database, endpoint)] == list(states),
            f"deliveries {states}",
        )

    async def until_true(self, condition: Callable[[], Any], what: str) -> None:
        """Wait for a condition, with a deadline."""
        await wait_until(lambda: bool(condition()), timeout_seconds=30, what=what)


@pytest.fixture
def hooks(roles: RolePair, namespace: Namespace, monkeypatch: pytest.MonkeyPatch) -> Hooks:
    """One of a test's own, whose database is asked for new deliveries at shorter intervals."""
    monkeypatch.setattr(outbox, "EVERY_SECONDS", 0.1)
    return Hooks(roles, namespace)


@pytest.fixture
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """What was not accepted is tried again after a moment."""
    monkeypatch.setattr(retries, "FIRST_DELAYS", (timedelta(milliseconds=100),) * 30)
