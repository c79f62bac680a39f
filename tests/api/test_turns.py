"""One account's requests have a concurrency limit; another account's do not wait for them."""

from __future__ import annotations

import asyncio

import pytest

from api.http.concurrency import AT_ONCE_MAX, AccountConcurrency
from devstack.chain import payer_wallets
from domain.errors import RateLimited
from tests.support.api import RunningApi, Visitor


async def test_so_many_of_one_account_at_once_and_no_more() -> None:
    concurrency = AccountConcurrency()
    running = most = 0

    async def work() -> None:
        nonlocal running, most
        async with concurrency.place("one"):
            running += 1
            most = max(most, running)
            await asyncio.sleep(0)
            running -= 1

    await asyncio.gather(*(work() for _ in range(5 * AT_ONCE_MAX)))
    assert most == AT_ONCE_MAX
    assert len(concurrency) == 0, "all places are free again"


async def test_a_request_that_waits_too_long_gets_a_retry_after() -> None:
    concurrency = AccountConcurrency(at_once_max=2, wait_seconds_max=0.01)
    async with concurrency.place("one"), concurrency.place("one"):
        with pytest.raises(RateLimited):
            async with concurrency.place("one"):
                pytest.fail("a third place")
        async with concurrency.place("another"):
            pass
    async with concurrency.place("one"):
        pass


async def test_two_interfaces_in_one_process_have_each_its_own_places() -> None:
    one, other = AccountConcurrency(at_once_max=1, wait_seconds_max=0.01), AccountConcurrency(at_once_max=1)
    async with one.place("an account"), other.place("an account"):
        assert len(one) == len(other) == 1


@pytest.mark.slow
async def test_a_flood_of_one_account_leaves_connections_for_another(api: RunningApi, payer: Visitor) -> None:
    flood = [asyncio.create_task(payer.get("/api/v1/payments/attempts?limit=100")) for _ in range(80)]
    async with api.visitor(payer_wallets()[1]) as other:
        assert (await other.get("/api/v1/payments/credits/summary")).status == 200
    assert {(await task).status for task in flood} == {200}
