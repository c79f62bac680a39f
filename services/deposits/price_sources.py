"""The price feeds of a method, as an operator registers them: asked before they are stored, and shown with their age.

Every refusal names the option of `settle methods add` that it is about.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal, InvalidOperation
from typing import Final
from uuid import uuid4

from chain.addresses import checksum_address
from db.deposits.prices import find_source, insert_source
from db.engine import ServiceConnection
from domain.deposits.prices import (
    BPS,
    MAX_AGE_SECONDS,
    MAX_DIVERGENCE_BPS,
    SEQUENCER_GRACE_SECONDS,
    PriceSource,
    Quote,
)
from domain.deposits.worth import is_dollar_token
from domain.errors import InvalidInput, PriceUnavailable
from services.deposits.pricing import Prices

DAY_SECONDS: Final = 86_400
AGE_SECONDS_MAX: Final = 30 * DAY_SECONDS


@dataclass(frozen=True, slots=True)
class AskedSource:
    """What an operator asks for. Prices are in US dollars, for one whole token."""

    feed: str
    second_feed: str | None = None
    sequencer_feed: str | None = None
    max_age_seconds: int = MAX_AGE_SECONDS
    max_divergence_bps: int = MAX_DIVERGENCE_BPS
    sequencer_grace_seconds: int = SEQUENCER_GRACE_SECONDS
    min_price: Decimal | None = None
    max_price: Decimal | None = None
    chain_id: int | None = None
    """Of the feeds; None: as the settings have it."""


@dataclass(frozen=True, slots=True)
class PriceState:
    """What a source says now: a quote, or why there is none."""

    source: PriceSource
    quote: Quote | None
    problem: str | None

    @property
    def age_seconds(self) -> int | None:
        """How long ago the feed was updated."""
        return (
            None
            if self.quote is None
            else max(0, int((datetime.now(UTC) - self.quote.feed_updated_at).total_seconds()))
        )

    @property
    def words(self) -> str:
        """In one line."""
        if self.quote is None:
            return str(self.problem)
        return f"{self.quote.price.text} US dollars by {self.source.description}, updated {self.age_seconds} s ago"


def parse_source(
    symbol: str,
    *,
    price_feed: str | None,
    second_feed: str | None = None,
    sequencer_feed: str | None = None,
    max_age: int | None = None,
    max_divergence_bps: int | None = None,
    sequencer_grace: int | None = None,
    min_price: str | None = None,
    max_price: str | None = None,
    price_chain: int | None = None,
) -> AskedSource | None:
    """Parse the options about the price of a token; None where there are none. Raises `InvalidInput`."""
    if price_feed is None:
        _require_alone(locals())
        return None
    if is_dollar_token(symbol):
        raise InvalidInput("--price-feed", f"{symbol} is registered as a dollar token: its price is a dollar")
    age = _between("--max-age", max_age, MAX_AGE_SECONDS, 1, AGE_SECONDS_MAX)
    bps = _between("--max-divergence-bps", max_divergence_bps, MAX_DIVERGENCE_BPS, 1, BPS)
    grace = _between("--sequencer-grace", sequencer_grace, SEQUENCER_GRACE_SECONDS, 0, DAY_SECONDS)
    for option, given, other, name in (
        ("--max-divergence-bps", max_divergence_bps, second_feed, "--second-feed"),
        ("--sequencer-grace", sequencer_grace, sequencer_feed, "--sequencer-feed"),
    ):
        if given is not None and other is None:
            raise InvalidInput(option, f"belongs to {name}")
    return AskedSource(
        feed=checksum_address(price_feed, field="--price-feed"),
        second_feed=None if second_feed is None else checksum_address(second_feed, field="--second-feed"),
        sequencer_feed=None if sequencer_feed is None else checksum_address(sequencer_feed, field="--sequencer-feed"),
        max_age_seconds=age,
        max_divergence_bps=bps,
        sequencer_grace_seconds=grace,
        min_price=_dollars("--min-price", min_price),
        max_price=_dollars("--max-price", max_price),
        chain_id=price_chain,
    )


def _require_alone(given: Mapping[str, object]) -> None:
    for name, value in given.items():
        if name not in {"symbol", "price_feed"} and value is not None:
            raise InvalidInput(f"--{name.replace('_', '-')}", "belongs to --price-feed")


def _between(option: str, value: int | None, default: int, lowest: int, highest: int) -> int:
    if value is not None and not lowest <= value <= highest:
        raise InvalidInput(option, f"expected {lowest} to {highest}, got {value}")
    return default if value is None else value


def _dollars(option: str, text: str | None) -> Decimal | None:
    if text is None:
        return None
    try:
        value = Decimal(text)
    except InvalidOperation:
        value = Decimal(0)
    if not value.is_finite() or value <= 0:
        raise InvalidInput(option, f"expected US dollars above 0, such as 500 or 0.25, got {text!r:.40}")
    return value


async def check_source(
    prices: Prices, method_id: str, asked: AskedSource, *, chain_id: int
) -> tuple[PriceSource, Quote]:
    """What the feeds say of themselves, and their price now.

    Raises `InvalidInput` where one is no feed, `PriceUnavailable` where there is no price now, and `ChainUnavailable`.
    """
    feeds = prices.feeds(chain_id)
    if feeds is None:
        raise InvalidInput(
            "--price-chain",
            f"no nodes of chain {chain_id}: expected CHAIN_ID, or PRICE_FEED_CHAIN_ID with PRICE_FEED_RPC_URLS",
        )
    main = await feeds.describe(asked.feed)
    second = None if asked.second_feed is None else await feeds.describe(asked.second_feed)
    if main is None:
        raise InvalidInput("--price-feed", f"there is no price feed at {asked.feed} on chain {chain_id}")
    if asked.second_feed is not None and second is None:
        raise InvalidInput("--second-feed", f"there is no price feed at {asked.second_feed} on chain {chain_id}")
    source = PriceSource(
        id=uuid4(),
        method_id=method_id,
        chain_id=chain_id,
        feed=asked.feed,
        description=main.description,
        decimals=main.decimals,
        max_age_seconds=asked.max_age_seconds,
        second_feed=asked.second_feed,
        second_decimals=None if second is None else second.decimals,
        max_divergence_bps=asked.max_divergence_bps,
        sequencer_feed=asked.sequencer_feed,
        sequencer_grace_seconds=asked.sequencer_grace_seconds,
        min_answer_raw=max(1, _answer(asked.min_price, main.decimals) or 1),
        max_answer_raw=_answer(asked.max_price, main.decimals),
        created_at=datetime.now(UTC),
    )
    if source.max_answer_raw is not None and source.max_answer_raw < source.min_answer_raw:
        raise InvalidInput("--max-price", f"{asked.max_price} is below {asked.min_price or 'the least price'}")
    return source, await prices.now(source)


def _answer(price: Decimal | None, decimals: int) -> int | None:
    return None if price is None else int(price.scaleb(decimals))


async def register_source(connection: ServiceConnection, source: PriceSource) -> bool:
    """Store where a method's price comes from; False where it comes from there already."""
    own = {"id", "created_at"}
    known = await find_source(connection, source.method_id)
    if known is not None and known.model_dump(exclude=own) == source.model_dump(exclude=own):
        return False
    await insert_source(connection, source)
    return True


async def read_states(prices: Prices, sources: Mapping[str, PriceSource]) -> dict[str, PriceState]:
    """What each source says now, by the method's id."""

    async def read(source: PriceSource) -> PriceState:
        try:
            return PriceState(source, await prices.now(source), None)
        except PriceUnavailable as error:
            return PriceState(source, None, error.message)

    states = await asyncio.gather(*(read(source) for source in sources.values()))
    return dict(zip(sources, states, strict=True))
