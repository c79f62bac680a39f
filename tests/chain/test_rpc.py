"""One endpoint: what it answers in every way of failing, and that its key is never shown."""

from __future__ import annotations

import asyncio
import json
import logging
import socket
import sys
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import aiohttp
import pytest
from aiohttp import web

from chain.rpc import OFFLOAD_BYTES_MIN, Call, Endpoint, EndpointFailure, Failure, labels, open_session
from domain.errors import ChainUnavailable, InvalidInput
from tests.chain.anvil import CHAIN_ID
from tests.chain.conftest import FaultyNodes
from tests.chain.faulty_node import FaultyNode

CALLS = [Call("eth_chainId"), Call("eth_blockNumber")]
KEY = "s3cr3tK3y0123456789"


@pytest.fixture
async def session() -> AsyncIterator[aiohttp.ClientSession]:
    async with open_session(connections_max=4) as opened:
        yield opened


@pytest.fixture
async def faulty(faulty_nodes: FaultyNodes) -> FaultyNode:
    return (await faulty_nodes(1))[0]


@pytest.fixture
def endpoint(faulty: FaultyNode, session: aiohttp.ClientSession) -> Endpoint:
    return Endpoint(faulty.url, label="faulty", session=session, timeout_seconds=5.0)


async def failure_of(endpoint: Endpoint) -> EndpointFailure:
    with pytest.raises(EndpointFailure) as failed:
        await endpoint.batch(CALLS)
    assert "\n" not in failed.value.message
    return failed.value


async def test_a_batch_is_one_http_request_answered_in_the_order_of_the_calls(
    faulty: FaultyNode, endpoint: Endpoint
) -> None:
    chain_id, head = await endpoint.batch(CALLS)
    assert (chain_id.value(), head.value()) == (hex(CHAIN_ID), "0x0")
    assert faulty.requests == [["eth_chainId", "eth_blockNumber"]]
    assert endpoint.request_count == 1


async def test_replies_in_another_order_are_sorted_by_their_ids(faulty: FaultyNode, endpoint: Endpoint) -> None:
    faulty.reverse_batches()
    assert [reply.value() for reply in await endpoint.batch(CALLS)] == [hex(CHAIN_ID), "0x0"]


async def test_the_refusal_of_one_call_leaves_the_others_usable(endpoint: Endpoint) -> None:
    chain_id, unknown = await endpoint.batch([Call("eth_chainId"), Call("eth_noSuchMethod")])
    assert chain_id.value() == hex(CHAIN_ID)
    with pytest.raises(EndpointFailure, match=r"eth_noSuchMethod: .*code -32601"):
        unknown.value()


async def test_a_single_error_for_the_whole_batch_is_a_refusal(faulty: FaultyNode, endpoint: Endpoint) -> None:
    faulty.refuse("over your limit")
    failure = await failure_of(endpoint)
    assert failure.failure is Failure.RPC_ERROR
    assert "over your limit" in failure.message and "-32600" in failure.message


async def drop_batches(faulty: FaultyNode) -> None:
    """Close the connection on a batch, answer a single call: what a small proxy that knows no arrays does."""

    async def answer(request: web.Request) -> web.StreamResponse:
        document = await request.json()
        if isinstance(document, list):
            assert request.transport is not None
            request.transport.close()
            return web.Response()
        return web.json_response(await faulty.forward(document))

    faulty.wire(answer)


async def answer_batches_with(faulty: FaultyNode, status: int) -> None:
    """An HTTP status for a batch, the node's answer to a single call."""

    async def answer(request: web.Request) -> web.StreamResponse:
        document = await request.json()
        if isinstance(document, list):
            return web.Response(status=status)
        return web.json_response(await faulty.forward(document))

    faulty.wire(answer)


