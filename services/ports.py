"""Ports through which services and activities start workflows without importing the starter.

`starter.settlement_starter.TemporalStarter` implements all of them; `composition.py` connects the two. A constructor
takes the narrowest port that it needs.
"""

from __future__ import annotations

from datetime import datetime
from typing import Protocol
from uuid import UUID

from db.billing.lapsed import LapsedHold
from db.webhooks.deliveries import DueDelivery
from domain.operations.resolutions import RemedyRequest


class PaymentSubmitter(Protocol):
    """Submits payments. Safe to repeat; raises `SettleError`."""

    async def submit(self, user_id: str, attempt_id: UUID, tx_hash: str, *, mined_at: datetime | None = None) -> object:
        """Submit a payment on the payer's behalf."""


class PaymentResumer(Protocol):
    """Restarts lost workflows of payments. Safe to repeat; raises `SettleError`."""

    async def resume_payment(self, user_id: str, attempt_id: UUID) -> bool:
        """Start a run for an attempt for which something is due; False where one is running."""


class ReversalStarter(Protocol):
    """Starts the workflows that reverse credited payments, if need be. Safe to repeat; raises `SettleError`."""

    async def start_reversal(self, user_id: str, attempt_id: UUID, *, again: bool) -> bool:
        """Start or join the run of a credited payment that may be reorged out, or is half reversed.

        After a completed run only `again`; False where there is one and it was not to be started again.
        """


class SingletonStarter(Protocol):
    """Starts the workflows that always run. Safe to repeat; raises `SettleError`."""

    async def start_singletons(self) -> list[str]:
        """Start the singleton workflows that do not run; returns their ids."""


class RecoveryStarter(PaymentResumer, Protocol):
    """Restarts whatever a reconciliation finds interrupted. Safe to repeat; raises `SettleError`."""

    async def start_resolution(self, request: RemedyRequest) -> object:
        """Execute an operator's remedy; a repetition finds it done."""


class HoldResolutionStarter(Protocol):
    """Starts resolving holds whose gateway has died. Safe to repeat; raises `SettleError`."""

    async def start_hold_resolution(self, hold: LapsedHold) -> bool:
        """Start resolving a lapsed hold; False where a run is at work on it."""


class WebhookDeliveryStarter(Protocol):
    """Starts deliveries of webhooks. Safe to repeat; raises `SettleError`."""

    async def start_webhook_delivery(self, delivery: DueDelivery, *, at_once: bool) -> bool:
        """Start a delivery; False where it has a run, which tries `at_once` where that is asked."""


class SettlementStarter(
    PaymentSubmitter,
    RecoveryStarter,
    ReversalStarter,
    SingletonStarter,
    HoldResolutionStarter,
    WebhookDeliveryStarter,
    Protocol,
):
    """All of them."""
