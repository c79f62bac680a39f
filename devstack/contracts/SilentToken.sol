// SPDX-License-Identifier: UNLICENSED
pragma solidity 0.8.37;

/// A token whose `transfer` returns nothing, as Tether's on Ethereum; it never returns false. Whoever deployed it mints
/// as much as it likes. For local chains only.
contract SilentToken {
    string public name;
    string public symbol;
    uint8 public immutable decimals;
    address public immutable owner;
    mapping(address account => uint256 amount) public balanceOf;

    event Transfer(address indexed from, address indexed to, uint256 value);

    constructor(string memory symbol_, uint8 decimals_) {
        name = symbol_;
        symbol = symbol_;
        decimals = decimals_;
        owner = msg.sender;
    }

    function mint(address to, uint256 value) external {
        require(msg.sender == owner, "SilentToken: only the owner mints");
        balanceOf[to] += value;
        emit Transfer(address(0), to, value);
    }

    function transfer(address to, uint256 value) external {
        balanceOf[msg.sender] -= value;
        balanceOf[to] += value;
        emit Transfer(msg.sender, to, value);
    }
}
