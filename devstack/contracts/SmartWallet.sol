// SPDX-License-Identifier: UNLICENSED
pragma solidity 0.8.37;

/// A wallet that is a contract, as passkey wallets and multisigs are, with a single owner who has a key.
/// For local chains only.
contract SmartWallet {
    bytes4 private constant ACCEPTED = 0x1626ba7e;
    bytes4 private constant REFUSED = 0xffffffff;

    address public immutable owner;
    /// The next signed call's number, counted up, so that none is carried out twice.
    uint256 public nonce;

    constructor(address owner_) {
        owner = owner_;
    }

    /// ERC-1271: whether the owner has signed the hash.
    function isValidSignature(bytes32 hash, bytes calldata signature) external view returns (bytes4) {
        return _isOwners(hash, signature) ? ACCEPTED : REFUSED;
    }

    /// The owner's transaction.
    function execute(address to, uint256 value, bytes calldata data) external {
        require(msg.sender == owner, "SmartWallet: only the owner");
        _call(to, value, data);
    }

    /// Anybody's transaction, with the owner's signature over `callHash`.
    function executeSigned(address to, uint256 value, bytes calldata data, bytes calldata signature) external {
        require(_isOwners(callHash(nonce, to, value, data), signature), "SmartWallet: not the owner's signature");
        nonce += 1;
        _call(to, value, data);
    }

    /// What the owner signs, as it is, for a call by somebody else.
    function callHash(uint256 number, address to, uint256 value, bytes calldata data) public view returns (bytes32) {
        return keccak256(abi.encode("SmartWallet.execute", block.chainid, address(this), number, to, value, data));
    }

    receive() external payable {}

    function _call(address to, uint256 value, bytes calldata data) private {
        (bool ok, bytes memory returned) = to.call{value: value}(data);
        if (!ok) {
            assembly ("memory-safe") {
                revert(add(returned, 0x20), mload(returned))
            }
        }
    }

    function _isOwners(bytes32 hash, bytes calldata signature) private view returns (bool) {
        if (signature.length != 65) {
            return false;
        }
        address signer =
            ecrecover(hash, uint8(signature[64]), bytes32(signature[0:32]), bytes32(signature[32:64]));
        return signer != address(0) && signer == owner;
    }
}
