// SPDX-License-Identifier: UNLICENSED
pragma solidity 0.8.37;

/// A price feed as AggregatorV3Interface has them, whose owner sets the rounds. For local chains only.
contract PriceFeed {
    struct Round {
        int256 answer;
        uint256 startedAt;
        uint256 updatedAt;
        uint80 answeredInRound;
    }

    uint256 public constant version = 4;
    uint8 public decimals;
    string public description;
    address public immutable owner;
    uint80 public lastRound;
    mapping(uint80 id => Round round) private _rounds;

    modifier onlyOwner() {
        require(msg.sender == owner, "PriceFeed: only the owner sets rounds");
        _;
    }

    constructor(string memory description_, uint8 decimals_) {
        description = description_;
        decimals = decimals_;
        owner = msg.sender;
        // As a proxy numbers the rounds of its first aggregator.
        lastRound = uint80(1) << 64;
    }

    /// A new round of this block.
    function answer(int256 value) external onlyOwner {
        _set(lastRound + 1, value, block.timestamp, block.timestamp, lastRound + 1);
    }

    /// A round as it is given, whether or not it makes sense; the last one from then on.
    function set(uint80 id, int256 value, uint256 startedAt, uint256 updatedAt, uint80 answeredInRound)
        external
        onlyOwner
    {
        _set(id, value, startedAt, updatedAt, answeredInRound);
    }

    /// Other decimals, which no real feed takes.
    function setDecimals(uint8 decimals_) external onlyOwner {
        decimals = decimals_;
    }

    function latestRoundData() external view returns (uint80, int256, uint256, uint256, uint80) {
        return getRoundData(lastRound);
    }

    function getRoundData(uint80 id) public view returns (uint80, int256, uint256, uint256, uint80) {
        Round storage round = _rounds[id];
        require(round.answeredInRound != 0, "No data present");
        return (id, round.answer, round.startedAt, round.updatedAt, round.answeredInRound);
    }

    function _set(uint80 id, int256 value, uint256 startedAt, uint256 updatedAt, uint80 answeredInRound) private {
        _rounds[id] = Round(value, startedAt, updatedAt, answeredInRound);
        lastRound = id;
    }
}
