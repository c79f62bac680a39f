// SPDX-License-Identifier: UNLICENSED
pragma solidity 0.8.37;

/// Whether a smart wallet accepts a signature over a hash, for wallets on the chain (ERC-1271) and for those that are
/// yet to be deployed (ERC-6492).
///
/// It is never deployed: a node runs its creation code in one eth_call, so that nothing a factory does lasts. What the
/// creation returns is one word, 1 for accepted and 0 for not. It reverts where an ERC-6492 wrapper is malformed.
contract SignatureValidator {
    /// What an ERC-6492 signature ends with.
    bytes32 private constant WRAPPER_MAGIC = 0x6492649264926492649264926492649264926492649264926492649264926492;
    bytes4 private constant IS_VALID_SIGNATURE = 0x1626ba7e;

    constructor(address signer, bytes32 hash, bytes memory signature) {
        bool accepted = isAccepted(signer, hash, signature);
        assembly ("memory-safe") {
            mstore(0x00, accepted)
            return(0x00, 0x20)
        }
    }

    function isAccepted(address signer, bytes32 hash, bytes memory signature) private returns (bool) {
        if (!isWrapped(signature)) {
            return acceptsNow(signer, hash, signature);
        }
        // Decoding takes no notice of what follows the last value, which is the magic.
        (address factory, bytes memory factoryCalldata, bytes memory inner) =
            abi.decode(signature, (address, bytes, bytes));
        // A wallet on the chain is asked as it is: its owner may have been changed since it was created. The ERC's
        // "prepare", a call of the signature's own choice before a second question, is left out: with it a stranger
        // could bring about the state in which somebody else's wallet says yes.
        if (signer.code.length > 0) {
            return acceptsNow(signer, hash, inner);
        }
        assembly ("memory-safe") {
            pop(call(gas(), factory, 0, add(factoryCalldata, 0x20), mload(factoryCalldata), 0, 0))
        }
        return acceptsNow(signer, hash, inner);
    }

    function isWrapped(bytes memory signature) private pure returns (bool) {
        bytes32 end;
        if (signature.length >= 32) {
            assembly ("memory-safe") {
                end := mload(add(signature, mload(signature)))
            }
        }
        return end == WRAPPER_MAGIC;
    }

    /// Exactly the magic value, padded as the ABI pads it. Less would let anybody sign for the precompile at 0x04, which
    /// returns its input, and the input begins with these four bytes.
    function acceptsNow(address signer, bytes32 hash, bytes memory signature) private view returns (bool accepted) {
        bytes memory question = abi.encodeWithSelector(IS_VALID_SIGNATURE, hash, signature);
        bytes32 expected = IS_VALID_SIGNATURE;
        // In assembly, because a Solidity call copies whatever is returned, be it megabytes.
        assembly ("memory-safe") {
            let ok := staticcall(gas(), signer, add(question, 0x20), mload(question), 0x00, 0x20)
            accepted := and(and(ok, gt(returndatasize(), 31)), eq(mload(0x00), expected))
        }
    }
}
