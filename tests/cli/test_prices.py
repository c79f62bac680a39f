"""`settle prices show|diff|import`: what changes is shown before anything counts, and written once."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path

import yaml

from domain.billing.installed_prices import installed_source
from tests.cli.command import ResponseModel, settle
from tests.support.postgres import Database
from tests.support.sql import connect, query, scalar


def variables(database: Database) -> Mapping[str, str]:
    return {"SERVICE_DATABASE_URL": database.service_url, "DATABASE_URL": database.app_url}


async def run(database: Database, folder: Path, *arguments: str, **more: str) -> ResponseModel:
    return await asyncio.to_thread(settle, ("prices", *arguments), {**variables(database), **more}, folder)


def change_stored_prices(database: Database) -> None:
    """Let the first version be of an older release: one price was lower, one model unknown, one is not sold now."""
    with connect(database.migration_url) as owner:
        owner.execute(
            "UPDATE model_prices SET rates = jsonb_set(rates, '{input_tokens,usd}', '\"2\"') WHERE model = 'gpt-4o'"
        )
        owner.execute("DELETE FROM model_prices WHERE model = 'gpt-4o-mini'")
        owner.execute(
            "INSERT INTO model_prices VALUES (1, 'old-model', 'openai', '{\"requests\": {\"usd\": \"3\"}}',"
            ' \'{"equals": "old-model"}\', 9999)'
        )
        owner.execute("""UPDATE model_prices SET names = '{"equals": "o3"}' WHERE model = 'o3'""")


async def test_the_difference_is_shown_before_it_counts_and_written_once(database: Database, tmp_path: Path) -> None:
    change_stored_prices(database)
    # Imported ahead of its time, a version changes nothing of today's.
    ahead = (datetime.now(UTC) + timedelta(days=1)).isoformat()
    imported = await run(database, tmp_path, "import", "--counts-from", ahead, "--yes", "--json")
    assert datetime.fromisoformat(imported.json()["countsFrom"]) == datetime.fromisoformat(ahead)
    again = await run(database, tmp_path, "import", "--counts-from", ahead, "--yes", "--json")
    assert (again.exit_code, again.json()["code"]) == (1, "REFUSED")

    shown = await run(database, tmp_path, "diff", "--json")
    assert shown.exit_code == 0
    diff = shown.json()
    assert [diff[name] for name in ("added", "removed", "changed", "renamed")] == [1, 1, 1, 1]
    assert (diff["beforeVersion"], diff["installed"], diff["importedVersion"]) == ("1", installed_source(), None)
    by_model = {change["model"]: change for change in diff["changes"]}
    assert by_model["gpt-4o"]["rates"] == [
        {
            "unit": "input_tokens",
            "aboveInputTokens": 0,
            "per": 1_000_000,
            "beforeUsd": "2",
            "afterUsd": "2.5",
            "percent": "25.0",
        }
    ]
    assert (by_model["old-model"]["change"], by_model["old-model"]["rates"][0]["afterUsd"]) == ("removed", None)
    assert by_model["gpt-4o-mini"]["change"] == "added" and by_model["o3"]["change"] == "renamed"

    preview = await run(database, tmp_path, "import")
    assert preview.exit_code == 0 and "nothing was written" in preview.stderr
    assert scalar(database.service_url, "SELECT max(id) FROM price_versions") == imported.json()["importedVersion"]
    before = await run(database, tmp_path, "show", "gpt-4o", "--json")
    first, second = await asyncio.gather(
        *(run(database, tmp_path, "import", "--yes", "--operator", "ada", "--json") for _ in range(2))
    )
    assert sorted((first.exit_code, second.exit_code)) == [0, 1], "one of two is refused: nothing differs any more"
    written = next(one for one in (first, second) if one.exit_code == 0).json()
    assert written["importedVersion"] == scalar(database.service_url, "SELECT max(id) FROM price_versions")
    assert query(database.service_url, "SELECT created_by FROM price_versions ORDER BY id DESC LIMIT 1") == [("ada",)]
    after = await run(database, tmp_path, "show", "gpt-4o-2024-08-06", "--json")
    assert [price.json()["rates"][1]["usd"] for price in (before, after)] == ["2", "2.5"]
    assert before.json()["version"] == "1"
    assert (after.json()["listedAs"], after.json()["version"]) == ("gpt-4o", str(written["importedVersion"]))
    versions = (await run(database, tmp_path, "show", "--json")).json()
    assert [version["isCurrent"] for version in versions] == [False, True, False]


async def test_what_cannot_be_asked_of_prices_is_refused(database: Database, tmp_path: Path) -> None:
    over = await run(database, tmp_path, "import", "--counts-from", "2026-01-01", "--yes", "--json")
    assert (over.exit_code, over.json()["code"]) == (2, "INVALID_INPUT")
    same = await run(database, tmp_path, "import", "--yes", "--json")
    assert (same.exit_code, same.json()["code"]) == (1, "REFUSED")
    unknown = await run(database, tmp_path, "show", "no-such-model", "--json")
    assert (unknown.exit_code, unknown.json()["code"]) == (1, "REFUSED")
    narrowed = await run(database, tmp_path, "diff", "--provider", "openai")
    assert "0 models added, 0 removed" in narrowed.stdout
    assert json.loads((await run(database, tmp_path, "diff", "--json")).stdout)["changes"] == []


async def test_prices_of_the_file_of_upstreams_are_shown_as_the_gateway_has_them(
    database: Database, tmp_path: Path
) -> None:
    with connect(database.migration_url) as owner:  # each command reads all that there are
        owner.execute("DELETE FROM model_prices WHERE model NOT IN ('gpt-4o', 'gpt-4o-mini')")
    file = tmp_path / "upstreams.yaml"
    prices = {
        "gpt-4o": {"input_per_million_usd": "3", "output_per_million_usd": "9"},
        "own-model": {"input_per_million_usd": "0.1", "output_per_million_usd": "0.2"},
    }
    upstream = {"name": "any", "base_url": "http://127.0.0.1:9/v1", "models": ["*"]}
    file.write_text(yaml.safe_dump({"upstreams": [upstream], "prices": prices}))

    async def show(*arguments: str, file: str = str(file)) -> ResponseModel:
        return await run(database, tmp_path, "show", *arguments, UPSTREAMS_FILE=file)

    dated = (await show("gpt-4o-2024-08-06", "--json")).json()
    rates = {rate["unit"]: rate["usd"] for rate in dated["rates"]}
    assert (rates, dated["listedAs"]) == ({"input_tokens": "3", "output_tokens": "9"}, "gpt-4o")
    assert dated["version"].startswith("upstreams-file:")
    replaced = {rate["unit"]: rate["usd"] for rate in dated["replacedRates"]}
    assert (dated["replacedVersion"], replaced["input_tokens"], replaced["output_tokens"]) == ("1", "2.5", "10")
    own, other = [(await show(model, "--json")).json() for model in ("own-model", "gpt-4o-mini")]
    assert (own["provider"], own["replacedVersion"], own["replacedRates"]) == (None, None, [])
    assert (other["version"], other["replacedVersion"]) == ("1", None)

    listed = await show("--overrides", "--json")
    assert [price["model"] for price in listed.json()] == ["gpt-4o", "own-model"]
    assert listed.json()[0]["rates"] == dated["rates"]
    assert "in place of version 1: " in (await show("gpt-4o")).stdout
    assert "2 models have prices of UPSTREAMS_FILE" in (await show()).stdout
    [row] = [line for line in (await show("--overrides")).stdout.splitlines() if "gpt-4o" in line]
    assert [word for word in row.split() if word.replace(".", "").isdigit()] == ["3", "2.5"]

    missing = await run(database, tmp_path, "show", "--overrides", "--json")
    assert (missing.exit_code, "UPSTREAMS_FILE" in missing.stdout) == (2, True)
    both = await show("gpt-4o", "--overrides")
    assert (both.exit_code, "not both" in both.stderr) == (2, True)
