"""The database's functions: each has one present text, in `db/functions`, and `settle migrate` brings it in."""

from __future__ import annotations

import asyncio
import hashlib
import re
from decimal import Decimal
from pathlib import Path
from typing import Any, Final

import psycopg
import pytest

from db import functions, migrations
from db.migrate import migrate
from db.schema import EXPANDED_REVISION
from domain.money import credits_for_usd_cents, revenue_share_credits
from tests.database.test_rolling_deploy import upgrade_to
from tests.support.postgres import Cluster, Database, migrate_database
from tests.support.sql import connect, query, scalar

SQL_FOLDER: Final = Path(migrations.__path__[0]) / "sql"

LANDED: Final = {
    "0001_doors.sql": "ae0d96ecf1554b14fd69721ef19d9a33be309385b97051135a2736e28cb71fec",
    "0001_invariants.sql": "c79b6c02ebc96cf12a3d1d0df021a816bad19ef03507c85b851d5b1a1dac916b",
    "0001_row_level_security.sql": "30beccd83fa59a350dc8bedd4774de73f079af45b18f4be28487f7f7d7f39320",
    "0001_tables.sql": "bc80958426c29dc61b4e166f8e68e00cd4e9af77ec8a7608af2e6d639b48b3a8",
    "0002_front_door.sql": "598385187c920f8afe99b64040b72af5d4fe363d75db688c5406328e3dbe81d1",
    "0003_books.sql": "44b7174ac94b7f93cebe3c7eb90b3b836fa3ab27bf1f5b2a6ea6365e0ee20b26",
    "0003_finality.sql": "d43b0ec6bbf61e638c06854a11a9777a23d9c7497c466de4c72c59caf026ffd7",
    "0003_governance.sql": "9560472a1aee378e51e3dc1b4de7c8a41bda027515193e9362328cef68c9e5fd",
    "0003_remedies.sql": "41d38e5bb0ac3e24075ed151574d6e37df5f7399afa61fa7dc42491280066fb5",
    "0003_rights.sql": "077a237ae6443a03c62678531ee35354880a21adbf5bfb1b37af981b1125fc62",
    "0003_watching.sql": "c86e143d4d09a2f628b7fad0a4900f1f45e3abb116bfe6aca7d169060a5001c5",
    "0004_chain_identity.sql": "5d58be0f9f590dfe8a98d939b51181e875609082d69ee2afaaafd5de5cdc4f99",
    "0004_chain_operations.sql": "8ac1af17bee05042115d6018489a5eb5fe36393183395774d79a88cafed12e2f",
    "0004_compatibility.sql": "370fa2ff76a2b9da9bd8e3e1bdf364c024b9259f19394ffbc40752bde2393715",
    "0004_findings.sql": "778d4015d70decf294d07b67e37d33e218bd51948b9f276821f6aae90e2fbeb9",
    "0004_settlement_role.sql": "ba996b263d6fbad163c7734af062feed9d1a9667977381cb25d5114a0fab14c5",
    "0004_transfer_rules.sql": "73a4236678089f75b848601bd8136c6479a2f10159e1aaa89036e91cb6eb65f0",
    "0005_contract.sql": "9252c0f7a589c2f9d3551e173dc1dddbcdc61ab976413e23e6b57ecc24ab9e17",
    "0006_accounts.sql": "4218931c796cecbdaaa51fff9b2e33a613c172575d4dc969b103d484a21993d8",
    "0006_billing.sql": "e7b64d4748735157d82b748973a4673b3bd63687743275fb743fea4be37fd369",
    "0006_governance.sql": "77499678f68fc500aa3dc336e0c88bab8028f7c9caa17cc0a7ba5226dc7eee2b",
    "0006_ledger.sql": "9343f52b1397705c47ac7f4936db4d12714d53fde39431d375bc8f825c6b3bb7",
    "0007_finality.sql": "f6f9eedf20921fd09c20f96a41470a588cfba050c6023a7ae7afefb36da9000b",
    "0008_authorizations.sql": "bdad94bc3026d218f41eab1aa7db46f49ad376dc9a91c27243f7c83b408b7d7f",
    "0008_deposits.sql": "c53d27710310380f3f2678d738404629e15a192842c4d68f71ded1bdd7a77c97",
    "0008_sweeps.sql": "c03a5849f750a109a01a8588272da3bdf952e42e75a6c37a9df48ec88155ce41",
    "0008_webhooks.sql": "b285e2b9779e08dae5c88f9ed6f8604459aefe104948abd256d15d6812846cf1",
}
"""SHA-256 of the files of revisions that are in production: they make there what they made."""

