"""Two tenants with payments in every state, as a template: each test that attacks them gets its own copy."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass

import pytest

from db.accounts.wallets import Payer
from domain.payments.attempt import PaymentAttempt, Purpose
from tests.database.spending_rows import BALANCE
from tests.support.database_pool import DatabasePool
from tests.support.payments import WRONG_PAYMENT, RolePair, open_roles
from tests.support.postgres import MIGRATED_TEMPLATE, Cluster, Database
from tests.support.spending import ServiceKey, add_credits, create_key


@dataclass(frozen=True, slots=True)
class Tenant:
    """A payer and one attempt in each state."""

    payer: Payer
    credited: PaymentAttempt
    donated: PaymentAttempt
    pending: PaymentAttempt
    pending_donation: PaymentAttempt
    intent: PaymentAttempt
    rejected: PaymentAttempt

    @property
    def user_id(self) -> str:
        """The scope to set."""
        return self.payer.user_id

    @property
    def account(self) -> str:
        """The billing account."""
        return self.payer.billing_account_id


@dataclass(frozen=True, slots=True)
class TwoTenants:
    """A database of two tenants who know nothing of each other."""

    database: Database
    alice: Tenant
    bob: Tenant


async def _settle_in(roles: RolePair, number: int) -> Tenant:
    payer = await roles.open_account(number)
    hashes = iter(range(number * 100, number * 100 + 99))
    rejected = await roles.create_submitted(payer, next(hashes))
    await roles.refuse(rejected, WRONG_PAYMENT)
    return Tenant(
        payer=payer,
        credited=await roles.settle(payer, next(hashes)),
        donated=await roles.settle(payer, next(hashes), purpose=Purpose.SYSTEM),
        pending=await roles.create_submitted(payer, next(hashes)),
        pending_donation=await roles.create_submitted(payer, next(hashes), purpose=Purpose.SYSTEM),
        intent=await roles.create(payer),
        rejected=rejected,
    )


@pytest.fixture(scope="session")
async def two_tenants_template(cluster: Cluster) -> TwoTenants:
    """The database that `two_tenants` copies."""
    database = await cluster.create(template=MIGRATED_TEMPLATE, name="town_template")
    async with open_roles(database) as roles:
        alice, bob = await _settle_in(roles, 1), await _settle_in(roles, 2)
        assert await roles.books() == []
    return TwoTenants(database, alice, bob)


@pytest.fixture(scope="session")
async def town(cluster: Cluster, two_tenants_template: TwoTenants) -> AsyncIterator[DatabasePool]:
    """Where `two_tenants` comes from."""
    pool = DatabasePool(cluster, two_tenants_template.database.name)
    yield pool
    await pool.close()


@pytest.fixture
async def tenants_roles(town: DatabasePool) -> AsyncIterator[RolePair]:
    """All roles on the database of `two_tenants`."""
    async with town.database() as roles:
        yield roles


@pytest.fixture
def two_tenants(tenants_roles: RolePair, two_tenants_template: TwoTenants) -> TwoTenants:
    """A database with Alice and Bob in it, as if it were one's own."""
    return TwoTenants(tenants_roles.database, two_tenants_template.alice, two_tenants_template.bob)


@pytest.fixture
async def key(roles: RolePair) -> ServiceKey:
    """A key of an account with `BALANCE` credits."""
    return await _open_key(roles, 1)


@pytest.fixture
async def others_key(roles: RolePair) -> ServiceKey:
    """A key of another account with as much."""
    return await _open_key(roles, 2)


async def _open_key(roles: RolePair, number: int) -> ServiceKey:
    payer = await roles.open_account(number)
    add_credits(roles.database, payer.billing_account_id, BALANCE)
    return create_key(roles.database, payer.billing_account_id)
