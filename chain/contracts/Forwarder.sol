// SPDX-License-Identifier: UNLICENSED
pragma solidity 0.8.37;

/// A deposit address: whatever it holds can be sent to the treasury by anyone, and to no other place by anyone.
///
/// It is deployed by the deterministic deployer when its first deposit is collected; until then the address is only
/// computed. Each is a contract of its own, not a proxy, so that its creation code is all that there is to verify.
contract Forwarder {
    address public immutable treasury;

    constructor(address treasury_) {
        treasury = treasury_;
    }

    /// Empty, because exchanges send coins with just the gas for that.
    receive() external payable {}

    /// Sends the whole balance of each token, and that of the chain's own coin, to the treasury.
    ///
    /// What one token does leaves the others alone: a call that fails is skipped, whatever it returns is left unread,
    /// since some tokens return nothing, and the one that takes a fee delivers the rest. A token that burns all gas
    /// has to be left out of the list by the caller.
    function flush(address[] calldata tokens) external {
        address to = treasury;
        for (uint256 i = 0; i < tokens.length; ++i) {
            address token = tokens[i];
            assembly ("memory-safe") {
                // Only the scratch space is used, and none of the answer is copied but one word: Solidity's own calls
                // copy whatever is returned, be it megabytes.
                mstore(0x00, shl(224, 0x70a08231)) // balanceOf(address)
                mstore(0x04, address())
                let ok := staticcall(gas(), token, 0x00, 0x24, 0x00, 0x20)
                let held := mload(0x00)
                if and(ok, and(gt(returndatasize(), 31), gt(held, 0))) {
                    let free := mload(0x40)
                    mstore(free, shl(224, 0xa9059cbb)) // transfer(address,uint256)
                    mstore(add(free, 0x04), to)
                    mstore(add(free, 0x24), held)
                    pop(call(gas(), token, 0, free, 0x44, 0, 0))
                }
            }
        }
        assembly ("memory-safe") {
            if selfbalance() { pop(call(gas(), to, selfbalance(), 0, 0, 0, 0)) }
        }
    }
}
