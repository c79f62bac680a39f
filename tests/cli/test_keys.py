"""`settle keys`: made once, listed without their secret, rotated with overlap, revoked in every process."""

from __future__ import annotations

import asyncio
import re
from hashlib import sha256
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from tests.cli.command import ResponseModel, settle
from tests.support.postgres import Database
from tests.support.spending import open_wallets_account
from tests.support.sql import query, scalar

WALLET = "0x70997970C51812dc3A010C7d01b50e0d17dc79C8"


async def run(database: Database, folder: Path, *arguments: str) -> ResponseModel:
    variables = {"SERVICE_DATABASE_URL": database.service_url, "DATABASE_URL": database.app_url}
    return await asyncio.to_thread(settle, ("keys", *arguments), variables, folder)


async def make(database: Database, folder: Path, *more: str) -> dict[str, Any]:
    made = await run(database, folder, "create", "--wallet", WALLET, *more, "--json")
    assert made.exit_code == 0, made.stderr
    return dict(made.json())


def state_of(database: Database, key: str) -> str:
    """What the gateway finds of a key."""
    return str(scalar(database.app_url, "SELECT state FROM find_key(%s)", sha256(key.encode()).hexdigest()))


async def test_a_key_is_made_for_a_wallet_and_works_by_its_hash(database: Database, tmp_path: Path) -> None:
    made = await make(
        database,
        tmp_path,
        *("--label", "CI", "--expires", "2999-01-01", "--limit-day", "5", "--limit-month", "50"),
        *("--models", "gpt-4o, o3", "--may-attribute"),
    )
    assert re.fullmatch(r"sk-settle-[A-Za-z0-9_-]{43}", made["key"])
    assert made["billingAccountId"] == open_wallets_account(database, WALLET)
    assert made["expiresAt"].startswith("2999-01-01T00:00:00")
    assert [made[name] for name in ("label", "limitDayCredits", "limitMonthCredits", "models", "mayAttribute")] == [
        *("CI", 5, 50),
        ["gpt-4o", "o3"],
        True,
    ]
    stored = query(database.superuser_url, "SELECT key_hash, key_hint FROM virtual_keys WHERE id = %s", made["keyId"])
    assert stored == [(sha256(made["key"].encode()).hexdigest(), made["hint"])]
    listed = await run(database, tmp_path, "list", "--json")
    assert [key["keyId"] for key in listed.json()] == [made["keyId"]]
    assert made["key"] not in listed.stdout
    text = await run(database, tmp_path, "list", "--account", made["billingAccountId"])
    assert made["hint"] in text.stdout and "0 of 50" in text.stdout


async def test_the_secret_is_printed_alone_on_a_line(database: Database, tmp_path: Path) -> None:
    account = open_wallets_account(database, WALLET)
    made = await run(database, tmp_path, "create", "--account", account)
    assert made.stdout.splitlines()[-1].startswith("sk-settle-") and "only time" in made.stderr
    assert "sk-settle-" not in made.stderr


async def test_a_rotated_key_works_beside_the_new_one_until_it_ends(database: Database, tmp_path: Path) -> None:
    first = await make(database, tmp_path, "--limit-day", "5")
    rotated = (await run(database, tmp_path, "rotate", first["keyId"], "--json")).json()
    assert rotated["limitDayCredits"] == 5 and rotated["key"] != first["key"]
    states = {key["keyId"]: key["state"] for key in (await run(database, tmp_path, "list", "--json")).json()}
    assert states == {first["keyId"]: "rotated", rotated["keyId"]: "active"}
    again = await run(database, tmp_path, "rotate", first["keyId"], "--json")
    assert (again.exit_code, again.json()["code"]) == (1, "KEY_NOT_IN_FORCE")
    last = (await run(database, tmp_path, "rotate", rotated["keyId"], "--overlap-minutes", "0", "--json")).json()
    in_force = [key["keyId"] for key in (await run(database, tmp_path, "list", "--json")).json()]
    assert rotated["keyId"] not in in_force and last["keyId"] in in_force


async def test_a_revoked_key_is_refused_from_then_on(database: Database, tmp_path: Path) -> None:
    made = await make(database, tmp_path)
    before = state_of(database, made["key"])
    answers = [await run(database, tmp_path, "revoke", made["keyId"], "--json") for _ in range(2)]
    assert answers[0].json() == answers[1].json() and answers[0].json()["state"] == "revoked"
    assert state_of(database, made["key"]) != before
    assert (await run(database, tmp_path, "list", "--json")).json() == []
    assert len((await run(database, tmp_path, "list", "--all", "--json")).json()) == 1


@pytest.mark.slow(but=3)
@pytest.mark.parametrize(
    ("arguments", "exit_code", "code"),
    [
        (("create",), 2, "INVALID_INPUT"),
        (("create", "--account", "x", "--wallet", WALLET), 2, "INVALID_INPUT"),
        (("create", "--account", "nothing"), 1, "ACCOUNT_NOT_FOUND"),
        (("create", "--wallet", "0x" + "0" * 40), 2, "INVALID_INPUT"),
        (("create", "--wallet", WALLET, "--label", " "), 2, "INVALID_INPUT"),
        (("create", "--wallet", WALLET, "--expires", "2020-01-01"), 2, "INVALID_INPUT"),
        (("create", "--wallet", WALLET, "--expires", "soon"), 2, "INVALID_INPUT"),
        (("create", "--wallet", WALLET, "--limit-day", "-1"), 2, "INVALID_INPUT"),
        (("create", "--wallet", WALLET, "--models", "a,,b"), 2, "INVALID_INPUT"),
        (("rotate", str(uuid4())), 1, "KEY_NOT_FOUND"),
        (("revoke", str(uuid4())), 1, "KEY_NOT_FOUND"),
    ],
)
async def test_what_cannot_be_asked_of_a_key_is_refused(
    database: Database, tmp_path: Path, arguments: tuple[str, ...], exit_code: int, code: str
) -> None:
    refused = await run(database, tmp_path, *arguments, "--json")
    assert (refused.exit_code, refused.json()["code"]) == (exit_code, code)


async def test_a_refusal_names_the_option(database: Database, tmp_path: Path) -> None:
    refused = await run(database, tmp_path, "create", "--wallet", WALLET, "--expires", "2020-01-01")
    assert "--expires: expected" in refused.stderr
