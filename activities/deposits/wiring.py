"""The activities about deposit addresses."""

from __future__ import annotations

from activities.deposits.balances import BalanceActivities
from activities.deposits.sweeps import SweepActivities
from activities.deposits.verification import AddressActivities
from activities.signatures import Activity
from activities.wiring import Dependencies
from domain.chain import DepositLane
from services.deposits.balances import DepositBalances
from services.deposits.lanes import DepositAddresses
from services.deposits.scanner import DepositScanner
from services.deposits.sweeps import Sweeps


def activities(deps: Dependencies) -> list[Activity]:
    """All of the subject."""
    settings, treasury = deps.settings, deps.settings.require_treasury_address()
    sweeps = Sweeps(deps.service, deps.chain, treasury=treasury, min_confirmations=settings.min_confirmations)
    quiet = DepositScanner(
        deps.chain,
        deps.service,
        DepositAddresses(deps.service, settings.chain_id, treasury),
        DepositLane.QUIET,
        chain_id=settings.chain_id,
        look_back_blocks=0,
    )
    balances = DepositBalances(
        deps.chain,
        deps.service,
        quiet,
        chain_id=settings.chain_id,
        treasury=treasury,
        min_confirmations=settings.min_confirmations,
    )
    return [
        *BalanceActivities(balances).activities(),
        *AddressActivities(deps.service, treasury=treasury).activities(),
        *SweepActivities(sweeps, block_time=settings.block_time).activities(),
    ]
