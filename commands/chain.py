"""`settle chain rescan`: reads blocks again manually, with the nodes of the current settings."""

from __future__ import annotations

from math import inf

from pydantic import BaseModel, ConfigDict
from pydantic.alias_generators import to_camel

from chain.reader import ChainReader
from commands.output import print_json, progress, stdout
from composition import chain_reader, service_database
from db.engine import ServiceDatabase
from db.transfers.gaps import list_gaps
from db.transfers.scopes import WatchedScope, list_watched_scopes
from domain.chain import DepositLane, DepositScope, TransferScope
from domain.errors import ChainUnavailable, InvalidInput
from services.deposits.lanes import DepositAddresses
from services.deposits.scanner import DepositScanner
from services.transfers.block_scanner import BlockScanner
from settings import Settings


class RescannedScope(BaseModel):
    """Blocks read for one token and treasury. Block numbers are None where the range holds none of theirs."""

    model_config = ConfigDict(frozen=True, alias_generator=to_camel, populate_by_name=True)

    token: str
    treasury: str
    first_block: int | None
    last_block: int | None
    blocks_read: int
    transfers: int
    error: str | None = None


async def rescan(settings: Settings, *, first: int, last: int, as_json: bool) -> bool:
    """Read these blocks again for all followed scopes; blocks that were read leave their gap.

    The worker acts on what is found. False where no node returned some of it. Raises `InvalidInput`.
    """
    if first > last:
        raise InvalidInput("--to", f"expected a block from {first} on, got {last}")
    done: list[RescannedScope] = []
    async with service_database(settings) as database, chain_reader(settings) as chain:
        async with database.transaction() as connection:
            watched = await list_watched_scopes(connection, settings.chain_id)
            missing = {gap.scope for gap in await list_gaps(connection, settings.chain_id)}
        if not watched:
            raise ChainUnavailable(f"chain {settings.chain_id} has not been followed yet: start a worker")
        for one in watched:
            scan = _scanner(chain, database, one.scope, settings.require_treasury_address())
            done.append(await _rescan_one(scan, one, first, last))
        async with database.transaction() as connection:
            left = [gap for gap in await list_gaps(connection, settings.chain_id) if gap.scope in missing]
    if as_json:
        print_json(done)
    for scope in done:
        what = f"{scope.blocks_read} blocks, {scope.transfers} transfers to {scope.treasury}"
        (progress if as_json else stdout.print)(f"{what}: {scope.error}" if scope.error else what)
    for gap in left:
        progress(f"still not read: blocks {gap.first_block} to {gap.last_block} of {gap.scope.words}")
    return all(scope.error is None for scope in done)


def _scanner(chain: ChainReader, database: ServiceDatabase, scope: TransferScope, treasury: str) -> BlockScanner:
    if isinstance(scope, DepositScope):
        addresses = DepositAddresses(database, scope.chain_id, treasury)
        lane = DepositLane(scope.treasury)
        return DepositScanner(chain, database, addresses, lane, chain_id=scope.chain_id, look_back_blocks=0)
    return BlockScanner(chain, database, scope, from_block=None, look_back_blocks=0)


async def _rescan_one(scan: BlockScanner, one: WatchedScope, first: int, last: int) -> RescannedScope:
    """The part of the range that the scope has followed: blocks before its start and above its cursor are not read."""
    begin, end = max(first, one.first_block), min(last, one.block_number)
    names = {"token": one.scope.token, "treasury": one.scope.treasury}
    if begin > end:
        return RescannedScope(**names, first_block=None, last_block=None, blocks_read=0, transfers=0)
    read_to = begin - 1
    error: str | None = None

    def note(block: int) -> None:
        nonlocal read_to
        read_to = block

    try:
        await scan.read_again(begin, end, seconds_max=inf, on_range=note)
    except ChainUnavailable as unavailable:
        error = f"from block {read_to + 1} on: {unavailable.message}"
    return RescannedScope(
        **names,
        first_block=begin,
        last_block=end,
        blocks_read=read_to - begin + 1,
        transfers=await scan.count_recorded(begin, read_to),
        error=error,
    )
