"""`settle methods skip`: after a restore, what payers may have been shown is given out to no one else."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any, Final
from uuid import UUID

import pytest
from psycopg.errors import CheckViolation, InvalidParameterValue

from commands.rings import NO_KEYS, NOTHING_WRITTEN
from domain.deposits.methods import GAP_LIMIT_MAX
from domain.utxo import UTXO_CHAINS
from tests.cli.command import settle
from tests.support.addresses import BITCOIN_PATH, EVM_PATH, bitcoin_zpub, evm_xpub
from tests.support.deposits import add_method, add_ring, next_index
from tests.support.postgres import Database
from tests.support.sql import query, scalar

BITCOIN: Final = next(iter(UTXO_CHAINS))
COUNT: Final = 100
GAP: Final = 20

Run = Any


@pytest.fixture
def run(database: Database, tmp_path: Path) -> Run:
    """Runs the command, with a worker's password."""

    async def skip(*arguments: str) -> Any:
        variables = {"SERVICE_DATABASE_URL": database.service_url}
        return await asyncio.to_thread(settle, ("methods", "skip", *arguments), variables, tmp_path)

    return skip


@pytest.fixture
def keys(database: Database) -> tuple[UUID, UUID]:
    """A key of EVM addresses that two methods share and that has given out three, and one of Bitcoin."""
    evm, bitcoin = add_ring(database, (EVM_PATH, evm_xpub())), add_ring(database, (BITCOIN_PATH, bitcoin_zpub()))
    add_method(database, "DAI:a", ring_id=evm)
    add_method(database, "DAI:b", ring_id=evm, chain_id=2)
    add_method(database, "BTC:bitcoin", ring_id=bitcoin, kind="utxo", address=None, decimals=8, chain_id=BITCOIN)
    add_method(database, "USDC:local")
    for _ in range(3):
        allocate(database, evm)
    return evm, bitcoin


def allocate(database: Database, ring_id: UUID) -> int:
    """The index that the next charge gets."""
    return int(scalar(database.app_url, "SELECT allocate_index(%s)", ring_id))


def gap_limit(database: Database, ring_id: UUID) -> int:
    """How far a wallet searches."""
    return int(scalar(database.service_url, "SELECT gap_limit FROM address_rings WHERE id = %s", ring_id))


def state(database: Database) -> list[tuple[Any, ...]]:
    """All keys."""
    return query(database.service_url, "SELECT id, next_index, gap_limit FROM address_rings ORDER BY id")


async def test_a_preview_says_what_would_change_and_changes_nothing(
    run: Run, database: Database, keys: tuple[UUID, UUID]
) -> None:
    before = state(database)
    shown = await run("--by", str(COUNT), "--json")
    assert shown.exit_code == 0
    assert NOTHING_WRITTEN in shown.stderr
    assert state(database) == before
    document = shown.json()
    assert (document["written"], document["count"]) == (False, COUNT)
    rows = {UUID(row["ringId"]): row for row in document["rings"]}
    assert set(rows) == set(keys)
    evm, bitcoin = (rows[key] for key in keys)
    assert evm["methods"] == ["DAI:a", "DAI:b"]
    assert (evm["nextIndex"], evm["nextIndexAfter"], evm["gapLimitAfter"]) == (3, 3 + COUNT, GAP)
    assert (bitcoin["nextIndex"], bitcoin["nextIndexAfter"], bitcoin["gapLimitAfter"]) == (0, COUNT, GAP + COUNT)


async def test_every_key_moves_and_of_bitcoin_the_gap_with_it(
    run: Run, database: Database, keys: tuple[UUID, UUID]
) -> None:
    previewed = (await run("--by", str(COUNT), "--json")).json()["rings"]
    done = await run("--by", str(COUNT), "--yes", "--json")
    assert (done.exit_code, done.stderr) == (0, "")
    assert done.json() == {"count": COUNT, "written": True, "rings": previewed}
    evm, bitcoin = keys
    assert [allocate(database, key) for key in keys] == [3 + COUNT, COUNT]
    assert [gap_limit(database, key) for key in (evm, bitcoin)] == [GAP, GAP + COUNT]


async def test_one_methods_key_moves_alone(run: Run, database: Database, keys: tuple[UUID, UUID]) -> None:
    assert (await run("DAI:b", "--by", "7", "--yes")).exit_code == 0
    assert [next_index(database, key) for key in keys] == [10, 0]


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (("USDC:local", "--by", "1"), 2),
        (("EUR:local", "--by", "1"), 1),
        (("--by", "0"), 2),
        (("--by", "-1"), 2),
        ((), 2),
    ],
)
async def test_what_has_no_key_or_moves_nothing_forward_is_refused(
    run: Run, database: Database, keys: tuple[UUID, UUID], arguments: tuple[str, ...], code: int
) -> None:
    before = state(database)
    assert (await run(*arguments, "--yes")).exit_code == code
    assert state(database) == before


async def test_where_one_key_cannot_move_so_far_none_does(
    run: Run, database: Database, keys: tuple[UUID, UUID]
) -> None:
    query(database.superuser_url, "UPDATE address_rings SET gap_limit = %s RETURNING 1", GAP_LIMIT_MAX - COUNT)
    before = state(database)
    refused = await run("--by", str(COUNT + 1), "--yes")
    assert refused.exit_code == 2
    assert BITCOIN_PATH in refused.stderr
    assert state(database) == before
    assert (await run("--by", str(COUNT), "--yes")).exit_code == 0
    with pytest.raises(CheckViolation):
        query(database.service_url, "SELECT skip_indices(%s, 1)", keys[1])


def test_no_index_moves_back(database: Database, keys: tuple[UUID, UUID]) -> None:
    for count in (0, -1, None):
        with pytest.raises(InvalidParameterValue):
            query(database.service_url, "SELECT skip_indices(%s, %s::integer)", keys[0], count)
    assert next_index(database, keys[0]) == 3


async def test_without_keys_there_is_nothing_to_move(run: Run) -> None:
    shown = await run("--by", "1", "--yes")
    assert (shown.exit_code, NO_KEYS in shown.stdout) == (0, True)
