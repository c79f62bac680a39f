"""Governance activities, as the system tenant's own principal: it sees of its account what a payer sees of theirs."""

from __future__ import annotations

from datetime import timedelta
from typing import Final

from temporalio import activity

from activities.operations.signatures import (
    GovernanceSignatures,
    HeartbeatRef,
    HeartbeatToTake,
    SpanToReport,
    TakenHeartbeat,
)
from chain.reader import ChainReader
from db.clock import read_clock
from db.engine import ServiceDatabase, TenantDatabase
from db.operations import governance_calls
from db.operations import heartbeats as governance
from domain.errors import BookkeepingError, ChainUnavailable
from domain.identifiers import SYSTEM_TENANT_USER_ID
from domain.operations.governance import TENANT_NOT_VISIBLE, Heartbeat, Income, Reading, evaluate_heartbeat
from domain.operations.governance_call import problem_of

LOW_BALANCES_MAX: Final = 10
"""Unpublished crossings that one heartbeat publishes."""


class GovernanceActivities(GovernanceSignatures):
    """Reads as the system tenant's principal, role settle_settlement; writes as settle_service. Safe to run twice."""

    def __init__(
        self, tenants: TenantDatabase, service: ServiceDatabase, chain: ChainReader, *, worker_version: str
    ) -> None:
        self._tenants = tenants
        self._service = service
        self._chain = chain
        self._worker_version = worker_version

    @activity.defn
    async def take_heartbeat(self, wanted: HeartbeatToTake) -> TakenHeartbeat:
        """Read everything once and store the heartbeat; a second run of the same heartbeat finds it stored."""
        heartbeat = await self._find(wanted.key)
        if heartbeat is None:
            heartbeat = await self._keep(wanted, await self._read())
        async with self._service.autocommit() as connection:
            low = await governance.list_low_balances_to_announce(connection, wanted.key, limit=LOW_BALANCES_MAX)
        return TakenHeartbeat(heartbeat=heartbeat, low_balances=tuple(low))

    @activity.defn
    async def low_balance_announced(self, heartbeat: HeartbeatRef) -> None:
        """Mark the event of a crossing as published."""
        async with self._service.autocommit() as connection:
            await governance.update_low_balance_announced(connection, heartbeat.key)

    @activity.defn
    async def read_income(self, span: SpanToReport) -> Income:
        """Movements of the system tenant's account in a period."""
        async with self._tenants.transaction(SYSTEM_TENANT_USER_ID) as connection:
            income = await governance.read_income(connection, span.since, span.until)
        if income is None:
            raise BookkeepingError(TENANT_NOT_VISIBLE)
        return income

    async def _find(self, key: str) -> Heartbeat | None:
        async with self._service.autocommit() as connection:
            return await governance.find_heartbeat(connection, key)

    async def _read(self) -> Reading:
        async with self._tenants.transaction(SYSTEM_TENANT_USER_ID) as connection:
            account = await governance.read_system_tenant(connection)
        async with self._service.autocommit() as service:
            newest_call = await governance_calls.find_latest(service)
        problems: list[str] = []
        refusal = problem_of(newest_call) if newest_call is not None else None
        if refusal is not None:
            problems.append(refusal)
        if account.is_flagged is None:
            problems.append(TENANT_NOT_VISIBLE)
        if account.schema_problem is not None:
            problems.append(account.schema_problem)
        newest = None
        try:
            newest = await self._chain.heads.newest_block()
        except ChainUnavailable as error:
            problems.append(error.message)
        return Reading(
            account_present=account.is_flagged is not None,
            is_flagged=bool(account.is_flagged),
            balance_credits=account.balance_credits,
            last_revenue_share_at=account.last_revenue_share_at,
            schema_revision=account.schema_revision,
            chain_id=self._chain.chain_id,
            head_number=newest.number if newest else None,
            head_mined_at=newest.mined_at if newest else None,
            problems=tuple(problems),
        )

    async def _keep(self, wanted: HeartbeatToTake, reading: Reading) -> Heartbeat:
        """Write the heartbeat after the newest one; after a concurrent one where there was one."""
        while True:
            async with self._service.autocommit() as connection:
                latest = await governance.find_latest(connection)
                heartbeat = evaluate_heartbeat(
                    reading,
                    key=wanted.key,
                    scheduled_at=wanted.scheduled_at,
                    now=await read_clock(connection.connection),
                    threshold_credits=wanted.low_balance_credits,
                    head_age_max=timedelta(seconds=wanted.head_age_seconds_max),
                    worker_version=self._worker_version,
                    was_low=latest is not None and latest.is_low,
                )
                if await governance.insert_heartbeat(connection, heartbeat, after=latest):
                    return heartbeat
                kept = await governance.find_heartbeat(connection, wanted.key)
            if kept is not None:
                return kept
