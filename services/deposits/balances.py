"""What deposit addresses hold, at one block: balances + swept = deposits, for each token.

Balances only trigger: where an address holds more than is known, its transfers are read again, and what is found there
is a deposit like any other. That is also how a payment is found that comes to an address long out of use, which is in
no lane. What stays different is a finding.

Of an EVM chain's own coin every address is in the lane, and what is different is a finding at once: it came without a
call, as a block's reward does, or a node has left a call out. It is credited by no path.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Final

import structlog

from chain.contract_calls import HOLDERS_MAX
from chain.reader import ChainReader
from db.deposits.balances import expected_balances, find_block_read_to
from db.deposits.lanes import list_tokens
from db.deposits.registry import list_rings, list_treasuries, page_addresses
from db.engine import ServiceDatabase
from db.operations.findings import open_finding, settle_finding
from db.transfers import observed
from domain.chain import DepositLane, DepositScope
from domain.coin import NATIVE_COIN
from domain.deposits.methods import DepositAddress, Scheme
from domain.errors import ChainUnavailable
from domain.operations.findings import Finding, FindingKind
from domain.utxo import is_utxo_chain
from services.deposits.scanner import DepositScanner
from services.deposits.verification import problem_of

FINALIZED: Final = "finalized"

_ANSWERS_ONE: Final = bytes.fromhex("600160005260206000f3")
"""The shortest code that returns a word: mstore(0, 1), return(0, 32)."""

SHOWN_MAX: Final = 20
"""Addresses of one token that a finding names."""

REREAD_MAX: Final = 200
"""Addresses that are read again in one check; the rest is in the next one."""

CLOCK_SLACK: Final = timedelta(minutes=10)
"""How much later than a block's time an address may seem to be given out: the times are of two clocks."""

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Difference:
    """An address that holds something else than is known, in raw units of a token."""

    token: str
    address: DepositAddress
    holds_raw: int
    expected_raw: int


@dataclass(slots=True)
class BalancesChecked:
    """What a check has found. `block` is None where no block could be compared yet."""

    block: int | None = None
    addresses: int = 0
    found_transfers: int = 0
    """Transfers that no lane had read."""
    differences: list[Difference] = field(default_factory=list)
    opened: list[Finding] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)


