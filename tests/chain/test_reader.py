"""The reader against a real node: what it sees, and what it does when endpoints fail, lag, forget or lie."""

from __future__ import annotations

import asyncio
import json
import logging
from datetime import UTC, datetime, timedelta

import pytest
from aiohttp import web

from chain.circuit_breaker import MARK_EXPIRY_SECONDS, STALL_SECONDS
from chain.endpoint_pool import HEALTHY_SECONDS, EndpointHealth
from chain.payment_reader import ANOTHER_POLL_ASKS
from chain.quorum import EndpointsDisagree
from chain.reader import ChainReader
from domain.chain import ChainView
from domain.errors import ChainUnavailable, InvalidInput
from domain.payments.verification import PaymentTerms, Refused, Verified, Waiting, WaitReason, evaluate, next_poll_delay
from tests.chain.anvil import (
    ALICE,
    BOB,
    CHAIN_ID,
    PATIENCE_SECONDS,
    TREASURY,
    Clock,
    Node,
    running_anvil,
    transfer,
    until,
    word,
)
from tests.chain.conftest import FaultyNodes, Readers
from tests.chain.faulty_node import FaultyNode

UNKNOWN_TX = "0x" + "12" * 32
FORK = "0x" + "ee" * 32
LOOK = ["eth_chainId", "eth_blockNumber", "eth_getTransactionReceipt"]
POLL_WITH_BLOCK = [*LOOK, "eth_getBlockByNumber"]
LONG_SECONDS = 10 * PATIENCE_SECONDS
"""A time-out that no test waits for: nodes that hang are let go when the requests have come."""


def verdict(view: ChainView, tx_hash: str) -> Waiting | Verified | Refused:
    """The domain's word on a payment of 100 from Alice, of whatever token emitted the first log."""
    transfers = view.receipt.transfers if view.receipt else ()
    token = transfers[0].emitter if transfers else ALICE
    terms = PaymentTerms(chain_id=CHAIN_ID, token=token, payer=ALICE, treasury=TREASURY, amount_raw=100)
    return evaluate(terms, tx_hash, view, min_confirmations=5)


def waits_for(view: ChainView, tx_hash: str) -> WaitReason | None:
    judged = verdict(view, tx_hash)
    return judged.reason if isinstance(judged, Waiting) else None


# What is read --------------------------------------------------------------------------------------------------------


async def test_a_confirmed_payment_is_seen_and_verified(node: Node, readers: Readers) -> None:
    tx_hash = await node.pay(transfer(ALICE, TREASURY, 100))
    view = await (await readers(node)).payments.look(tx_hash)
    assert (view.chain_id, view.head_number) == (CHAIN_ID, 5)
    assert isinstance(verdict(view, tx_hash), Verified)


async def test_a_hash_is_read_whatever_its_case(node: Node, readers: Readers) -> None:
    tx_hash = await node.pay()
    reader = await readers(node)
    assert (await reader.payments.look("0x" + tx_hash[2:].upper())).receipt is not None
    with pytest.raises(InvalidInput):
        await reader.payments.look("0x12")


async def test_every_transfer_of_a_transaction_is_read_in_full(node: Node, readers: Readers) -> None:
    logs = [transfer(ALICE, TREASURY, number) for number in range(300)]
    tx_hash = await node.pay(*logs, transfer(BOB, TREASURY, 7))
    view = await (await readers(node)).payments.look(tx_hash)
    assert view.receipt is not None
    assert [log.value_raw for log in view.receipt.transfers] == [*range(300), 7]
    assert [log.log_index for log in view.receipt.transfers] == [*range(301)]


async def test_logs_that_are_no_erc20_transfers_are_left_out(node: Node, readers: Readers) -> None:
    topics, data = transfer(ALICE, TREASURY, 100)
    tx_hash = await node.pay(([*topics, word(1)], b""), (topics, b"\x01"), ([], data), (topics, data))
    view = await (await readers(node)).payments.look(tx_hash)
    assert view.receipt is not None
    assert [(log.log_index, log.value_raw) for log in view.receipt.transfers] == [(3, 100)]


async def test_a_reverted_transaction_is_refused_as_one(node: Node, readers: Readers) -> None:
    tx_hash = await node.pay(reverting=True)
    judged = verdict(await (await readers(node)).payments.look(tx_hash), tx_hash)
    assert isinstance(judged, Refused)
    assert judged.error_code == "TX_REVERTED"


async def test_an_unmined_transaction_is_not_found_yet(node: Node, readers: Readers) -> None:
    tx_hash = await node.send(transfer(ALICE, TREASURY, 100))
    view = await (await readers(node)).payments.look(tx_hash)
    assert (view.receipt, view.canonical) == (None, None)
    assert waits_for(view, tx_hash) is WaitReason.NOT_FOUND


async def test_the_confirmations_count_up_to_the_verdict(node: Node, readers: Readers) -> None:
    tx_hash = await node.pay(confirmations=1)
    reader = await readers(node)
    for confirmations in range(1, 5):
        judged = verdict(await reader.payments.look(tx_hash), tx_hash)
        assert isinstance(judged, Waiting)
        assert judged.message == f"{confirmations} of 5 confirmations"
        assert next_poll_delay(
            judged, waited=timedelta(), remaining=timedelta(hours=1), block_time=timedelta(seconds=2)
        ) == timedelta(seconds=2 * (5 - confirmations))
        await node.mine()
    assert isinstance(verdict(await reader.payments.look(tx_hash), tx_hash), Verified)


# How many requests it takes -------------------------------------------------------------------------------------------


async def test_a_first_poll_takes_two_requests_and_one_with_a_hint_a_single_one(
    node: Node, faulty_nodes: FaultyNodes, readers: Readers
) -> None:
    (faulty,) = await faulty_nodes(1)
    reader = await readers(faulty)
    tx_hash = await node.pay()
    first = await reader.payments.look(tx_hash)
    assert faulty.requests == [LOOK, POLL_WITH_BLOCK]
    assert first.receipt is not None
    again = await reader.payments.look(tx_hash, block_hint=first.receipt.block_number)
    assert faulty.requests[2:] == [POLL_WITH_BLOCK]
    assert again == first
    assert reader.request_count == 3


async def test_a_wrong_hint_costs_a_request_and_nothing_else(
    node: Node, faulty_nodes: FaultyNodes, readers: Readers
) -> None:
    (faulty,) = await faulty_nodes(1)
    reader = await readers(faulty)
    tx_hash = await node.pay()
    assert await reader.payments.look(tx_hash, block_hint=3) == await reader.payments.look(tx_hash)
    assert await reader.payments.look(tx_hash, block_hint=10**9) == await reader.payments.look(tx_hash)


