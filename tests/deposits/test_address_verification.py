"""Every address is derived again: a key, a treasury or a row that was exchanged in the database is a finding."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any, Final

import pytest
from temporalio.testing import ActivityEnvironment

from activities.deposits.signatures import AddressesVerified
from activities.deposits.verification import AddressActivities
from chain.derivation.addresses import derive_address
from chain.derivation.create2 import salt_of_account
from db.engine import ServiceDatabase
from devstack.chain import LocalChain, payer_wallets
from domain.deposits.methods import Scheme
from tests.support.addresses import add_create2_address, add_ring_address, evm_xpub, stored_ring
from tests.support.postgres import Database
from tests.support.spending import open_wallets_account
from tests.support.sql import query

SEED: Final = bytes(range(32))
EXCHANGE: Final = "0x28C6c06298d514Db089934071355E5743bf21d60"


@pytest.fixture
async def service(database: Database) -> AsyncIterator[ServiceDatabase]:
    opened = ServiceDatabase(database.service_url, application_name="test")
    yield opened
    await opened.dispose()


@pytest.fixture
def account(database: Database) -> str:
    return open_wallets_account(database, payer_wallets()[0].address)


async def verify(service: ServiceDatabase, chain: LocalChain) -> AddressesVerified:
    """One run of the job's activity."""
    activities = AddressActivities(service, treasury=chain.treasury_address)
    return await ActivityEnvironment().run(activities.verify_addresses)


def findings(database: Database) -> list[tuple[Any, ...]]:
    """Key and resolution of every finding."""
    return query(database.service_url, "SELECT key, resolution FROM findings ORDER BY key")


async def test_addresses_that_are_right_are_no_finding(
    service: ServiceDatabase, database: Database, chain: LocalChain, account: str
) -> None:
    add_create2_address(database, chain, account)
    ring = stored_ring(database, xpub=evm_xpub(SEED))
    for index in range(3):
        add_ring_address(database, chain.chain_id, account, ring, index)
        account = open_wallets_account(database, payer_wallets()[index + 1].address)
    assert await verify(service, chain) == AddressesVerified(checked=4)
    assert findings(database) == []


async def test_an_exchanged_key_is_one_finding_which_closes_when_it_is_back(
    service: ServiceDatabase, database: Database, chain: LocalChain, account: str
) -> None:
    ring = stored_ring(database, xpub=evm_xpub(SEED))
    for index in range(2):
        owner = open_wallets_account(database, payer_wallets()[index].address)
        add_ring_address(database, chain.chain_id, owner, ring, index)
    other = evm_xpub(bytes(32))
    for xpub, resolution in ((other, None), (other, None), (ring.xpub, "settled"), (other, None)):
        query(database.superuser_url, "UPDATE address_rings SET xpub = %s RETURNING id", xpub)
        done = await verify(service, chain)
        assert done.wrong_count == (0 if resolution else 2)
        assert findings(database) == [(f"address_differs:key {ring.id}", resolution)]


async def test_an_address_of_a_third_party_is_found(
    service: ServiceDatabase, database: Database, chain: LocalChain, account: str
) -> None:
    """The API's password could write it: payments of an exchange's customers would be credited."""
    add_create2_address(database, chain, account, address=EXCHANGE)
    done = await verify(service, chain)
    assert (done.checked, done.wrong_count) == (1, 1)
    assert EXCHANGE in done.problems[0]
    [(key, resolution)] = findings(database)
    assert (key, resolution) == (f"address_differs:treasury {chain.treasury_address.lower()}", None)


async def test_an_exchanged_treasury_is_found(
    service: ServiceDatabase, database: Database, chain: LocalChain, account: str
) -> None:
    """Row and address agree, and what is paid goes to another treasury than the installation's."""
    address = derive_address(Scheme.CREATE2, treasury=EXCHANGE, salt=salt_of_account(account))
    add_create2_address(database, chain, account, address=address, treasury=EXCHANGE)
    done = await verify(service, chain)
    assert done.wrong_count == 1 and "not a treasury" in done.problems[0]


async def test_a_former_treasury_of_the_installation_is_still_its_own(
    service: ServiceDatabase, database: Database, chain: LocalChain, account: str
) -> None:
    former = "0x" + "ab" * 20
    query(
        database.service_url,
        "INSERT INTO payment_destinations (chain_id, token, to_address, noted_by)"
        " VALUES (%s, %s, %s, 'worker') RETURNING chain_id",
        *(chain.chain_id, chain.token_address.lower(), former),
    )
    address = derive_address(Scheme.CREATE2, treasury=former, salt=salt_of_account(account))
    add_create2_address(database, chain, account, address=address, treasury=former)
    assert (await verify(service, chain)).wrong_count == 0


async def test_an_address_under_another_accounts_name_is_found(
    service: ServiceDatabase, database: Database, chain: LocalChain, account: str
) -> None:
    other = open_wallets_account(database, payer_wallets()[1].address)
    add_create2_address(database, chain, account)
    query(database.superuser_url, "UPDATE deposit_addresses SET billing_account_id = %s RETURNING id", other)
    assert (await verify(service, chain)).wrong_count == 1