@pytest.mark.parametrize("how", ["error object", "HTTP 400", "HTTP 500", "closed connection"])
async def test_a_node_that_refuses_batches_is_asked_one_call_at_a_time(
    how: str, faulty: FaultyNode, endpoint: Endpoint
) -> None:
    expected = [reply.value() for reply in await endpoint.batch(CALLS)]
    faulty.requests.clear()
    match how:
        case "error object":
            faulty.refuse_batches()
        case "closed connection":
            await drop_batches(faulty)
        case _:
            await answer_batches_with(faulty, int(how.removeprefix("HTTP ")))
    assert [reply.value() for reply in await endpoint.batch(CALLS)] == expected
    methods = [[call.method] for call in CALLS]
    assert faulty.requests == [[call.method for call in CALLS], *methods]
    faulty.requests.clear()
    assert [reply.value() for reply in await endpoint.batch(CALLS)] == expected
    assert sorted(faulty.requests) == sorted(methods), "the batch is not tried again for a while"


async def test_an_overloaded_node_is_not_asked_one_call_at_a_time(faulty: FaultyNode, endpoint: Endpoint) -> None:
    faulty.status(503)
    await failure_of(endpoint)
    assert len(faulty.requests) == 1


async def test_a_limit_reported_as_a_json_rpc_error_counts_as_a_limit(faulty: FaultyNode, endpoint: Endpoint) -> None:
    faulty.refuse_batches("slow down", code=-32005)
    assert (await failure_of(endpoint)).failure is Failure.RATE_LIMITED


@pytest.mark.parametrize(
    "spoil",
    [
        pytest.param(FaultyNode.shift_ids, id="ids of no request"),
        pytest.param(FaultyNode.lose_last_reply, id="a reply is missing"),
        pytest.param(FaultyNode.truncate, id="half of the JSON"),
        pytest.param(lambda faulty: faulty.batches(lambda _, replies: replies + replies[:1]), id="a reply twice"),
        pytest.param(lambda faulty: faulty.batches(lambda _, replies: replies[0]), id="one object"),
        pytest.param(lambda faulty: faulty.batches(lambda _, _replies: "no"), id="a string"),
        pytest.param(lambda faulty: faulty.batches(lambda _, _replies: [[]]), id="no objects"),
        pytest.param(lambda faulty: faulty.batches(lambda _, _replies: []), id="an empty array"),
        pytest.param(
            lambda faulty: faulty.batches(lambda _, replies: [{"id": r["id"], "jsonrpc": "2.0"} for r in replies]),
            id="neither result nor error",
        ),
        pytest.param(
            lambda faulty: faulty.batches(lambda _, replies: [{**r, "id": str(r["id"])} for r in replies]),
            id="text ids",
        ),
        pytest.param(
            lambda faulty: faulty.batches(lambda _, replies: [{**r, "id": float(r["id"])} for r in replies]),
            id="float ids",
        ),
        pytest.param(
            lambda faulty: faulty.batches(lambda _, replies: [{**r, "id": [r["id"]]} for r in replies]),
            id="arrays as ids",
        ),
        pytest.param(lambda faulty: faulty.body(b""), id="nothing"),
        pytest.param(lambda faulty: faulty.body(b"<html>"), id="a web page"),
        pytest.param(lambda faulty: faulty.body(b"\xff\xfe\xff"), id="no text"),
        pytest.param(lambda faulty: faulty.body(b"[" * 200_000), id="nested absurdly"),
        pytest.param(lambda faulty: faulty.body(b"9" * 100_000), id="a number of 100,000 digits"),
        pytest.param(
            lambda faulty: faulty.body(b'[{"id":1,"result":NaN},{"id":2,"result":"0x0"}]'), id="no number of JSON"
        ),
        pytest.param(lambda faulty: faulty.body(b"[" * (OFFLOAD_BYTES_MIN + 1)), id="nested absurdly, in the thread"),
    ],
)
async def test_a_malformed_answer_is_a_failure_and_never_a_crash(
    spoil: object, faulty: FaultyNode, endpoint: Endpoint
) -> None:
    assert callable(spoil)
    spoil(faulty)
    assert (await failure_of(endpoint)).failure is Failure.MALFORMED


async def test_a_deeply_nested_answer_is_refused_whatever_recursion_the_interpreter_allows(
    faulty: FaultyNode, endpoint: Endpoint
) -> None:
    faulty.body(b"[" * 200_000)
    limit = sys.getrecursionlimit()
    sys.setrecursionlimit(10**6)  # what some libraries do to a process that imports them
    try:
        assert (await failure_of(endpoint)).failure is Failure.MALFORMED
    finally:
        sys.setrecursionlimit(limit)