WHOLE_TABLE: Final = """
    SELECT proname::text, xmin::text, pg_get_functiondef(oid), proacl::text FROM pg_proc
     WHERE pronamespace = 'public'::regnamespace ORDER BY proname
"""


def installed(database: Database) -> dict[str, str]:
    """What the server says of the functions."""
    with psycopg.connect(database.superuser_url) as connection:
        return functions.installed(connection)


def test_every_function_of_the_schema_has_its_text_and_is_what_it_says(database: Database) -> None:
    assert installed(database) == functions.load()
    names = query(database.superuser_url, "SELECT proname FROM pg_proc WHERE pronamespace = 'public'::regnamespace")
    assert len(names) == len(functions.load()), "no function has a second signature"


@pytest.mark.slow(but=1)
@pytest.mark.parametrize("landed", ["0001", "0002", "0003", "0008", EXPANDED_REVISION])
async def test_the_functions_are_the_same_from_wherever_the_schema_comes(
    cluster: Cluster, database: Database, landed: str
) -> None:
    def rights(of: Database) -> list[Any]:
        return [(name, text, acl) for name, _, text, acl in query(of.superuser_url, WHOLE_TABLE)]

    async with cluster.temporary() as old:
        await asyncio.to_thread(upgrade_to, old, landed)
        await migrate_database(old)
        assert rights(old) == rights(database)


async def test_a_migration_that_finds_all_functions_as_they_should_be_writes_none(database: Database) -> None:
    before = query(database.superuser_url, WHOLE_TABLE)
    await migrate_database(database)
    assert query(database.superuser_url, WHOLE_TABLE) == before


@pytest.mark.parametrize("expand_only", [False, True])
async def test_functions_that_differ_from_their_text_are_brought_up_to_date_and_keep_their_callers(
    database: Database, expand_only: bool
) -> None:
    callers = [(name, acl) for name, _, _, acl in query(database.superuser_url, WHOLE_TABLE)]
    damages = (
        "CREATE OR REPLACE FUNCTION guard_attempt() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NEW; END'",
        "ALTER FUNCTION check_own_wallet() SECURITY INVOKER",
        "ALTER FUNCTION post_entry RESET search_path",
        "ALTER FUNCTION find_session VOLATILE",
        "DROP FUNCTION prune_expired",
    )
    with connect(database.migration_url) as owner:
        for damage in damages:
            owner.execute(damage.encode())
        owner.execute("CREATE FUNCTION of_the_version_before() RETURNS int LANGUAGE sql AS 'SELECT 1'")
    names = {re.findall(r"\bfunction (\w+)", damage.lower())[0] for damage in damages}
    found, wanted = installed(database), functions.load()
    assert {name for name, text in wanted.items() if found.get(name) != text} == names
    said: list[str] = []
    await asyncio.to_thread(
        migrate,
        database.migration_url,
        app_url=database.app_url,
        settlement_url=database.settlement_url,
        service_url=database.service_url,
        expand_only=expand_only,
        on_progress=said.append,
    )
    there = installed(database)
    assert there.pop("of_the_version_before"), "it stays for the version before, whose it is"
    assert there == wanted
    [line] = [line for line in said if line.startswith("functions")]
    assert {*line.rpartition(": ")[2].split(", ")} == names
    kept = [(name, acl) for name, _, _, acl in query(database.superuser_url, WHOLE_TABLE)]
    assert [(name, acl) for name, acl in kept if name != "of_the_version_before"] == callers


