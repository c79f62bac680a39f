"""The part of the product's starter that resolves holds, without what payments need."""

from __future__ import annotations

from dataclasses import dataclass

from temporalio.client import Client

from db.billing.lapsed import LapsedHold
from starter.hold_resolutions import start_hold_resolution


@dataclass(frozen=True, slots=True)
class Starter:
    """Starts runs in one namespace."""

    temporal: Client

    async def start_hold_resolution(self, hold: LapsedHold) -> bool:
        """Start resolving a lapsed hold; False where a run is at work on it."""
        return await start_hold_resolution(self.temporal, hold)
