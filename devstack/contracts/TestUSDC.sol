// SPDX-License-Identifier: UNLICENSED
pragma solidity 0.8.37;

/// A stand-in for USDC on local chains. It behaves like USDC (FiatTokenV2_2) where a payment can tell the difference:
/// 6 decimals, Transfer and Approval events, transfers of nothing allowed, EIP-2612 permits (of wallets with a key),
/// EIP-3009 authorizations with their events, of wallets with a key and of contracts (ERC-1271), accounts that are
/// blacklisted, and a pause. It has no permits of contracts, minter allowances or proxy. The owner, who is whoever
/// deployed it, mints as much as it likes, and is blacklister and pauser.
contract TestUSDC {
    string public constant name = "USD Coin";
    string public constant symbol = "USDC";
    string public constant version = "2";
    uint8 public constant decimals = 6;

    bytes32 public constant PERMIT_TYPEHASH =
        keccak256("Permit(address owner,address spender,uint256 value,uint256 nonce,uint256 deadline)");
    bytes32 public constant TRANSFER_WITH_AUTHORIZATION_TYPEHASH = keccak256(
        "TransferWithAuthorization(address from,address to,uint256 value,uint256 validAfter,uint256 validBefore,bytes32 nonce)"
    );
    bytes32 public constant RECEIVE_WITH_AUTHORIZATION_TYPEHASH = keccak256(
        "ReceiveWithAuthorization(address from,address to,uint256 value,uint256 validAfter,uint256 validBefore,bytes32 nonce)"
    );
    bytes32 public constant CANCEL_AUTHORIZATION_TYPEHASH =
        keccak256("CancelAuthorization(address authorizer,bytes32 nonce)");

    bytes32 private constant DOMAIN_TYPEHASH =
        keccak256("EIP712Domain(string name,string version,uint256 chainId,address verifyingContract)");
    /// Signatures with an s above this have a second, valid form (EIP-2).
    uint256 private constant HALF_CURVE_ORDER = 0x7fffffffffffffffffffffffffffffff5d576e7357a4501ddfe92f46681b20a0;
    /// What `isValidSignature` of a contract returns where it accepts (ERC-1271).
    bytes4 private constant IS_VALID_SIGNATURE = 0x1626ba7e;

    address public immutable owner;
    uint256 public totalSupply;
    mapping(address account => uint256 amount) public balanceOf;
    mapping(address holder => mapping(address spender => uint256 amount)) public allowance;
    /// The next permit's nonce, counted up.
    mapping(address holder => uint256 next) public nonces;
    /// True once an authorization was used or cancelled; these nonces are random.
    mapping(address authorizer => mapping(bytes32 nonce => bool spent)) public authorizationState;
    bool public paused;
    mapping(address account => bool listed) public isBlacklisted;

    event Transfer(address indexed from, address indexed to, uint256 value);
    event Approval(address indexed owner, address indexed spender, uint256 value);
    event AuthorizationUsed(address indexed authorizer, bytes32 indexed nonce);
    event AuthorizationCanceled(address indexed authorizer, bytes32 indexed nonce);
    event Blacklisted(address indexed account);
    event UnBlacklisted(address indexed account);
    event Pause();
    event Unpause();

    constructor() {
        owner = msg.sender;
    }

    modifier onlyOwner() {
        require(msg.sender == owner, "TestUSDC: only the owner");
        _;
    }

    modifier whenNotPaused() {
        require(!paused, "TestUSDC: paused");
        _;
    }

    function pause() external onlyOwner {
        paused = true;
        emit Pause();
    }

    function unpause() external onlyOwner {
        paused = false;
        emit Unpause();
    }

    function blacklist(address account) external onlyOwner {
        isBlacklisted[account] = true;
        emit Blacklisted(account);
    }

    function unBlacklist(address account) external onlyOwner {
        isBlacklisted[account] = false;
        emit UnBlacklisted(account);
    }

    function mint(address to, uint256 value) external onlyOwner whenNotPaused {
        _requireNotBlacklisted(to);
        require(to != address(0), "TestUSDC: mint to the zero address");
        totalSupply += value;
        balanceOf[to] += value;
        emit Transfer(address(0), to, value);
    }

    function transfer(address to, uint256 value) external returns (bool) {
        _move(msg.sender, to, value);
        return true;
    }

    function approve(address spender, uint256 value) external whenNotPaused returns (bool) {
        _approve(msg.sender, spender, value);
        return true;
    }

    function transferFrom(address from, address to, uint256 value) external returns (bool) {
        uint256 allowed = allowance[from][msg.sender];
        require(allowed >= value, "TestUSDC: more than the allowance");
        _requireNotBlacklisted(msg.sender);
        if (allowed != type(uint256).max) {
            allowance[from][msg.sender] = allowed - value;
        }
        _move(from, to, value);
        return true;
    }

    // EIP-2612: an allowance by signature

    function permit(address holder, address spender, uint256 value, uint256 deadline, uint8 v, bytes32 r, bytes32 s)
        external
        whenNotPaused
    {
        require(block.timestamp <= deadline, "TestUSDC: permit expired");
        bytes32 message = keccak256(abi.encode(PERMIT_TYPEHASH, holder, spender, value, nonces[holder], deadline));
        nonces[holder] += 1;
        _requireSignature(holder, message, abi.encodePacked(r, s, v));
        _approve(holder, spender, value);
    }

    // EIP-3009: a transfer by signature

    function transferWithAuthorization(
        address from,
        address to,
        uint256 value,
        uint256 validAfter,
        uint256 validBefore,
        bytes32 nonce,
        uint8 v,
        bytes32 r,
        bytes32 s
    ) external {
        _useAuthorization(
            TRANSFER_WITH_AUTHORIZATION_TYPEHASH,
            Authorization(from, to, value, validAfter, validBefore, nonce),
            abi.encodePacked(r, s, v)
        );
    }

    /// Of a contract's authorization, too: `signature` is whatever it accepts, of a key r, s and v in 65 bytes.
    function transferWithAuthorization(
        address from,
        address to,
        uint256 value,
        uint256 validAfter,
        uint256 validBefore,
        bytes32 nonce,
        bytes memory signature
    ) external {
        _useAuthorization(
            TRANSFER_WITH_AUTHORIZATION_TYPEHASH, Authorization(from, to, value, validAfter, validBefore, nonce), signature
        );
    }

    function receiveWithAuthorization(
        address from,
        address to,
        uint256 value,
        uint256 validAfter,
        uint256 validBefore,
        bytes32 nonce,
        uint8 v,
        bytes32 r,
        bytes32 s
    ) external {
        require(msg.sender == to, "TestUSDC: only the payee receives");
        _useAuthorization(
            RECEIVE_WITH_AUTHORIZATION_TYPEHASH,
            Authorization(from, to, value, validAfter, validBefore, nonce),
            abi.encodePacked(r, s, v)
        );
    }

    /// Of a contract's authorization, too: `signature` is whatever it accepts, of a key r, s and v in 65 bytes.
    function receiveWithAuthorization(
        address from,
        address to,
        uint256 value,
        uint256 validAfter,
        uint256 validBefore,
        bytes32 nonce,
        bytes memory signature
    ) external {
        require(msg.sender == to, "TestUSDC: only the payee receives");
        _useAuthorization(
            RECEIVE_WITH_AUTHORIZATION_TYPEHASH, Authorization(from, to, value, validAfter, validBefore, nonce), signature
        );
    }

    function cancelAuthorization(address authorizer, bytes32 nonce, uint8 v, bytes32 r, bytes32 s) external {
        _cancelAuthorization(authorizer, nonce, abi.encodePacked(r, s, v));
    }

    function cancelAuthorization(address authorizer, bytes32 nonce, bytes memory signature) external {
        _cancelAuthorization(authorizer, nonce, signature);
    }

    /// Computed on each call, so that a signature for one chain never counts on a copy of it with another id.
    function DOMAIN_SEPARATOR() public view returns (bytes32) {
        return keccak256(
            abi.encode(DOMAIN_TYPEHASH, keccak256(bytes(name)), keccak256(bytes(version)), block.chainid, address(this))
        );
    }

    struct Authorization {
        address from;
        address to;
        uint256 value;
        uint256 validAfter;
        uint256 validBefore;
        bytes32 nonce;
    }

    function _useAuthorization(bytes32 typeHash, Authorization memory a, bytes memory signature) private whenNotPaused {
        require(block.timestamp > a.validAfter, "TestUSDC: authorization not valid yet");
        require(block.timestamp < a.validBefore, "TestUSDC: authorization expired");
        _requireUnspent(a.from, a.nonce);
        _requireSignature(a.from, keccak256(abi.encode(typeHash, a)), signature);
        authorizationState[a.from][a.nonce] = true;
        emit AuthorizationUsed(a.from, a.nonce);
        _move(a.from, a.to, a.value);
    }

    function _cancelAuthorization(address authorizer, bytes32 nonce, bytes memory signature) private whenNotPaused {
        _requireUnspent(authorizer, nonce);
        _requireSignature(authorizer, keccak256(abi.encode(CANCEL_AUTHORIZATION_TYPEHASH, authorizer, nonce)), signature);
        authorizationState[authorizer][nonce] = true;
        emit AuthorizationCanceled(authorizer, nonce);
    }

    function _requireUnspent(address authorizer, bytes32 nonce) private view {
        require(!authorizationState[authorizer][nonce], "TestUSDC: authorization used or cancelled");
    }

    /// A contract is asked (ERC-1271); of an address without code the key is recovered.
    function _requireSignature(address signer, bytes32 message, bytes memory signature) private view {
        bytes32 digest = keccak256(abi.encodePacked(hex"1901", DOMAIN_SEPARATOR(), message));
        bool accepted = signer.code.length > 0
            ? _isAcceptedByContract(signer, digest, signature)
            : _isOfKey(signer, digest, signature);
        require(accepted, "TestUSDC: invalid signature");
    }

    function _isOfKey(address signer, bytes32 digest, bytes memory signature) private pure returns (bool) {
        if (signature.length != 65) {
            return false;
        }
        bytes32 r;
        bytes32 s;
        assembly ("memory-safe") {
            r := mload(add(signature, 0x20))
            s := mload(add(signature, 0x40))
        }
        if (uint256(s) > HALF_CURVE_ORDER) {
            return false;
        }
        address recovered = ecrecover(digest, uint8(signature[64]), r, s);
        return recovered != address(0) && recovered == signer;
    }

    function _isAcceptedByContract(address signer, bytes32 digest, bytes memory signature) private view returns (bool) {
        (bool ok, bytes memory answer) =
            signer.staticcall(abi.encodeWithSelector(IS_VALID_SIGNATURE, digest, signature));
        return ok && answer.length >= 32 && abi.decode(answer, (bytes32)) == bytes32(IS_VALID_SIGNATURE);
    }

    function _approve(address holder, address spender, uint256 value) private {
        require(spender != address(0), "TestUSDC: approve the zero address");
        _requireNotBlacklisted(holder);
        _requireNotBlacklisted(spender);
        allowance[holder][spender] = value;
        emit Approval(holder, spender, value);
    }

    function _requireNotBlacklisted(address account) private view {
        require(!isBlacklisted[account], "TestUSDC: account is blacklisted");
    }

    function _move(address from, address to, uint256 value) private whenNotPaused {
        require(to != address(0), "TestUSDC: transfer to the zero address");
        _requireNotBlacklisted(from);
        _requireNotBlacklisted(to);
        uint256 balance = balanceOf[from];
        require(balance >= value, "TestUSDC: more than the balance");
        unchecked {
            balanceOf[from] = balance - value;
            balanceOf[to] += value; // cannot exceed totalSupply
        }
        emit Transfer(from, to, value);
    }
}
