"""Beside the followers of a chain: signed authorizations, from their broadcast to the proof that they never pay."""

from __future__ import annotations

import asyncio
import time
from typing import Final

import structlog

from domain.errors import Unavailable
from services.payments.authorizations import ClaimedAuthorizations

SUBMIT_EVERY_SECONDS: Final = 1.0
"""A payer waits for it."""

END_EVERY_SECONDS: Final = 15.0

log = structlog.get_logger(__name__)


async def follow_authorizations(claims: ClaimedAuthorizations) -> None:
    """Check without end, whatever the followers of the chain wait for."""
    ends_at = 0.0
    while True:
        try:
            await claims.submit_relayed()
            if time.monotonic() >= ends_at:
                await claims.end_overdue()
                await claims.end_of_charges()
                ends_at = time.monotonic() + END_EVERY_SECONDS
        except Unavailable as error:
            log.warning("authorizations not checked", error=error.message)
        except Exception:
            # What is due is read again each time: a fault stops neither it nor the followers.
            log.exception("checking authorizations failed")
        await asyncio.sleep(SUBMIT_EVERY_SECONDS)
