// SPDX-License-Identifier: UNLICENSED
pragma solidity 0.8.37;

interface IToken {
    function transferFrom(address from, address to, uint256 value) external returns (bool);

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
    ) external;
}

/// Several token transfers of several payers in one transaction, the way bundlers and relayers send them.
/// For local chains only: whoever approves this contract lets anybody spend the allowance.
contract Multisend {
    struct Payment {
        address token;
        address from;
        address to;
        uint256 value;
    }

    struct SignedPayment {
        address token;
        address from;
        address to;
        uint256 value;
        uint256 validAfter;
        uint256 validBefore;
        bytes32 nonce;
        uint8 v;
        bytes32 r;
        bytes32 s;
    }

    /// Each payer has approved this contract for the token.
    function sendApproved(Payment[] calldata payments) external {
        for (uint256 i = 0; i < payments.length; i++) {
            Payment calldata p = payments[i];
            require(IToken(p.token).transferFrom(p.from, p.to, p.value), "Multisend: transfer refused");
        }
    }

    /// Each payer has signed an EIP-3009 authorization.
    function sendSigned(SignedPayment[] calldata payments) external {
        for (uint256 i = 0; i < payments.length; i++) {
            SignedPayment calldata p = payments[i];
            IToken(p.token).transferWithAuthorization(
                p.from, p.to, p.value, p.validAfter, p.validBefore, p.nonce, p.v, p.r, p.s
            );
        }
    }
}
