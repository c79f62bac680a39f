"""Prices of tokens that are no dollars: which answers of a feed are one, and what is stored of it. Integers only.

A feed is a contract with AggregatorV3Interface. What it says is used only if nothing about it is wrong: there is no
price to fall back to, and none is ever taken for one dollar.
"""

from __future__ import annotations

from datetime import UTC, datetime
from enum import StrEnum
from typing import Final
from uuid import UUID, uuid4

from domain.deposits.methods import DepositValue
from domain.deposits.worth import UnitPrice
from domain.errors import PriceUnavailable
from domain.identifiers import Address
from domain.money import scaled_raw

MAX_AGE_SECONDS: Final = 3_600
"""How old an answer may be where an operator names no age: most feeds of large coins are updated each hour at least."""

MAX_DIVERGENCE_BPS: Final = 100
"""How far two sources may be apart, in hundredths of a percent, where an operator says nothing."""

SEQUENCER_GRACE_SECONDS: Final = 3_600
"""How long after an L2's sequencer has come back prices are not used: until then, feeds catch up."""

FEED_DECIMALS_MAX: Final = 36
BPS: Final = 10_000

_SEQUENCER_IS_UP: Final = 0
_UINT64: Final = 2**64


class PriceProblem(StrEnum):
    """Why there is no price."""

    NO_SOURCE = "no_source"
    UNREADABLE = "unreadable"
    """The nodes do not answer, or contradict each other, or there is no feed at the address."""

    NO_ROUND = "no_round"
    """The feed does not say which round was current at the time."""

    INCOMPLETE = "incomplete"
    NOT_POSITIVE = "not_positive"
    FUTURE = "future"
    STALE = "stale"
    OUT_OF_BOUNDS = "out_of_bounds"
    DECIMALS_CHANGED = "decimals_changed"
    SEQUENCER_DOWN = "sequencer_down"
    SEQUENCER_STARTING = "sequencer_starting"
    """It is up again, and the grace is not over."""

    DIVERGING = "diverging"


WORDS: Final = {
    PriceProblem.NO_SOURCE: "it has no price feed",
    PriceProblem.UNREADABLE: "its price feed cannot be read",
    PriceProblem.NO_ROUND: "its price feed says nothing",
    PriceProblem.INCOMPLETE: "its price feed's round is not complete",
    PriceProblem.NOT_POSITIVE: "its price feed says no positive price",
    PriceProblem.FUTURE: "its price feed's time is in the future",
    PriceProblem.STALE: "its price feed is stale",
    PriceProblem.OUT_OF_BOUNDS: "its price feed is outside of its bounds",
    PriceProblem.DECIMALS_CHANGED: "its price feed has changed its decimals",
    PriceProblem.SEQUENCER_DOWN: "the network's sequencer is down",
    PriceProblem.SEQUENCER_STARTING: "the network's sequencer has only just come back",
    PriceProblem.DIVERGING: "its two price feeds disagree",
}
"""What a caller learns, who has no use for addresses of contracts and nodes."""


class PriceSource(DepositValue):
    """Where a method's price comes from. A changed one is a new row: quotes name the one they were taken from."""

    id: UUID
    method_id: str
    chain_id: int
    """Of the feeds, which may be another one than the method's."""

    feed: Address
    description: str
    """As the feed names itself, such as `ETH / USD`."""

    decimals: int
    """Of the feed's answers, as they were when it was registered."""

    max_age_seconds: int = MAX_AGE_SECONDS
    second_feed: Address | None = None
    second_decimals: int | None = None
    max_divergence_bps: int = MAX_DIVERGENCE_BPS
    sequencer_feed: Address | None = None
    sequencer_grace_seconds: int = SEQUENCER_GRACE_SECONDS
    min_answer_raw: int = 1
    max_answer_raw: int | None = None
    created_at: datetime


class FeedRound(DepositValue):
    """A round of one feed, as its contract says it. Times are in seconds."""

    decimals: int
    round_id: int
    answer_raw: int
    started_at: int
    updated_at: int
    answered_in_round: int


class PriceReading(DepositValue):
    """What the feeds of a source said at a time."""

    time: datetime
    """The time of the block at which they were asked, or for which their rounds were searched."""

    block_number: int | None
    """None where the rounds were searched by their times."""

    main: FeedRound | None
    second: FeedRound | None = None
    sequencer: FeedRound | None = None


class Quote(DepositValue):
    """A price, with everything that it follows from."""

    id: UUID
    source_id: UUID
    round_id: int
    answer_raw: int
    decimals: int
    feed_updated_at: datetime
    block_number: int | None
    block_time: datetime
    """`PriceReading.time`."""

    second_round_id: int | None = None
    second_answer_raw: int | None = None
    second_decimals: int | None = None
    second_updated_at: datetime | None = None

    @property
    def price(self) -> UnitPrice:
        """Of one whole token, in US dollars."""
        return UnitPrice(self.answer_raw, self.decimals)

    def says_the_same(self, other: Quote) -> bool:
        """Whether both are of one round of one source, with the same answer."""
        return (self.source_id, self.round_id, self.answer_raw, self.decimals, self.feed_updated_at) == (
            *(other.source_id, other.round_id, other.answer_raw, other.decimals, other.feed_updated_at),
        )


