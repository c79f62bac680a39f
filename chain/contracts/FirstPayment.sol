// SPDX-License-Identifier: UNLICENSED
pragma solidity 0.8.37;

/// The first payment of a smart wallet that is yet to be deployed (ERC-6492): deploys it, and has a token execute what
/// the wallet has signed. All of it happens, or nothing does.
///
/// It is never deployed: the relay's transaction is a creation whose code is this constructor, and what the creation
/// leaves behind is an account without code. To the factory, whose call is a payer's choice, the caller is that account,
/// which owns nothing and never acts again.
contract FirstPayment {
    constructor(
        address wallet,
        address factory,
        bytes memory deployment,
        address token,
        bytes memory transferWithAuthorization
    ) {
        // Somebody may have deployed the wallet in between: a factory that is asked again may use up all gas.
        if (wallet.code.length == 0) {
            // In assembly, because a Solidity call copies whatever is returned, be it megabytes.
            assembly ("memory-safe") {
                pop(call(gas(), factory, 0, add(deployment, 0x20), mload(deployment), 0, 0))
            }
            // Else the token would take a key's signature for that of an address without code, and the payer of one
            // could have anything deployed.
            require(wallet.code.length > 0, "FirstPayment: its factory has not deployed the wallet");
        }
        (bool ok, bytes memory returned) = token.call(transferWithAuthorization);
        assembly ("memory-safe") {
            if iszero(ok) { revert(add(returned, 0x20), mload(returned)) }
            return(0, 0)
        }
    }
}
