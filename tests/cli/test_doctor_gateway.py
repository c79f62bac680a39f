"""What `settle doctor` says of the gateway, its upstreams, and what spending needs by the clock.

That it says so, and where, is tried with the command, here and in `test_doctor`; each condition by the check that it
runs.
"""

from __future__ import annotations

from contextlib import AsyncExitStack
from pathlib import Path
from uuid import uuid4

import pytest

from commands.gateway_checks import check_spending, check_upstreams
from devstack.processes import quiet_port
from devstack.upstream import Upstream
from domain.errors import ApiNotReady, ConfigurationError, HoldsNotResolved, StartupCheckFailed
from settings import Settings, load
from tests.cli.test_doctor import GATEWAY, SPENDING, UPSTREAMS, findings, upstreams_file
from tests.gateway.support import chat, served
from tests.support.engine import Engine
from tests.support.postgres import Database
from tests.support.spending import Spender
from tests.support.sql import connect


async def test_a_gateway_and_its_upstream_are_fine(engine: Engine, tmp_path: Path) -> None:
    async with served(engine.database) as gateway:
        assert (await gateway.client.post(chat())).status == 200
        found = await findings(
            engine,
            tmp_path,
            GATEWAY_URL=gateway.client.url,
            UPSTREAMS_FILE=upstreams_file(tmp_path, {"first": gateway.gateway.upstreams.upstreams[0].base_url[:-3]}),
            UPSTREAM_KEY="sk-upstream",
        )
    assert found[GATEWAY] == (True, f"ready at {gateway.client.url}")
    assert found[UPSTREAMS] == (True, "1 of 1 upstreams answer")
    assert found[SPENDING][0]


# -- each condition


KEYS = {"UPSTREAM_KEY": "sk-upstream"}


def settings_of(database: Database) -> Settings:
    """The settings that the checks need."""
    return load({"DATABASE_URL": database.app_url, "SERVICE_DATABASE_URL": database.service_url})


async def test_upstreams_that_do_not_answer_are_named(database: Database, tmp_path: Path) -> None:
    settings = settings_of(database)
    nowhere = {name: f"http://127.0.0.1:{quiet_port()}" for name in ("away", "off")}
    with pytest.raises(ApiNotReady, match="away, off"):
        await check_upstreams(settings, KEYS, Path(upstreams_file(tmp_path, nowhere)))
    async with AsyncExitStack() as stack:
        url = await stack.enter_async_context(Upstream().serve())
        path = Path(upstreams_file(tmp_path, {"here": url, "away": nowhere["away"]}))
        # One that answers is enough, and the others are named.
        answer = await check_upstreams(settings, KEYS, path)
        assert answer.startswith("1 of 2") and answer.endswith("away")


async def test_named_models_without_a_price_are_named(database: Database, tmp_path: Path) -> None:
    unpriced = [f"no-such-model-{number}" for number in range(7)]
    # The file has a price for the one, the price book for the other, and a pattern names no model.
    models = [*unpriced, "dev-small", "gpt-4o", "any-*"]
    path = Path(upstreams_file(tmp_path, {"any": "http://127.0.0.1:1"}, models=models))
    with pytest.raises(ConfigurationError) as refused:
        await check_upstreams(settings_of(database), KEYS, path)
    assert f"UPSTREAMS_FILE: {', '.join(unpriced[:5])} and 2 more" in refused.value.message
    few = Path(upstreams_file(tmp_path, {"any": "http://127.0.0.1:1"}, models=unpriced[:5]))
    with pytest.raises(ConfigurationError, match=f"{unpriced[4]} without a price"):
        await check_upstreams(settings_of(database), KEYS, few)


async def test_an_upstream_that_states_costs_needs_no_prices(database: Database, tmp_path: Path) -> None:
    async with Upstream().serve() as url:
        path = Path(upstreams_file(tmp_path, {"here": url}, models=["no-such-model"], usage_lookup="openrouter"))
        assert await check_upstreams(settings_of(database), KEYS, path) == "1 of 1 upstreams answer"


async def test_a_file_that_cannot_be_read_and_a_missing_key_are_reported(database: Database, tmp_path: Path) -> None:
    settings = settings_of(database)
    with pytest.raises(ConfigurationError, match="none.yaml"):
        await check_upstreams(settings, KEYS, tmp_path / "none.yaml")
    with pytest.raises(ConfigurationError, match="UPSTREAM_KEY is not set.* any"):
        await check_upstreams(settings, {}, Path(upstreams_file(tmp_path, {"any": "http://127.0.0.1:1"})))


async def test_a_hold_that_lapsed_long_ago_is_reported_and_a_recent_one_is_not(database: Database) -> None:
    hold_id = Spender.open(database, credits=1_000).hold(10)
    lapse = "UPDATE credit_holds SET lease_until = clock_timestamp() - make_interval(mins => %s) WHERE id = %s"
    with connect(database.superuser_url) as superuser:
        superuser.execute(lapse, (9, hold_id))
    assert await check_spending(settings_of(database))
    with connect(database.superuser_url) as superuser:
        superuser.execute(lapse, (11, hold_id))
    with pytest.raises(HoldsNotResolved, match="^1 holds .* 10 min"):
        await check_spending(settings_of(database))


async def test_a_month_without_a_partition_is_reported(database: Database) -> None:
    with connect(database.superuser_url) as connection:
        [(month,)] = connection.execute(
            "SELECT to_char(date_trunc('month', now() AT TIME ZONE 'UTC') + interval '1 month', 'YYYY-MM')"
        ).fetchall()
        connection.execute(f"ALTER TABLE charge_receipts_{month.replace('-', '_')} RENAME TO gone_{uuid4().hex}")
    with pytest.raises(StartupCheckFailed, match=f"receipts of {month}"):
        await check_spending(settings_of(database))
