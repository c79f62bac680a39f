// SPDX-License-Identifier: UNLICENSED
pragma solidity 0.8.37;

/// Collects from many deposit addresses in one transaction: deploys each forwarder that is not there yet, and flushes it.
///
/// It holds nothing and decides nothing: where the money goes is in the forwarders' creation code. It has no owner, and
/// is deployed by the deterministic deployer as well, so that its address is the same on every chain.
contract Collector {
    address private constant DEPLOYER = 0x4e59b44847b379578588920cA78FbF26c0B4956C;

    /// What one address does leaves the others alone: a deployment or a flush that fails is skipped.
    function collect(bytes calldata initCode, bytes32[] calldata salts, address[] calldata tokens) external {
        bytes32 codeHash = keccak256(initCode);
        bytes memory flush = abi.encodeWithSignature("flush(address[])", tokens);
        for (uint256 i = 0; i < salts.length; ++i) {
            bytes32 hash = keccak256(abi.encodePacked(hex"ff", DEPLOYER, salts[i], codeHash));
            address forwarder = address(uint160(uint256(hash)));
            bool ok;
            if (forwarder.code.length == 0) {
                (ok,) = DEPLOYER.call(bytes.concat(salts[i], initCode));
            }
            (ok,) = forwarder.call(flush);
        }
    }
}
