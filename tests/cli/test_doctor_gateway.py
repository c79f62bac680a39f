"""What `settle doctor` says of the gateway, its upstreams, and what spending needs by the clock."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
import yaml

from devstack.processes import quiet_port
from tests.cli.test_doctor import findings
from tests.gateway.support import chat, served, upstreams_document
from tests.support.engine import Engine
from tests.support.sql import connect

GATEWAY = "gateway"
UPSTREAMS = "upstreams"
SPENDING = "spending"


def file_of(folder: Path, urls: Mapping[str, str], **changes: Any) -> str:
    """An UPSTREAMS_FILE."""
    path = folder / "upstreams.yaml"
    path.write_text(yaml.safe_dump(upstreams_document(urls, **changes)))
    return str(path)


async def test_a_gateway_and_its_upstream_are_fine(engine: Engine, tmp_path: Path) -> None:
    async with served(engine.database) as gateway:
        assert (await gateway.client.post(chat())).status == 200
        found = await findings(
            engine,
            tmp_path,
            GATEWAY_URL=gateway.client.url,
            UPSTREAMS_FILE=file_of(tmp_path, {"first": gateway.gateway.upstreams.upstreams[0].base_url[:-3]}),
            UPSTREAM_KEY="sk-upstream",
        )
    assert found[GATEWAY] == (True, f"ready at {gateway.client.url}")
    assert found[UPSTREAMS] == (True, "1 of 1 upstreams answer")
    assert found[SPENDING][0]


async def test_what_is_not_configured_is_not_listed_and_spending_always_is(engine: Engine, tmp_path: Path) -> None:
    found = await findings(engine, tmp_path)
    assert not {GATEWAY, UPSTREAMS} & found.keys()
    assert found[SPENDING][0]


async def test_a_gateway_that_is_away_says_what_to_run(engine: Engine, tmp_path: Path) -> None:
    url = f"http://127.0.0.1:{quiet_port()}"
    is_fine, detail = (await findings(engine, tmp_path, GATEWAY_URL=url))[GATEWAY]
    assert not is_fine
    assert f"nothing answers at {url}" in detail
    assert "run: settle gateway" in detail


@pytest.mark.slow
async def test_upstreams_that_do_not_answer_are_named(engine: Engine, tmp_path: Path) -> None:
    path = file_of(tmp_path, {"away": f"http://127.0.0.1:{quiet_port()}"})
    found = await findings(engine, tmp_path, UPSTREAMS_FILE=path, UPSTREAM_KEY="sk-upstream")
    assert found[UPSTREAMS] == (False, "no upstream lists its models: away")


async def test_a_named_model_without_a_price_is_named(engine: Engine, tmp_path: Path) -> None:
    path = file_of(tmp_path, {"any": "http://127.0.0.1:1"}, models=["no-such-model", "dev-small"])
    is_fine, detail = (await findings(engine, tmp_path, UPSTREAMS_FILE=path, UPSTREAM_KEY="sk-upstream"))[UPSTREAMS]
    assert not is_fine
    assert "no-such-model without a price" in detail
    assert "dev-small" not in detail


@pytest.mark.slow
async def test_a_file_that_cannot_be_read_and_a_missing_key_are_reported(engine: Engine, tmp_path: Path) -> None:
    found = await findings(engine, tmp_path, UPSTREAMS_FILE=str(tmp_path / "none.yaml"))
    assert not found[UPSTREAMS][0]
    assert "none.yaml" in found[UPSTREAMS][1]
    path = file_of(tmp_path, {"any": "http://127.0.0.1:1"})
    found = await findings(engine, tmp_path, UPSTREAMS_FILE=path)
    assert found[UPSTREAMS] == (
        False,
        "UPSTREAM_KEY is not set: expected the key of upstream any (UPSTREAMS_FILE)",
    )


async def test_a_hold_that_lapsed_long_ago_is_reported_and_a_recent_one_is_not(engine: Engine, tmp_path: Path) -> None:
    async with served(engine.database) as gateway:
        assert (await gateway.client.post(chat())).status == 200
    with connect(engine.database.superuser_url) as connection:
        connection.execute("SET session_replication_role = replica")
        connection.execute(
            "UPDATE credit_holds SET state = 'held', resolved_at = NULL, lease_until = now() - interval '9 minutes'"
        )
    assert (await findings(engine, tmp_path))[SPENDING][0]
    with connect(engine.database.superuser_url) as connection:
        connection.execute("SET session_replication_role = replica")
        connection.execute("UPDATE credit_holds SET lease_until = now() - interval '11 minutes'")
    is_fine, detail = (await findings(engine, tmp_path))[SPENDING]
    assert not is_fine
    assert detail.startswith("1 holds lapsed more than 10 min ago and are not resolved")


async def test_a_month_without_a_partition_is_reported(engine: Engine, tmp_path: Path) -> None:
    with connect(engine.database.superuser_url) as connection:
        [(month,)] = connection.execute(
            "SELECT to_char(date_trunc('month', now() AT TIME ZONE 'UTC') + interval '1 month', 'YYYY-MM')"
        ).fetchall()
        connection.execute(f"ALTER TABLE charge_receipts_{month.replace('-', '_')} RENAME TO gone_{uuid4().hex}")
    is_fine, detail = (await findings(engine, tmp_path))[SPENDING]
    assert not is_fine
    assert f"receipts of {month} have no partition" in detail