async def test_an_unknown_hash_takes_one_request(faulty_nodes: FaultyNodes, readers: Readers) -> None:
    (faulty,) = await faulty_nodes(1)
    await (await readers(faulty)).payments.look(UNKNOWN_TX)
    assert faulty.requests == [LOOK]


async def test_a_receipt_that_moves_with_every_reading_is_given_up(
    node: Node, faulty_nodes: FaultyNodes, readers: Readers
) -> None:
    (faulty,) = await faulty_nodes(1)
    tx_hash = await node.pay(confirmations=9)
    blocks = iter(range(1, 10))
    faulty.change_receipt(lambda receipt: receipt.update(blockNumber=hex(next(blocks)), logs=[]))
    with pytest.raises(ChainUnavailable, match="each of 3 reads"):
        await (await readers(faulty)).payments.look(tx_hash)
    assert len(faulty.requests) == 3


async def test_one_healthy_endpoint_is_enough_and_the_others_are_left_alone(
    node: Node, faulty_nodes: FaultyNodes, readers: Readers
) -> None:
    first, second = await faulty_nodes(2)
    await (await readers(first, second)).payments.look(await node.pay())
    assert (len(first.requests), len(second.requests)) == (2, 0)


# Reorganisations ------------------------------------------------------------------------------------------------------


async def test_a_payment_whose_block_is_reorganised_away_is_not_found_any_more(node: Node, readers: Readers) -> None:
    tx_hash = await node.pay(confirmations=3)
    reader = await readers(node)
    before = await reader.payments.look(tx_hash)
    assert waits_for(before, tx_hash) is WaitReason.CONFIRMATIONS
    await node.call("anvil_reorg", 3, [])
    await node.mine(3)
    assert before.receipt is not None
    after = await reader.payments.look(tx_hash, block_hint=before.receipt.block_number)
    assert after.receipt is None
    assert waits_for(after, tx_hash) is WaitReason.NOT_FOUND


async def test_a_payment_that_moves_to_another_block_is_seen_there(node: Node, readers: Readers) -> None:
    tx_hash = await node.pay(confirmations=4)
    reader = await readers(node)
    before = await reader.payments.look(tx_hash)
    raw = await node.call("eth_getRawTransactionByHash", tx_hash)
    await node.call("anvil_reorg", 4, [[raw, 2]])
    await until(lambda: node.call("eth_getTransactionReceipt", tx_hash))
    assert before.receipt is not None
    after = await reader.payments.look(tx_hash, block_hint=before.receipt.block_number)
    assert after.receipt is not None
    assert after.canonical is not None
    assert after.receipt.block_number == before.receipt.block_number + 2 == after.canonical.number
    assert waits_for(after, tx_hash) is WaitReason.CONFIRMATIONS


async def test_a_receipt_of_the_replaced_block_is_not_canonical(
    node: Node, faulty_nodes: FaultyNodes, readers: Readers
) -> None:
    (faulty,) = await faulty_nodes(1)
    tx_hash = await node.pay()
    faulty.wrong_block_hash()
    assert waits_for(await (await readers(faulty)).payments.look(tx_hash), tx_hash) is WaitReason.NOT_CANONICAL


async def test_a_receipt_of_a_block_that_does_not_exist_yet_is_pre_confirmed(
    node: Node, faulty_nodes: FaultyNodes, readers: Readers
) -> None:
    (faulty,) = await faulty_nodes(1)
    tx_hash = await node.pay()
    faulty.move_receipt(6, FORK)
    view = await (await readers(faulty)).payments.look(tx_hash)
    assert view.receipt is not None
    assert waits_for(view, tx_hash) is WaitReason.PRE_CONFIRMED
    assert len(faulty.requests) == 1


# Failing over ---------------------------------------------------------------------------------------------------------

