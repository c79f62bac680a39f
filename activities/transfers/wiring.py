"""The activities that follow the chain: for the treasury, and for those that attempts still name."""

from __future__ import annotations

from datetime import timedelta
from math import ceil

from activities.signatures import Activity
from activities.transfers.watch_chain import ScopeWatch, ScopeWatches, WatchingActivities
from activities.wiring import Dependencies
from db.clock import estimated_now
from domain.chain import TransferScope
from domain.transfers.watching import Promise
from services.payments.authorizations import ClaimedAuthorizations
from services.payments.recovery import PaymentRecovery, RecentSubmissions
from services.transfers.block_scanner import BlockScanner
from services.transfers.matcher import TransferMatcher


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

    watches = ScopeWatches(deps.service, settings.require_transfer_scope(), open_scope)
    recovery = PaymentRecovery(deps.service, chain_id=settings.chain_id, starter=deps.starter)
    recent = RecentSubmissions(deps.service, recovery)
    claims = ClaimedAuthorizations(deps.service, deps.chain, deps.starter, chain_id=settings.chain_id)
    return WatchingActivities(watches, recent, deps.finality, claims, block_time=settings.block_time).activities()
