"""A process that does nothing but follow the chain, with the product's scanner: killed and paused by its pid.

python -m tests.crash.follower
"""

from __future__ import annotations

import asyncio
import sys

from chain.reader import ChainReader
from composition import chain_reader, service_database
from db.engine import ServiceDatabase
from domain.transfers.watching import poll_interval
from services.transfers.block_scanner import BlockScanner
from settings import Settings, environment, load

FOLLOWS = "follows the chain"


async def follow(settings: Settings, chain: ChainReader, database: ServiceDatabase) -> None:
    """Read each block, and say so once at the head."""
    scan = BlockScanner(chain, database, settings.require_transfer_scope(), from_block=None, look_back_blocks=10)
    has_said_so = False
    while True:
        step = await scan.advance()
        if step.is_at_head and not has_said_so:
            print(FOLLOWS, file=sys.stderr, flush=True)  # noqa: T201 - the test reads what the process writes
            has_said_so = True
        if step.is_at_head:
            await asyncio.sleep(poll_interval(settings.block_time).total_seconds())


async def main() -> None:
    """Until it is killed."""
    settings = load(environment())
    async with service_database(settings) as database, chain_reader(settings) as chain:
        await follow(settings, chain, database)


if __name__ == "__main__":
    asyncio.run(main())
