"""The database's side of calls: holds and charges, as often as it takes, and never twice."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Coroutine, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, Final
from uuid import UUID

import structlog

from db.billing import claims, holds
from db.billing.claims import Claim
from db.billing.holds import Captured, HoldAnswer, HoldRequest, KeyState, Progress, RequestUsage
from db.engine import TenantDatabase
from domain.billing.charges import CallEnd, Charge
from domain.billing.pricing import credits_for_usd
from domain.errors import DatabaseUnavailable
from gateway.policy import CAPTURE_SECONDS_MAX
from telemetry.metrics import gateway as metrics

RETRY_SECONDS_MIN: Final = 0.1
RETRY_SECONDS_MAX: Final = 1.0

LOST_HOLD_SECONDS: Final = 30.0
"""A statement whose answer was lost may still take effect until the server's own limit on it, 20 s."""

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Settled:
    """What became of a hold. Amounts are credits."""

    charged: int | None
    """None where the charge is left to who resolves lapsed holds."""
    balance: int | None
    """After it; None where that is not known yet."""


class CallBooks:
    """Holds of this process's calls. `owner` is its name on them."""

    def __init__(self, database: TenantDatabase, *, owner: str, lease_seconds: float, grace_credits: int) -> None:
        self._database = database
        self.owner = owner
        self.lease_seconds = lease_seconds
        self._grace_credits = grace_credits
        self._background: set[asyncio.Task[None]] = set()

    async def hold(self, asked: HoldRequest) -> HoldAnswer:
        """Set credits aside. Raises `DatabaseUnavailable`; a hold whose answer was lost is then released."""
        try:
            async with self._database.hot_statement() as connection:
                return await holds.hold(connection, asked)
        except BaseException:
            self._in_background(self._release_lost(asked.hold_id))
            raise

    async def settle(
        self,
        hold_id: UUID,
        charge: Charge,
        *,
        end: CallEnd,
        markup_factor: Decimal,
        provider: str,
        upstream_id: str | None,
        balance_before: int | None,
    ) -> Settled:
        """Charge a call, or release its hold where nothing is owed; tried again for `CAPTURE_SECONDS_MAX`.

        So long and no longer, even where the server keeps the connection and does not answer. What it executes later is
        then found by who resolves lapsed holds. They also charge what fails for any other reason: the answer is there,
        and its client is to have it.
        """
        is_free = charge.is_nothing and charge.usage.is_empty and charge.doubt is None
        delay_seconds = RETRY_SECONDS_MIN
        reason = "PostgreSQL does not answer"
        try:
            async with asyncio.timeout(CAPTURE_SECONDS_MAX):
                while True:
                    try:
                        async with self._database.hot_statement() as connection:
                            if is_free:
                                await holds.void(connection, hold_id)
                                return Settled(0, balance_before)
                            captured = await holds.capture(
                                connection,
                                hold_id,
                                charge,
                                end=end,
                                markup_factor=markup_factor,
                                provider=provider,
                                upstream_id=upstream_id,
                                grace_credits=self._grace_credits,
                            )
                        return self._settled(hold_id, charge, captured)
                    except DatabaseUnavailable as error:
                        metrics.CAPTURE_RETRIES.inc()
                        reason = error.message
                    await asyncio.sleep(delay_seconds)
                    delay_seconds = min(delay_seconds * 2, RETRY_SECONDS_MAX)
        except TimeoutError:
            log.error("a charge is left to be resolved", hold_id=str(hold_id), reason=reason)
        except Exception:
            log.exception("a charge is left to be resolved", hold_id=str(hold_id))
        metrics.LEFT_TO_RESOLVE.inc()
        return Settled(None, None)

    def _settled(self, hold_id: UUID, charge: Charge, captured: Captured) -> Settled:
        if captured.outcome == "captured":
            metrics.COST_CREDITS.inc(credits_for_usd(charge.provider_cost_usd))
            absorbed = credits_for_usd(charge.absorbed_cost_usd) + (captured.uncollected or 0)
            metrics.ABSORBED_CREDITS.inc(absorbed)
        elif captured.outcome == "repeated":
            # An answer that was lost, or the hold was resolved while this process was paused.
            log.warning("a call was charged before", hold_id=str(hold_id), charged=captured.charged)
        else:
            metrics.REFUSED_CAPTURES.labels(captured.outcome).inc()
            log.error("a call cannot be charged", hold_id=str(hold_id), outcome=captured.outcome)
        return Settled(captured.charged, captured.balance)

    async def move(self, hold_id: UUID, upstream: str) -> None:
        """Another upstream is tried. Raises `DatabaseUnavailable`."""
        async with self._database.hot_statement() as connection:
            await holds.move(connection, hold_id, owner=self.owner, upstream=upstream)

    async def renew(self, progress: Sequence[Progress]) -> list[UUID]:
        """Extend leases; the holds that are not this process's any more. Raises `DatabaseUnavailable`."""
        async with self._database.hot_statement() as connection:
            return await holds.renew(connection, progress, owner=self.owner, lease_seconds=self.lease_seconds)

    def note(self, progress: Progress) -> None:
        """Note how far a call is, at once and in the background: the heartbeat would do it later."""
        self._in_background(self._note(progress))

    async def find_key(self, key_hash: str) -> KeyState | None:
        """A key and its account. Raises `DatabaseUnavailable`."""
        async with self._database.hot_statement() as connection:
            return await holds.find_key(connection, key_hash)

    async def usage_of_request(self, key_hash: str, request_id: str) -> RequestUsage | None:
        """What became of a request of the key's account. Raises `DatabaseUnavailable`."""
        async with self._database.hot_statement() as connection:
            return await holds.usage_of_request(connection, key_hash, request_id)

    async def claim(self, key_hash: str, key: str, *, request_hash: bytes, request_id: str, hold_id: UUID) -> Claim:
        """Claim a call by its Idempotency-Key. Raises `DatabaseUnavailable`."""
        async with self._database.hot_statement() as connection:
            return await claims.claim(
                connection,
                key_hash,
                key,
                request_hash=request_hash,
                request_id=request_id,
                hold_id=hold_id,
                lease_seconds=self.lease_seconds,
            )

    async def finish(
        self,
        key_id: UUID,
        key: str,
        *,
        request_id: str,
        status: int | None,
        headers: dict[str, str],
        body: bytes | None,
    ) -> None:
        """Store a claimed call's answer, or give the claim up. Raises `DatabaseUnavailable`."""
        async with self._database.hot_statement() as connection:
            await claims.finish(
                connection, key_id, key, request_id=request_id, status=status, headers=headers, body=body
            )

    async def finish_background(self, *, timeout_seconds: float) -> None:
        """Wait for what is done in the background; what takes longer is left."""
        if self._background:
            await asyncio.wait(self._background, timeout=timeout_seconds)
        for task in self._background:
            task.cancel()

    async def _note(self, progress: Progress) -> None:
        try:
            await self.renew([progress])
        except DatabaseUnavailable as error:
            log.warning("a call's progress is not noted", hold_id=str(progress.hold_id), reason=error.message)

    async def _release_lost(self, hold_id: UUID) -> None:
        until = time.monotonic() + LOST_HOLD_SECONDS
        while time.monotonic() < until:
            try:
                async with self._database.hot_statement() as connection:
                    if await holds.void(connection, hold_id):
                        log.info("a hold whose answer was lost is released", hold_id=str(hold_id))
                        return
            except DatabaseUnavailable:
                until = max(until, time.monotonic() + 2 * RETRY_SECONDS_MAX)
            await asyncio.sleep(RETRY_SECONDS_MAX)

    def _in_background(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._background.add(task)
        task.add_done_callback(self._background.discard)
