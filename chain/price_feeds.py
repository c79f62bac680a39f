"""What price feeds say, at one block or at a time, by the word of every node that answers.

`domain.deposits.prices` decides whether that is a price.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final

from chain.block_reader import BlockReader
from chain.contract_calls import ContractCalls
from chain.contracts import creation_code
from chain.quorum import EndpointsDisagree
from domain.deposits.prices import FEED_DECIMALS_MAX, FeedRound, PriceProblem, PriceReading, PriceSource
from domain.errors import ChainUnavailable, PriceUnavailable

LATEST: Final = 2**256 - 1
"""A time after every round."""

NO_FEED: Final = "0x" + "00" * 20
_WORDS: Final = 7
_BYTES: Final = 32 * (1 + 3 * _WORDS)
_SIGN: Final = 2**255
_DECIMALS: Final = "0x313ce567"
_DESCRIPTION: Final = "0x7284e416"
_DESCRIPTION_MAX: Final = 100


@dataclass(frozen=True, slots=True)
class FeedDescription:
    """How a feed's contract describes itself."""

    decimals: int
    description: str
    """Its address, where it has none."""


class PriceFeeds:
    """The price feeds on one chain. The chain may be another one than that of the methods that are priced by them."""

    def __init__(self, chain_id: int, contracts: ContractCalls, blocks: BlockReader) -> None:
        self.chain_id = chain_id
        self._contracts = contracts
        self._blocks = blocks

    async def now(self, source: PriceSource) -> PriceReading:
        """What the feeds say at the highest block that most nodes have. Raises `PriceUnavailable`."""
        try:
            head = (await self._blocks.canonical([])).head_number
            return await self._read(source, at_block=head, time=None)
        except ChainUnavailable as error:
            raise _unreadable(source, error) from error

    async def at(self, source: PriceSource, time: datetime, *, block_number: int | None) -> PriceReading:
        """What the feeds said at a time in the past.

        `block_number`: the block of that time on the feeds' chain, whose state is read where the nodes keep it. Else,
        and for blocks of another chain (None), the rounds are searched that were the last ones then. Raises
        `PriceUnavailable`, also where nodes contradict each other: what they say now is no answer about then.
        """
        try:
            if block_number is not None:
                try:
                    return await self._read(source, at_block=block_number, time=None)
                except EndpointsDisagree:
                    raise
                except (ChainUnavailable, _Reverted):
                    pass  # full nodes keep the state of some minutes only; or the feed was not there yet
            return await self._read(source, at_block=None, time=time)
        except ChainUnavailable as error:
            raise _unreadable(source, error) from error

    async def describe(self, feed: str) -> FeedDescription | None:
        """Decimals and description of a feed; None where the contract says no decimals. Raises `ChainUnavailable`."""
        decimals = await self._contracts.call(feed, _DECIMALS)
        if decimals is None or len(decimals) != 32 or (number := int.from_bytes(decimals, "big")) > FEED_DECIMALS_MAX:
            return None
        return FeedDescription(number, _text(await self._contracts.call(feed, _DESCRIPTION)) or feed)

    async def _read(self, source: PriceSource, *, at_block: int | None, time: datetime | None) -> PriceReading:
        from eth_abi.abi import encode as abi_encode  # here: only who prices something pays for its import

        until = LATEST if time is None else int(time.timestamp())
        feeds = [one or NO_FEED for one in (source.feed, source.second_feed, source.sequencer_feed)]
        arguments = abi_encode(["address", "address", "address", "uint256"], [*feeds, until])
        said = await self._contracts.deployless_call(creation_code("PriceRounds") + arguments, at_block=at_block)
        if said is None or len(said) != _BYTES:
            raise _Reverted(f"the feeds of {source.method_id} cannot be read")
        words = [int.from_bytes(said[start : start + 32], "big") for start in range(0, len(said), 32)]
        main, second, sequencer = (_round(words[start : start + _WORDS]) for start in range(1, len(words), _WORDS))
        return PriceReading(
            time=datetime.fromtimestamp(words[0], UTC) if time is None else time,
            block_number=at_block if time is None else None,
            main=main,
            second=second,
            sequencer=sequencer,
        )


class _Reverted(ChainUnavailable):
    """The node ran the code, and a feed of another shape made it fail."""


def _round(words: list[int]) -> FeedRound | None:
    found, decimals, round_id, answer, started_at, updated_at, answered_in = words
    if not found or decimals > FEED_DECIMALS_MAX:
        return None
    return FeedRound(
        decimals=decimals,
        round_id=round_id,
        answer_raw=answer - 2 * _SIGN if answer >= _SIGN else answer,
        started_at=started_at,
        updated_at=updated_at,
        answered_in_round=answered_in,
    )


def _text(said: bytes | None) -> str | None:
    """A printable string that a contract returned."""
    from eth_abi.abi import decode as abi_decode
    from eth_abi.exceptions import DecodingError

    if not said:
        return None
    try:
        text = str(abi_decode(["string"], said)[0])
    except (DecodingError, UnicodeDecodeError, OverflowError):
        return None
    return text if 0 < len(text) <= _DESCRIPTION_MAX and text.isprintable() else None


def _unreadable(source: PriceSource, error: ChainUnavailable) -> PriceUnavailable:
    return PriceUnavailable(
        f"{source.method_id} has no price: the feeds on chain {source.chain_id} cannot be read: {error.message}",
        problem=PriceProblem.UNREADABLE,
    )
