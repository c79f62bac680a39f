"""Port through which services and activities start workflows without importing the starter.

`starter.settlement_starter.TemporalStarter` is the implementation; `composition.py` connects the two. A caller that
needs one of the calls only takes that one, by the type beside it.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from datetime import datetime
from typing import Protocol
from uuid import UUID

from domain.operations.resolutions import RemedyRequest


class Submit(Protocol):
    """`SettlementStarter.submit`."""

    async def __call__(self, user_id: str, attempt_id: UUID, tx_hash: str, *, mined_at: datetime | None) -> object: ...


ResumePayment = Callable[[str, UUID], Awaitable[bool]]
"""`SettlementStarter.resume_payment`."""

StartResolution = Callable[[RemedyRequest], Awaitable[object]]
"""`SettlementStarter.start_resolution`."""

StartSingletons = Callable[[], Awaitable[list[str]]]
"""`SettlementStarter.start_singletons`."""


class SettlementStarter(Protocol):
    """Starts workflows. Every call is safe to repeat, and raises `SettleError`."""

    async def submit(self, user_id: str, attempt_id: UUID, tx_hash: str, *, mined_at: datetime | None = None) -> object:
        """Submit a payment on the payer's behalf."""

    async def resume_payment(self, user_id: str, attempt_id: UUID) -> bool:
        """Start a run for an attempt for which something is due; False where one is running."""

    async def start_resolution(self, request: RemedyRequest) -> object:
        """Execute an operator's remedy; a repetition finds it done."""

    async def start_singletons(self) -> list[str]:
        """Start the singleton workflows that do not run; returns their ids."""
