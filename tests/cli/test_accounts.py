"""`settle accounts` and `settle grants`: accounts of organizations and services, members, limits, who may bill whom."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any
from uuid import uuid4

import psycopg
import pytest

from tests.cli.command import ResponseModel, settle
from tests.support.postgres import Database
from tests.support.spending import open_caller, open_wallets_account, usage
from tests.support.sql import connect, query, scalar

OWNER = "0x70997970C51812dc3A010C7d01b50e0d17dc79C8"
MEMBER = "0x3C44CdDdB6a900fa2b585dd299e03d12FA4293BC"


async def run(database: Database, folder: Path, *arguments: str) -> ResponseModel:
    variables = {"SERVICE_DATABASE_URL": database.service_url, "DATABASE_URL": database.app_url}
    return await asyncio.to_thread(settle, arguments, variables, folder)


async def create(database: Database, folder: Path, kind: str, *more: str) -> dict[str, Any]:
    made = await run(database, folder, "accounts", "create", "--kind", kind, "--owner", OWNER, *more, "--json")
    assert made.exit_code == 0, made.stderr
    return dict(made.json())


def open_organization(database: Database) -> str:
    """An account of one, as the command opens it: a process less."""
    opened = "SELECT open_account('lab', user_id, 'organization', NULL, NULL) FROM provision_wallet(%s)"
    with connect(database.service_url) as service:
        service.execute(opened, [OWNER])
    return "lab"


async def test_an_organization_has_a_default_key_and_its_owner_as_member(database: Database, tmp_path: Path) -> None:
    made = await create(database, tmp_path, "organization", "--name", "Lab")
    assert (made["kind"], made["name"], made["ownerWallet"], made["balanceCredits"]) == (
        "organization",
        "Lab",
        OWNER,
        0,
    )
    assert [(member["wallet"], member["role"]) for member in made["members"]] == [(OWNER, "owner")]
    account = made["billingAccountId"]
    assert query(
        database.service_url, "SELECT is_default FROM virtual_keys WHERE billing_account_id = %s", account
    ) == [(True,)]
    # The wallet's purchases are credited to its own account, whatever else it owns.
    personal = await create(database, tmp_path, "personal")
    assert personal["kind"] == "personal" and personal["billingAccountId"] != account
    assert (await create(database, tmp_path, "personal"))["billingAccountId"] == personal["billingAccountId"]
    found = scalar(database.service_url, "SELECT billing_account_id FROM provision_wallet(%s)", OWNER)
    assert found == personal["billingAccountId"]


async def test_a_wallet_without_a_personal_account_is_not_given_its_organizations(database: Database) -> None:
    with psycopg.connect(database.superuser_url, autocommit=True) as superuser:
        superuser.execute("INSERT INTO users (id, wallet_address) VALUES ('u', %s)", [OWNER])
        superuser.execute("SELECT open_account('org', 'u', 'organization', NULL, NULL)")
        row = superuser.execute("SELECT billing_account_id, created FROM provision_wallet(%s)", [OWNER]).fetchone()
    assert row is not None and row[0] != "org" and row[1]


async def test_a_platform_service_is_of_a_tier_and_is_not_refused_for_credits(
    database: Database, tmp_path: Path
) -> None:
    made = await create(database, tmp_path, "platform_service", "--tier", "testing")
    assert made["tier"] == "testing" and made["members"] == []
    caller = open_caller(database, made["billingAccountId"], 1)
    caller.call(usage(1_000, 300))
    shown = (await run(database, tmp_path, "accounts", "show", made["billingAccountId"], "--json")).json()
    assert (shown["balanceCredits"], shown["availableCredits"], shown["spentDayCredits"]) == (1 - 110_000,) * 2 + (
        110_000,
    )


async def test_limits_are_set_and_removed_one_by_one(database: Database, tmp_path: Path) -> None:
    account = open_organization(database)
    limited = await run(database, tmp_path, "accounts", "limit", account, "--day", "500", "--month", "9000", "--json")
    assert [limited.json()[name] for name in ("limitDayCredits", "limitMonthCredits")] == [500, 9000]
    changed = await run(database, tmp_path, "accounts", "limit", account, "--no-day", "--json")
    assert [changed.json()[name] for name in ("limitDayCredits", "limitMonthCredits")] == [None, 9000]
    key = (await run(database, tmp_path, "keys", "create", "--account", account, "--json")).json()
    shown = (await run(database, tmp_path, "accounts", "show", account, "--json")).json()
    assert [one["keyId"] for one in shown["keys"]] == [key["keyId"]]
    text = await run(database, tmp_path, "accounts", "show", account)
    assert key["hint"] in text.stdout and key["key"] not in text.stdout
    assert "of any number" in text.stdout and "of 9,000" in text.stdout


async def test_members_come_change_and_leave_but_the_owner_stays(database: Database, tmp_path: Path) -> None:
    account = open_organization(database)
    members = ("accounts", "members")
    for role in ("member", "admin"):
        added = await run(
            database, tmp_path, *members, "add", account, "--wallet", MEMBER.lower(), "--role", role, "--json"
        )
        assert [(one["wallet"], one["role"]) for one in added.json()["members"]] == [(OWNER, "owner"), (MEMBER, role)]
    for command in (("remove", account, "--wallet", OWNER), ("add", account, "--wallet", OWNER, "--role", "member")):
        refused = await run(database, tmp_path, *members, *command, "--json")
        assert (refused.exit_code, refused.json()["code"]) == (1, "REFUSED")
    removed = await run(database, tmp_path, *members, "remove", account, "--wallet", MEMBER, "--json")
    assert removed.exit_code == 0 and len(removed.json()["members"]) == 1
    again = await run(database, tmp_path, *members, "remove", account, "--wallet", MEMBER, "--json")
    assert again.exit_code == 1
    personal = open_wallets_account(database, OWNER)
    of_personal = await run(database, tmp_path, *members, "add", personal, "--wallet", MEMBER, "--json")
    assert (of_personal.exit_code, of_personal.json()["code"]) == (1, "REFUSED")


@pytest.mark.slow(but=3)
@pytest.mark.parametrize(
    ("arguments", "exit_code", "code"),
    [
        (("create", "--kind", "platform_service", "--owner", OWNER), 2, "INVALID_INPUT"),
        (("create", "--kind", "organization", "--owner", OWNER, "--tier", "demo"), 2, "INVALID_INPUT"),
        (("create", "--kind", "organization", "--owner", OWNER, "--name", "x" * 81), 2, "INVALID_INPUT"),
        (("create", "--kind", "organization", "--owner", "0x12"), 2, "INVALID_INPUT"),
        (("create", "--kind", "personal", "--owner", "0x" + "0" * 40), 2, "INVALID_INPUT"),
        (("show", "nothing"), 1, "ACCOUNT_NOT_FOUND"),
        (("limit", "nothing", "--day", "1"), 1, "ACCOUNT_NOT_FOUND"),
        (("limit", "nothing", "--day", "-1"), 2, "INVALID_INPUT"),
        (("limit", "nothing", "--day", "1", "--no-day"), 2, "INVALID_INPUT"),
        (("limit", "nothing"), 2, "INVALID_INPUT"),
    ],
)
async def test_what_cannot_be_asked_of_an_account_is_refused(
    database: Database, tmp_path: Path, arguments: tuple[str, ...], exit_code: int, code: str
) -> None:
    refused = await run(database, tmp_path, "accounts", *arguments, "--json")
    assert (refused.exit_code, refused.json()["code"]) == (exit_code, code)


async def test_a_grant_is_in_force_once_until_it_is_revoked(database: Database, tmp_path: Path) -> None:
    payer, other = open_organization(database), open_wallets_account(database, OWNER)
    command = ("grants", "create", "--payer", payer, "--to", other, "--json")
    first, second = await asyncio.gather(*(run(database, tmp_path, *command) for _ in range(2)))
    assert first.json() == second.json()
    grant = first.json()
    assert (grant["payerAccountId"], grant["granteeAccountId"], grant["revokedAt"]) == (payer, other, None)
    assert (await run(database, tmp_path, "grants", "list", "--account", other, "--json")).json() == [grant]
    revoked = [await run(database, tmp_path, "grants", "revoke", grant["grantId"], "--json") for _ in range(2)]
    assert revoked[0].json() == revoked[1].json() and revoked[0].json()["revokedAt"]
    assert (await run(database, tmp_path, "grants", "list", "--json")).json() == []
    assert len((await run(database, tmp_path, "grants", "list", "--all", "--json")).json()) == 1
    anew = (await run(database, tmp_path, *command)).json()
    assert anew["grantId"] != grant["grantId"]


async def test_what_is_no_grant_is_refused(database: Database, tmp_path: Path) -> None:
    own = open_wallets_account(database, OWNER)
    for arguments, exit_code, code in (
        (("create", "--payer", own, "--to", own), 2, "INVALID_INPUT"),
        (("create", "--payer", own, "--to", "nothing"), 1, "ACCOUNT_NOT_FOUND"),
        (("revoke", str(uuid4())), 1, "GRANT_NOT_FOUND"),
    ):
        refused = await run(database, tmp_path, "grants", *arguments, "--json")
        assert (refused.exit_code, refused.json()["code"]) == (exit_code, code)
