// SPDX-License-Identifier: UNLICENSED
pragma solidity 0.8.37;

import {PlainToken} from "./PlainToken.sol";

/// A token whose events say more than what happened: a transfer moves nothing, returns true, and emits the event of a
/// transfer of its whole value. With `pretend`, anybody emits one in anybody's name. For local chains only.
contract LyingToken is PlainToken {
    constructor(string memory symbol_, uint8 decimals_) PlainToken(symbol_, decimals_) {}

    function pretend(address from, address to, uint256 value) external {
        emit Transfer(from, to, value);
    }

    function _move(address from, address to, uint256 value) internal override {
        emit Transfer(from, to, value);
    }
}
