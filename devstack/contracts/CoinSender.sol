// SPDX-License-Identifier: UNLICENSED
pragma solidity 0.8.37;

/// Sends the chain's own coin in every way in which a contract can, the way exchanges and wallets of contracts pay.
/// For local chains only: what it holds anybody may send.
contract CoinSender {
    struct Payment {
        address to;
        uint256 value;
    }

    /// Several payments in one transaction, as an exchange pays many withdrawals at once.
    function pay(Payment[] calldata payments) external payable {
        for (uint256 i = 0; i < payments.length; i++) {
            send(payments[i].to, payments[i].value);
        }
    }

    /// Pays in a call of its own that fails after the payment: the value stays here, and the transaction succeeds.
    function payAndTakeBack(address to, uint256 value) external payable {
        try this.payAndRevert(to, value) {} catch {}
    }

    function payAndRevert(address to, uint256 value) external {
        send(to, value);
        revert("taken back");
    }

    /// A token's transfer and a payment of the coin, in one transaction.
    function payWithToken(address token, uint256 amount, address to, uint256 value) external payable {
        (bool ok,) = token.call(abi.encodeWithSignature("transferFrom(address,address,uint256)", msg.sender, to, amount));
        require(ok, "CoinSender: the token refuses");
        send(to, value);
    }

    /// Runs the code at an address in its own place: it is named, and no coin moves, whatever value the call carries.
    function borrowCode(address of_, uint256 value) external payable {
        bool ok;
        assembly ("memory-safe") {
            ok := callcode(gas(), of_, value, 0, 0, 0, 0)
            ok := and(ok, delegatecall(gas(), of_, 0, 0, 0, 0))
        }
        require(ok, "CoinSender: the code fails");
    }

    /// Pays by what the destruction of a contract leaves: no call reaches the payee.
    function payByDestruction(address to) external payable {
        address made;
        assembly ("memory-safe") {
            // PUSH20 to SELFDESTRUCT: code that is gone as soon as it has run.
            mstore(0x00, or(or(shl(248, 0x73), shl(88, to)), shl(80, 0xff)))
            made := create(callvalue(), 0x00, 22)
        }
        require(made != address(0), "CoinSender: nothing was made");
    }

    receive() external payable {}

    function send(address to, uint256 value) private {
        (bool ok,) = to.call{value: value}("");
        require(ok, "CoinSender: the payment fails");
    }
}
