"""Keys and deposit addresses whose seeds a test knows, as the product derives them."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any, Final
from uuid import UUID, uuid4

from bip_utils import Bip32Slip10Secp256k1, Bip44, Bip44Coins, Bip84, Bip84Coins

from chain.derivation.addresses import derive_address
from chain.derivation.create2 import salt_of_account
from devstack.chain import LocalChain
from domain.deposits.methods import AddressRing, Scheme
from tests.support.postgres import Database
from tests.support.sql import query, scalar

EVM_PATH: Final = "m/44'/60'/0'"
BITCOIN_PATH: Final = "m/84'/0'/0'"


def evm_xpub(seed: bytes = bytes(32), account: int = 0) -> str:
    """The extended public key of an account on EVM chains."""
    made = Bip44.FromSeed(seed, Bip44Coins.ETHEREUM).Purpose().Coin().Account(account)
    return str(made.PublicKey().ToExtended())


def bitcoin_zpub(seed: bytes = bytes(32), account: int = 0) -> str:
    """The same of a Bitcoin account with native SegWit addresses."""
    made = Bip84.FromSeed(seed, Bip84Coins.BITCOIN).Purpose().Coin().Account(account)
    return str(made.PublicKey().ToExtended())


def child_key(seed: bytes, index: int, path: str = EVM_PATH) -> str:
    """The private key of a deposit address of `evm_xpub`, which only its owner has."""
    return f"0x{Bip32Slip10Secp256k1.FromSeedAndPath(seed, f'{path}/0/{index}').PrivateKey().Raw().ToHex()}"


def chain_variables(database: Database, chain: LocalChain) -> dict[str, str]:
    """The settings of commands about a local chain."""
    return {
        "SERVICE_DATABASE_URL": database.service_url,
        "DATABASE_URL": database.app_url,
        "CHAIN_ID": str(chain.chain_id),
        "CHAIN_RPC_URLS": chain.url,
        "USDC_TOKEN_ADDRESS": chain.token_address,
        "TREASURY_ADDRESS": chain.treasury_address,
    }


def stored_ring(
    database: Database, *, path: str = EVM_PATH, xpub: str | None = None, gap_limit: int = 20
) -> AddressRing:
    """A stored extended public key."""
    text = xpub or evm_xpub()
    sql = "INSERT INTO address_rings (path, xpub, fingerprint, gap_limit) VALUES (%s, %s, %s, %s) RETURNING id"
    ring_id = scalar(database.superuser_url, sql, path, text, "00000000", gap_limit)
    return AddressRing(
        id=ring_id,
        path=path,
        xpub=text,
        fingerprint="00000000",
        next_index=0,
        gap_limit=gap_limit,
        created_at=datetime.now(UTC),
    )


def add_create2_address(database: Database, chain: LocalChain, account: str, **values: Any) -> tuple[UUID, str]:
    """An account's own create2 address; its row's id, and the address."""
    salt = salt_of_account(account)
    address = derive_address(Scheme.CREATE2, treasury=chain.treasury_address, salt=salt)
    fields = {
        "id": uuid4(),
        "chain_id": chain.chain_id,
        "address": address,
        "scheme": "create2",
        "salt": salt,
        "treasury": chain.treasury_address,
        "billing_account_id": account,
    } | values
    return _insert_address(database, fields)


def add_ring_address(
    database: Database, chain_id: int, account: str, ring: AddressRing, index: int, **values: Any
) -> tuple[UUID, str]:
    """An account's address of a key, which was allocated by hand; its row's id, and the address."""
    fields = {
        "id": uuid4(),
        "chain_id": chain_id,
        "address": derive_address(Scheme.XPUB, ring=ring, index=index),
        "scheme": "xpub",
        "ring_id": ring.id,
        "index": index,
        "billing_account_id": account,
    } | values
    return _insert_address(database, fields)


def _insert_address(database: Database, fields: dict[str, Any]) -> tuple[UUID, str]:
    places = ", ".join(["%s"] * len(fields))
    names = ", ".join(fields)
    sql = f"INSERT INTO deposit_addresses ({names}) VALUES ({places}) RETURNING id, address"
    [(row_id, address)] = query(database.superuser_url, sql, *fields.values())
    return row_id, str(address)
