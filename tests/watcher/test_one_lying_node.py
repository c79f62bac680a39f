"""One of three nodes returns invented logs. It may cause a poll; it may not cause credits or prevent them."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from typing import Any

import pytest

from activities.operations.resolutions import RemedyActivities
from chain.preconditions import SettlementPreconditions
from db.operations import findings
from devstack.chain import LocalChain, payer_wallets
from domain.errors import RemedyRefused
from domain.operations.findings import Remedy
from domain.operations.resolutions import parse_request
from tests.chain.faulty_node import FaultyNode
from tests.support.payments import SHARE
from tests.watcher.conftest import MIN_CONFIRMATIONS, Watch, Watches


@pytest.fixture
async def nodes(chain: LocalChain) -> AsyncIterator[list[FaultyNode]]:
    """Three of them, of which the first one will lie."""
    async with AsyncExitStack() as stack:
        yield [await stack.enter_async_context(FaultyNode.in_front_of(chain.url)) for _ in range(3)]


def _worth(value_raw: int, logs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{**log, "data": f"0x{value_raw:064x}"} for log in logs]


async def _follow_with_a_faulty_node(watch: Watch, nodes: list[FaultyNode], value_raw: int) -> str:
    """A real transfer of 100 USDC, which the first node's logs show as another amount; then all nodes are honest."""
    nodes[0].answers(lambda method, _, result: _worth(value_raw, result) if method == "eth_getLogs" else result)
    sent = await watch.pay(blocks=MIN_CONFIRMATIONS)
    await watch.catch_up()
    nodes[0].heal()
    await watch.scan.rescan(600)
    return sent


async def test_what_one_node_says_of_a_transfer_is_corrected_when_all_of_them_are_asked(
    watches: Watches,
    nodes: list[FaultyNode],
) -> None:
    """The payer closed the tab. The payment was recorded as one raw unit, and would stay so."""
    watch = await watches(*nodes)
    attempt = await watch.intent()
    sent = await _follow_with_a_faulty_node(watch, nodes, 1)
    await watch.act()
    rows = await watch.rows("SELECT value_raw::text AS value FROM observed_transfers")
    assert rows == [{"value": "100000000"}]
    assert watch.submitted == [(attempt.id, sent)]


async def test_what_one_node_invents_is_not_credited_by_an_operator(
    watches: Watches,
    nodes: list[FaultyNode],
) -> None:
    """A million USDC that was never sent: a finding like any other, and before it is credited all nodes are asked."""
    watch = await watches(*nodes)
    service = watch.matcher_of_payers.service
    nodes[0].answers(lambda method, _, result: _worth(10**12, result) if method == "eth_getLogs" else result)
    await watch.pay(blocks=MIN_CONFIRMATIONS)
    await watch.act()
    async with service.transaction() as connection:
        [finding] = (await findings.page_findings(connection, findings.FindingFilter(), limit=5)).findings
    assert finding.value_raw == 10**12
    preconditions = SettlementPreconditions(watch.reader.contracts, watch.scan.scope.treasury)
    remedies = RemedyActivities(
        service, watch.reader, preconditions, revenue_share=SHARE, min_confirmations=MIN_CONFIRMATIONS
    )
    request = parse_request(finding.id, Remedy.CREDIT, operator="ada", reason="the payer wrote to us")
    with pytest.raises(RemedyRefused, match="not have the transfer"):
        await remedies.take_remedy(request)
    nodes[0].heal()
    await watch.scan.rescan(600)
    await watch.act()
    taken = await remedies.take_remedy(request)
    assert taken.amount_credits == 1_000_000_000


async def test_a_log_that_one_node_invents_in_a_real_block_does_not_stay(
    watches: Watches,
    nodes: list[FaultyNode],
) -> None:
    """The inflow that reconciliation takes from the chain is whatever any one node has ever said."""
    watch = await watches(*nodes)
    sender = payer_wallets()[1].address[2:].lower()
    real = await watch.pay(blocks=MIN_CONFIRMATIONS)

    def invent(method: str, _: list[Any], result: Any) -> Any:
        if method != "eth_getLogs" or not result:
            return result
        topics = [result[0]["topics"][0], "0x" + sender.rjust(64, "0"), result[0]["topics"][2]]
        invented = {**result[0], "transactionHash": "0x" + "ab" * 32, "logIndex": "0x77", "topics": topics}
        return [*result, invented]

    nodes[0].answers(invent)
    await watch.catch_up()
    nodes[0].heal()
    await watch.scan.rescan(600)
    assert list(await watch.seen()) == [real]
