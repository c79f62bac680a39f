"""Payment by signature (EIP-3009): what a payer signs, and which signed authorization pays an attempt.

Pure rules. Hashing and the chain's answers are in `chain/authorizations.py`, the wire forms of x402 in
`domain.payments.x402`.
"""

from __future__ import annotations

from collections.abc import Collection
from datetime import datetime, timedelta
from math import ceil
from typing import Annotated, Any, Final
from uuid import UUID

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from domain.errors import AuthorizationRefused
from domain.identifiers import Address, parse_tx_hash, same_address

NONCE_TAG: Final = b"settle:attempt:1"
"""What an attempt's own nonce begins with, before it is hashed: the version of the rule is in it."""

WINDOW_BLOCKS_MIN: Final = 3
"""Blocks that must be left for the transaction to be mined in."""

WINDOW_MAX: Final = timedelta(hours=1)
"""How far ahead an authorization may be valid: only then it is provable that it never pays."""

SIGNING_TIME: Final = timedelta(minutes=10)
"""How long a payer is asked to let an authorization be valid: less than may be, for clocks that are ahead."""

SIGNATURE_BYTES_MAX: Final = 8 * 2**10
"""A passkey's signature with what its wallet adds takes some 2 kB."""

DEPLOYMENT_BYTES_MAX: Final = 4 * 2**10
"""What a factory is called with: a wallet's owners, each a key of 64 bytes, or what sets the wallet up."""

WALLET_SIGNATURE_BYTES_MAX: Final = 4 * 2**10
"""Of a wallet that is yet to be deployed, without how it is deployed."""

KEY_SIGNATURE_BYTES: Final = 65
HALF_CURVE_ORDER: Final = 0x7FFFFFFFFFFFFFFFFFFFFFFFFFFFFFFF5D576E7357A4501DDFE92F46681B20A0
"""Signatures with an s above this have a second, valid form (EIP-2), which the token refuses."""

UNDEPLOYED_WALLET_MAGIC: Final = bytes.fromhex("6492" * 16)
"""What an ERC-6492 signature ends with."""

_RECOVERY: Final = {0: 27, 1: 28, 27: 27, 28: 28}
"""The last byte of a signature, as wallets write it, to the form that the token takes."""

_UINT256: Final = 2**256

_MESSAGE_FIELDS: Final = (
    ("from", "address"),
    ("to", "address"),
    ("value", "uint256"),
    ("validAfter", "uint256"),
    ("validBefore", "uint256"),
    ("nonce", "bytes32"),
)
_DOMAIN_FIELDS: Final = (
    ("name", "string"),
    ("version", "string"),
    ("chainId", "uint256"),
    ("verifyingContract", "address"),
)

Nonce = Annotated[str, AfterValidator(lambda text: parse_tx_hash(text, field="nonce"))]
"""32 bytes, 0x and lower-case hex digits."""

Uint256 = Annotated[int, Field(ge=0, lt=_UINT256)]


class Value(BaseModel):
    """Immutable value."""

    model_config = ConfigDict(frozen=True)


class Authorization(Value):
    """The message of a `transferWithAuthorization`; times are Unix seconds on the chain."""

    payer: Address
    to: Address
    value_raw: Uint256
    valid_after: Uint256
    valid_before: Uint256
    nonce: Nonce


class SignedAuthorization(Value):
    """An authorization with its signature: its holder can have it executed, once."""

    authorization: Authorization
    signature: bytes = Field(repr=False)


class WalletDeployment(Value):
    """How a wallet that is not on the chain yet is deployed, and what it has signed (ERC-6492)."""

    factory: Address
    calldata: bytes
    signature: bytes = Field(repr=False)


class TokenDomain(Value):
    """The parts of a token's EIP-712 domain that are not its address and chain."""

    name: str
    version: str


class Price(Value):
    """What is asked for: exactly that value of that token, to the treasury, or to a charge's address."""

    chain_id: int
    token: Address
    pay_to: Address
    amount_raw: int


def nonce_preimage(chain_id: int, attempt_id: UUID) -> bytes:
    """What is hashed (Keccak-256) to an attempt's own nonce: 16 bytes of ASCII, `settle:attempt:1`, then the chain's id
    as 32 bytes, then the 16 bytes of the attempt's id, both with the most significant byte first.

    In Solidity: `keccak256(abi.encodePacked("settle:attempt:1", uint256(chainId), bytes16(attemptId)))`.
    """
    return NONCE_TAG + chain_id.to_bytes(32, "big") + attempt_id.bytes


def typed_data(price: Price, domain: TokenDomain, *, nonce: str, valid_before: int) -> dict[str, Any]:
    """The message that a wallet signs with `eth_signTypedData_v4`; its page adds the wallet's address as `from`."""
    return {
        "types": {
            "EIP712Domain": [{"name": name, "type": kind} for name, kind in _DOMAIN_FIELDS],
            "TransferWithAuthorization": [{"name": name, "type": kind} for name, kind in _MESSAGE_FIELDS],
        },
        "primaryType": "TransferWithAuthorization",
        "domain": {
            "name": domain.name,
            "version": domain.version,
            "chainId": price.chain_id,
            "verifyingContract": price.token,
        },
        "message": {
            "to": price.pay_to,
            "value": str(price.amount_raw),
            "validAfter": "0",
            "validBefore": str(valid_before),
            "nonce": nonce,
        },
    }


