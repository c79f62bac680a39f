"""The whole system through a connection pooler in transaction mode: a purchase by HTTP, a worker, `settle doctor`."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from devstack.chain import LocalChain
from tests.cli.command import settle
from tests.support.api import first_wallet, running_api
from tests.support.engine import MIN_CONFIRMATIONS, open_engine
from tests.support.pooler import Pooler, pooled
from tests.support.postgres import Database
from tests.support.servers import Namespace

PURCHASES = 3


@pytest.mark.slow
@pytest.mark.parametrize("kind", list(Pooler), ids=lambda kind: kind.value)
async def test_payments_are_settled_and_doctor_is_content(
    kind: Pooler, namespace: Namespace, database: Database, chain: LocalChain, tmp_path: Path
) -> None:
    if not kind.is_installed:
        pytest.skip("PgBouncer is not installed; ours stands in for it")
    async with (
        pooled(database, kind, tmp_path) as behind,
        open_engine(namespace, behind, chain) as engine,
        engine.worker(),
        running_api(engine) as api,
        api.visitor(first_wallet()) as payer,
    ):
        for _ in range(PURCHASES):
            intent = await payer.intent()
            sent = await api.pay(intent)
            assert (await payer.submit(intent["attemptId"], sent)).status == 202
            await chain.mine(MIN_CONFIRMATIONS + 1)
            assert (await payer.ends(intent["attemptId"]))["status"] == "CREDITED"
            assert (await payer.get("/readyz")).status == 200
        answer = await asyncio.to_thread(
            settle, ("doctor", "--json"), {**engine.variables, "API_URL": api.url}, tmp_path
        )
        assert answer.exit_code == 0, answer.stdout
        assert await engine.books() == []
