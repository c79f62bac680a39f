// SPDX-License-Identifier: UNLICENSED
pragma solidity 0.8.37;

/// What many addresses hold of a token.
///
/// It is never deployed: a node runs its creation code in one eth_call, and what the creation returns is one word for
/// each address. Before the token is there they hold nothing. It reverts where the token does not say a balance.
contract TokenBalances {
    bytes4 private constant BALANCE_OF = 0x70a08231;

    constructor(address token, address[] memory holders) {
        uint256[] memory balances = new uint256[](holders.length);
        for (uint256 i = 0; i < holders.length && token.code.length > 0; i++) {
            (bool ok, bytes memory said) = token.staticcall(abi.encodeWithSelector(BALANCE_OF, holders[i]));
            require(ok && said.length >= 32, "no balance");
            balances[i] = abi.decode(said, (uint256));
        }
        assembly ("memory-safe") {
            return(add(balances, 0x20), mul(mload(balances), 0x20))
        }
    }
}
