"""Tokens and treasuries that are known: who noted them, what may be paid there, and who cannot be a payer therefore."""

from __future__ import annotations

import asyncio
from typing import Final

import pytest
from psycopg.errors import InsufficientPrivilege

from db.transfers.destinations import is_known_destination, note_destination
from domain.chain import TransferScope
from tests.database.test_rolling_deploy import upgrade_to
from tests.support.payments import CHAIN_ID, TOKEN, TREASURY, RolePair, wallet
from tests.support.postgres import Cluster, Database, migrate_database
from tests.support.sql import connect, query, refused, scalar

ZERO: Final = "0x" + "0" * 40
SCOPE: Final = TransferScope(chain_id=CHAIN_ID, token=TOKEN, treasury=TREASURY)
MIXED: Final = "0x" + "aB" * 20


def known(database: Database) -> set[tuple[str, str, str]]:
    """Token, treasury, and who noted them."""
    return set(query(database.superuser_url, "SELECT token, to_address, noted_by FROM payment_destinations"))


def kind(database: Database, address: str) -> str | None:
    """What the database says of an address."""
    found: str | None = scalar(database.superuser_url, "SELECT non_payer_kind(%s)", address)
    return found


async def note(roles: RolePair, scope: TransferScope) -> None:
    """As a worker does with its settings."""
    async with roles.service.transaction() as connection:
        await note_destination(connection, scope)


async def test_a_workers_word_stays_beside_an_intents(roles: RolePair) -> None:
    await roles.create(await roles.open_account(1))
    assert known(roles.database) == {(TOKEN, TREASURY, "intent")}
    assert (kind(roles.database, TREASURY), kind(roles.database, TOKEN)) == (None, None)
    for _ in range(2):
        await note(roles, SCOPE)
    assert known(roles.database) == {(TOKEN, TREASURY, "intent"), (TOKEN, TREASURY, "worker")}
    assert (kind(roles.database, TREASURY), kind(roles.database, TOKEN)) == ("treasury", "token")


async def test_before_a_workers_word_every_intent_names_a_place(roles: RolePair) -> None:
    payer = await roles.open_account(1)
    for treasury in (TREASURY, wallet(7)):
        await roles.create(payer, to_address=treasury)
    assert known(roles.database) == {(TOKEN, TREASURY, "intent"), (TOKEN, wallet(7), "intent")}


async def test_after_a_workers_word_intents_name_no_place_any_more(roles: RolePair) -> None:
    await note(roles, SCOPE)
    await roles.create(await roles.open_account(1), to_address=wallet(7))
    assert known(roles.database) == {(TOKEN, TREASURY, "worker")}
    async with roles.service.transaction() as connection:
        assert await is_known_destination(connection, SCOPE)
        assert not await is_known_destination(connection, SCOPE.model_copy(update={"treasury": wallet(7)}))


@pytest.mark.parametrize("written", [str.lower, lambda address: "0x" + address[2:].upper(), str])
async def test_an_address_is_known_however_it_is_written(roles: RolePair, written: object) -> None:
    assert callable(written)
    await note(roles, SCOPE.model_copy(update={"treasury": MIXED}))
    assert kind(roles.database, written(MIXED)) == "treasury"


def test_nobodys_address_is_known_without_anybodys_word(database: Database) -> None:
    assert kind(database, ZERO) == "nobody"
    assert kind(database, wallet(1)) is None


@pytest.mark.parametrize("role", ["settle_app", "settle_settlement", "settle_service", "settle_operator"])
@pytest.mark.parametrize(
    "statement", ["UPDATE payment_destinations SET noted_by = 'intent'", "DELETE FROM payment_destinations"]
)
async def test_no_role_takes_a_word_back(roles: RolePair, role: str, statement: str) -> None:
    await note(roles, SCOPE)
    with connect(roles.database.url_as(role)) as connection, refused(InsufficientPrivilege):
        connection.execute(statement.encode())


LANDED_ATTEMPT: Final = """
    INSERT INTO payment_attempts (billing_account_id, from_address, chain_id, token, to_address, amount_raw,
                                  amount_usd_cents, status, tx_hash, submitted_at, expires_at, revenue_share)
    VALUES ('cogni_system', %(payer)s, 31337, %(token)s, %(treasury)s, 1000000, 100, %(status)s,
            CASE %(status)s WHEN 'CREDITED' THEN '0x' || repeat('1', 64) END,
            CASE %(status)s WHEN 'CREDITED' THEN now() END, CASE %(status)s WHEN 'CREDITED' THEN NULL ELSE now() END,
            CASE %(status)s WHEN 'CREDITED' THEN 0.75 END)
"""


@pytest.mark.slow
async def test_an_upgrade_notes_what_was_followed_or_paid_and_apart_from_it_what_intents_named(
    cluster: Cluster,
) -> None:
    async with cluster.temporary() as database:
        await asyncio.to_thread(upgrade_to, database, "0003")
        with connect(database.superuser_url, triggers=False) as superuser:
            for treasury, status in ((MIXED, "CREDITED"), (wallet(2), "CREATED_INTENT")):
                superuser.execute(
                    LANDED_ATTEMPT.encode(),
                    {"payer": wallet(1), "token": TOKEN, "treasury": treasury, "status": status},
                )
            superuser.execute(
                "INSERT INTO chain_cursors (chain_id, token, to_address, first_block, block_number, head_number)"
                " VALUES (31337, %s, %s, 1, 5, 5)",
                (wallet(8), wallet(9)),
            )
        await migrate_database(database)
        assert known(database) == {
            (TOKEN, MIXED.lower(), "upgrade"),
            (TOKEN, wallet(2), "intent"),
            (wallet(8), wallet(9), "upgrade"),
        }
        kinds = {address: kind(database, address) for address in (MIXED, wallet(9), wallet(8), wallet(2), wallet(1))}
        assert kinds == {
            MIXED: "treasury", wallet(9): "treasury", wallet(8): "token", wallet(2): None, wallet(1): None,
        }  # fmt: skip
