// SPDX-License-Identifier: UNLICENSED
pragma solidity 0.8.37;

import {PlainToken} from "./PlainToken.sol";

/// A token that takes a fee of each transfer, which its owner gets: less arrives than was sent. As real ones of this
/// kind do, it emits an event for each of the two movements. For local chains only.
contract FeeToken is PlainToken {
    /// Of each transfer, in hundredths of a percent.
    uint256 public constant FEE_BASIS_POINTS = 100;

    constructor(string memory symbol_, uint8 decimals_) PlainToken(symbol_, decimals_) {}

    function _move(address from, address to, uint256 value) internal override {
        uint256 fee = value * FEE_BASIS_POINTS / 10_000;
        super._move(from, owner, fee);
        super._move(from, to, value - fee);
    }
}
