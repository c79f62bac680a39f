"""`settle schedules`: the difference before it acts, for people and for programs."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Final

import pytest

from commands.schedules import NO_SCHEDULES
from devstack.processes import wait_until
from starter.schedules import list_names
from tests.cli.command import ResponseModel, settle
from tests.support.servers import Namespace
from workflows.naming import schedule_id, watch_workflow_id

NOTE: Final = "the node is being moved"

FILE = """
schedules:
  beat: {job: GovernanceHeartbeat, every: 5m}
  house: {job: Housekeeping, every: 1m, paused: true, note: until the launch}
"""
TREASURY = "0x70997970C51812dc3A010C7d01b50e0d17dc79C8"


def variables(folder: Path, *, temporal: dict[str, str]) -> dict[str, str]:
    file = {"SCHEDULES_FILE": str(folder / "schedules.yaml")}
    return {**temporal, **file, "CHAIN_ID": "31337", "TREASURY_ADDRESS": TREASURY}


@pytest.mark.slow
async def test_from_an_empty_list_to_a_changed_file(scheduling_namespace: Namespace, tmp_path: Path) -> None:
    client, watch = scheduling_namespace.client, watch_workflow_id(31337)
    file = tmp_path / "schedules.yaml"

    async def run(*arguments: str) -> ResponseModel:
        given = variables(tmp_path, temporal=scheduling_namespace.variables)
        return await asyncio.to_thread(settle, ["schedules", *arguments], given, tmp_path)

    async def both_are_listed() -> bool:
        return await list_names(client) == ["beat", "house"]

    empty = await run("list")
    assert (empty.exit_code, empty.stdout.strip()) == (0, NO_SCHEDULES)

    file.write_text(FILE)
    dry = await run("apply", "--dry-run", "--json")
    assert dry.exit_code == 0
    document = dry.json()
    assert document["dryRun"] is True
    assert {one["name"]: one["change"] for one in document["schedules"]} == {"beat": "create", "house": "create"}
    assert document["workflows"] == [{"workflowId": watch, "change": "start"}]
    assert document["schedules"][0]["differences"]["every"] == {"has": None, "wants": "5m"}
    assert await list_names(client) == []

    applied = await run("apply")
    assert (applied.exit_code, applied.stderr) == (0, "")
    assert "create" in applied.stdout
    assert "every: 5m" in applied.stdout
    assert applied.stdout.splitlines()[-1] == "Done."
    await wait_until(both_are_listed, timeout_seconds=30, what="both schedules")

    await client.get_schedule_handle(schedule_id("beat")).pause(note=NOTE)
    again = await run("apply")
    assert again.exit_code == 0
    assert "create" not in again.stdout
    assert again.stdout.splitlines()[-1] == "Nothing to do."

    beat, house = (await run("list", "--json")).json()["schedules"]
    assert (beat["name"], beat["paused"], beat["note"], beat["nextRunAt"]) == (
        "beat",
        True,
        NOTE,
        None,
    )
    assert (house["job"], house["every"], house["lastStatus"]) == ("Housekeeping", "1m", None)
    assert f"paused: {NOTE}" in (await run("list")).stdout

    file.write_text("schedules:\n  beat: {job: GovernanceHeartbeat, every: 6m}\n")
    changed = (await run("apply", "--json")).json()["schedules"]
    assert [(one["name"], one["change"], one["note"]) for one in changed] == [
        ("beat", "update", NOTE),
        ("house", "delete", "until the launch"),
    ]
    assert changed[0]["differences"] == {"every": {"has": "5m", "wants": "6m"}}
    await client.get_workflow_handle(watch).terminate("the test is over")


NOBODY = {"TEMPORAL_ADDRESS": "127.0.0.1:1"}


def test_a_bad_file_is_a_usage_error_and_one_line_before_any_request(tmp_path: Path) -> None:
    (tmp_path / "schedules.yaml").write_text("schedules:\n  beat: {job: GovernanceHeartbeat, every: 5}\n")
    answer = settle(["schedules", "apply"], variables(tmp_path, temporal=NOBODY), tmp_path)
    assert (answer.exit_code, answer.stdout) == (2, "")
    [line] = answer.stderr.splitlines()
    assert "schedules.yaml: schedules.beat.every: got 5, expected" in line


def test_a_temporal_that_is_not_there_is_a_no(tmp_path: Path) -> None:
    answer = settle(["schedules", "list", "--json"], NOBODY, tmp_path)
    assert answer.exit_code == 1
    assert answer.json()["code"] == "TEMPORAL_UNAVAILABLE"
