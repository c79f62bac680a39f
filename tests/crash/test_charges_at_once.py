"""Twenty charges at once in two processes, one of them killed: each index is given out once, and none is lost."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any, Final

import aiohttp
import psycopg
import pytest

from devstack.chain import payer_wallets
from devstack.processes import wait_until
from tests.api.test_process import ApiProcess, running
from tests.support.api import sign
from tests.support.deposits import METHOD, add_method, add_ring, next_index
from tests.support.engine import PATIENCE_SECONDS, Engine
from tests.support.sql import query, scalar

AT_ONCE: Final = 20
CHARGES: Final = "/api/v1/charges"


async def key_at(api: ApiProcess) -> str:
    """A service key of a wallet's account."""
    wallet = payer_wallets()[0]
    async with api.visitor() as visitor:
        challenge = await visitor.challenge(wallet.address)
        assert (await visitor.log_in(challenge["nonce"], sign(wallet, challenge["message"]))).status == 200
        return str((await visitor.post("/api/v1/keys", {"label": "Shop"})).body["key"])


async def charge(api: ApiProcess, key: str, number: int) -> dict[str, Any] | None:
    """The charge of one order; None where the process has died."""
    headers = {"Authorization": f"Bearer {key}", "Idempotency-Key": f"order-{number}"}
    body = {"method": METHOD, "amountUsdCents": 100 + number}
    try:
        async with (
            aiohttp.ClientSession(api.url, headers=headers) as session,
            session.post(CHARGES, json=body) as response,
        ):
            found: dict[str, Any] = await response.json()
            assert response.status == 201, found
            return found
    except aiohttp.ClientError:
        return None


@pytest.mark.slow(but=("while all wait for an index",))
@pytest.mark.parametrize("killed", ["while all wait for an index", "after the first answer"])
async def test_no_index_is_lost_and_none_is_given_out_twice(engine: Engine, tmp_path: Path, killed: str) -> None:
    """Fault 7: an index was used up before the charge existed, and each retry burned one more."""
    database = engine.database
    ring_id = add_ring(database)
    add_method(database, ring_id=ring_id)
    (tmp_path / "one").mkdir()
    (tmp_path / "two").mkdir()
    async with running(tmp_path / "one", engine.variables) as one, running(tmp_path / "two", engine.variables) as two:
        key = await key_at(one)
        with psycopg.connect(database.superuser_url) as holder:
            holder.execute("SELECT 1 FROM address_rings WHERE id = %s FOR UPDATE", (ring_id,))
            asked = [asyncio.create_task(charge((one, two)[n % 2], key, n)) for n in range(AT_ONCE)]
            await wait_until(
                lambda: waiting(engine) >= 4,
                timeout_seconds=PATIENCE_SECONDS,
                what="charges that wait for an index",
            )
            if killed == "while all wait for an index":
                one.process.kill()
        if killed != "while all wait for an index":
            await asyncio.wait(asked, return_when=asyncio.FIRST_COMPLETED)
            one.process.kill()
        answers = await asyncio.gather(*asked)
        assert None in answers
        again = await asyncio.gather(*(charge(two, key, number) for number in range(AT_ONCE)))
    for first, second in zip(answers, again, strict=True):
        assert second is not None
        assert first in (None, second)
    indices = [
        index for (index,) in query(database.service_url, 'SELECT "index" FROM deposit_addresses ORDER BY "index"')
    ]
    assert indices == list(range(AT_ONCE))
    assert next_index(database, ring_id) == AT_ONCE
    assert len({found["address"] for found in again if found}) == AT_ONCE
    assert scalar(database.service_url, "SELECT count(*) FROM charges") == AT_ONCE


def waiting(engine: Engine) -> int:
    """How many transactions wait for the key's row."""
    return int(
        scalar(
            engine.database.superuser_url,
            "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
            " AND query LIKE '%allocate_index%'",
        )
    )
