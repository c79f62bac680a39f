"""Price feeds on the local chain, real contracts, and methods that are priced by them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final
from uuid import uuid4

from devstack.chain import LocalChain, call_data, payer_wallets
from tests.support.postgres import Database
from tests.support.sql import connect

DECIMALS: Final = 8
FIRST_AGGREGATOR: Final = 1 << 64


@dataclass
class Feed:
    """A feed whose rounds a test sets."""

    chain: LocalChain
    address: str
    last: int = 0

    async def answer(self, usd: int | str, *, age: int = 0) -> int:
        """A complete round of that price, updated so many seconds before its block; its number."""
        raw = int(usd) * 10**DECIMALS if isinstance(usd, int) else int(usd)
        updated = await self._next_time() - age
        self.last += 1
        return await self.set(self.last, raw, updated)

    async def set(
        self, number: int, raw: int, updated_at: int, *, started_at: int | None = None, answered_in: int | None = None
    ) -> int:
        """A round as given, whether or not it makes sense."""
        round_id = FIRST_AGGREGATOR + number
        started = updated_at if started_at is None else started_at
        answered = round_id if answered_in is None else FIRST_AGGREGATOR + answered_in
        await self.send("set", round_id, raw, started, updated_at, answered)
        return round_id

    async def send(self, function: str, *arguments: Any) -> None:
        """A transaction of the feed's owner, in a block of its own."""
        owner = payer_wallets()[-1]
        sent = await self.chain.send(owner.private_key, self.address, call_data("PriceFeed", function, *arguments))
        await self.chain.mine()
        await self.chain.wait_for_receipt(sent)

    async def _next_time(self) -> int:
        block = await self.chain.rpc("eth_getBlockByNumber", "latest", False)
        return int(block["timestamp"], 16)


async def deploy_feed(chain: LocalChain, usd: int | str | None = None, *, description: str = "ETH / USD") -> Feed:
    """A feed of eight decimals; with `usd` it has a first answer."""
    feed = Feed(chain, await chain.deploy_token("PriceFeed", description, DECIMALS))
    if usd is not None:
        await feed.answer(usd)
    return feed


def add_source(database: Database, chain: LocalChain, method_id: str, feed: str, **columns: Any) -> None:
    """The price of a method, as an operator registers it."""
    values = {
        "id": uuid4(),
        "method_id": method_id,
        "chain_id": chain.chain_id,
        "feed": feed,
        "description": "ETH / USD",
        "decimals": DECIMALS,
        "max_age_seconds": 3_600,
        "max_divergence_bps": 100,
        "sequencer_grace_seconds": 3_600,
        **columns,
    }
    names, places = ", ".join(values), ", ".join(f"%({name})s" for name in values)
    with connect(database.service_url) as service:
        service.execute(f"INSERT INTO price_sources ({names}) VALUES ({places})".encode(), values)
