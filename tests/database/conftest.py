"""Two tenants with payments in every state, as a template: each test that attacks them gets its own copy."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass

import psycopg
import pytest
from psycopg.rows import TupleRow

from db.accounts.wallets import Payer
from domain.payments.attempt import PaymentAttempt, Purpose
from tests.support.payments import WRONG_PAYMENT, RolePair, open_roles
from tests.support.postgres import MIGRATED_TEMPLATE, Cluster, Database


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


TABLES = (
    "users", "billing_accounts", "virtual_keys", "ledger_accounts", "credit_ledger", "journal_lines",
    "payment_attempts", "payment_events", "settled_transfers", "alembic_version",
    "pg_class", "pg_attribute", "pg_index", "pg_constraint", "pg_trigger", "pg_policy", "pg_proc",
)  # fmt: skip

FINGERPRINT = " UNION ALL ".join(f"SELECT count(*), sum(xmin::text::bigint) FROM {table}" for table in TABLES)
"""Differs after every committed change of a row or of the schema: each version of a row names its transaction."""


class DatabasePool:
    """Copies of the town. One that its test left as it was, as a refused attack does, is given out again."""

    def __init__(self, cluster: Cluster, template: Database) -> None:
        self._cluster = cluster
        self._template = template
        self._copy: Database | None = None
        self._watcher: psycopg.AsyncConnection[TupleRow] | None = None
        self._fresh: list[TupleRow] = []

    async def get(self) -> Database:
        """A copy that looks like the template."""
        if self._copy is None:
            self._copy = await self._cluster.create(template=self._template.name)
            self._watcher = await psycopg.AsyncConnection.connect(self._copy.superuser_url, autocommit=True)
            self._fresh = await self._look()
        return self._copy

    async def give_back(self) -> None:
        """Keep the copy if nothing was changed in it."""
        if await self._look() != self._fresh:
            await self.drop()

    async def drop(self) -> None:
        """Remove the copy."""
        if self._copy is not None and self._watcher is not None:
            await self._watcher.close()
            await self._cluster.drop(self._copy)
            self._copy = None

    async def _look(self) -> list[TupleRow]:
        assert self._watcher is not None
        return await (await self._watcher.execute(FINGERPRINT)).fetchall()


@pytest.fixture(scope="session")
async def pool(cluster: Cluster, two_tenants_template: TwoTenants) -> AsyncIterator[DatabasePool]:
    """Where `two_tenants` comes from."""
    kept = DatabasePool(cluster, two_tenants_template.database)
    yield kept
    await kept.drop()


@pytest.fixture
async def two_tenants(pool: DatabasePool, two_tenants_template: TwoTenants) -> AsyncIterator[TwoTenants]:
    """A database with Alice and Bob in it, as if it were one's own."""
    yield TwoTenants(await pool.get(), two_tenants_template.alice, two_tenants_template.bob)
    await pool.give_back()


@pytest.fixture
async def tenants_roles(two_tenants: TwoTenants) -> AsyncIterator[RolePair]:
    """Both roles on the database of `two_tenants`."""
    async with open_roles(two_tenants.database) as opened:
        yield opened
