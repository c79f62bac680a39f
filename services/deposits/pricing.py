"""Prices of tokens that are no dollars: read for charges and deposits, and deposits priced, once.

A deposit within the lock of its charge's price is worth that price, any other one that of its block. Where there is no
price it keeps its place, worth nothing yet, and is asked for again.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Final, Protocol
from uuid import UUID

import structlog

from chain.price_feeds import FeedDescription
from db.deposits.prices import (
    UnpricedDeposit,
    find_quote,
    find_source,
    find_source_of_quote,
    find_without_price,
    insert_quote,
    list_unpriced,
    set_price,
)
from db.engine import ServiceConnection, ServiceDatabase
from db.operations.findings import open_finding, settle_finding
from domain.deposits.methods import WORTH_CREDITS_MAX
from domain.deposits.prices import PriceProblem, PriceReading, PriceSource, Quote, quote_of
from domain.deposits.worth import worth_in_credits
from domain.errors import PriceUnavailable, Unavailable
from domain.operations.findings import Finding, FindingKind
from telemetry.metrics.worker import FINDINGS_OPENED

AGAIN_SECONDS: Final = 60.0
"""After which a deposit without a price is asked about again."""

LASTING: Final = timedelta(hours=1)
"""Without a price for so long, an operator is asked."""

PAGE: Final = 100


log = structlog.get_logger(__name__)


class PriceFeeds(Protocol):
    """The feeds on one chain: `chain.price_feeds`."""

    async def now(self, source: PriceSource) -> PriceReading:
        """What they say now. Raises `PriceUnavailable`."""

    async def at(self, source: PriceSource, time: datetime, *, block_number: int | None) -> PriceReading:
        """What they said at a time, that of a block on their chain where a number is given."""

    async def describe(self, feed: str) -> FeedDescription | None:
        """Decimals and name of a feed; None where there is none."""


class Prices:
    """Prices by their sources, on whichever of the known chains these are."""

    def __init__(self, feeds: Mapping[int, PriceFeeds]) -> None:
        """`feeds` by the id of their chain."""
        self._feeds = feeds

    async def now(self, source: PriceSource) -> Quote:
        """The present price. Raises `PriceUnavailable` with what is wrong."""
        return quote_of(source, await self._of(source).now(source), now=datetime.now(UTC))

    async def at(self, source: PriceSource, time: datetime, *, chain_id: int, block_number: int | None) -> Quote:
        """The price at the time of a block, of chain `chain_id`. Raises `PriceUnavailable` with what is wrong."""
        number = block_number if chain_id == source.chain_id else None
        return quote_of(source, await self._of(source).at(source, time, block_number=number))

    def feeds(self, chain_id: int) -> PriceFeeds | None:
        """The feeds on a chain; None where this process has no nodes of it."""
        return self._feeds.get(chain_id)

    def _of(self, source: PriceSource) -> PriceFeeds:
        feeds = self.feeds(source.chain_id)
        if feeds is None:
            raise PriceUnavailable(
                f"{source.method_id} has its price feed on chain {source.chain_id}: this process has no nodes of it",
                problem=PriceProblem.UNREADABLE,
            )
        return feeds


class DepositPricing:
    """Gives confirmed deposits of one chain their price. Two that run at once set each price once."""

    def __init__(
        self,
        database: ServiceDatabase,
        prices: Prices,
        *,
        chain_id: int,
        min_confirmations: int,
        price_lifetime: timedelta,
    ) -> None:
        """`price_lifetime`: for how long, at most, the price of a charge holds."""
        self._database = database
        self._prices = prices
        self._chain_id = chain_id
        self._min_confirmations = min_confirmations
        self._price_lifetime = price_lifetime
        self._again_at: dict[UUID, float] = {}
        self._of_blocks: dict[tuple[UUID, int, datetime], Quote] = {}
        """Of one pass: many small deposits in a block cost one question."""

    async def price(self, head: int) -> int:
        """Price what is confirmed at this height; how many deposits got a price.

        What has none is asked about again a minute later, and so is one about which there was an error: it stops no
        other. Raises `DatabaseUnavailable`.
        """
        priced, now = 0, time.monotonic()
        self._again_at = {one: at for one, at in self._again_at.items() if at > now}
        async with self._database.autocommit() as connection:
            page = await list_unpriced(
                connection,
                self._chain_id,
                head=head,
                min_confirmations=self._min_confirmations,
                but=self._again_at,
                limit=PAGE,
            )
        without: dict[str, PriceUnavailable] = {}
        self._of_blocks = {}
        for deposit in page:
            method_id = deposit.method.id
            # One refusal of the nodes is not waited for again by each of its deposits.
            if method_id not in without or without[method_id].problem != PriceProblem.UNREADABLE:
                try:
                    priced += await self._price(deposit)
                    continue
                except _Decided:
                    continue
                except PriceUnavailable as error:
                    without[method_id] = error
                except Unavailable:
                    raise
                except Exception:
                    log.exception("could not price the deposit", deposit_id=str(deposit.id), method=method_id)
            self._again_at[deposit.id] = now + AGAIN_SECONDS
        for method_id, refused in without.items():
            await self._report(method_id, refused.message)
        return priced

    async def _price(self, deposit: UnpricedDeposit) -> bool:
        async with self._database.autocommit() as connection:
            source = await find_source(connection, deposit.method.id)
            locked = await self._locked(connection, deposit)
        if source is None:
            raise PriceUnavailable(f"{deposit.method.id} has no price feed", problem=PriceProblem.NO_SOURCE)
        quote = None if locked is None else await self._honoured(*locked)
        is_locked = quote is not None
        if quote is None:
            quote = await self._of_block(source, deposit)
        credits = worth_in_credits(deposit.method, deposit.value_raw, quote.price)
        if credits > WORTH_CREDITS_MAX:
            raise PriceUnavailable(
                f"{deposit.value_raw} raw {deposit.method.token} would be worth {credits} credits: expected at most "
                f"{WORTH_CREDITS_MAX}"
            )
        async with self._database.transaction() as connection:
            if not is_locked:
                await insert_quote(connection, quote)
            if not await set_price(connection, deposit, quote.id, credits):
                raise _Decided
            left = await find_without_price(connection, self._chain_id, deposit.method.id, lasting=LASTING)
            if left.count == 0:
                await settle_finding(connection, _finding(self._chain_id, deposit.method.id, 0, 0, "").key)
        log.info(
            "a deposit has its price",
            deposit_id=str(deposit.id),
            method=deposit.method.id,
            price_usd=quote.price.text,
            credits=credits,
            is_locked=is_locked,
        )
        return True

    async def _of_block(self, source: PriceSource, deposit: UnpricedDeposit) -> Quote:
        key = (source.id, deposit.block_number, deposit.block_time)
        if key not in self._of_blocks:
            self._of_blocks[key] = await self._prices.at(
                source, deposit.block_time, chain_id=deposit.method.chain_id, block_number=deposit.block_number
            )
        return self._of_blocks[key]

    async def _locked(
        self, connection: ServiceConnection, deposit: UnpricedDeposit
    ) -> tuple[Quote, PriceSource] | None:
        """The quote of its charge, if the deposit was mined while that price held."""
        until = deposit.price_expires_at
        if deposit.charge_quote_id is None or until is None:
            return None
        quote = await find_quote(connection, deposit.charge_quote_id)
        assert quote is not None, "a foreign key names it"
        source = await find_source_of_quote(connection, quote)
        if source.method_id != deposit.method.id:
            return None
        is_within = quote.block_time <= deposit.block_time <= until <= quote.block_time + self._price_lifetime
        return (quote, source) if is_within else None

    async def _honoured(self, quote: Quote, source: PriceSource) -> Quote | None:
        """The quote, if the feed says it; a row alone is no price, because a process that people reach writes it.

        Raises `PriceUnavailable` where the nodes do not answer.
        """
        try:
            again = await self._prices.at(
                source, quote.block_time, chain_id=source.chain_id, block_number=quote.block_number
            )
        except PriceUnavailable as error:
            if error.problem == PriceProblem.UNREADABLE:
                raise
            log.error("the quote of a charge is not the feed's", quote_id=str(quote.id), error=error.message)
            return None
        if again.block_time != quote.block_time or not again.says_the_same(quote):
            log.error("the quote of a charge is not the feed's", quote_id=str(quote.id))
            return None
        return quote

    async def _report(self, method_id: str, message: str) -> None:
        log.warning("deposits have no price", method=method_id, error=message)
        async with self._database.transaction() as connection:
            left = await find_without_price(connection, self._chain_id, method_id, lasting=LASTING)
            if not left.is_lasting:
                return
            finding = _finding(self._chain_id, method_id, left.count, left.value_raw, message)
            if await open_finding(connection, finding):
                FINDINGS_OPENED.labels(finding.kind.value).inc()


class _Decided(Exception):
    """The deposit has a price by now, or is in another block: nothing is written."""


def _finding(chain_id: int, method_id: str, count: int, value_raw: int, message: str) -> Finding:
    return Finding(
        kind=FindingKind.DEPOSIT_WITHOUT_PRICE,
        detail=f"{count} deposits of {method_id}, {value_raw} raw units, are not credited: {message}",
        chain_id=chain_id,
        ledger_reference=method_id,
        value_raw=value_raw or None,
        details={"method": method_id, "deposits": count},
    )
