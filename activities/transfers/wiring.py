"""The activities that follow the chain: for the treasury, for those that attempts still name, for deposit addresses."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta
from math import ceil
from typing import Final

from activities.signatures import Activity
from activities.transfers.watch_chain import ScopeWatch, ScopeWatches, WatchingActivities
from activities.wiring import Dependencies
from db.clock import estimated_now
from domain.chain import DepositLane, DepositScope, TransferScope
from domain.transfers.watching import Promise
from domain.utxo import is_utxo_chain
from services.deposits.crediting import DepositCrediting
from services.deposits.lanes import DepositAddresses
from services.deposits.pricing import DepositPricing
from services.deposits.scanner import DepositScanner
from services.payments.authorizations import ClaimedAuthorizations
from services.payments.recovery import PaymentRecovery, RecentSubmissions
from services.transfers.block_scanner import BlockScanner
from services.transfers.matcher import TransferMatcher

QUIET_EVERY: Final = timedelta(minutes=5)
"""How often the quiet lane of deposit addresses is read."""


def activities(deps: Dependencies) -> list[Activity]:
    """All of the subject."""
    settings = deps.settings

    def open_scope(scope: TransferScope, promise: Promise | None) -> ScopeWatch:
        age = max(estimated_now() - promise.since, timedelta(0)) if promise is not None else timedelta(0)
        scan = BlockScanner(
            deps.chain,
            deps.service,
            scope,
            from_block=settings.chain_watch_from_block,
            look_back_blocks=ceil((settings.payment_intent_ttl + age) / settings.block_time),
            tags=deps.finality.tags if promise is None else (),
        )
        matcher = TransferMatcher(
            deps.service,
            scope,
            deps.starter,
            deps.publish,
            chain=deps.chain,
            min_confirmations=settings.min_confirmations,
            dust_below_raw=settings.dust_below_raw,
        )
        return ScopeWatch(scan, matcher)

    lanes, scope = _DepositLanes(deps), settings.require_transfer_scope()
    if is_utxo_chain(settings.chain_id):
        watches = ScopeWatches(deps.service, scope, lambda _, promise: lanes.busy)
    else:
        watches = ScopeWatches(deps.service, scope, open_scope, lanes)
    recovery = PaymentRecovery(deps.service, chain_id=settings.chain_id, starter=deps.starter)
    recent = RecentSubmissions(deps.service, recovery)
    claims = ClaimedAuthorizations(deps.service, deps.chain, deps.starter, chain_id=settings.chain_id)
    return WatchingActivities(watches, recent, deps.finality, claims, block_time=settings.block_time).activities()


class _DepositLanes:
    """Both lanes, as soon as an address has been given out."""

    def __init__(self, deps: Dependencies) -> None:
        settings = deps.settings
        self._addresses = DepositAddresses(deps.service, settings.chain_id, settings.require_treasury_address())
        pricing = DepositPricing(
            deps.service,
            deps.prices,
            chain_id=settings.chain_id,
            min_confirmations=settings.min_confirmations,
            price_lifetime=timedelta(seconds=settings.charge_price_ttl_seconds),
        )
        crediting = DepositCrediting(
            deps.service,
            deps.starter,
            pricing,
            chain_id=settings.chain_id,
            min_confirmations=settings.min_confirmations,
        )

        def lane(lane: DepositLane, every: timedelta | None) -> ScopeWatch:
            scan = DepositScanner(
                deps.chain,
                deps.service,
                self._addresses,
                lane,
                chain_id=settings.chain_id,
                look_back_blocks=ceil(settings.payment_intent_ttl / settings.block_time),
                from_block=settings.chain_watch_from_block if is_utxo_chain(settings.chain_id) else None,
            )
            return ScopeWatch(scan, crediting, every.total_seconds() if every is not None else None)

        self._reads_coin = settings.native_coin_deposits
        self._coin = lane(DepositLane.COIN, None)
        self.busy = lane(DepositLane.BUSY, None)
        """Of Bitcoin's family the only one, with all addresses: their blocks are read whole."""

        self._coin_scope = DepositScope.of(settings.chain_id, DepositLane.COIN)
        self._lanes: dict[TransferScope, ScopeWatch] = {
            DepositScope.of(settings.chain_id, DepositLane.BUSY): self.busy,
            DepositScope.of(settings.chain_id, DepositLane.QUIET): lane(DepositLane.QUIET, QUIET_EVERY),
        }

    async def read(self) -> Mapping[TransferScope, ScopeWatch]:
        """The lanes to follow now; none before an address was given out. Raises `DatabaseUnavailable`."""
        if not await self._addresses.exist():
            return {}
        if not (self._reads_coin and await self._addresses.has_coin()):
            return self._lanes
        return {**self._lanes, self._coin_scope: self._coin}
