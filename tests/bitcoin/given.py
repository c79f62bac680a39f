"""Addresses of a key on the regtest chain, as an operator registers and the API gives them out."""

from __future__ import annotations

from typing import Final
from uuid import UUID, uuid4

from chain.derivation.addresses import derive_address
from db.accounts.wallets import Payer
from domain.deposits.methods import AddressRing, Scheme
from domain.utxo import UTXO_CHAINS
from services.deposits.registration import parse_method, unsaved_ring
from tests.deposits.given import Given
from tests.support.deposits import TESTNET_ACCOUNTS, add_method, add_ring
from tests.support.postgres import Database
from tests.support.sql import connect

REGTEST: Final = next(chain for chain in UTXO_CHAINS.values() if chain.name == "Bitcoin regtest")

METHOD: Final = "USDC:regtest"
"""As a dollar token, whose worth needs no price: what a satoshi is worth is not what these tests are about."""
DECIMALS: Final = 8

_ADDRESS: Final = """
    INSERT INTO deposit_addresses (id, chain_id, address, scheme, ring_id, index, billing_account_id)
    VALUES (%(id)s, %(chain_id)s, %(address)s, 'xpub', %(ring)s, %(index)s, %(account)s)
"""


def credits_of(satoshis: int) -> int:
    """What the method's raw units are worth."""
    return satoshis * 10_000_000 // 10**DECIMALS


def ring(purpose: int = 84) -> AddressRing:
    """A key of the test networks, as `settle methods add` takes it."""
    path, xpub = TESTNET_ACCOUNTS[purpose]
    return unsaved_ring(
        parse_method(
            method_id="BTC:regtest",
            chain_id=REGTEST.chain_id,
            token="BTC",
            decimals=DECIMALS,
            scheme=Scheme.XPUB,
            xpub=xpub,
            path=path,
            min_amount_raw=1,
            confirmations=None,
        )
    )


def address_of(index: int = 0, purpose: int = 84) -> str:
    """An address of it."""
    return derive_address(Scheme.XPUB, ring=ring(purpose), index=index)


def register(database: Database, method: str = METHOD) -> UUID:
    """The method with its key; the key's id."""
    ring_id = add_ring(database, TESTNET_ACCOUNTS[84])
    add_method(
        database, method, address=None, decimals=DECIMALS, kind="utxo", chain_id=REGTEST.chain_id, ring_id=ring_id
    )
    return ring_id


def give(database: Database, account: Payer, ring_id: UUID, *, index: int = 0) -> Given:
    """The account's own address."""
    given = Given(uuid4(), address_of(index), account)
    with connect(database.superuser_url) as superuser:
        superuser.execute(
            _ADDRESS.encode(),
            {
                "id": given.id,
                "chain_id": REGTEST.chain_id,
                "address": given.address,
                "ring": ring_id,
                "index": index,
                "account": account.billing_account_id,
            },
        )
    return given
