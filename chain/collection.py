"""Calls that collect what create2 deposit addresses hold. Anyone may make them: the money goes to the treasury only."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Final

from eth_abi.abi import encode as abi_encode
from eth_utils.crypto import keccak

from chain.contracts import creation_code
from chain.derivation.create2 import create2_address, init_code
from domain.coin import NATIVE_COIN
from domain.identifiers import same_address

COLLECTOR_SALT: Final = "0x" + "00" * 32
_FLUSH: Final = keccak(text="flush(address[])")[:4]
_COLLECT: Final = keccak(text="collect(bytes,bytes32[],address[])")[:4]


@cache
def collector_address() -> str:
    """Where `contracts/Collector.sol` is, on every chain on which someone has deployed it."""
    return create2_address(COLLECTOR_SALT, "0x" + keccak(creation_code("Collector")).hex())


def collector_deployment() -> bytes:
    """What the deterministic deployer is sent to deploy it."""
    return deployment(COLLECTOR_SALT, creation_code("Collector"))


def forwarder_deployment(salt: str, treasury: str) -> bytes:
    """What the deterministic deployer is sent to deploy one deposit address. Raises `InvalidInput`."""
    return deployment(salt, init_code(treasury))


def deployment(salt: str, code: bytes) -> bytes:
    """Salt and creation code, as the deterministic deployer takes them."""
    return bytes.fromhex(salt[2:]) + code


def flush_call(tokens: Sequence[str]) -> bytes:
    """What a deployed deposit address is sent, so that it sends all it holds of these tokens to its treasury."""
    return _FLUSH + abi_encode(["address[]"], [list(tokens)])


def collect_call(treasury: str, salts: Sequence[str], tokens: Sequence[str]) -> bytes:
    """What the collector is sent for the deposit addresses of these salts: deployed where they are not, and flushed.

    The chain's own coin is no contract to be named: each flush moves it.
    """
    tokens = [token for token in tokens if not same_address(token, NATIVE_COIN)]
    words = [bytes.fromhex(salt[2:]) for salt in salts]
    return _COLLECT + abi_encode(["bytes", "bytes32[]", "address[]"], [init_code(treasury), words, list(tokens)])
