"""Versions of prices: seeded once, read by the role of processes that people reach, each in effect from its time."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal

import psycopg
import pytest
from sqlalchemy import create_engine, text

from db.billing.prices import (
    current_prices,
    list_versions,
    lock_versions,
    prices_at,
    read_version,
    seed_first_version,
    write_version,
)
from db.engine import ADDRESS_IN_ARGUMENTS, ServiceDatabase, TenantDatabase, connection_arguments
from devstack.processes import wait_until
from domain.billing.installed_prices import installed_book, installed_source
from domain.billing.price_book import ListedPrice, PriceBook
from domain.billing.upstreams import PriceOverride
from domain.errors import Refusal, StartupCheckFailed
from services.billing.prices import import_installed
from tests.support.postgres import Database
from tests.support.sql import waits_for_lock

MOMENT = timedelta(microseconds=1)
CHEAPER = PriceBook("new", (ListedPrice("gpt-4o", "openai", {"input_tokens": {"usd": "1"}}, {"equals": "gpt-4o"}),))


async def test_a_migrated_database_has_the_installed_prices_and_the_gateways_role_reads_them(
    database: Database,
) -> None:
    app = TenantDatabase(database.app_url)
    async with app.unscoped() as connection:
        book = await current_prices(connection)
        assert await current_prices(connection, book) is book
    await app.dispose()
    assert book.listed == installed_book(datetime.now(UTC).date()).listed
    price = book.find("gpt-4o-2024-08-06")
    assert price is not None and price.version == book.version == "1"
    assert (price.model, price.provider) == ("gpt-4o", "openai")
    assert price.rates.rates["input_tokens"].usd == Decimal("2.5")


async def test_a_second_migration_writes_no_second_version(database: Database) -> None:
    engine = create_engine(
        ADDRESS_IN_ARGUMENTS, connect_args=connection_arguments(database.migration_url, application_name="test")
    )

    def seed() -> bool:
        with engine.begin() as connection:
            return seed_first_version(connection)

    with psycopg.connect(database.migration_url, autocommit=True) as owner:
        assert not await asyncio.to_thread(seed)
        owner.execute("DELETE FROM model_prices")
        owner.execute("DELETE FROM price_versions")
        assert sorted(await asyncio.gather(*(asyncio.to_thread(seed) for _ in range(3)))) == [False, False, True]
        assert owner.execute("SELECT source, created_by FROM price_versions").fetchall() == [
            (installed_source(), "settle migrate")
        ]
    engine.dispose()


async def test_a_version_counts_from_its_time_whenever_it_was_written(database: Database) -> None:
    service = ServiceDatabase(database.service_url)
    async with service.transaction() as connection:
        await lock_versions(connection)
        now = datetime.now(UTC)
        ahead = await write_version(
            connection, CHEAPER, source="test", counts_from=now + timedelta(days=1), created_by="ops"
        )
        first = await current_prices(connection.connection)
        at_once = await write_version(
            connection, CHEAPER, source="test", counts_from=now - timedelta(seconds=1), created_by="ops"
        )
        second = await current_prices(connection.connection, first)
        assert (first.version, second.version) == ("1", str(at_once))
        assert second.listed == CHEAPER.listed == (await read_version(connection.connection, ahead)).listed
        versions = await list_versions(connection)
        assert [version.id for version in versions] == [1, at_once, ahead]
        assert [version.models for version in versions] == [len(first.listed), 1, 1]
        from_then_on = versions[1].counts_from
        prices = [await prices_at(connection.connection, from_then_on - earlier) for earlier in (timedelta(), MOMENT)]
        assert [book.version for book in prices] == [str(at_once), "1"]
    with psycopg.connect(database.migration_url, autocommit=True) as owner:
        owner.execute("UPDATE price_versions SET counts_from = now() WHERE id = %s", [ahead])
    async with service.transaction() as connection:
        assert (await current_prices(connection.connection, second)).version == str(ahead)
    await service.dispose()


async def test_models_are_tried_for_a_name_in_the_order_in_which_they_were_written(database: Database) -> None:
    [first] = CHEAPER.listed
    book = PriceBook("new", (replace(first, model="b"), replace(first, model="a"), replace(first, model="c")))
    service = ServiceDatabase(database.superuser_url)
    async with service.transaction() as connection:
        now = datetime.now(UTC)
        version = await write_version(connection, book, source="test", counts_from=now, created_by="ops")
        for model in ("a", "b"):
            # A new version of the row has another place in its table.
            await connection.connection.execute(
                text("UPDATE model_prices SET rates = rates WHERE version_id = :id AND model = :model"),
                {"id": version, "model": model},
            )
        assert (await read_version(connection.connection, version)).listed == book.listed
    await service.dispose()


async def test_without_a_version_it_is_said_what_to_run(database: Database) -> None:
    service = ServiceDatabase(database.superuser_url)
    async with service.transaction() as connection:
        with pytest.raises(StartupCheckFailed, match="run: settle migrate"):
            await prices_at(connection.connection, datetime(2020, 1, 1, tzinfo=UTC))
    await service.dispose()


async def test_of_two_who_import_at_once_the_second_one_finds_nothing_to_change(database: Database) -> None:
    service = ServiceDatabase(database.service_url)

    async def import_it() -> int:
        async with service.transaction() as connection:
            return (await import_installed(connection, None, created_by="ops"))[1]

    async with service.transaction() as connection:
        now = datetime.now(UTC)
        await write_version(connection, CHEAPER, source="test", counts_from=now, created_by="ops")
    async with service.transaction() as first:
        await import_installed(first, None, created_by="ops")
        second = asyncio.create_task(import_it())
        await wait_until(
            lambda: waits_for_lock(database.superuser_url) or second.done(),
            timeout_seconds=10,
            what="the second's wait",
        )
    with pytest.raises(Refusal, match="nothing to import"):
        await second
    await service.dispose()


@pytest.mark.parametrize(
    "attack",
    [
        "INSERT INTO price_versions (source, counts_from, created_by) VALUES ('x', now(), 'x')",
        "INSERT INTO model_prices VALUES (1, 'x', 'x', '{}', '{}', 0)",
        "UPDATE model_prices SET rates = '{}'",
        "DELETE FROM model_prices",
    ],
)
async def test_the_gateways_role_changes_no_price(database: Database, attack: str) -> None:
    with psycopg.connect(database.app_url) as app, pytest.raises(psycopg.errors.InsufficientPrivilege):
        app.execute(attack)


async def test_a_written_version_is_changed_by_no_role(database: Database) -> None:
    for statement in ("UPDATE model_prices SET rates = '{}'", "UPDATE price_versions SET counts_from = now()"):
        with psycopg.connect(database.service_url) as service, pytest.raises(psycopg.errors.InsufficientPrivilege):
            service.execute(statement)


def test_an_override_is_a_version_of_its_own() -> None:
    override = PriceOverride.model_validate({"input_per_million_usd": "3", "output_per_million_usd": "4"})
    price = CHEAPER.with_overrides({"gpt-4o": override}).find("gpt-4o")
    assert price is not None and price.version.startswith("upstreams-file:")
