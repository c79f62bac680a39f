"""The bench's clients of the gateway: what they count, what they compare, and that a missing LiteLLM is reported."""

from __future__ import annotations

from pathlib import Path

import aiohttp
import pytest
from aiohttp import web

from bench import litellm
from bench.litellm import LiteLlmMissing
from bench.parts import Measured, Range
from bench.rounds import measure
from bench.spending import Clients, Target, _added
from bench.spending_report import HOT_ACCOUNT, Added, Spending, percentile
from devstack.upstream import Upstream
from tests.bench.test_http_path import served

FAST = Added.of([0.004] * 100, [0.002] * 100)


def measured(name: str, rate: float, ratio: float) -> Measured:
    return Measured(
        name=name,
        baseline="b",
        rounds=1,
        per_round=1,
        concurrency=1,
        product_per_second=Range(median=rate, min=rate, max=rate),
        baseline_per_second=Range(median=1, min=1, max=1),
        ratio=Range(median=ratio, min=ratio, max=ratio),
        aim=0,
        aim_met=True,
    )


def spending(*, rate: float = 400, hot: float = 0.7, latency: Added = FAST, failed: int = 0) -> Spending:
    return Spending(
        connections=100,
        accounts=50,
        calls=measured("calls", rate, 0.5),
        hot_account=measured("hot", rate, hot),
        latency=latency,
        first_token=latency,
        memory_mb=100,
        ready_seconds=1,
        charged=1,
        failed=failed,
        first_errors=[],
        litellm=None,
        litellm_missing=None,
        cpu_ms_per_call={},
    )


def test_percentiles_are_samples_and_differences_are_of_percentiles() -> None:
    samples = [number / 1000 for number in range(1, 101)]
    assert percentile(list(reversed(samples)), 0.5) == 0.05
    assert percentile(samples, 0.99) == 0.099
    added = Added.of([0.010] * 98 + [0.1] * 2, [0.002] * 100)
    assert (added.added_p50_ms, added.added_p99_ms) == (8.0, 98.0)


def test_an_aim_is_met_on_one_side_of_its_bound_only() -> None:
    def unmet(found: Spending) -> set[str]:
        return {aim.name for aim in found.aims if not aim.met}

    assert unmet(spending()) == set()
    assert unmet(spending(rate=324)) == set()
    assert unmet(spending(rate=323.9)) == {"calls/s at 100 connections"}
    assert unmet(spending(hot=0.59)) == {HOT_ACCOUNT}
    assert unmet(spending(failed=1)) == {"failed calls"}
    slow = Added.of([0.0061] * 100, [0.002] * 100)
    assert unmet(spending(latency=slow)) == {"added latency, p50"}


async def test_every_call_is_made_and_its_time_is_taken() -> None:
    upstream = Upstream()
    async with upstream.serve() as url, aiohttp.ClientSession() as http:
        clients = Clients(http, connections=4)
        one, other = Target("one", url, ["a", "b"]), Target("other", url, ["c"])
        assert await measure(clients.side(one), 10) > 0
        assert (one.made, one.failures, len(list(upstream.records.calls()))) == (10, [], 10)
        added = await _added(clients.first_token, one, other, count=3)
    assert (added.count, one.made, other.made) == (3, 13, 3)
    assert one.failures == other.failures == []
    assert added.gateway_p50_ms > 0 < added.straight_p50_ms


async def test_an_answer_that_is_not_200_is_a_failure() -> None:
    async def refuse(_request: web.Request) -> web.Response:
        return web.json_response({"error": "no"}, status=503)

    target = Target("gateway", "", ["k"])
    async with served({"/v1/chat/completions": refuse}) as url, aiohttp.ClientSession() as http:
        target.url = url
        await measure(Clients(http, connections=2).side(target), 3)
    assert (target.made, len(target.failures)) == (3, 3)
    assert target.failures[0].startswith("gateway: 503 ")


@pytest.mark.slow
async def test_without_a_package_index_litellm_is_reported_as_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    for name in ("PIP_EXTRA_INDEX_URL", "PIP_FIND_LINKS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    with pytest.raises(LiteLlmMissing, match=r"litellm\[proxy\]==\S+ cannot be installed: "):
        await litellm.install(lambda _: None)
