"""The nightly comparison of what deposit addresses hold."""

from __future__ import annotations

from temporalio import activity

from activities.deposits.signatures import BalancesFound, BalanceSignatures, BalancesToCheck
from services.deposits.balances import DepositBalances
from telemetry.metrics.worker import FINDINGS_OPENED


class BalanceActivities(BalanceSignatures):
    """Safe to repeat and to be stopped half-way."""

    def __init__(self, balances: DepositBalances) -> None:
        self._balances = balances

    @activity.defn
    async def check_deposit_balances(self, wanted: BalancesToCheck) -> BalancesFound:
        """Compare what deposit addresses hold with what came to them; read again what holds more."""
        checked = await self._balances.check(activity.heartbeat)
        for finding in checked.opened:
            FINDINGS_OPENED.labels(finding.kind.value).inc()
        return BalancesFound(
            block=checked.block,
            addresses=checked.addresses,
            found_transfers=checked.found_transfers,
            problems=tuple(finding.detail for finding in checked.findings),
        )
