"""Deposits through the product's own worker on a Bitcoin chain: the watcher, the workflow, finality, reversal."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Final

import pytest

from activities.messages import WatchedChain
from composition import chain_reader
from devstack.bitcoin_chain import BitcoinChain
from devstack.processes import wait_until
from settings import load
from tests.bitcoin.given import REGTEST, credits_of, give, register
from tests.bitcoin.scripts import script_of
from tests.support.engine import MIN_CONFIRMATIONS, PATIENCE_SECONDS, Engine
from tests.support.sql import query
from worker import build_worker
from workflows.naming import task_queue, watch_workflow_id
from workflows.watch_chain import WatchChain

SATOSHIS: Final = 150_000_000
FINALITY_CONFIRMATIONS: Final = 4


@asynccontextmanager
async def bitcoin_worker(engine: Engine, *urls: str) -> AsyncIterator[None]:
    """The product's worker on the Bitcoin chain, beside the engine's databases and Temporal, with its watcher."""
    settings = load(
        {
            **engine.variables,
            "CHAIN_ID": str(REGTEST.chain_id),
            "TREASURY_ADDRESS": "",
            "CHAIN_RPC_URLS": ",".join(urls),
            "FINALITY": "confirmations",
            "FINALITY_LARGE": "confirmations",
            "FINALITY_CONFIRMATIONS": str(FINALITY_CONFIRMATIONS),
        }
    )
    async with (
        chain_reader(settings) as reader,
        build_worker(
            engine.namespace.client, settings, chain=reader, settlement=engine.settlement, service=engine.service
        ),
    ):
        await engine.namespace.client.start_workflow(
            WatchChain.run,
            WatchedChain(chain_id=REGTEST.chain_id, follow_seconds=1_200.0),
            id=watch_workflow_id(REGTEST.chain_id),
            task_queue=task_queue(REGTEST.chain_id),
        )
        yield


async def becomes(engine: Engine, statement: str, rows: list[tuple[Any, ...]], what: str) -> None:
    """Wait until the database answers so."""
    await wait_until(
        lambda: query(engine.database.superuser_url, statement) == rows, timeout_seconds=PATIENCE_SECONDS, what=what
    )


@pytest.mark.slow
async def test_a_deposit_becomes_credits_and_final(engine: Engine, bitcoin: BitcoinChain) -> None:
    payer = await engine.payer()
    given = give(engine.database, payer, register(engine.database), index=10)
    async with bitcoin_worker(engine, bitcoin.url):
        await becomes(engine, "SELECT count(*) FROM chain_cursors WHERE block_hash IS NOT NULL", [(1,)], "a cursor")
        await bitcoin.pay((script_of(given.address), SATOSHIS), (script_of(given.address), SATOSHIS))
        await bitcoin.mine(MIN_CONFIRMATIONS)
        credited = "SELECT count(*) FROM payment_attempts WHERE status = 'CREDITED'"
        await becomes(engine, credited, [(2,)], "both outputs to be credited")
        assert query(engine.database.service_url, "SELECT count(*) FROM transfer_finality") == [(0,)]
        await bitcoin.mine(FINALITY_CONFIRMATIONS - MIN_CONFIRMATIONS)
        final = "SELECT count(*) FROM transfer_finality WHERE outcome = 'final'"
        await becomes(engine, final, [(2,)], "both to be final")
    balance = f"SELECT balance_credits FROM billing_accounts WHERE id = '{payer.billing_account_id}'"
    assert query(engine.database.service_url, balance) == [(2 * credits_of(SATOSHIS),)]
    assert query(engine.database.service_url, "SELECT kind FROM findings") == []
    assert await engine.books(nothing_stuck=True) == []


@pytest.mark.slow
async def test_a_credited_deposit_that_is_reorged_out_is_reversed(engine: Engine, bitcoin: BitcoinChain) -> None:
    payer = await engine.payer()
    given = give(engine.database, payer, register(engine.database), index=11)
    async with bitcoin_worker(engine, bitcoin.url):
        await becomes(engine, "SELECT count(*) FROM chain_cursors WHERE block_hash IS NOT NULL", [(1,)], "a cursor")
        await bitcoin.pay((script_of(given.address), SATOSHIS))
        await bitcoin.mine(MIN_CONFIRMATIONS)
        status = "SELECT status FROM payment_attempts"
        await becomes(engine, status, [("CREDITED",)], "it to be credited")
        await bitcoin.reorganise(MIN_CONFIRMATIONS, drop=True)

        async def is_reversed() -> bool:
            # It has as many blocks again to come back in, from when it is first missed.
            await bitcoin.mine()
            both = "SELECT count(*) FROM credit_ledger WHERE reason = 'payment_reversal'"
            return query(engine.database.superuser_url, both) == [(2,)]

        await wait_until(is_reversed, timeout_seconds=PATIENCE_SECONDS, what="it to be reversed")
    balance = f"SELECT balance_credits FROM billing_accounts WHERE id = '{payer.billing_account_id}'"
    assert query(engine.database.service_url, balance) == [(0,)]
    assert await engine.books() == []


@pytest.mark.slow
async def test_a_deposit_waits_for_a_node_that_was_killed(
    engine: Engine, bitcoin: BitcoinChain, tmp_path_factory: pytest.TempPathFactory
) -> None:
    payer = await engine.payer()
    given = give(engine.database, payer, register(engine.database), index=12)
    second = BitcoinChain(tmp_path_factory.mktemp("second"), bitcoin.port + 100, name="second", coins=False)
    await second.start()
    await bitcoin.share(second, await bitcoin.hashes(1, await bitcoin.height()))
    try:
        async with bitcoin_worker(engine, second.url, bitcoin.url):
            await becomes(engine, "SELECT count(*) FROM chain_cursors WHERE block_hash IS NOT NULL", [(1,)], "a cursor")
            await second.kill()
            await bitcoin.pay((script_of(given.address), SATOSHIS))
            await bitcoin.mine(MIN_CONFIRMATIONS)
            credited = "SELECT count(*) FROM payment_attempts WHERE status = 'CREDITED'"
            await becomes(engine, credited, [(1,)], "it to be credited by the other node's word")
    finally:
        await second.stop()
    assert await engine.books() == []
