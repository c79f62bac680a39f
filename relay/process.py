"""The relay's process: opened, run until SIGTERM. What a pass is interrupted in, the next process goes on with."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Final

import structlog

from chain.authorizations import DEPLOYING_GAS_MAX, TRANSFER_GAS_MAX
from chain.reader import ChainReader
from db.engine import RelayDatabase
from db.startup import check_relay_database
from domain.errors import Unavailable
from relay.policy import RelayPolicy
from relay.relay import Relay
from relay.signing import RelayKey
from telemetry.health import Check, serve_health
from telemetry.metrics.relay import RELAY_BALANCE_MIN, RELAY_PASSES_FAILED, RELAY_SPENT_MAX, WEI_PER_COIN
from telemetry.metrics.topups import note_wallet_factories

PASS_EVERY_SECONDS_MAX: Final = 1.0
"""A payer waits for it; on a faster chain there is one with each block."""

PATIENCE_SECONDS_MAX: Final = 15.0
"""Longest wait while chain or database is unavailable; it doubles each time."""

STALE_AFTER_SECONDS: Final = 60.0
"""A relay that has completed no pass for so long is not ready."""

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class RelayOptions:
    """What the process is made of. `chain` is opened and closed by it."""

    database_url: str = field(repr=False)
    chain: ChainReader
    key: RelayKey
    policy: RelayPolicy
    health_host: str
    health_port: int | None


class RelayLoop:
    """Passes, one after the other, with the pauses between them."""

    def __init__(self, relay: Relay, policy: RelayPolicy) -> None:
        self._relay = relay
        self._policy = policy
        self._pause_seconds = min(policy.block_time.total_seconds() / 2, PASS_EVERY_SECONDS_MAX)
        self._completed_at = time.monotonic()
        self._reason = ""

    async def run(self) -> None:
        """Run until cancelled."""
        patience_seconds = self._pause_seconds
        while True:
            try:
                await self._relay.run_once()
                self._completed_at, self._reason = time.monotonic(), ""
                patience_seconds = self._pause_seconds
            except Unavailable as error:
                patience_seconds = self._failed(error.code, error.message, patience_seconds)
            except Exception as error:
                # What is open and claimed is read again each time: a fault in one pass is no end of the process.
                log.exception("pass failed")
                patience_seconds = self._failed(type(error).__name__, type(error).__name__, patience_seconds)
            await asyncio.sleep(patience_seconds)

    def _failed(self, code: str, message: str, patience_seconds: float) -> float:
        RELAY_PASSES_FAILED.labels(code).inc()
        if self._reason != message:
            log.warning("relay waits", error=message)
        self._reason = message
        return min(2 * patience_seconds, PATIENCE_SECONDS_MAX)

    async def check_passes(self) -> None:
        """Passes are completed. Raises `Unavailable`."""
        if time.monotonic() - self._completed_at > STALE_AFTER_SECONDS:
            raise Unavailable(f"no pass completed for {STALE_AFTER_SECONDS:.0f} s: {self._reason or 'it hangs'}")

    async def check_gas(self) -> None:
        """The account can pay for a transaction at the most that it offers. Raises `Unavailable`."""
        account = self._relay.account
        if account is None:
            raise Unavailable("the chain was not read yet")
        gas = DEPLOYING_GAS_MAX if self._policy.wallet_factories else TRANSFER_GAS_MAX
        if account.balance_wei < gas * min(2 * account.base_fee_wei, self._policy.max_fee_wei):
            raise Unavailable(f"the account holds {account.balance_wei} wei: send it gas")


@asynccontextmanager
async def running_relay(options: RelayOptions) -> AsyncIterator[int]:
    """Run the relay for the length of the block; yields the health port. Raises `SettleError` when a check fails."""
    policy = options.policy
    database = RelayDatabase(options.database_url)
    RELAY_BALANCE_MIN.set(policy.balance_alert_wei / WEI_PER_COIN)
    RELAY_SPENT_MAX.set(policy.gas_per_day_wei / WEI_PER_COIN)
    note_wallet_factories(policy.chain_id, policy.wallet_factories)
    try:
        await check_relay_database(database)
        async with options.chain as chain:
            loop = RelayLoop(Relay(database, chain, options.key, policy), policy)
            task = asyncio.create_task(loop.run(), name="relay")
            checks: dict[str, Check] = {
                "database": partial(check_relay_database, database),
                "chain": chain.heads.height,
                "passes": loop.check_passes,
                "gas": loop.check_gas,
            }
            try:
                async with serve_health(
                    options.health_host,
                    options.health_port,
                    is_alive=lambda: not task.done(),
                    checks=checks,
                    sdk_metrics_address=None,
                    setting="RELAY_HEALTH_PORT",
                ) as port:
                    yield port
            finally:
                task.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await task
    finally:
        await database.dispose()


async def run_relay(options: RelayOptions) -> None:
    """Run until SIGTERM or SIGINT. Raises `SettleError` when the start-up checks fail."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for signal_number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(signal_number, stop.set)
    async with running_relay(options) as port:
        log.info("relay runs", relayer=options.key.address, chain_id=options.policy.chain_id, health_port=port)
        await stop.wait()
    log.info("relay stopped")
