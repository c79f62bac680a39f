"""Verification of wallet signatures, on which Sign-In with Ethereum rests.

A wallet with a key signs the hash of the personal message (EIP-191, version 0x45), which is verified here, without a
node. A contract wallet decides what it accepts (ERC-1271), also before it is deployed (ERC-6492); every node is asked,
because a single false one could log anyone in. A wallet whose owners sign on the chain (a Safe does, by a transaction
that stores the hash) has no signature to send: it is empty, and the wallet knows the hash.
"""

from __future__ import annotations

import re
from typing import Final

from eth_abi.abi import encode as abi_encode

# Not eth_account, which is built on this: it raises the interpreter's recursion limit to 100,000, so that deeply nested
# JSON overflows the stack of the process.
from eth_keys.datatypes import Signature
from eth_keys.exceptions import BadSignature
from eth_utils.crypto import keccak

from chain.contracts import creation_code
from chain.reader import ChainReader
from domain.errors import ChainUnavailable, InvalidInput
from domain.identifiers import parse_address, same_address

SIGNATURE_BYTES_MAX: Final = 8 * 2**10
"""A passkey's signature with the deployment of its wallet around it takes some 2 kB."""

_HEX_BYTES: Final = re.compile(r"0x(?:[0-9a-fA-F]{2})*", re.ASCII)
_PARITIES: Final = {0: 0, 1: 1, 27: 0, 28: 1}
"""The last byte of a signature to the parity of its point: as the curve counts it, and as Bitcoin once began to."""

_ACCEPTED: Final = (1).to_bytes(32, "big")
_REFUSED: Final = bytes(32)


async def signed_by(chain: ChainReader, address: str, message: str, signature: str) -> bool:
    """Whether `signature`, 0x and hex as `personal_sign` returns it, is that of the wallet `address` over `message`.

    An empty one, `0x`, is that of a contract whose owners have signed on the chain.

    The signature of a wallet with a key is verified without a request. Any other is verified by the contract at
    `address`, or by the one whose deployment the signature describes, on every endpoint concurrently, in at most the
    reader's `timeout_seconds`. The same wallet and message can have several valid signatures: none identifies anything.

    Raises `InvalidInput` for a malformed address, message or signature, `ChainUnavailable` when no endpoint answers,
    and `EndpointsDisagree`, also a `ChainUnavailable`, when they do not agree.
    """
    parse_address(address)
    message_hash = _personal_message_hash(message)
    raw = _parse_signature(signature)
    signer = recover_signer(message_hash, raw)
    if signer is not None and same_address(signer, address):
        return True
    return await is_accepted_by_contract(chain, address, message_hash, raw)


def _personal_message_hash(message: str) -> bytes:
    """EIP-191, version 0x45: the hash that a wallet signs for a text message."""
    try:
        text = message.encode()
    except UnicodeEncodeError:
        raise InvalidInput("message", "expected text that can be written in UTF-8") from None
    return keccak(b"\x19Ethereum Signed Message:\n%d%b" % (len(text), text))


def _parse_signature(signature: str) -> bytes:
    if not isinstance(signature, str) or len(signature) > 2 + 2 * SIGNATURE_BYTES_MAX:
        raise InvalidInput("signature", f"expected text of at most {SIGNATURE_BYTES_MAX} bytes in hex")
    if _HEX_BYTES.fullmatch(signature) is None:
        raise InvalidInput("signature", f"expected 0x and hex digits, two for each byte, got {signature!r:.80}")
    return bytes.fromhex(signature[2:])


def recover_signer(message_hash: bytes, signature: bytes) -> str | None:
    """The address whose key made the signature; None where it is not the signature of a key."""
    match len(signature):
        case 65 if signature[64] in _PARITIES:
            parity, s = _PARITIES[signature[64]], int.from_bytes(signature[32:64], "big")
        case 64:  # EIP-2098: the parity is the highest bit of s
            parity, s = signature[32] >> 7, int.from_bytes(signature[32:64], "big") % 2**255
        case _:
            return None
    r = int.from_bytes(signature[:32], "big")
    try:
        return Signature(vrs=(parity, r, s)).recover_public_key_from_msg_hash(message_hash).to_address()
    except BadSignature:
        return None


async def is_accepted_by_contract(chain: ChainReader, address: str, message_hash: bytes, signature: bytes) -> bool:
    """ERC-1271 and ERC-6492, by `contracts/SignatureValidator.sol`. An address without code accepts nothing.

    Raises `ChainUnavailable` when no endpoint answers, or when they disagree.
    """
    arguments = abi_encode(["address", "bytes32", "bytes"], [address, message_hash, signature])
    answer = await chain.contracts.deployless_call(creation_code("SignatureValidator") + arguments)
    if answer is None:  # the wrapper is malformed, or the wallet used up the gas
        return False
    if answer not in (_ACCEPTED, _REFUSED):
        raise ChainUnavailable("no usable chain endpoint: none runs code without deploying it")
    return answer == _ACCEPTED
