// SPDX-License-Identifier: UNLICENSED
pragma solidity 0.8.37;

import {SmartWallet} from "./SmartWallet.sol";

/// Deploys smart wallets at addresses that are known before (CREATE2): a wallet can be paid, and can sign, while it is
/// not on the chain yet.
contract SmartWalletFactory {
    /// The owner's wallet; one that is there already is left as it is.
    function deploy(address owner, bytes32 salt) external returns (address wallet) {
        wallet = addressOf(owner, salt);
        if (wallet.code.length == 0) {
            new SmartWallet{salt: salt}(owner);
        }
    }

    function addressOf(address owner, bytes32 salt) public view returns (address) {
        bytes32 codeHash = keccak256(abi.encodePacked(type(SmartWallet).creationCode, abi.encode(owner)));
        return address(uint160(uint256(keccak256(abi.encodePacked(hex"ff", address(this), salt, codeHash)))));
    }
}
