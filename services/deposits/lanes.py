"""The deposit addresses that are read, each derived again before its money counts."""

from __future__ import annotations

import time
from collections.abc import Sequence
from datetime import timedelta
from typing import Final
from uuid import UUID

import structlog

from chain.addresses import checksum_address
from db.deposits.lanes import (
    ActiveAddress,
    has_addresses,
    has_coin_method,
    list_active_addresses,
    list_addresses,
    list_tokens,
)
from db.deposits.registry import list_rings, list_treasuries
from db.engine import ServiceConnection, ServiceDatabase
from domain.chain import DepositLane, DepositScope
from domain.coin import NATIVE_COIN
from domain.deposits.methods import DepositAddress, Scheme
from domain.utxo import is_utxo_chain
from services.deposits.verification import problem_of

EVERY_ADDRESS: Final = timedelta(days=36_500)

COIN_NEW_WITHIN: Final = timedelta(minutes=30)
"""Of the coin's lane all addresses are kept in memory, and with each block only those are read that are newer than
this, or in use."""

COIN_READ_EVERY: Final = timedelta(minutes=10)
"""Where they were not read for so long, because the database was away or the lane waited, all are read again."""

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
        self._of_coin: dict[UUID, ActiveAddress] = {}
        self._of_coin_read_at: float | None = None
        self._coin_lane: DepositScope | None = None
        self._derived: set[ActiveAddress] = set()
        self._refused: set[UUID] = set()

    async def exist(self) -> bool:
        """Whether any has been given out: before that nothing is read. Raises `DatabaseUnavailable`."""
        async with self._database.autocommit() as connection:
            return await has_addresses(connection, self._chain_id)

    async def has_coin(self) -> bool:
        """Whether an EVM chain's own coin is a payment method. Raises `DatabaseUnavailable`."""
        async with self._database.autocommit() as connection:
            return await has_coin_method(connection, self._chain_id)

    async def scope(self, lane: DepositLane) -> DepositScope:
        """What to read now in a lane. Raises `DatabaseUnavailable`."""
        if lane is DepositLane.COIN:
            return await self._coin_scope()
        async with self._database.autocommit() as connection:
            tokens = [NATIVE_COIN] if self._reads_blocks else await list_tokens(connection, self._chain_id)
            # Where blocks are read whole, any number of addresses costs the same.
            within = EVERY_ADDRESS if self._reads_blocks else ACTIVE_WITHIN[lane]
            rows = await list_active_addresses(connection, self._chain_id, within=within)
            await self._derive_new(connection, rows)
        return DepositScope.of(self._chain_id, lane, tokens, [row.address for row in rows if row in self._derived])

    async def _coin_scope(self) -> DepositScope:
        """All addresses of contracts, and the treasuries that these pay.

        Not those of keys: what an address of a key holds of the coin also pays for gas, which no trace shows.
        """
        begun = time.monotonic()
        last = self._of_coin_read_at
        is_recent = last is not None and begun - last < COIN_READ_EVERY.total_seconds()
        async with self._database.autocommit() as connection:
            within = COIN_NEW_WITHIN if is_recent else EVERY_ADDRESS
            rows = await list_active_addresses(connection, self._chain_id, within=within, scheme=Scheme.CREATE2)
            await self._derive_new(connection, rows)
            treasuries = {checksum_address(one) for one in (self._treasury, *await list_treasuries(connection))}
        new = {row.id: row for row in rows if row in self._derived and row.id not in self._of_coin}
        self._of_coin_read_at = begun
        scope = self._coin_lane
        if scope is None or new or set(scope.treasuries) != treasuries:
            # Of a hundred thousand addresses this takes longer than all else that is done with a block.
            self._of_coin |= new
            addresses = [row.address for row in self._of_coin.values()]
            scope = DepositScope.of(self._chain_id, DepositLane.COIN, [NATIVE_COIN], addresses)
            self._coin_lane = scope = scope.model_copy(update={"treasuries": tuple(sorted(treasuries))})
        return scope

    async def _derive_new(self, connection: ServiceConnection, rows: Sequence[ActiveAddress]) -> None:
        new = [row.id for row in rows if row not in self._derived and row.id not in self._refused]
        if new:
            await self._derive(connection, await list_addresses(connection, new))

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
