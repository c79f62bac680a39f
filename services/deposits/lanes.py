"""The deposit addresses that are read, each derived again before its money counts."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from typing import Final
from uuid import UUID

import structlog

from db.deposits.lanes import ActiveAddress, has_addresses, list_active_addresses, list_addresses, list_tokens
from db.deposits.registry import list_rings, list_treasuries
from db.engine import ServiceConnection, ServiceDatabase
from domain.chain import DepositLane, DepositScope
from domain.coin import NATIVE_COIN
from domain.deposits.methods import DepositAddress
from domain.utxo import is_utxo_chain
from services.deposits.verification import problem_of

EVERY_ADDRESS: Final = timedelta(days=36_500)

ACTIVE_WITHIN: Final = {DepositLane.BUSY: timedelta(days=1), DepositLane.QUIET: timedelta(days=30)}
"""How long after it was last asked for or paid an address is in a lane. What comes later is found by the balances
(`services.deposits.balances`).
"""

log = structlog.get_logger(__name__)


class DepositAddresses:
    """The addresses of one chain.

    A row of `deposit_addresses` is written by a process that people reach, so that it alone is no reason to credit
    anything: a forged one may name an address at which others receive their money. Each is derived from its owner and
    the keys, once in a process's life; one that derives differently is not read. The nightly check makes it a finding.
    """

    def __init__(self, database: ServiceDatabase, chain_id: int, treasury: str) -> None:
        """`treasury` is that of the settings, which no worker may have written down yet."""
        self._database = database
        self._treasury = treasury
        self._chain_id = chain_id
        self._reads_blocks = is_utxo_chain(chain_id)
        self._derived: set[ActiveAddress] = set()
        self._refused: set[UUID] = set()

    async def exist(self) -> bool:
        """Whether any has been given out: before that nothing is read. Raises `DatabaseUnavailable`."""
        async with self._database.autocommit() as connection:
            return await has_addresses(connection, self._chain_id)

    async def scope(self, lane: DepositLane) -> DepositScope:
        """What to read now in a lane. Raises `DatabaseUnavailable`."""
        async with self._database.autocommit() as connection:
            tokens = [NATIVE_COIN] if self._reads_blocks else await list_tokens(connection, self._chain_id)
            # Where blocks are read whole, any number of addresses costs the same.
            within = EVERY_ADDRESS if self._reads_blocks else ACTIVE_WITHIN[lane]
            rows = await list_active_addresses(connection, self._chain_id, within=within)
            new = [row.id for row in rows if row not in self._derived and row.id not in self._refused]
            if new:
                await self._derive(connection, await list_addresses(connection, new))
        return DepositScope.of(self._chain_id, lane, tokens, [row.address for row in rows if row in self._derived])

    async def _derive(self, connection: ServiceConnection, rows: Sequence[DepositAddress]) -> None:
        rings = {ring.id: ring for ring in await list_rings(connection)}
        treasuries = [self._treasury, *await list_treasuries(connection)]
        for row in rows:
            problem = problem_of(row, rings, treasuries)
            if problem is None:
                self._derived.add(ActiveAddress(row.id, row.address, row.billing_account_id))
            else:
                self._refused.add(row.id)
                log.error("a deposit address is not read", address=row.address, id=str(row.id), problem=problem)