async def test_a_hanging_node_is_given_up_after_the_time_out(
    faulty: FaultyNode, session: aiohttp.ClientSession
) -> None:
    faulty.hang()
    failure = await failure_of(Endpoint(faulty.url, label="faulty", session=session, timeout_seconds=0.1))
    assert failure.failure is Failure.TIMEOUT
    assert failure.message == "no answer within 0.1 s"


async def test_a_node_that_trickles_its_answer_is_given_up_after_the_time_out(
    faulty: FaultyNode, session: aiohttp.ClientSession
) -> None:
    async def trickle(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        try:
            while True:
                await response.write(b" ")
                await asyncio.sleep(0.01)
        except ConnectionResetError:
            return response

    faulty.wire(trickle)
    failure = await failure_of(Endpoint(faulty.url, label="faulty", session=session, timeout_seconds=0.2))
    assert failure.failure is Failure.TIMEOUT


@pytest.mark.parametrize("status", [301, 400, 401, 404, 500, 503])
async def test_an_http_error_is_named_by_its_status(status: int, faulty: FaultyNode, endpoint: Endpoint) -> None:
    faulty.status(status)
    failure = await failure_of(endpoint)
    assert (failure.failure, failure.message) == (Failure.HTTP_STATUS, f"HTTP {status}")


@pytest.mark.parametrize(
    ("header", "seconds"),
    [(None, None), ("7", 7.0), (" 7 ", 7.0), ("999999999999999999", 300.0), ("soon", None), ("-1", None), ("٣", None)],
)
async def test_too_many_requests_carries_the_pause_that_the_node_asks_for(
    header: str | None, seconds: float | None, faulty: FaultyNode, endpoint: Endpoint
) -> None:
    faulty.status(429, retry_after=header)
    failure = await failure_of(endpoint)
    assert (failure.failure, failure.retry_after_seconds) == (Failure.RATE_LIMITED, seconds)


async def test_the_pause_may_be_a_date(faulty: FaultyNode, endpoint: Endpoint) -> None:
    faulty.status(429, retry_after=format_datetime(datetime.now(UTC) + timedelta(seconds=60), usegmt=True))
    seconds = (await failure_of(endpoint)).retry_after_seconds
    assert seconds is not None
    assert 50 < seconds <= 60


async def test_a_redirect_is_not_followed(faulty: FaultyNode, endpoint: Endpoint) -> None:
    async def elsewhere(_request: web.Request) -> web.StreamResponse:
        return web.Response(status=307, headers={"Location": "/other"})

    faulty.wire(elsewhere)
    assert (await failure_of(endpoint)).message == "HTTP 307"
    assert len(faulty.requests) == 1


async def test_a_dropped_connection_is_unreachable_also_for_a_single_call(
    faulty: FaultyNode, endpoint: Endpoint
) -> None:
    faulty.drop()
    failure = await failure_of(endpoint)
    assert failure.failure is Failure.UNREACHABLE
    assert "closed" in failure.message
    assert [len(calls) for calls in faulty.requests] == [len(CALLS), 1]


async def test_a_closed_port_is_unreachable(session: aiohttp.ClientSession) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{unused.getsockname()[1]}"
        failure = await failure_of(Endpoint(url, label="gone", session=session, timeout_seconds=5.0))
    assert (failure.failure, failure.message) == (Failure.UNREACHABLE, "cannot connect (Connection refused)")
    assert isinstance(failure, ChainUnavailable)


@pytest.mark.parametrize(("size", "fits"), [(2000, True), (2001, False)])
async def test_an_answer_is_read_up_to_its_largest_size(
    size: int, fits: bool, faulty: FaultyNode, session: aiohttp.ClientSession
) -> None:
    faulty.body(b" " * size)
    endpoint = Endpoint(faulty.url, label="faulty", session=session, timeout_seconds=5.0, response_bytes_max=2000)
    assert (await failure_of(endpoint)).failure is (Failure.MALFORMED if fits else Failure.TOO_LARGE)


async def test_an_answer_without_end_is_cut_off(faulty: FaultyNode, session: aiohttp.ClientSession) -> None:
    async def endless(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        try:
            while True:
                await response.write(b" " * 10_000)
        except ConnectionResetError:
            return response

    faulty.wire(endless)
    endpoint = Endpoint(faulty.url, label="faulty", session=session, timeout_seconds=5.0, response_bytes_max=100_000)
    assert (await failure_of(endpoint)).failure is Failure.TOO_LARGE


async def test_the_observer_hears_of_every_request_with_its_outcome(
    faulty: FaultyNode, session: aiohttp.ClientSession
) -> None:
    heard: list[tuple[str, str]] = []

    def on_request(label: str, outcome: str, seconds: float) -> None:
        assert 0 <= seconds < 5
        heard.append((label, outcome))

    endpoint = Endpoint(faulty.url, label="faulty", session=session, timeout_seconds=5.0, on_request=on_request)
    await endpoint.batch(CALLS)
    faulty.status(503)
    await failure_of(endpoint)
    faulty.hang()
    with pytest.raises(EndpointFailure):
        await endpoint.batch(CALLS, deadline=asyncio.get_running_loop().time() + 0.1)
    waiting = asyncio.create_task(endpoint.batch(CALLS))
    await asyncio.sleep(0)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert [outcome for _, outcome in heard] == ["ok", "http_status", "timeout", "cancelled"]
    assert {label for label, _ in heard} == {"faulty"}


# Secrets -------------------------------------------------------------------------------------------------------------


def test_a_label_is_the_host_and_never_the_key() -> None:
    urls = [
        f"https://user:{KEY}@node.example/v2/{KEY}?key={KEY}",
        "https://node.example/other",
        "https://third.example",
        "http://127.0.0.1:8545",
        "http://[::1]:8545/",
    ]
    assert labels(urls) == ["node.example#1", "node.example#2", "third.example", "127.0.0.1:8545", "[::1]:8545"]


@pytest.mark.parametrize(
    "url", ["", "node.example", f"ws://node.example/{KEY}", f"https:///{KEY}", f"http://[{KEY}", "http://a:99999999"]
)
def test_a_url_that_is_not_http_with_a_host_is_refused_without_being_quoted(url: str) -> None:
    with pytest.raises(InvalidInput, match="CHAIN_RPC_URLS: address 2: expected http") as refused:
        labels(["http://good.example", url])
    assert KEY not in str(refused.value)


@pytest.mark.parametrize("fault", ["drop", "hang", "status", "quote", "unresolvable", "unencodable"])
async def test_no_failure_shows_the_key(
    fault: str, faulty: FaultyNode, session: aiohttp.ClientSession, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    caplog.set_level(logging.CRITICAL, "aiohttp.access")  # the log of the proxy, not ours
    url = faulty.url.replace("http://", f"http://user:{KEY}@") + f"/v2/{KEY}?apikey={KEY}"
    match fault:
        case "drop":
            faulty.drop()
        case "hang":
            faulty.hang()
        case "status":
            faulty.status(403)
        case "quote":
            faulty.refuse(f"project {KEY}\nis over its limit \x1b[31m" + "x" * 5000)
        case "unresolvable":
            url = f"http://user:{KEY}@does-not-exist.invalid/{KEY}"
        case "unencodable":
            url = f"http://a..b/{KEY}"
    endpoint = Endpoint(url, label="faulty", session=session, timeout_seconds=0.3)
    failure = await failure_of(endpoint)
    assert failure.__cause__ is None
    assert failure.__suppress_context__ or failure.__context__ is None
    shown = [str(failure), repr(failure), repr(endpoint), caplog.text]
    assert not [text for text in shown if KEY in text]
    assert len(failure.message) < 250
    assert failure.message.isprintable()


async def test_a_large_answer_is_decoded_all_the_same(faulty: FaultyNode, endpoint: Endpoint) -> None:
    text = "x" * OFFLOAD_BYTES_MIN
    faulty.fixed("eth_blockNumber", text)
    assert json.dumps((await endpoint.batch(CALLS))[1].value()) == json.dumps(text)
