"""A charge's progress as server-sent events, for its page, which anyone with its id may open."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from typing import Final
from uuid import UUID

from fastapi.sse import format_sse_event
from pydantic import Field

from api.http.sse import KEEPALIVE_SECONDS, RETRY_MILLISECONDS, STREAM_SECONDS_MAX, happens
from api.resources import Services
from domain.deposits.charges import ChargeStatus, DepositState, SignedState
from domain.errors import Unavailable
from services.answers import ResponseModel
from services.deposits.charges import Owner
from services.deposits.views import ChargeView

TICK_SECONDS_MIN: Final = 0.5
TICK_SECONDS_MAX: Final = 3.0


class ChargeProgress(ResponseModel):
    """What a payer may see of a charge: nothing of the account that it belongs to."""

    status: ChargeStatus
    amount_raw: int
    received_raw: int
    missing_raw: int
    confirming: list[int | None] = Field(description="confirmations of each deposit that is not credited yet")
    confirmations_needed: int | None
    signed: list[SignedState] = Field(description="what was signed and is not seen yet")

    @classmethod
    def of(cls, view: ChargeView) -> ChargeProgress:
        """The part of a charge that changes while it is paid."""
        waiting = [deposit for deposit in view.deposits if deposit.state is DepositState.CONFIRMING]
        return cls(
            status=view.status,
            amount_raw=view.amount_raw,
            received_raw=view.received_raw,
            missing_raw=view.missing_raw,
            # More than needed is the same as needed: the page is not read again for it.
            confirming=[
                None if found.confirmations is None else min(found.confirmations, found.confirmations_needed)
                for found in waiting
            ],
            signed=[payment.state for payment in view.signed_payments],
            confirmations_needed=next((found.confirmations_needed for found in waiting), None),
        )


async def charge_events(services: Services, owner: Owner, charge_id: UUID, first: ChargeView) -> AsyncIterator[bytes]:
    """The charge's progress now and at every change, until it is paid or the process stops."""
    tick_seconds = min(max(services.settings.block_time.total_seconds() / 2, TICK_SECONDS_MIN), TICK_SECONDS_MAX)
    progress = ChargeProgress.of(first)
    yield _event(progress, retry=RETRY_MILLISECONDS)
    started = said = time.monotonic()
    while progress.status is not ChargeStatus.PAID and time.monotonic() - started < STREAM_SECONDS_MAX:
        if await happens(services.stopping.wait, within_seconds=tick_seconds):
            return
        try:
            async with services.streams.reading():
                now = ChargeProgress.of(await services.charges.charge(owner, charge_id))
        except (Unavailable, TimeoutError):
            now = progress  # no news; the next read may have some
        if now != progress:
            progress, said = now, time.monotonic()
            yield _event(progress)
        elif time.monotonic() - said >= KEEPALIVE_SECONDS:
            said = time.monotonic()
            yield format_sse_event(comment="waiting")


def _event(progress: ChargeProgress, *, retry: int | None = None) -> bytes:
    return format_sse_event(event="status", data_str=progress.model_dump_json(by_alias=True), retry=retry)
