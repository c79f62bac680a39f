"""A worker that cannot do its work does not start: one clear line, an exit code, no secret."""

from __future__ import annotations

import asyncio
import socket
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from db import startup
from devstack.processes import quiet_port
from starter.temporal import no_namespace, unreachable
from tests.support import sql
from tests.support.engine import Engine
from tests.support.postgres import ROLE_PASSWORD, Cluster
from tests.support.service_process import clean_environment
from tests.worker.process import running_worker

START_SECONDS_MAX = 30.0


async def _refusal(folder: Path, variables: Mapping[str, str], **changes: str) -> tuple[int, str]:
    """Exit code and the one line that it said."""
    async with running_worker(folder, variables, **changes) as worker:
        exit_code, _ = await worker.ends(timeout_seconds=START_SECONDS_MAX)
    [line] = worker.log.splitlines()
    assert ROLE_PASSWORD not in line
    assert line.startswith("settle: ")
    return exit_code, line


async def test_a_role_with_more_rights_than_it_needs_stops_the_worker(engine: Engine, tmp_path: Path) -> None:
    exit_code, line = await _refusal(tmp_path, engine.variables, SETTLEMENT_DATABASE_URL=engine.database.migration_url)
    assert exit_code == 1
    assert startup.more_rights("SETTLEMENT_DATABASE_URL", "settle_owner") in line
    assert "owns tables" in line


async def test_the_two_roles_the_wrong_way_round_stop_the_worker(engine: Engine, tmp_path: Path) -> None:
    exit_code, line = await _refusal(
        tmp_path,
        engine.variables,
        SETTLEMENT_DATABASE_URL=engine.database.service_url,
        SERVICE_DATABASE_URL=engine.database.settlement_url,
    )
    assert exit_code == 1
    assert startup.more_rights("SETTLEMENT_DATABASE_URL", "settle_service") in line


async def test_a_database_without_a_schema_says_what_to_run(engine: Engine, cluster: Cluster, tmp_path: Path) -> None:
    async with cluster.temporary() as empty:
        exit_code, line = await _refusal(
            tmp_path,
            engine.variables,
            SETTLEMENT_DATABASE_URL=empty.settlement_url,
            SERVICE_DATABASE_URL=empty.service_url,
        )
    assert exit_code == 1
    assert startup.NO_SCHEMA in line


async def test_a_schema_of_another_revision_says_what_to_run(engine: Engine, tmp_path: Path) -> None:
    with sql.connect(engine.database.superuser_url) as connection:
        connection.execute("UPDATE alembic_version SET version_num = '0000'")
    exit_code, line = await _refusal(tmp_path, engine.variables)
    assert exit_code == 1
    assert line.endswith(startup.unknown_revision("0000"))


async def test_a_system_tenant_that_is_not_flagged_says_what_to_run(engine: Engine, tmp_path: Path) -> None:
    with sql.connect(engine.database.superuser_url, triggers=False) as connection:
        connection.execute("UPDATE billing_accounts SET is_system_tenant = false WHERE id = 'cogni_system'")
    exit_code, line = await _refusal(tmp_path, engine.variables)
    assert exit_code == 1
    assert startup.TENANT_NOT_FLAGGED in line


async def test_a_database_that_is_not_there_stops_the_worker(engine: Engine, tmp_path: Path) -> None:
    url = f"postgresql://settle_settlement:{ROLE_PASSWORD}@127.0.0.1:{quiet_port()}/settle"
    exit_code, line = await _refusal(tmp_path, engine.variables, SETTLEMENT_DATABASE_URL=url)
    assert exit_code == 1
    assert "DATABASE_UNAVAILABLE" in line


async def test_a_wrong_password_stops_the_worker_and_is_not_shown(engine: Engine, tmp_path: Path) -> None:
    exit_code, line = await _refusal(
        tmp_path,
        engine.variables,
        SETTLEMENT_DATABASE_URL=engine.database.url_as("settle_settlement", "a-wrong-password"),
    )
    assert exit_code == 1
    assert "password authentication failed" in line
    assert "a-wrong-password" not in line


async def test_a_temporal_that_is_not_there_stops_the_worker(engine: Engine, tmp_path: Path) -> None:
    address = f"127.0.0.1:{quiet_port()}"
    exit_code, line = await _refusal(tmp_path, engine.variables, TEMPORAL_ADDRESS=address)
    assert exit_code == 1
    assert unreachable(address) in line


async def test_a_namespace_that_does_not_exist_stops_the_worker(engine: Engine, tmp_path: Path) -> None:
    exit_code, line = await _refusal(tmp_path, engine.variables, TEMPORAL_NAMESPACE="nowhere")
    assert exit_code == 1
    assert no_namespace("nowhere") in line


@pytest.mark.slow(but=1)
@pytest.mark.parametrize(
    ("variable", "value", "words"),
    [
        ("MIN_CONFIRMATIONS", "0", "'0', expected a whole number"),
        ("SETTLEMENT_DATABASE_URL", "", "expected postgresql://"),
        ("CHAIN_RPC_URLS", "", "expected "),
        ("RECONCILIATION_DIR", "/dev/null/books", "'/dev/null/books'"),
    ],
)
async def test_a_bad_or_missing_setting_stops_the_worker_as_a_usage_error(
    engine: Engine, tmp_path: Path, variable: str, value: str, words: str
) -> None:
    exit_code, line = await _refusal(tmp_path, engine.variables, **{variable: value})
    assert exit_code == 2
    assert f"CONFIGURATION: {variable} " in line
    assert words in line


async def test_a_health_port_that_is_taken_stops_the_worker(engine: Engine, tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        async with running_worker(tmp_path, engine.variables, WORKER_HEALTH_PORT=str(port)) as worker:
            exit_code, _ = await worker.ends(timeout_seconds=START_SECONDS_MAX)
    assert exit_code in {1, 2}
    assert "Traceback" not in worker.log
    assert "WORKER_HEALTH_PORT" in worker.log.splitlines()[-1]


@pytest.mark.slow
async def test_a_worker_started_without_any_settings_says_which_one_to_set(tmp_path: Path) -> None:
    run = await asyncio.to_thread(
        subprocess.run,
        [sys.executable, "-m", "cli", "worker"],
        cwd=tmp_path,
        env=clean_environment({}),
        capture_output=True,
        text=True,
        timeout=START_SECONDS_MAX,
        check=False,
    )
    assert (run.returncode, run.stdout) == (2, "")
    [line] = run.stderr.splitlines()
    assert "CONFIGURATION: " in line
    assert "DATABASE_URL " in line
