"""Sweeps: sending what was signed, and booking what was moved."""

from __future__ import annotations

from datetime import timedelta
from typing import Final

from temporalio import activity
from temporalio.exceptions import ApplicationError, ApplicationErrorCategory

from activities.deposits.signatures import SweepEnded, SweepSignatures, SweptBooked, SweptToBook
from activities.messages import SweepRef
from services.deposits.sweeps import Sweeps

STILL_WAITING: Final = "SWEEP_WAITING"
"""Type of the failure by which the activity is retried; its message is shown to operators."""

WAIT_BLOCKS: Final = 2
"""A nonce is asked about again after so many blocks."""


class SweepActivities(SweepSignatures):
    """No key is here: transactions come signed. `block_time` is the chain's."""

    def __init__(self, sweeps: Sweeps, *, block_time: timedelta) -> None:
        self._sweeps = sweeps
        self._block_time = block_time

    @activity.defn
    async def advance_sweep(self, sweep: SweepRef) -> SweepEnded:
        """Send what is not mined. Fails, to be retried, until every nonce is decided."""
        progress = await self._sweeps.advance(sweep.sweep_id)
        if not progress.is_done:
            raise ApplicationError(
                f"{progress.decided} of {progress.nonces} decided; {progress.waits_for}",
                type=STILL_WAITING,
                category=ApplicationErrorCategory.BENIGN,
                next_retry_delay=max(WAIT_BLOCKS * self._block_time, timedelta(seconds=1)),
            )
        return SweepEnded(nonces=progress.nonces, problems=progress.problems)

    @activity.defn
    async def book_swept(self, wanted: SweptToBook) -> SweptBooked:
        """Book what deposit addresses have sent to a treasury; first, what was left of sweeps is sent."""
        await self._sweeps.resume(on_progress=activity.heartbeat)
        return SweptBooked(transfers=await self._sweeps.book(on_progress=activity.heartbeat))