def test_a_new_function_is_nobodys_to_call(database: Database) -> None:
    with connect(database.migration_url) as owner:
        owner.execute("DROP FUNCTION end_sessions_of_wallet")
        functions.create(owner, ["end_sessions_of_wallet", "post_entry"])
        [(acl,)] = owner.execute("SELECT proacl::text FROM pg_proc WHERE proname = 'end_sessions_of_wallet'").fetchall()
    assert acl == "{settle_owner=X/settle_owner}"


def test_a_revision_that_asks_for_its_functions_leaves_those_that_are_there(database: Database) -> None:
    with connect(database.migration_url) as owner:
        owner.execute("ALTER FUNCTION post_entry RESET search_path")
        functions.create(owner, list(functions.load()))
        assert functions.installed(owner)["post_entry"] != functions.load()["post_entry"]


@pytest.mark.parametrize(
    "content",
    [
        "GRANT EXECUTE ON FUNCTION f TO PUBLIC;\n",
        "CREATE OR REPLACE FUNCTION f() RETURNS int LANGUAGE sql AS $$ SELECT 1 $$;\n",
        "CREATE FUNCTION public.f()\n RETURNS integer\n LANGUAGE sql\nAS $function$\n    SELECT 1\n$function$;\n",
        2 * "CREATE OR REPLACE FUNCTION public.f()\n RETURNS integer\n LANGUAGE sql\nAS $function$\n1\n$function$;\n",
    ],
)
def test_a_file_holds_functions_as_the_server_prints_them_and_nothing_else(content: str) -> None:
    with pytest.raises(ValueError, match="two texts|neither"):
        functions.parse(content)


def test_no_migration_defines_a_function_any_more() -> None:
    new = [path for path in SQL_FOLDER.glob("*.sql") if path.name >= "0004"]
    assert len(new) > 3
    assert [path.name for path in new if re.search(r"\bFUNCTION\b[^;]*\bAS \$", path.read_text(), re.I)] == []


def test_files_of_landed_revisions_stay_as_they_landed() -> None:
    found = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in SQL_FOLDER.glob("000[1-8]_*.sql")}
    assert found == LANDED


# -- what the code has as well


@pytest.mark.parametrize("usd_cents", [1, 100, 12_345, 1_000_000, 92_233_720_368_547])
def test_credits_are_what_the_code_makes_them(database: Database, usd_cents: int) -> None:
    assert scalar(database.service_url, "SELECT credits_of_cents(%s)", usd_cents) == credits_for_usd_cents(usd_cents)


@pytest.mark.slow(but=6)
@pytest.mark.parametrize("share", ["0", "0.75", "1", "0.3333333333333333", "0.000000000000001"])
@pytest.mark.parametrize("credits_", [1, 7, 10_000_000, 9_223_372_036_854_775_807])
def test_a_bonus_is_what_the_code_makes_it(database: Database, credits_: int, share: str) -> None:
    found = scalar(database.service_url, "SELECT bonus_of_credits(%s::bigint, %s)", credits_, Decimal(share))
    assert found == revenue_share_credits(credits_, Decimal(share))


RATES: Final = r"100_?000|floor\(.*share"


def test_no_query_has_the_rate_of_its_own() -> None:
    folder = Path(functions.__path__[0]).parent
    files = [*folder.rglob("*.py"), *folder.glob("functions/*.sql")]
    having = {path.name for path in files if re.search(RATES, path.read_text())}
    assert having == {"ledger.sql"}
    assert len(re.findall(RATES, (folder / "functions" / "ledger.sql").read_text())) == 3
