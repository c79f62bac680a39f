"""Beside the followers of a chain: hashes that were recorded and have no run, because their sender died in between."""

from __future__ import annotations

import asyncio
from typing import Final

import structlog

from domain.errors import Unavailable
from services.payments.recovery import RecentSubmissions

EVERY_SECONDS: Final = 15.0
"""With `services.payments.recovery.STRANDED_AFTER`, a run is started within half a minute."""

log = structlog.get_logger(__name__)


async def follow_submissions(recent: RecentSubmissions) -> None:
    """Check without end, whatever the chain's nodes do."""
    while True:
        try:
            await recent.check()
        except Unavailable as error:
            log.warning("recent submissions not checked", error=error.message)
        except Exception:
            # The next check starts where this one did: a fault stops neither it nor the followers.
            log.exception("checking recent submissions failed")
        await asyncio.sleep(EVERY_SECONDS)
