"""The worker of a Bitcoin chain killed as it writes a deposit: it is there once, and credited once."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import pytest

from activities.messages import WatchedChain
from devstack.bitcoin_chain import BitcoinChain
from devstack.chain import LocalChain
from devstack.processes import wait_until
from tests.bitcoin.given import REGTEST, credits_of, give, register
from tests.bitcoin.scripts import script_of
from tests.support.faults import Fault, Moment
from tests.support.payments import RolePair
from tests.support.servers import Namespace
from tests.support.sql import query
from tests.support.system import open_system
from workflows.naming import task_queue, watch_workflow_id
from workflows.watch_chain import WatchChain

PATIENCE_SECONDS: Final = 120.0
CONFIRMATIONS: Final = 2
SATOSHIS: Final = (100_000_000, 100_000_000, 123_456_700)

OF_BITCOIN: Final = {
    "CHAIN_ID": str(REGTEST.chain_id),
    "TREASURY_ADDRESS": "",
    "MIN_CONFIRMATIONS": str(CONFIRMATIONS),
    "FINALITY": "confirmations",
    "FINALITY_LARGE": "confirmations",
    "FINALITY_CONFIRMATIONS": str(CONFIRMATIONS),
}

INDEX: Final = {Moment.BEFORE_COMMIT: 20, Moment.AFTER_COMMIT: 21}
"""Of an address of each test's own, on one chain."""


@pytest.mark.slow
@pytest.mark.parametrize("moment", [Moment.BEFORE_COMMIT, Moment.AFTER_COMMIT])
async def test_a_worker_killed_as_a_deposit_is_written_loses_none_and_doubles_none(
    namespace: Namespace, roles: RolePair, chain: LocalChain, bitcoin: BitcoinChain, tmp_path: Path, moment: Moment
) -> None:
    async with open_system(namespace, roles, chain, tmp_path) as system:
        payer = await system.payer()
        given = give(system.database, payer, register(system.database), index=INDEX[moment])
        await bitcoin.pay(*((script_of(given.address), satoshis) for satoshis in SATOSHIS))
        await bitcoin.mine(CONFIRMATIONS)
        await namespace.client.start_workflow(
            WatchChain.run,
            WatchedChain(chain_id=REGTEST.chain_id, follow_seconds=1_200.0),
            id=watch_workflow_id(REGTEST.chain_id),
            task_queue=task_queue(REGTEST.chain_id),
        )
        settings: dict[str, Any] = {**OF_BITCOIN, "CHAIN_RPC_URLS": bitcoin.url}
        doomed = system.start_worker(Fault(statement="INSERT INTO deposits", moment=moment), **settings)
        await doomed.killed_itself()

        system.start_worker(**settings)

        expected = sum(credits_of(satoshis) for satoshis in SATOSHIS)

        async def is_credited() -> bool:
            balance = await system.balance(payer.billing_account_id)
            return balance >= expected and not await system.books(nothing_stuck=True)

        await wait_until(is_credited, timeout_seconds=PATIENCE_SECONDS, what="every output to be credited")
        assert await system.balance(payer.billing_account_id) == expected
        rows = "SELECT d.value_raw::bigint, a.status FROM deposits d JOIN payment_attempts a ON a.id = d.attempt_id"
        assert sorted(query(system.database.service_url, rows)) == [
            (satoshis, "CREDITED") for satoshis in sorted(SATOSHIS)
        ]
