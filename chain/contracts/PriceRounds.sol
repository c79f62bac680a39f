// SPDX-License-Identifier: UNLICENSED
pragma solidity 0.8.37;

/// What price feeds (AggregatorV3Interface) said at a time: a feed, a second one, and that of an L2's sequencer.
///
/// It is never deployed: a node runs its creation code in one eth_call, so that all answers are of one block. What the
/// creation returns is one word with the block's time, then seven for each of the three: whether it answered, decimals,
/// round, answer, when it started, when it was updated, in which round it was answered. Nothing here judges them.
contract PriceRounds {
    bytes4 private constant DECIMALS = 0x313ce567;
    bytes4 private constant LATEST = 0xfeaf968c;
    bytes4 private constant ROUND = 0x9a6fc8f5;
    uint256 private constant WORDS = 7;

    /// `time`: in seconds; rounds after it do not count. A feed that is address 0 is not asked.
    constructor(address feed, address second, address sequencer, uint256 time) {
        uint256[] memory said = new uint256[](1 + 3 * WORDS);
        said[0] = block.timestamp;
        _ask(feed, time, false, said, 1);
        _ask(second, time, false, said, 1 + WORDS);
        // Its rounds are the times of one state: what counts is when that began.
        _ask(sequencer, time, true, said, 1 + 2 * WORDS);
        assembly ("memory-safe") {
            return(add(said, 0x20), mul(mload(said), 0x20))
        }
    }

    function _ask(address feed, uint256 time, bool byStart, uint256[] memory said, uint256 offset) private view {
        if (feed.code.length == 0) return;
        (bool ok, bytes memory decimals) = feed.staticcall(abi.encodeWithSelector(DECIMALS));
        (bool found, uint256[5] memory round) = _latest(feed);
        if (!ok || decimals.length < 32 || !found) return;
        if (round[byStart ? 2 : 3] > time) (found, round) = _before(feed, time, byStart ? 2 : 3, round[0]);
        if (!found) return;
        said[offset] = 1;
        said[offset + 1] = abi.decode(decimals, (uint256));
        for (uint256 i = 0; i < 5; i++) said[offset + 2 + i] = round[i];
    }

    /// The last round not after `time`, of those of the feed's present aggregator, which are numbered from 1 in the lower
    /// 64 bits; the upper ones name the aggregator. `last` is after it.
    function _before(address feed, uint256 time, uint256 by, uint256 last)
        private
        view
        returns (bool found, uint256[5] memory round)
    {
        uint256 aggregator = (last >> 64) << 64;
        uint256 low = 0;
        uint256 high = last - aggregator;
        while (high > low + 1) {
            uint256 middle = (low + high) / 2;
            (bool ok, uint256[5] memory one) =
                _round(feed, abi.encodeWithSelector(ROUND, uint80(aggregator | middle)));
            // A round that the feed does not say leaves open which one was current.
            if (!ok || one[3] == 0) return (false, round);
            if (one[by] > time) {
                high = middle;
            } else {
                (low, found, round) = (middle, true, one);
            }
        }
    }

    function _latest(address feed) private view returns (bool, uint256[5] memory) {
        return _round(feed, abi.encodeWithSelector(LATEST));
    }

    function _round(address feed, bytes memory data) private view returns (bool, uint256[5] memory round) {
        (bool ok, bytes memory said) = feed.staticcall(data);
        if (!ok || said.length < 160) return (false, round);
        return (true, abi.decode(said, (uint256[5])));
    }
}
