"""Implementation of `services.ports.SettlementStarter` with Temporal."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from uuid import UUID

from temporalio.client import Client

from db.billing.lapsed import LapsedHold
from db.webhooks.deliveries import DueDelivery
from domain.operations.resolutions import RemedyRequest
from starter.hold_resolutions import start_hold_resolution
from starter.payments import PaymentsClient
from starter.resolutions import start_remedy
from starter.singletons import SingletonWorkflow, start_missing
from starter.webhook_deliveries import start_webhook_delivery


class TemporalStarter:
    """Starts workflows for layers that must not import Temporal. It does not own its dependencies."""

    def __init__(self, temporal: Client, payments: PaymentsClient, singletons: Sequence[SingletonWorkflow]) -> None:
        self._temporal = temporal
        self._payments = payments
        self._singletons = singletons

    async def submit(self, user_id: str, attempt_id: UUID, tx_hash: str, *, mined_at: datetime | None = None) -> object:
        """Submit a payment on the payer's behalf."""
        return await self._payments.submit(user_id, attempt_id, tx_hash, mined_at=mined_at)

    async def resume_payment(self, user_id: str, attempt_id: UUID) -> bool:
        """Start a run for an attempt for which something is due; False where one is running."""
        return await self._payments.resume_payment(user_id, attempt_id)

    async def start_reversal(self, user_id: str, attempt_id: UUID, *, again: bool) -> bool:
        """Start or join the run that reverses a credited payment; False where one has completed, and not `again`."""
        return await self._payments.start_reversal(user_id, attempt_id, again=again)

    async def start_resolution(self, request: RemedyRequest) -> object:
        """Execute an operator's remedy."""
        return await start_remedy(self._temporal, request)

    async def start_hold_resolution(self, hold: LapsedHold) -> bool:
        """Start resolving a lapsed hold; False where a run is at work on it."""
        return await start_hold_resolution(self._temporal, hold)

    async def start_webhook_delivery(self, delivery: DueDelivery, *, at_once: bool) -> bool:
        """Start a delivery; False where it has a run, which tries `at_once` where that is asked."""
        return await start_webhook_delivery(self._temporal, delivery, at_once=at_once)

    async def start_singletons(self) -> list[str]:
        """Start the singleton workflows that do not run; returns their ids."""
        return await start_missing(self._temporal, self._singletons)
