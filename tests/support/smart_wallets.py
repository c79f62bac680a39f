"""Signatures as wallets make them, and contracts that answer wrongly when they are asked about one."""

from __future__ import annotations

from typing import Final

from eth_abi.abi import encode
from eth_account import Account
from eth_account.messages import encode_defunct
from eth_utils.crypto import keccak

from devstack.chain import LocalChain, call_data

ACCEPTED: Final = bytes.fromhex("1626ba7e") + bytes(28)
"""What `isValidSignature` returns for yes (ERC-1271): its own selector, padded as bytes4 are."""

WRAPPER_MAGIC: Final = bytes.fromhex("6492" * 16)

HALF: Final = 32
"""Where r ends and s begins."""


def personal_sign(private_key: str, message: str) -> str:
    """What a wallet with that key returns from `personal_sign`: r, s and 27 or 28."""
    return "0x" + bytes(Account.sign_message(encode_defunct(text=message), private_key).signature).hex()


async def sign_on_chain(chain: LocalChain, owner_key: str, address: str, message: str) -> None:
    """The transaction with which the owners of a `SIGNING_ON_CHAIN` wallet sign a message; mined."""
    prefixed = b"\x19Ethereum Signed Message:\n%d%b" % (len(message.encode()), message.encode())
    sent = await chain.send(owner_key, address, "0x" + keccak(prefixed).hex())
    await chain.mine(1)
    assert int((await chain.wait_for_receipt(sent))["status"], 16) == 1


def compact(signature: str) -> str:
    """The 64-byte form of a signature (EIP-2098)."""
    raw = bytearray.fromhex(signature[2:])
    raw[HALF] |= (raw[64] - 27) << 7
    return "0x" + raw[:64].hex()


def wrap(factory: str, factory_calldata: bytes, signature: str) -> str:
    """The signature of a wallet that is yet to be deployed, with how to deploy it (ERC-6492)."""
    inner = bytes.fromhex(signature[2:])
    return "0x" + (encode(["address", "bytes", "bytes"], [factory, factory_calldata, inner]) + WRAPPER_MAGIC).hex()


def wrap_with_factory(chain: LocalChain, owner: str, signature: str, salt: int = 0) -> str:
    """The same for a wallet of the local chain's own factory."""
    deployment = call_data("SmartWalletFactory", "deploy", owner, salt.to_bytes(32, "big"))
    return wrap(chain.smart_wallet_factory_address, bytes.fromhex(deployment[2:]), signature)


# Runtime code --------------------------------------------------------------------------------------------------------


def returning(word: bytes, size: int = 32) -> bytes:
    """Answers anything with that word, cut or filled with zeros to `size` bytes."""
    # PUSH32 word PUSH1 0 MSTORE PUSH3 size PUSH1 0 RETURN
    return b"\x7f" + word + b"\x60\x00\x52\x62" + size.to_bytes(3, "big") + b"\x60\x00\xf3"


REVERTING_WITH_ACCEPTED: Final = b"\x7f" + ACCEPTED + bytes.fromhex("60005260206000fd")
LOOPING: Final = bytes.fromhex("5b600056")  # JUMPDEST PUSH1 0 JUMP
INVALID: Final = b"\xfe"
_SET_WITHOUT_DATA = bytes.fromhex("36600a576001600055005b")
"""Called without data, it sets its first storage slot to 1; called with data, it goes on behind this."""
_ANSWER = b"\x7f" + ACCEPTED + bytes.fromhex("0260005260206000f3")  # PUSH32 yes MUL PUSH1 0 MSTORE ... RETURN
ACCEPTING_WHEN_SET: Final = _SET_WITHOUT_DATA + bytes.fromhex("600054") + _ANSWER  # PUSH1 0 SLOAD
ACCEPTING_UNTIL_SET: Final = _SET_WITHOUT_DATA + bytes.fromhex("60005415") + _ANSWER  # PUSH1 0 SLOAD ISZERO
ACCEPTING_FROM_NOBODY: Final = bytes.fromhex("3215") + _ANSWER  # ORIGIN ISZERO: it takes the zero address for a trial


_STORE: Final = bytes.fromhex("5b60016000355500")  # JUMPDEST, storage[the 32 bytes sent] = 1, STOP
_KNOWN_AND_EMPTY: Final = bytes.fromhex("6004355460443515" + "02") + _ANSWER  # storage[hash] and no signature's bytes
SIGNING_ON_CHAIN: Final = (
    bytes.fromhex("3660201460") + bytes([7 + len(_KNOWN_AND_EMPTY)]) + b"\x57" + _KNOWN_AND_EMPTY + _STORE
)
"""Sent 32 bytes, it takes them for a hash that its owners have signed; asked about that hash and an empty signature it
says yes, as a Safe does."""


def contract_address(number: int) -> str:
    """Where `put_contract` puts a contract of that number."""
    return "0x" + (0xC0DE << 128 | number).to_bytes(20, "big").hex()


async def put_contract(chain: LocalChain, number: int, code: bytes) -> str:
    """An address of one's own with that runtime code."""
    address = contract_address(number)
    await chain.rpc("anvil_setCode", address, "0x" + code.hex())
    return address


def burning(rounds: int, factory: str) -> bytes:
    """Takes some 26 gas for each round, whatever it has, and then hands the call on to a factory."""
    # PUSH3 rounds JUMPDEST PUSH1 1 SWAP1 SUB DUP1 PUSH1 4 JUMPI POP
    loop = b"\x62" + rounds.to_bytes(3, "big") + bytes.fromhex("5b60019003806004575036")
    # ... CALLDATASIZE PUSH1 0 PUSH1 0 CALLDATACOPY PUSH1 0 PUSH1 0 CALLDATASIZE PUSH1 0 PUSH1 0 PUSH20 factory GAS CALL
    handed_on = bytes.fromhex("600060003760006000366000600073") + bytes.fromhex(factory[2:]) + bytes.fromhex("5af100")
    return loop + handed_on
