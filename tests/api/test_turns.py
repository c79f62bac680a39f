"""One account's requests take turns; another's do not wait for them."""

from __future__ import annotations

import asyncio

import pytest

from api.http import concurrency as turns
from api.http.concurrency import AT_ONCE_MAX, turn
from devstack.chain import payer_wallets
from domain.errors import RateLimited
from tests.support.api import RunningApi, Visitor


async def test_so_many_of_one_account_at_once_and_no_more() -> None:
    running = most = 0

    async def work() -> None:
        nonlocal running, most
        async with turn("one"):
            running += 1
            most = max(most, running)
            await asyncio.sleep(0)
            running -= 1

    await asyncio.gather(*(work() for _ in range(5 * AT_ONCE_MAX)))
    assert most == AT_ONCE_MAX
    assert "one" not in turns._turns, "nobody has it any more"


async def test_who_waits_too_long_is_told_to_come_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(turns, "WAIT_SECONDS_MAX", 0.01)
    async with turn("one"), turn("one"), turn("one"), turn("one"):
        with pytest.raises(RateLimited):
            async with turn("one"):
                pytest.fail("a fifth turn")
        async with turn("another"):
            pass
    async with turn("one"):
        pass


async def test_a_flood_of_one_account_leaves_connections_for_another(api: RunningApi, payer: Visitor) -> None:
    flood = [asyncio.create_task(payer.get("/api/v1/payments/attempts?limit=100")) for _ in range(80)]
    async with api.visitor(payer_wallets()[1]) as other:
        assert (await other.get("/api/v1/payments/credits/summary")).status == 200
    assert {(await task).status for task in flood} == {200}