def quote_of(source: PriceSource, reading: PriceReading, *, now: datetime | None = None) -> Quote:
    """The price that a reading is, as a quote that is not stored yet.

    `now` is given for a price of the present: then its age counts until now, so that a node whose chain stands still
    gives no price. Raises `PriceUnavailable`, with the problem.
    """
    time = _seconds(reading.time)
    until = time if now is None else max(time, _seconds(now))
    main = _checked(source, source.feed, source.decimals, reading.main, time=time, until=until)
    if not source.min_answer_raw <= main.answer_raw <= (source.max_answer_raw or main.answer_raw):
        raise _refused(
            source,
            PriceProblem.OUT_OF_BOUNDS,
            f"feed {source.feed} says {_shown(main)}, outside of the bounds of its registration",
        )
    _check_sequencer(source, reading.sequencer, time=time)
    second = None
    if source.second_feed is not None:
        assert source.second_decimals is not None
        second = _checked(source, source.second_feed, source.second_decimals, reading.second, time=time, until=until)
        _check_divergence(source, main, second)
    return Quote(
        id=uuid4(),
        source_id=source.id,
        round_id=main.round_id,
        answer_raw=main.answer_raw,
        decimals=main.decimals,
        feed_updated_at=_moment(main.updated_at),
        block_number=reading.block_number,
        block_time=reading.time,
        second_round_id=None if second is None else second.round_id,
        second_answer_raw=None if second is None else second.answer_raw,
        second_decimals=None if second is None else second.decimals,
        second_updated_at=None if second is None else _moment(second.updated_at),
    )


def _checked(
    source: PriceSource, feed: str, decimals: int, found: FeedRound | None, *, time: int, until: int
) -> FeedRound:
    """A round that may be used. `time`: that of the block; `until`: that up to which its age counts."""
    if found is None:
        raise _refused(source, PriceProblem.NO_ROUND, f"feed {feed} says no round for {_moment(time):%F %T} UTC")
    if found.decimals != decimals:
        raise _refused(
            source,
            PriceProblem.DECIMALS_CHANGED,
            f"feed {feed} has {found.decimals} decimals, and had {decimals} when it was registered",
        )
    if found.updated_at == 0 or found.round_id == 0 or found.answered_in_round < found.round_id:
        raise _refused(source, PriceProblem.INCOMPLETE, f"round {found.round_id} of feed {feed} is not complete")
    if found.answer_raw <= 0:
        raise _refused(
            source, PriceProblem.NOT_POSITIVE, f"feed {feed} says {found.answer_raw}: expected a positive price"
        )
    if found.updated_at > time:
        raise _refused(
            source, PriceProblem.FUTURE, f"feed {feed} was updated {found.updated_at - time} s after its block"
        )
    age = until - found.updated_at
    if age > source.max_age_seconds:
        raise _refused(
            source,
            PriceProblem.STALE,
            f"feed {feed} was updated {age} s before: expected at most {source.max_age_seconds} s",
        )
    return found


def _check_sequencer(source: PriceSource, found: FeedRound | None, *, time: int) -> None:
    feed = source.sequencer_feed
    if feed is None:
        return
    if found is None or found.started_at == 0 or found.started_at > time:
        raise _refused(source, PriceProblem.NO_ROUND, f"sequencer feed {feed} says nothing for its block")
    if found.answer_raw != _SEQUENCER_IS_UP:
        raise _refused(source, PriceProblem.SEQUENCER_DOWN, f"the sequencer is down, says feed {feed}")
    since = time - found.started_at
    if since <= source.sequencer_grace_seconds:
        raise _refused(
            source,
            PriceProblem.SEQUENCER_STARTING,
            f"the sequencer is up for {since} s, says feed {feed}: expected more than "
            f"{source.sequencer_grace_seconds} s",
        )


def _check_divergence(source: PriceSource, main: FeedRound, second: FeedRound) -> None:
    one, other = scaled_raw(main.answer_raw, second.decimals), scaled_raw(second.answer_raw, main.decimals)
    if abs(one - other) * BPS > source.max_divergence_bps * min(one, other):
        raise _refused(
            source,
            PriceProblem.DIVERGING,
            f"feed {source.feed} says {_shown(main)} and feed {source.second_feed} {_shown(second)}: expected at most "
            f"{source.max_divergence_bps} hundredths of a percent between them",
        )


def _refused(source: PriceSource, problem: PriceProblem, words: str) -> PriceUnavailable:
    return PriceUnavailable(f"{source.method_id} has no price: {words}", problem=problem)


def _shown(round_: FeedRound) -> str:
    return UnitPrice(round_.answer_raw, round_.decimals).text


def _seconds(time: datetime) -> int:
    """Whole seconds, as blocks have them."""
    return int(time.timestamp())


def _moment(seconds: int) -> datetime:
    return datetime.fromtimestamp(min(seconds, 2**33), UTC)