class DepositBalances:
    """The check of one chain. Safe to run twice and at once."""

    def __init__(
        self,
        chain: ChainReader,
        database: ServiceDatabase,
        quiet: DepositScanner,
        *,
        chain_id: int,
        treasury: str,
        min_confirmations: int,
    ) -> None:
        """`quiet` reads the quiet lane, which is behind by design, up to the head first."""
        self._chain = chain
        self._database = database
        self._quiet = quiet
        self._chain_id = chain_id
        self._treasury = treasury
        self._min_confirmations = min_confirmations

    async def check(self, on_progress: Callable[[], object] = lambda: None) -> BalancesChecked:
        """Compare all addresses with the chain, and record what differs.

        Raises `ChainUnavailable`, also where endpoints disagree about a balance, and `DatabaseUnavailable`.
        """
        if is_utxo_chain(self._chain_id):
            # Nothing is read by its balance there: each block is read whole, for all addresses.
            return BalancesChecked()
        while not (await self._quiet.advance()).is_at_head:
            pass
        checked = BalancesChecked(block=await self._block(is_coin=False))
        if checked.block is None:
            return checked
        async with self._database.autocommit() as connection:
            tokens = await list_tokens(connection, self._chain_id)
        addresses = await self._derived()
        checked.addresses = len(addresses)
        for token in tokens:
            differences = await self._compare(token, addresses, checked.block, on_progress)
            more = [one for one in differences if one.holds_raw > one.expected_raw][:REREAD_MAX]
            for one in more:
                checked.found_transfers += await self._read_again(tokens, one.address, checked.block)
                on_progress()
            if more:
                again = {one.address.id: one.address for one in differences}
                differences = await self._compare(token, list(again.values()), checked.block, on_progress)
            await self._record(token, differences, checked.block, checked)
        coins_block = await self._block(is_coin=True)
        if coins_block is not None and not await self._has_state(coins_block):
            # Its lane stands, which is reported where it stands: what tokens are found to be does not wait for it.
            log.warning("no node has kept the state to compare the chain's own coin", block=coins_block)
        elif coins_block is not None:
            contracts = [address for address in addresses if address.scheme is Scheme.CREATE2]
            differences = await self._compare(NATIVE_COIN, contracts, coins_block, on_progress)
            await self._record(NATIVE_COIN, differences, coins_block, checked)
        return checked

    async def _block(self, *, is_coin: bool) -> int | None:
        """The block to compare: the newest that is finalized and read by all lanes, or by that of the coin.

        Where the nodes do not keep its state, as full nodes do not for longer than some minutes, one that is confirmed.
        """
        progress = await self._chain.heads.progress((FINALIZED,))
        async with self._database.autocommit() as connection:
            read_to = await find_block_read_to(connection, self._chain_id, is_coin=is_coin)
        finalized = progress.tagged.get(FINALIZED)
        if read_to is None:
            return None
        if finalized is not None and await self._has_state(min(finalized, read_to)):
            return min(finalized, read_to)
        return max(min(progress.head_number - self._min_confirmations + 1, read_to), 0)

    async def _has_state(self, block: int) -> bool:
        try:
            await self._chain.contracts.deployless_call(_ANSWERS_ONE, at_block=block)
        except ChainUnavailable:
            return False
        return True

    async def _derived(self) -> list[DepositAddress]:
        """All addresses of the chain that are what they say; others are another check's finding."""
        async with self._database.snapshot() as connection:
            rings = {ring.id: ring for ring in await list_rings(connection)}
            treasuries = [self._treasury, *await list_treasuries(connection)]
            return [
                address
                async for page in page_addresses(connection, chain_id=self._chain_id)
                for address in page
                if problem_of(address, rings, treasuries) is None
            ]

    async def _compare(
        self, token: str, addresses: Sequence[DepositAddress], block: int, on_progress: Callable[[], object]
    ) -> list[Difference]:
        differences = []
        contracts = self._chain.contracts
        for part in _parts(addresses):
            holders = [one.address for one in part]
            if token == NATIVE_COIN:
                held = await contracts.coin_balances(holders, at_block=block)
            else:
                held = await contracts.token_balances(token, holders, at_block=block)
            async with self._database.autocommit() as connection:
                expected = await expected_balances(connection, token, [one.id for one in part], block=block)
            differences += [
                Difference(token, address, holds_raw, expected[address.id])
                for address, holds_raw in zip(part, held, strict=True)
                if holds_raw != expected[address.id]
            ]
            on_progress()
        return differences

    async def _read_again(self, tokens: Sequence[str], address: DepositAddress, last: int) -> int:
        """Record all transfers to an address since it was given out; how many were new."""
        scope = DepositScope.of(self._chain_id, DepositLane.QUIET, tokens, [address.address])
        begin = await self._first_block_after(address, last)
        added = 0
        while begin <= last:
            found = await self._chain.logs.transfers(scope, begin, last)
            async with self._database.transaction() as connection:
                added += await observed.record_transfers(connection, scope, found.transfers)
            begin = found.last + 1
        log.info("a deposit address was read again", address=address.address, transfers=added)
        return added

    async def _first_block_after(self, address: DepositAddress, last: int) -> int:
        """A block before which the address was not given out yet, by the blocks' times."""
        low, high = 0, last
        since = address.created_at - CLOCK_SLACK
        while low < high:
            middle = (low + high) // 2
            block = (await self._chain.logs.blocks([middle])).get(middle)
            if block is not None and block.mined_at < since:
                low = middle + 1
            else:
                high = middle
        return low

    async def _record(
        self, token: str, differences: Sequence[Difference], block: int, checked: BalancesChecked
    ) -> None:
        checked.differences += differences
        finding = self._finding(token, differences, block)
        async with self._database.transaction() as connection:
            if not differences:
                await settle_finding(connection, finding.key)
                return
            checked.findings.append(finding)
            if await open_finding(connection, finding):
                checked.opened.append(finding)

    def _finding(self, token: str, differences: Sequence[Difference], block: int) -> Finding:
        holds, expected = sum(one.holds_raw for one in differences), sum(one.expected_raw for one in differences)
        return Finding(
            kind=FindingKind.DEPOSITS_DIFFER,
            detail=f"in block {block}, {len(differences)} deposit addresses hold {holds} raw units of token {token}, "
            f"what came to them less what was swept is {expected}",
            chain_id=self._chain_id,
            ledger_reference=f"{self._chain_id}:{token.lower()}",
            value_raw=abs(holds - expected) or None,
            details={
                "token": token,
                "block": block,
                "addresses": [
                    {
                        "address": one.address.address,
                        "holdsRaw": str(one.holds_raw),
                        "expectedRaw": str(one.expected_raw),
                    }
                    for one in differences[:SHOWN_MAX]
                ],
            },
        )


def _parts(addresses: Sequence[DepositAddress]) -> Iterator[Sequence[DepositAddress]]:
    for start in range(0, len(addresses), HOLDERS_MAX):
        yield addresses[start : start + HOLDERS_MAX]