FAULTS = {
    "drop": (FaultyNode.drop, "the connection was closed without an answer"),
    "hang": (FaultyNode.hang, "no answer within 2 s"),
    "500": (lambda faulty: faulty.status(500), "HTTP 500"),
    "503": (lambda faulty: faulty.status(503), "HTTP 503"),
    "429": (lambda faulty: faulty.status(429, retry_after="9"), "HTTP 429"),
    "truncate": (FaultyNode.truncate, "not JSON"),
    "ids": (FaultyNode.shift_ids, "id that was not sent"),
    "lost": (FaultyNode.lose_last_reply, "no answer to eth_getTransactionReceipt"),
    "refused": (FaultyNode.refuse, "over your limit"),
    "chain": (lambda faulty: faulty.other_chain(1), "answers for chain 1, not 31337"),
    "head": (lambda faulty: faulty.fixed("eth_blockNumber", None), "eth_blockNumber: "),
    "receipt": (lambda faulty: faulty.fixed("eth_getTransactionReceipt", {}), "eth_getTransactionReceipt: "),
    "other": (
        lambda faulty: faulty.change_receipt(lambda receipt: receipt.update(transactionHash=UNKNOWN_TX)),
        "another transaction",
    ),
    "block": (
        lambda faulty: faulty.fixed("eth_getBlockByNumber", {"number": "0x2", "hash": FORK, "transactions": []}),
        "asked for block 1, got block 2",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
async def test_another_endpoint_answers_for_one_that_fails(
    fault: str, node: Node, faulty_nodes: FaultyNodes, readers: Readers
) -> None:
    first, second = await faulty_nodes(2)
    spoil, reason = FAULTS[fault]
    tx_hash = await node.pay()
    spoil(first)
    reader = await readers(first, second, timeout_seconds=2.0 if fault == "hang" else 5.0)
    view = await reader.payments.look(tx_hash)
    assert view.endpoint == reader.labels[1]
    assert isinstance(verdict(view, tx_hash), Verified)

    seen = len(first.requests)
    await reader.payments.look(tx_hash)
    assert len(first.requests) == seen, "the one that failed rests for a while"

    spoil(second)
    with pytest.raises(ChainUnavailable) as unavailable:
        await reader.payments.look(tx_hash)
    assert len(first.requests) > seen, "but it is asked when no other is left"
    message = unavailable.value.message
    assert all(f"{label}: " in message for label in reader.labels)
    assert message.count(reason) == 2
    assert "\n" not in message

    first.heal()
    assert (await reader.payments.look(tx_hash)).endpoint == reader.labels[0]


async def test_an_endpoint_is_asked_first_again_when_it_has_rested(
    node: Node, faulty_nodes: FaultyNodes, readers: Readers, clock: Clock
) -> None:
    first, second = await faulty_nodes(2)
    reader = await readers(first, second)
    tx_hash = await node.pay()
    first.status(500)
    assert (await reader.payments.look(tx_hash)).endpoint == reader.labels[1]
    first.heal()
    assert (await reader.payments.look(tx_hash)).endpoint == reader.labels[1]
    clock.now += 1.0
    assert (await reader.payments.look(tx_hash)).endpoint == reader.labels[0]


async def test_a_node_that_asks_for_a_pause_gets_it(
    node: Node, faulty_nodes: FaultyNodes, readers: Readers, clock: Clock
) -> None:
    first, second = await faulty_nodes(2)
    reader = await readers(first, second)
    tx_hash = await node.pay()
    first.status(429, retry_after="30")
    await reader.payments.look(tx_hash)
    clock.now += 29.0
    await reader.payments.look(tx_hash)
    assert len(first.requests) == 1
    clock.now += 1.0
    await reader.payments.look(tx_hash)
    assert len(first.requests) == 2


async def test_an_endpoint_that_failed_lately_is_not_asked_about_an_unknown_hash(
    faulty_nodes: FaultyNodes, readers: Readers
) -> None:
    first, second = await faulty_nodes(2)
    first.status(503)
    reader = await readers(first, second)
    for _ in range(3):
        assert (await reader.payments.look(UNKNOWN_TX)).receipt is None
    assert (len(first.requests), len(second.requests)) == (1, 3)


async def test_of_those_that_failed_the_one_that_has_rested_most_is_asked_first(
    node: Node, faulty_nodes: FaultyNodes, readers: Readers
) -> None:
    first, second = await faulty_nodes(2)
    tx_hash = await node.pay()
    reader = await readers(first, second)
    first.status(429, retry_after="30")
    second.status(500)
    with pytest.raises(ChainUnavailable):
        await reader.payments.look(tx_hash)
    first.heal()
    second.heal()
    assert (await reader.payments.look(tx_hash)).endpoint == reader.labels[1]


async def test_a_poll_with_all_its_readings_is_bounded_in_time(
    node: Node, faulty_nodes: FaultyNodes, readers: Readers
) -> None:
    (faulty,) = await faulty_nodes(1)
    tx_hash = await node.pay()
    reader = await readers(faulty, timeout_seconds=0.6)

    async def slow(request: web.Request) -> web.StreamResponse:
        await asyncio.sleep(0.4)  # each of the two requests is fast enough, both together are not
        return web.json_response(await faulty.forward(await request.json()))

    faulty.wire(slow)
    with pytest.raises(ChainUnavailable, match=r"no answer within 0\.6 s"):
        await reader.payments.look(tx_hash)


async def test_a_wrong_chain_is_recognised_also_after_it_was_right(
    node: Node, faulty_nodes: FaultyNodes, readers: Readers
) -> None:
    (faulty,) = await faulty_nodes(1)
    reader = await readers(faulty)
    tx_hash = await node.pay()
    await reader.payments.look(tx_hash)
    faulty.other_chain(8453)
    with pytest.raises(ChainUnavailable, match="answers for chain 8453, not 31337"):
        await reader.payments.look(tx_hash)
    with pytest.raises(ChainUnavailable, match="answers for chain 8453"):
        await reader.heads.height()


async def test_a_failing_endpoint_is_logged_once_for_each_change(
    node: Node, faulty_nodes: FaultyNodes, readers: Readers, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "chain")
    (faulty,) = await faulty_nodes(1)
    reader = await readers(faulty)
    tx_hash = await node.pay()
    faulty.status(500)
    for _ in range(3):
        with pytest.raises(ChainUnavailable):
            await reader.payments.look(tx_hash)
    faulty.heal()
    await reader.payments.look(tx_hash)
    (label,) = reader.labels
    messages = [record.getMessage() for record in caplog.records if record.name.startswith("chain")]
    failed, usable = messages
    assert f"{label}: HTTP 500" in failed and f"{label} is usable" in usable


async def test_an_endpoint_that_hangs_until_the_caller_gives_up_is_not_asked_first_again(
    node: Node, faulty_nodes: FaultyNodes, readers: Readers
) -> None:
    first, second = await faulty_nodes(2)
    tx_hash = await node.pay()
    first.hang()
    reader = await readers(first, second)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(HEALTHY_SECONDS + 0.1):
            await reader.payments.look(tx_hash)
    assert (await reader.payments.look(tx_hash)).endpoint == reader.labels[1]
    assert len(first.requests) == 1


async def test_an_endpoint_that_had_no_time_to_answer_is_not_blamed(
    node: Node, faulty_nodes: FaultyNodes, readers: Readers, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("chain.endpoint_pool.HEALTHY_SECONDS", LONG_SECONDS)
    first, second = await faulty_nodes(2)
    tx_hash = await node.pay()
    first.hang()
    reader = await readers(first, second)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.1):
            await reader.payments.look(tx_hash)
    first.heal()
    assert (await reader.payments.look(tx_hash)).endpoint == reader.labels[0]


async def test_a_poll_of_all_endpoints_includes_those_that_failed_lately(
    node: Node, faulty_nodes: FaultyNodes, readers: Readers
) -> None:
    first, second, third = await faulty_nodes(3)
    tx_hash = await node.pay()
    first.status(500)
    second.status(429, retry_after="30")
    third.null_receipt()
    reader = await readers(first, second, third)
    assert waits_for(await reader.payments.look(tx_hash), tx_hash) is WaitReason.NOT_FOUND
    second.heal()
    assert waits_for(await reader.payments.look(tx_hash), tx_hash) is WaitReason.NOT_FOUND
    view = await reader.payments.look(tx_hash, ask_all=True)
    assert view.endpoint == reader.labels[1]
    assert isinstance(verdict(view, tx_hash), Verified)


async def test_a_poll_of_all_endpoints_waits_for_all_concurrently(
    node: Node, faulty_nodes: FaultyNodes, readers: Readers
) -> None:
    *hanging, last = await faulty_nodes(5)
    tx_hash = await node.pay()
    for faulty in hanging:
        faulty.hang()
    reader = await readers(*hanging, last, timeout_seconds=LONG_SECONDS)
    look = asyncio.create_task(reader.payments.look(tx_hash, ask_all=True))
    for faulty in hanging:
        await faulty.received(1)
    await last.received(1)
    assert not look.done()
    for faulty in hanging:
        faulty.let_go()
    assert (await look).endpoint == reader.labels[4]


# No endpoint works ---------------------------------------------------------------------------------------------------


async def failed_poll(reader: ChainReader, tx_hash: str, *hanging: FaultyNode) -> None:
    """A poll that finds each of these hanging, one after another."""
    look = asyncio.create_task(reader.payments.look(tx_hash))
    for faulty in hanging:
        await faulty.received(1)
        faulty.let_go()
    with pytest.raises(ChainUnavailable):
        await look


@pytest.mark.parametrize("rested_seconds", [0.0, 3600.0], ids=["cooling", "rested"])
@pytest.mark.parametrize("endpoints", [1, 3])
async def test_while_no_endpoint_works_one_poll_at_a_time_asks(
    endpoints: int, rested_seconds: float, node: Node, faulty_nodes: FaultyNodes, readers: Readers, clock: Clock
) -> None:
    proxies = await faulty_nodes(endpoints)
    tx_hash = await node.pay()
    for proxy in proxies:
        proxy.hang()
    reader = await readers(*proxies, timeout_seconds=LONG_SECONDS)
    await failed_poll(reader, tx_hash, *proxies)
    for round_number in (2, 3):
        clock.now += rested_seconds
        pending = asyncio.gather(*(reader.payments.look(tx_hash) for _ in range(20)), return_exceptions=True)
        for proxy in proxies:
            await proxy.received(round_number)
        for proxy in proxies:
            proxy.let_go()
        outcomes = await pending
        assert [len(proxy.requests) for proxy in proxies] == [round_number] * endpoints
        turned_away = [outcome for outcome in outcomes if "another poll" in str(outcome)]
        assert len(turned_away) == 19
        assert all(isinstance(outcome, ChainUnavailable) for outcome in outcomes)
        assert all(f"{label}: HTTP 503" in str(turned_away[0]) for label in reader.labels)

    for proxy in proxies:
        proxy.heal()
    assert (await reader.payments.look(tx_hash)).endpoint in reader.labels, "the very next poll finds out"
    again = await asyncio.gather(*(reader.payments.look(tx_hash) for _ in range(20)))
    assert all(isinstance(outcome, ChainView) for outcome in again)


async def test_the_first_answer_admits_the_other_polls_though_endpoints_still_hang(
    node: Node, faulty_nodes: FaultyNodes, readers: Readers
) -> None:
    first, second = await faulty_nodes(2)
    tx_hash = await node.pay()
    first.hang()
    second.status(500)
    reader = await readers(first, second, timeout_seconds=LONG_SECONDS)
    await failed_poll(reader, tx_hash, first)
    second.heal()
    probe = asyncio.create_task(reader.payments.look(tx_hash))
    await first.received(2)
    async with asyncio.timeout(PATIENCE_SECONDS):
        while True:
            try:
                view = await reader.payments.look(tx_hash)
                break
            except ChainUnavailable:
                await asyncio.sleep(0.02)
    assert view.endpoint == reader.labels[1]
    assert not probe.done()
    first.let_go()
    assert (await probe).endpoint == reader.labels[1]


async def test_a_poll_cancelled_while_it_asks_all_leaves_that_to_the_next(
    faulty_nodes: FaultyNodes, readers: Readers
) -> None:
    (faulty,) = await faulty_nodes(1)
    faulty.hang()
    reader = await readers(faulty, timeout_seconds=LONG_SECONDS)
    await failed_poll(reader, UNKNOWN_TX, faulty)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.1):
            await reader.payments.look(UNKNOWN_TX)
    faulty.heal()
    assert (await reader.payments.look(UNKNOWN_TX)).receipt is None


async def test_the_final_poll_is_never_refused(node: Node, faulty_nodes: FaultyNodes, readers: Readers) -> None:
    (faulty,) = await faulty_nodes(1)
    tx_hash = await node.pay()
    faulty.hang()
    reader = await readers(faulty, timeout_seconds=LONG_SECONDS)
    await failed_poll(reader, tx_hash, faulty)
    probe = asyncio.create_task(reader.payments.look(tx_hash))
    await faulty.received(2)
    with pytest.raises(ChainUnavailable, match="another poll"):
        await reader.payments.look(tx_hash)

    async def recovered(request: web.Request) -> web.StreamResponse:
        return web.json_response(await faulty.forward(await request.json()))

    faulty.wire(recovered)
    assert (await reader.payments.look(tx_hash, ask_all=True)).receipt is not None
    faulty.let_go()
    with pytest.raises(ChainUnavailable):
        await probe


async def test_polls_are_not_refused_while_endpoints_are_merely_behind(
    node: Node, faulty_nodes: FaultyNodes, readers: Readers
) -> None:
    (faulty,) = await faulty_nodes(1)
    tx_hash = await node.pay(confirmations=20)
    reader = await readers(faulty)
    await reader.heads.height()
    faulty.shift_head(-10)
    with pytest.raises(ChainUnavailable, match="is behind"):
        await reader.payments.look(tx_hash)
    looks = await asyncio.gather(*(reader.payments.look(tx_hash) for _ in range(5)), return_exceptions=True)
    assert not [look for look in looks if ANOTHER_POLL_ASKS in str(look)]


# Forgetful, lagging and boasting nodes -------------------------------------------------------------------------------


async def test_a_node_that_does_not_know_the_payment_does_not_hide_it(
    node: Node, faulty_nodes: FaultyNodes, readers: Readers
) -> None:
    first, second = await faulty_nodes(2)
    tx_hash = await node.pay()
    first.null_receipt()
    reader = await readers(first, second)
    assert (await reader.payments.look(tx_hash)).endpoint == reader.labels[1]


@pytest.mark.parametrize(
    "spoil",
    [
        lambda faulty: faulty.wrong_block_hash(),
        lambda faulty: faulty.move_receipt(6, FORK),
        lambda faulty: faulty.fixed("eth_getBlockByNumber", None),
    ],
    ids=["another branch", "pre-confirmed", "no block"],
)
async def test_a_node_that_does_not_confirm_its_own_receipt_does_not_hide_the_payment(
    spoil: object, node: Node, faulty_nodes: FaultyNodes, readers: Readers
) -> None:
    first, second = await faulty_nodes(2)
    tx_hash = await node.pay()
    assert callable(spoil)
    spoil(first)
    reader = await readers(first, second)
    view = await reader.payments.look(tx_hash)
    assert view.endpoint == reader.labels[1]
    assert isinstance(verdict(view, tx_hash), Verified)


async def test_when_no_node_knows_the_payment_the_highest_head_is_reported(
    node: Node, faulty_nodes: FaultyNodes, readers: Readers
) -> None:
    first, second, third = await faulty_nodes(3)
    await node.mine(10)
    first.shift_head(-2)
    third.shift_head(-1)
    view = await (await readers(first, second, third)).payments.look(UNKNOWN_TX)
    assert (view.receipt, view.head_number) == (None, 10)


async def test_a_receipt_without_its_block_says_more_than_a_higher_head(
    node: Node, faulty_nodes: FaultyNodes, readers: Readers
) -> None:
    first, second = await faulty_nodes(2)
    tx_hash = await node.pay()
    first.move_receipt(6, FORK)
    second.null_receipt()
    second.shift_head(1)
    view = await (await readers(first, second)).payments.look(tx_hash)
    assert waits_for(view, tx_hash) is WaitReason.PRE_CONFIRMED


@pytest.mark.parametrize(("lag", "asked_next"), [(3, False), (4, True)])
async def test_a_lagging_endpoint_is_passed_over(
    lag: int, asked_next: bool, node: Node, faulty_nodes: FaultyNodes, readers: Readers
) -> None:
    first, second = await faulty_nodes(2)
    tx_hash = await node.pay(confirmations=20)
    reader = await readers(first, second)
    await reader.payments.look(tx_hash)
    first.shift_head(-lag)
    view = await reader.payments.look(tx_hash)
    assert view.endpoint == reader.labels[1 if asked_next else 0]
    assert view.head_number == (20 if asked_next else 17)


async def test_a_chain_that_runs_backwards_everywhere_is_not_believed_at_first_and_then_is(
    node: Node, faulty_nodes: FaultyNodes, readers: Readers, clock: Clock
) -> None:
    (faulty,) = await faulty_nodes(1)
    tx_hash = await node.pay(confirmations=20)
    reader = await readers(faulty)
    await reader.payments.look(tx_hash)
    faulty.shift_head(-10)
    with pytest.raises(ChainUnavailable, match="head 10 is behind 20"):
        await reader.payments.look(tx_hash)
    clock.now += MARK_EXPIRY_SECONDS - 0.1
    with pytest.raises(ChainUnavailable):
        await reader.payments.look(tx_hash)
    clock.now += 0.1
    assert (await reader.payments.look(tx_hash)).head_number == 10


async def test_an_invented_head_does_not_exclude_the_honest_nodes_indefinitely(
    node: Node, faulty_nodes: FaultyNodes, readers: Readers, clock: Clock
) -> None:
    boaster, honest = await faulty_nodes(2)
    tx_hash = await node.pay()
    reader = await readers(boaster, honest)
    boaster.shift_head(10**9)
    await reader.heads.height()
    boaster.status(500)
    with pytest.raises(ChainUnavailable, match="head 5 is behind 1000000005"):
        await reader.payments.look(tx_hash)
    clock.now += MARK_EXPIRY_SECONDS
    assert (await reader.payments.look(tx_hash)).head_number == 5


async def test_a_node_with_an_invented_head_cannot_hide_a_payment_even_while_it_keeps_boasting(
    node: Node, faulty_nodes: FaultyNodes, readers: Readers
) -> None:
    boaster, honest = await faulty_nodes(2)
    tx_hash = await node.pay()
    reader = await readers(boaster, honest)
    boaster.shift_head(10**9)
    boaster.null_receipt()
    for _ in range(3):
        view = await reader.payments.look(tx_hash)
        assert (view.endpoint, view.head_number) == (reader.labels[1], 5)


async def test_a_preferred_endpoint_that_is_stuck_does_not_hide_the_confirmations_that_others_see(
    node: Node, faulty_nodes: FaultyNodes, readers: Readers, clock: Clock
) -> None:
    frozen, other = await faulty_nodes(2)
    tx_hash = await node.pay(confirmations=2)
    frozen.freeze_head(2)
    reader = await readers(frozen, other)
    await reader.payments.look(tx_hash)
    await node.mine(3)  # within the tolerance: the stuck one is not behind
    clock.now += STALL_SECONDS - 0.1
    assert (await reader.payments.look(tx_hash)).endpoint == reader.labels[0]
    assert other.requests == []
    clock.now += 0.1
    view = await reader.payments.look(tx_hash)
    assert (view.endpoint, view.head_number) == (reader.labels[1], 5)
    assert isinstance(verdict(await reader.payments.cross_check(tx_hash, view), tx_hash), Verified)


async def test_what_a_stuck_endpoint_shows_is_used_where_no_other_shows_the_payment(
    node: Node, faulty_nodes: FaultyNodes, readers: Readers, clock: Clock
) -> None:
    frozen, other = await faulty_nodes(2)
    tx_hash = await node.pay(confirmations=2)
    frozen.freeze_head(2)
    reader = await readers(frozen, other)
    await reader.payments.look(tx_hash)
    clock.now += STALL_SECONDS
    other.null_receipt()
    assert (await reader.payments.look(tx_hash)).endpoint == reader.labels[0]
    other.status(503)
    for asked in (2, 2):
        assert (await reader.payments.look(tx_hash)).endpoint == reader.labels[0]
        assert len(other.requests) == asked, "one that failed lately is left alone"
    assert await reader.heads.height() == 2
    assert len(other.requests) == 2


async def test_of_several_stuck_endpoints_the_most_advanced_is_used(
    node: Node, faulty_nodes: FaultyNodes, readers: Readers, clock: Clock
) -> None:
    first, second = await faulty_nodes(2)
    tx_hash = await node.pay()
    first.freeze_head(2)
    second.freeze_head(4)
    reader = await readers(first, second)
    for _ in range(2):
        await reader.payments.cross_check(tx_hash, await reader.payments.look(tx_hash))
        clock.now += STALL_SECONDS
    view = await reader.payments.look(tx_hash)
    assert (view.endpoint, view.head_number) == (reader.labels[1], 4)
    assert await reader.heads.height() == 4


async def test_the_head_is_read_from_an_endpoint_that_is_not_stuck(
    node: Node, faulty_nodes: FaultyNodes, readers: Readers, clock: Clock
) -> None:
    frozen, other = await faulty_nodes(2)
    await node.mine(2)
    frozen.freeze_head(2)
    reader = await readers(frozen, other)
    assert await reader.heads.height() == 2
    await node.mine(3)
    clock.now += STALL_SECONDS - 0.1
    assert await reader.heads.height() == 2
    clock.now += 0.1
    assert await reader.heads.height() == 5


async def test_the_head_never_falls_below_one_returned_before(
    node: Node, faulty_nodes: FaultyNodes, readers: Readers
) -> None:
    first, second = await faulty_nodes(2)
    await node.mine(20)
    reader = await readers(first, second)
    assert await reader.heads.height() == 20
    first.shift_head(-3)
    assert await reader.heads.height() == 20
    first.shift_head(-1)
    assert await reader.heads.height() == 20
    await node.mine(10)
    assert await reader.heads.height() == 30


async def test_the_newest_block_comes_with_its_time_from_an_endpoint_that_is_not_behind(
    node: Node, faulty_nodes: FaultyNodes, readers: Readers
) -> None:
    first, second = await faulty_nodes(2)
    await node.mine(20)
    reader = await readers(first, second)
    newest = await reader.heads.newest_block()
    assert newest.number == 20
    assert abs(datetime.now(UTC) - newest.mined_at) < timedelta(hours=1)
    first.refuse()
    assert (await reader.heads.newest_block()).number == 20
    second.refuse()
    with pytest.raises(ChainUnavailable):
        await reader.heads.newest_block()


# Cross-checks ---------------------------------------------------------------------------------------------------------


async def test_with_a_single_endpoint_a_cross_check_asks_no_other(node: Node, readers: Readers) -> None:
    reader = await readers(node)
    tx_hash = await node.pay()
    view = await reader.payments.look(tx_hash)
    requests = reader.request_count
    assert await reader.payments.cross_check(tx_hash, view) is view
    assert reader.request_count == requests


async def test_a_view_without_the_transaction_in_a_block_is_not_cross_checked(
    faulty_nodes: FaultyNodes, readers: Readers
) -> None:
    reader = await readers(*await faulty_nodes(2))
    view = await reader.payments.look(UNKNOWN_TX)
    requests = reader.request_count
    assert await reader.payments.cross_check(UNKNOWN_TX, view) is view
    assert reader.request_count == requests


async def test_a_receipt_without_its_block_is_not_cross_checked(
    node: Node, faulty_nodes: FaultyNodes, readers: Readers
) -> None:
    first, second = await faulty_nodes(2)
    tx_hash = await node.pay()
    for faulty in (first, second):
        faulty.wrong_block_hash()
    reader = await readers(first, second)
    view = await reader.payments.look(tx_hash)
    requests = reader.request_count
    assert await reader.payments.cross_check(tx_hash, view) is view
    assert reader.request_count == requests


async def test_a_lagging_endpoint_is_heard_in_a_cross_check(
    node: Node, faulty_nodes: FaultyNodes, readers: Readers
) -> None:
    lagging, other = await faulty_nodes(2)
    tx_hash = await node.pay(confirmations=20)
    reader = await readers(lagging, other)
    await reader.heads.height()
    lagging.shift_head(-10)
    view = await reader.payments.look(tx_hash)
    assert (view.endpoint, view.head_number) == (reader.labels[1], 20)
    assert (await reader.payments.cross_check(tx_hash, view)).head_number == 10


async def test_a_good_answer_in_a_cross_check_wipes_the_record(
    node: Node, faulty_nodes: FaultyNodes, readers: Readers
) -> None:
    first, second = await faulty_nodes(2)
    tx_hash = await node.pay()
    first.status(503)
    reader = await readers(first, second)
    view = await reader.payments.look(tx_hash)
    assert view.endpoint == reader.labels[1]
    await reader.payments.cross_check(tx_hash, view)
    assert (await reader.payments.look(tx_hash)).endpoint == reader.labels[1]
    first.heal()
    await reader.payments.cross_check(tx_hash, view)
    assert (await reader.payments.look(tx_hash)).endpoint == reader.labels[0]


async def test_a_transaction_that_vanishes_between_two_readings_leaves_the_block_that_was_asked_for(
    node: Node, faulty_nodes: FaultyNodes, readers: Readers
) -> None:
    first, second = await faulty_nodes(2)
    tx_hash = await node.pay()
    reader = await readers(first, second)
    view = await reader.payments.look(tx_hash)
    receipts = iter([await node.call("eth_getTransactionReceipt", tx_hash) | {"blockNumber": "0x3", "logs": []}, None])
    second.answers(lambda method, _params, real: next(receipts) if method == "eth_getTransactionReceipt" else real)
    assert await reader.payments.cross_check(tx_hash, view) == view, "it has the same block, so it only has no say"


async def test_honest_endpoints_agree_with_one_request_each(
    node: Node, faulty_nodes: FaultyNodes, readers: Readers
) -> None:
    proxies = await faulty_nodes(3)
    reader = await readers(*proxies)
    tx_hash = await node.pay()
    view = await reader.payments.look(tx_hash)
    assert await reader.payments.cross_check(tx_hash, view) == view
    assert [proxy.requests for proxy in proxies[1:]] == [[POLL_WITH_BLOCK], [POLL_WITH_BLOCK]]
    assert len(proxies[0].requests) == 2


LIES = {
    "another value": lambda faulty: faulty.alter_values(10**12),
    "reverted": lambda faulty: faulty.change_receipt(lambda receipt: receipt.update(status="0x0")),
    "no logs": lambda faulty: faulty.change_receipt(lambda receipt: receipt.update(logs=[])),
}


@pytest.mark.parametrize("lie", LIES)
async def test_one_faulty_node_of_two_makes_the_payment_wait(
    lie: str, node: Node, faulty_nodes: FaultyNodes, readers: Readers
) -> None:
    faulty, honest = await faulty_nodes(2)
    tx_hash = await node.pay()
    LIES[lie](faulty)
    reader = await readers(faulty, honest)
    view = await reader.payments.look(tx_hash)
    with pytest.raises(EndpointsDisagree) as disagree:
        await reader.payments.cross_check(tx_hash, view)
    a, b = reader.labels
    assert disagree.value.message.startswith(f"endpoints disagree: {a}: in block 1 (")
    assert f"; {b}: in block 1 (" in disagree.value.message
    assert isinstance(disagree.value, ChainUnavailable)


@pytest.mark.parametrize("lie", LIES)
async def test_one_faulty_node_of_three_is_outvoted_and_then_asked_last(
    lie: str, node: Node, faulty_nodes: FaultyNodes, readers: Readers
) -> None:
    faulty, *honest = await faulty_nodes(3)
    tx_hash = await node.pay(transfer(ALICE, TREASURY, 100))
    LIES[lie](faulty)
    reader = await readers(faulty, *honest)
    view = await reader.payments.cross_check(tx_hash, await reader.payments.look(tx_hash))
    assert view.endpoint == reader.labels[1]
    judged = verdict(view, tx_hash)
    assert isinstance(judged, Verified)
    assert judged.transfer.value_raw == 100
    assert (await reader.payments.look(tx_hash)).endpoint == reader.labels[1]


async def fabrication(node: Node, faulty: FaultyNode, *, block_number: int = 1) -> str:
    """Makes `faulty` report a payment, in a block to go with it, that never happened."""
    real = await node.pay()
    receipt, block = (
        await node.call("eth_getTransactionReceipt", real),
        await node.call("eth_getBlockByNumber", "0x1", False),
    )
    text = json.dumps([receipt, block]).replace(receipt["transactionHash"], UNKNOWN_TX).replace(block["hash"], FORK)
    receipt, block = json.loads(text)
    for part in (receipt, *receipt["logs"]):
        part["blockNumber"] = hex(block_number)
    faulty.fabricate(receipt, block | {"number": hex(block_number)})
    return UNKNOWN_TX


async def test_an_invented_payment_alone_would_be_believed_and_is_not_with_a_second_endpoint(
    node: Node, faulty_nodes: FaultyNodes, readers: Readers
) -> None:
    faulty, honest = await faulty_nodes(2)
    tx_hash = await fabrication(node, faulty)
    reader = await readers(faulty, honest)
    view = await reader.payments.look(tx_hash)
    assert isinstance(verdict(view, tx_hash), Verified)
    with pytest.raises(EndpointsDisagree, match="not in block 1"):
        await reader.payments.cross_check(tx_hash, view)


async def test_an_invented_payment_is_not_found_where_the_majority_is_honest(
    node: Node, faulty_nodes: FaultyNodes, readers: Readers
) -> None:
    faulty, *honest = await faulty_nodes(3)
    tx_hash = await fabrication(node, faulty)
    reader = await readers(faulty, *honest)
    view = await reader.payments.cross_check(tx_hash, await reader.payments.look(tx_hash))
    assert waits_for(view, tx_hash) is WaitReason.NOT_FOUND


async def test_a_payment_invented_in_the_far_future_is_not_final_though_no_node_can_contradict_it(
    node: Node, faulty_nodes: FaultyNodes, readers: Readers
) -> None:
    faulty, honest = await faulty_nodes(2)
    tx_hash = await fabrication(node, faulty, block_number=1000)
    faulty.shift_head(2000)
    reader = await readers(faulty, honest)
    view = await reader.payments.look(tx_hash)
    assert isinstance(verdict(view, tx_hash), Verified)
    checked = await reader.payments.cross_check(tx_hash, view)
    assert checked.head_number == 5
    assert waits_for(checked, tx_hash) is WaitReason.PRE_CONFIRMED


async def test_invented_confirmations_do_not_count(node: Node, faulty_nodes: FaultyNodes, readers: Readers) -> None:
    boaster, honest = await faulty_nodes(2)
    tx_hash = await node.pay(confirmations=2)
    boaster.shift_head(100)
    reader = await readers(boaster, honest)
    view = await reader.payments.look(tx_hash)
    assert isinstance(verdict(view, tx_hash), Verified)
    judged = verdict(await reader.payments.cross_check(tx_hash, view), tx_hash)
    assert isinstance(judged, Waiting)
    assert judged.message == "2 of 5 confirmations"


async def test_a_payment_invented_in_the_far_future_is_not_final_for_a_majority_either(
    node: Node, faulty_nodes: FaultyNodes, readers: Readers
) -> None:
    faulty, *honest = await faulty_nodes(3)
    tx_hash = await fabrication(node, faulty, block_number=1000)
    faulty.shift_head(2000)
    reader = await readers(faulty, *honest)
    checked = await reader.payments.cross_check(tx_hash, await reader.payments.look(tx_hash))
    assert waits_for(checked, tx_hash) is WaitReason.PRE_CONFIRMED


async def test_one_of_three_that_is_far_behind_but_moving_does_not_hold_up_a_payment(
    node: Node, faulty_nodes: FaultyNodes, readers: Readers, clock: Clock
) -> None:
    first, second, syncing = await faulty_nodes(3)
    await node.mine(20)
    tx_hash = await node.pay()
    syncing.shift_head(-20)
    syncing.null_receipt()
    reader = await readers(first, second, syncing)
    for _ in range(3):
        checked = await reader.payments.cross_check(tx_hash, await reader.payments.look(tx_hash))
        assert isinstance(verdict(checked, tx_hash), Verified)
        await node.mine(1)
        clock.now += STALL_SECONDS / 2


async def test_a_node_that_is_stuck_delays_the_confirmations_only_until_that_is_plain(
    node: Node, faulty_nodes: FaultyNodes, readers: Readers, clock: Clock
) -> None:
    first, stuck = await faulty_nodes(2)
    tx_hash = await node.pay(confirmations=2)
    stuck.fixed("eth_blockNumber", "0x2")
    reader = await readers(first, stuck)
    await reader.payments.cross_check(tx_hash, await reader.payments.look(tx_hash))
    await node.mine(20)
    clock.now += STALL_SECONDS - 0.1
    assert (await reader.payments.cross_check(tx_hash, await reader.payments.look(tx_hash))).head_number == 2
    clock.now += 0.1
    assert (await reader.payments.cross_check(tx_hash, await reader.payments.look(tx_hash))).head_number == 22


async def test_an_endpoint_of_another_chain_has_no_say(node: Node, faulty_nodes: FaultyNodes, readers: Readers) -> None:
    first, other = await faulty_nodes(2)
    tx_hash = await node.pay()
    other.other_chain(1)
    other.null_receipt()
    reader = await readers(first, other)
    view = await reader.payments.look(tx_hash)
    assert await reader.payments.cross_check(tx_hash, view) == view


async def test_an_endpoint_that_is_down_has_no_say_and_is_asked_all_the_same(
    node: Node, faulty_nodes: FaultyNodes, readers: Readers
) -> None:
    first, down = await faulty_nodes(2)
    tx_hash = await node.pay()
    down.hang()
    reader = await readers(first, down, timeout_seconds=LONG_SECONDS)
    view = await reader.payments.look(tx_hash)
    for times in (1, 2):
        check = asyncio.create_task(reader.payments.cross_check(tx_hash, view))
        await down.received(times)
        down.let_go()
        assert await check == view
    assert len(down.requests) == 2


async def test_an_endpoint_that_failed_lately_still_contradicts_in_a_cross_check(
    node: Node, faulty_nodes: FaultyNodes, readers: Readers
) -> None:
    honest, faulty = await faulty_nodes(2)
    tx_hash = await fabrication(node, faulty)
    honest.status(500)
    reader = await readers(honest, faulty)
    view = await reader.payments.look(tx_hash)
    assert isinstance(verdict(view, tx_hash), Verified)
    honest.heal()
    with pytest.raises(EndpointsDisagree, match="not in block 1"):
        await reader.payments.cross_check(tx_hash, view)


async def test_a_pause_that_an_endpoint_asked_for_is_respected_in_a_cross_check(
    node: Node, faulty_nodes: FaultyNodes, readers: Readers, clock: Clock
) -> None:
    busy, other = await faulty_nodes(2)
    tx_hash = await node.pay()
    busy.status(429, retry_after="30")
    reader = await readers(busy, other)
    view = await reader.payments.look(tx_hash)
    clock.now += 29.9
    assert await reader.payments.cross_check(tx_hash, view) == view
    assert len(busy.requests) == 1
    clock.now += 0.1
    await reader.payments.cross_check(tx_hash, view)
    assert len(busy.requests) == 2


async def test_a_late_index_of_receipts_has_no_say(node: Node, faulty_nodes: FaultyNodes, readers: Readers) -> None:
    first, late = await faulty_nodes(2)
    tx_hash = await node.pay()
    late.null_receipt()
    reader = await readers(first, late)
    view = await reader.payments.look(tx_hash)
    assert await reader.payments.cross_check(tx_hash, view) == view


async def test_what_a_lagging_node_alone_says_is_not_final(
    node: Node, faulty_nodes: FaultyNodes, readers: Readers
) -> None:
    lagging, other = await faulty_nodes(2)
    tx_hash = await node.pay(confirmations=30)
    reader = await readers(lagging, other)
    await reader.heads.height()
    lagging.shift_head(-10)
    other.null_receipt()
    view = await reader.payments.look(tx_hash)
    assert (view.endpoint, view.head_number) == (reader.labels[0], 20)
    other.status(500)
    with pytest.raises(ChainUnavailable, match="it is behind 30"):
        await reader.payments.cross_check(tx_hash, view)


async def test_the_others_are_asked_at_the_same_time(node: Node, faulty_nodes: FaultyNodes, readers: Readers) -> None:
    first, *others = await faulty_nodes(5)
    tx_hash = await node.pay()
    reader = await readers(first, *others, timeout_seconds=LONG_SECONDS)
    view = await reader.payments.look(tx_hash)
    for other in others:
        other.hang()
    check = asyncio.create_task(reader.payments.cross_check(tx_hash, view))
    for other in others:
        await other.received(1)
    for other in others:
        other.let_go()
    await check


# Health, token, construction -----------------------------------------------------------------------------------------


async def test_health_reports_each_endpoint(node: Node, faulty_nodes: FaultyNodes, readers: Readers) -> None:
    good, other, down = await faulty_nodes(3)
    await node.mine(7)
    other.other_chain(1)
    down.status(503)
    reader = await readers(good, other, down)
    a, b, c = reader.labels
    assert await reader.health() == [
        EndpointHealth(a, reachable=True, chain_id=CHAIN_ID, head_number=7),
        EndpointHealth(b, reachable=True, chain_id=1, head_number=7, error="answers for chain 1, not 31337"),
        EndpointHealth(c, reachable=False, error="HTTP 503"),
    ]


TOKEN = "0x" + "70" * 20


def answering(answers: dict[str, bytes]) -> str:
    """Code of a contract that returns these words for these selectors and reverts otherwise."""
    cases, bodies, offset = b"", b"", len(answers) * 15 + 5
    for selector, data in answers.items():
        # PUSH1 0 CALLDATALOAD PUSH1 224 SHR PUSH4 selector EQ PUSH1 target JUMPI
        cases += b"\x60\x00\x35\x60\xe0\x1c\x63" + bytes.fromhex(selector) + b"\x14\x60"
        cases += bytes([offset + len(bodies)]) + b"\x57"
        bodies += b"\x5b"  # JUMPDEST
        for start in range(0, len(data), 32):
            bodies += b"\x7f" + data[start : start + 32] + b"\x60" + bytes([start]) + b"\x52"
        bodies += b"\x60" + bytes([len(data)]) + b"\x60\x00\xf3"
    return "0x" + (cases + b"\x60\x00\x60\x00\xfd" + bodies).hex()


STRING = word(32) + word(4) + b"USDC".ljust(32, b"\0")


@pytest.mark.parametrize(
    ("answers", "expected"),
    [
        ({"313ce567": word(6), "95d89b41": STRING, "70a08231": word(5)}, (6, "USDC", 5)),
        ({"313ce567": word(6), "95d89b41": b"MKR".ljust(32, b"\0")}, (6, "MKR", None)),
        ({"313ce567": word(256), "95d89b41": word(32) + word(10**30)}, (None, None, None)),
        ({"95d89b41": word(32) + word(3) + b"a\nb".ljust(32, b"\0")}, (None, None, None)),
        ({}, (None, None, None)),
    ],
)
async def test_a_token_is_asked_what_it_is_and_need_not_answer(
    answers: dict[str, bytes], expected: tuple[object, ...], node: Node, readers: Readers
) -> None:
    await node.call("anvil_setCode", TOKEN, answering(answers))
    (info,), _ = await (await readers(node)).contracts.ask_about_token(TOKEN, TREASURY)
    assert info.has_code
    assert (info.decimals, info.symbol, info.treasury_balance_raw) == expected


async def test_an_address_without_code_is_no_token(node: Node, readers: Readers) -> None:
    (info,), _ = await (await readers(node)).contracts.ask_about_token(TOKEN, TREASURY)
    assert not info.has_code


async def test_a_token_is_not_asked_on_another_chain(faulty_nodes: FaultyNodes, readers: Readers) -> None:
    (faulty,) = await faulty_nodes(1)
    faulty.other_chain(1)
    (info,), silent = await (await readers(faulty)).contracts.ask_about_token(TOKEN, TREASURY)
    assert (info.chain_id, info.has_code, info.decimals, silent) == (1, False, None, [])


@pytest.mark.parametrize("urls", [[], ["http://a.example"] * 17, ["ftp://a.example"]])
def test_addresses_that_are_not_usable_are_refused(urls: list[str]) -> None:
    with pytest.raises(InvalidInput, match="CHAIN_RPC_URLS"):
        ChainReader(urls, CHAIN_ID)


def test_a_reader_shows_no_key() -> None:
    reader = ChainReader(["https://node.example/v2/s3cr3tK3y"], CHAIN_ID)
    assert repr(reader) == "ChainReader(chain 31337, node.example)"


async def test_a_reader_that_is_not_opened_says_so() -> None:
    with pytest.raises(RuntimeError, match="async with"):
        await ChainReader(["http://node.example"], CHAIN_ID).payments.look(UNKNOWN_TX)


async def test_a_node_that_dies_and_comes_back_is_used_again(readers: Readers) -> None:
    async with running_anvil() as dying:
        reader = await readers(dying)
        await dying.mine(3)
        assert await reader.heads.height() == 3
        port = int(dying.url.rsplit(":", 1)[1])
    with pytest.raises(ChainUnavailable, match="cannot connect"):
        await reader.payments.look(UNKNOWN_TX)
    async with running_anvil(port) as back:
        await back.mine(4)
        assert await reader.heads.height() == 4
