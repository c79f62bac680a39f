"""The worker's readiness knows that writing works, and which schema it may run with."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest

from db.schema import SCHEMA_REVISION
from devstack.processes import wait_until
from tests.database.test_outages import read_only
from tests.database.test_rolling_deploy import NEXT, fabricate
from tests.support.engine import PATIENCE_SECONDS, Engine
from tests.support.sql import connect
from tests.worker.process import WorkerProcess, running_worker


async def becomes(worker: WorkerProcess, status: int, words: str = "") -> Mapping[str, str]:
    """What it says of each dependency when its readiness has this status, and these words of the database."""
    seen: list[Mapping[str, str]] = []

    async def is_so() -> bool:
        found, checks = await worker.readiness()
        seen.append(checks)
        return found == status and words in checks["database"]

    await wait_until(is_so, timeout_seconds=PATIENCE_SECONDS, what=f"readiness {status}")
    return seen[-1]


async def test_a_worker_is_not_ready_while_nothing_can_be_written_and_comes_back(
    engine: Engine, tmp_path: Path
) -> None:
    async with running_worker(tmp_path, engine.variables) as worker:
        await becomes(worker, 200)
        with read_only(engine.database):
            checks = await becomes(worker, 503, "read-only")
            wrong = {name for name, result in checks.items() if result != "ok"}
            assert wrong == {"database", "service_database"}, checks
        await becomes(worker, 200)


@pytest.mark.slow
async def test_a_worker_stays_ready_with_a_newer_schema_that_allows_it(engine: Engine, tmp_path: Path) -> None:
    async with running_worker(tmp_path, engine.variables) as worker:
        await becomes(worker, 200)
        fabricate(engine.database, NEXT, SCHEMA_REVISION)
        assert (await worker.readiness())[0] == 200
        with connect(engine.database.superuser_url) as superuser:
            superuser.execute("UPDATE schema_compatibility SET compatible_from = revision WHERE revision = %s", (NEXT,))
        status, checks = await worker.readiness()
        assert status == 503
        assert NEXT in checks["database"]