def check_agrees(authorization: Authorization, price: Price) -> None:
    """Check that it pays what is asked for: never another recipient's or another amount's.

    Raises `AuthorizationRefused`.
    """
    if not same_address(authorization.to, price.pay_to):
        raise AuthorizationRefused(f"it pays {authorization.to}: expected {price.pay_to}")
    if authorization.value_raw != price.amount_raw:
        raise AuthorizationRefused(f"it is of {authorization.value_raw} raw units: expected {price.amount_raw}")


def check_window(
    authorization: Authorization,
    *,
    block_time: datetime,
    seconds_per_block: float,
    blocks: int = WINDOW_BLOCKS_MIN,
    longest: timedelta = WINDOW_MAX,
) -> None:
    """Check that it can be mined within so many blocks, and that it ends: by the newest block's time, no host's clock.

    Raises `AuthorizationRefused`.
    """
    now = int(block_time.timestamp())
    if authorization.valid_after >= now:
        raise AuthorizationRefused(
            f"it is valid after {authorization.valid_after}: expected less than the newest block's time, {now}"
        )
    earliest = now + ceil(blocks * seconds_per_block)
    if authorization.valid_before <= earliest:
        raise AuthorizationRefused(
            f"it is valid before {authorization.valid_before}: expected {blocks} blocks more, later than {earliest}"
        )
    latest = now + int(longest.total_seconds())
    if authorization.valid_before > latest:
        raise AuthorizationRefused(
            f"it is valid before {authorization.valid_before}: expected at most {longest}, until {latest}"
        )


def is_of_undeployed_wallet(signature: bytes) -> bool:
    """Whether it says how its wallet is deployed (ERC-6492)."""
    return signature.endswith(UNDEPLOYED_WALLET_MAGIC)


def read_deployment(signature: bytes) -> WalletDeployment:
    """What such a signature holds: (address, bytes, bytes), as the ABI encodes them, before the ending.

    Raises `AuthorizationRefused` where it is encoded otherwise, where a part is too long, and where what the wallet has
    signed is such a signature again.
    """
    content = signature[: -len(UNDEPLOYED_WALLET_MAGIC)]
    factory, calldata, inner = content[:32], _dynamic(content, at=32), _dynamic(content, at=64)
    if calldata is None or inner is None or any(factory[:12]):
        raise AuthorizationRefused("the signature ends as ERC-6492 says and is not encoded so: (address, bytes, bytes)")
    if is_of_undeployed_wallet(inner):
        raise AuthorizationRefused("the signature says twice how its wallet is deployed (ERC-6492): expected once")
    for name, part, longest in (
        ("the factory's call", calldata, DEPLOYMENT_BYTES_MAX),
        ("the wallet's signature", inner, WALLET_SIGNATURE_BYTES_MAX),
    ):
        if len(part) > longest:
            raise AuthorizationRefused(f"{name} has {len(part)} bytes: expected at most {longest}")
    return WalletDeployment(factory="0x" + factory[12:].hex(), calldata=calldata, signature=inner)


def _dynamic(content: bytes, *, at: int) -> bytes | None:
    """The bytes whose place is named by the word `at`; None where they are not there in full."""
    begin = int.from_bytes(content[at : at + 32], "big")
    size = int.from_bytes(content[begin : begin + 32], "big")
    part = content[begin + 32 : begin + 32 + size]
    return part if 96 <= begin <= len(content) - 32 and len(part) == size else None


def check_factory(deployment: WalletDeployment, factories: Collection[str]) -> None:
    """Check that the wallet's factory is one of those that may deploy wallets. Raises `AuthorizationRefused`."""
    if any(same_address(deployment.factory, factory) for factory in factories):
        return
    raise AuthorizationRefused(
        f"the signature is of a wallet that is not on the chain yet (ERC-6492), and its factory {deployment.factory} "
        "is called for no payer here: deploy the wallet first"
    )


def normal_signature(signature: bytes, *, is_contract: bool) -> bytes:
    """The signature as it is kept: of a key r, s and 27 or 28; of a contract what the token takes; of a wallet that is
    yet to be deployed (ERC-6492) unchanged, with how that is done.

    Raises `AuthorizationRefused` for a length, an s or a v that no key's signature has, and as `read_deployment` does.
    """
    if len(signature) > SIGNATURE_BYTES_MAX:
        raise AuthorizationRefused(f"the signature has {len(signature)} bytes: expected at most {SIGNATURE_BYTES_MAX}")
    if is_of_undeployed_wallet(signature):
        # Wallets may go on adding how they were deployed: the token takes the signature alone.
        deployment = read_deployment(signature)
        return deployment.signature if is_contract else signature
    if is_contract:
        return signature
    if len(signature) != KEY_SIGNATURE_BYTES:
        raise AuthorizationRefused(
            f"the signature has {len(signature)} bytes: expected {KEY_SIGNATURE_BYTES} of a wallet's key: r, s and v"
        )
    if int.from_bytes(signature[32:64], "big") > HALF_CURVE_ORDER:
        raise AuthorizationRefused("the signature's s is in the upper half of the curve's order: expected the lower")
    v = _RECOVERY.get(signature[64])
    if v is None:
        raise AuthorizationRefused(f"the signature ends with {signature[64]}: expected v, which is 0, 1, 27 or 28")
    return signature[:64] + bytes([v])
