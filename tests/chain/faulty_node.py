"""A real node seen through a faulty one: an HTTP server on loopback that forwards to the node and spoils the answers.

    async with FaultyNode.in_front_of(url) as node:
        node.null_receipt()          # faults add up ...
        node.heal()                  # ... until they are taken away
        assert node.requests == [["eth_chainId", "eth_blockNumber", "eth_getTransactionReceipt"]]

Answer faults change single results; wire faults replace what goes over the connection.
"""

from __future__ import annotations

import asyncio
import copy
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import aiohttp
from aiohttp import web

from tests.chain.anvil import PATIENCE_SECONDS

Json = Any
AnswerFault = Callable[[str, list[Json], Json], Json]
"""(method, params, result) -> result, or a `Refusal` in its place"""
BatchFault = Callable[[list[Json], list[Json]], Json]
"""(requests, replies) -> what is sent instead of the array of replies"""
WireFault = Callable[[web.Request], Awaitable[web.StreamResponse]]


@dataclass(frozen=True, slots=True)
class Refusal:
    """A JSON-RPC error in place of a result."""

    message: str
    code: int = -32602


class FaultyNode:
    """Forwards JSON-RPC, single calls and batches, to a real node, with the faults that a test sets."""

    def __init__(self, upstream_url: str, session: aiohttp.ClientSession) -> None:
        self.url = ""
        self.requests: list[list[str]] = []
        self.log_ranges: list[int] = []
        """Blocks that each log query wanted."""
        self._came = asyncio.Condition()
        self._upstream_url = upstream_url
        self._session = session
        self._released = asyncio.Event()
        self._answer_faults: list[AnswerFault] = []
        self._batch_faults: list[BatchFault] = []
        self._wire_fault: WireFault | None = None

    @classmethod
    @asynccontextmanager
    async def in_front_of(cls, upstream_url: str) -> AsyncIterator[FaultyNode]:
        """A server on a free port, without faults at first."""
        async with aiohttp.ClientSession() as session:
            node = cls(upstream_url, session)
            app = web.Application(client_max_size=2**24)
            app.router.add_post("/{path:.*}", node._handle)
            runner = web.AppRunner(app, shutdown_timeout=0.1)
            await runner.setup()
            try:
                await web.TCPSite(runner, "127.0.0.1", 0).start()
                node.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
                yield node
            finally:
                node._released.set()
                await runner.cleanup()

    def heal(self) -> None:
        """No faults any more; what hangs is let go."""
        self._answer_faults, self._batch_faults, self._wire_fault = [], [], None
        self.let_go()

    def let_go(self) -> None:
        """What hangs is answered with HTTP 503; what comes later hangs as before."""
        self._released.set()
        self._released = asyncio.Event()

    async def received(self, count: int) -> None:
        """Waits until this many requests have come in all."""
        async with asyncio.timeout(PATIENCE_SECONDS), self._came:
            await self._came.wait_for(lambda: len(self.requests) >= count)

    # Answer faults ---------------------------------------------------------------------------------------------------

    def answers(self, fault: AnswerFault) -> None:
        """Any change of single results."""
        self._answer_faults.append(fault)

    def fixed(self, method: str, result: Json) -> None:
        """Always this result for that method."""
        self.answers(lambda called, _params, real: result if called == method else real)

    def null_receipt(self) -> None:
        """Knows no transaction."""
        self.fixed("eth_getTransactionReceipt", None)

    def other_chain(self, chain_id: int) -> None:
        """Claims to be of another chain."""
        self.fixed("eth_chainId", hex(chain_id))

    def refuse_log_ranges_over(self, blocks: int, refusal: Refusal | None = None) -> None:
        """Answers log queries over so many blocks at most."""
        refused = refusal or Refusal(f"eth_getLogs is limited to a {blocks} block range")

        def refuse(method: str, params: list[Json], result: Json) -> Json:
            return refused if method == "eth_getLogs" and _blocks_in(params[0]) > blocks else result

        self.answers(refuse)

    def prune_logs_below(self, block: int, refusal: Refusal | None = None) -> None:
        """Keeps no logs of the blocks below this one; their headers it has."""
        self.refuse_logs_of(0, block - 1, refusal or Refusal("pruned history unavailable", code=4444))

    def refuse_logs_of(self, first: int, last: int, refusal: Refusal) -> None:
        """Refuses each log query that touches these blocks."""

        def refuse(method: str, params: list[Json], result: Json) -> Json:
            if method != "eth_getLogs":
                return result
            return refusal if _touches(params[0], first, last) else result

        self.answers(refuse)

    def lose_headers(self, first: int, last: int, answer: Json = None) -> None:
        """Answers null, or this, for these blocks by their numbers."""

        def lose(method: str, params: list[Json], result: Json) -> Json:
            if method != "eth_getBlockByNumber" or not str(params[0]).startswith("0x"):
                return result
            return answer if first <= int(params[0], 16) <= last else result

        self.answers(lose)

    def name_tag(self, tag: str, block: Json) -> None:
        """Answers this for a tag."""
        self.answers(
            lambda method, params, real: block if method == "eth_getBlockByNumber" and params[0] == tag else real
        )

    def omit_newest_logs(self, blocks: int = 1) -> None:
        """Knows no logs of the newest blocks yet, and does not say so."""
        head = 0

        def omit(method: str, _params: list[Json], result: Json) -> Json:
            nonlocal head
            if method == "eth_blockNumber":
                head = int(result, 16)
            if method == "eth_getLogs":
                return [log for log in result if int(log["blockNumber"], 16) <= head - blocks]
            return result

        self.answers(omit)

    def shift_head(self, blocks: int) -> None:
        """A head that many blocks higher (lower when negative) than it is; blocks above a lowered head do not exist."""

        def shift(method: str, params: list[Json], result: Json) -> Json:
            if method == "eth_blockNumber":
                self.head = max(int(result, 16) + blocks, 0)
                return hex(self.head)
            if method == "eth_getBlockByNumber" and blocks < 0 and result and int(result["number"], 16) > self.head:
                return None
            return result

        self.head = 0
        self.answers(shift)

    def freeze_head(self, number: int) -> None:
        """Stands still at that block; whatever came after it is unknown."""

        def freeze(method: str, _params: list[Json], result: Json) -> Json:
            if method == "eth_blockNumber":
                return hex(number)
            field = {"eth_getBlockByNumber": "number", "eth_getTransactionReceipt": "blockNumber"}.get(method)
            return None if field and result and int(result[field], 16) > number else result

        self.answers(freeze)

    def change_receipt(self, change: Callable[[Json], None]) -> None:
        """Receipts, where there are any, as `change` alters them."""

        def altered(method: str, _params: list[Json], result: Json) -> Json:
            if method == "eth_getTransactionReceipt" and result is not None:
                change(result)
            return result

        self.answers(altered)

    def move_receipt(self, block_number: int, block_hash: str) -> None:
        """Receipts, consistent in themselves, of another block."""

        def move(receipt: Json) -> None:
            for part in (receipt, *receipt["logs"]):
                part["blockNumber"], part["blockHash"] = hex(block_number), block_hash

        self.change_receipt(move)

    def alter_values(self, value_raw: int) -> None:
        """Every log carries this number."""

        def alter(receipt: Json) -> None:
            for log in receipt["logs"]:
                log["data"] = "0x" + value_raw.to_bytes(32, "big").hex()

        self.change_receipt(alter)

    def fabricate(self, receipt: Json, block: Json) -> None:
        """A receipt, and the block to go with it, that no chain has."""
        self.fixed("eth_getTransactionReceipt", receipt)
        self.answers(
            lambda method, params, real: (
                block if method == "eth_getBlockByNumber" and params[0] == block["number"] else real
            )
        )

    def wrong_block_hash(self, block_hash: str = "0x" + "ee" * 32) -> None:
        """Blocks under another hash, as on another branch of the chain."""
        self.answers(
            lambda method, _params, result: (
                {**result, "hash": block_hash} if method == "eth_getBlockByNumber" and result else result
            )
        )

    # Faults of the batch and of the wire -----------------------------------------------------------------------------

    def batches(self, fault: BatchFault) -> None:
        """Any change of the array of replies."""
        self._batch_faults.append(fault)

    def reverse_batches(self) -> None:
        """Replies in another order than the calls: allowed."""
        self.batches(lambda _requests, replies: replies[::-1])

    def shift_ids(self) -> None:
        """Replies with ids that no request had."""
        self.batches(lambda _requests, replies: [{**reply, "id": reply["id"] + 1000} for reply in replies])

    def lose_last_reply(self) -> None:
        """One reply fewer than calls."""
        self.batches(lambda _requests, replies: replies[:-1])

    def refuse_batches(self, message: str = "batch limit exceeded", code: int = -32600) -> None:
        """A single error object in answer to a batch."""
        self.batches(
            lambda _requests, _replies: {"jsonrpc": "2.0", "id": None, "error": {"code": code, "message": message}}
        )

    def refuse(self, message: str = "over your limit", code: int = -32600) -> None:
        """A single error object in answer to anything."""

        async def answer(_request: web.Request) -> web.StreamResponse:
            return web.json_response({"jsonrpc": "2.0", "id": None, "error": {"code": code, "message": message}})

        self.wire(answer)

    def wire(self, fault: WireFault) -> None:
        """Any other answer than the node's."""
        self._wire_fault = fault

    def status(self, status: int, *, retry_after: str | None = None) -> None:
        """An HTTP error."""

        async def answer(_request: web.Request) -> web.StreamResponse:
            return web.Response(status=status, headers={"Retry-After": retry_after} if retry_after else {})

        self.wire(answer)

    def body(self, body: bytes) -> None:
        """These bytes, whatever was asked."""

        async def answer(_request: web.Request) -> web.StreamResponse:
            return web.Response(body=body, content_type="application/json")

        self.wire(answer)

    def truncate(self) -> None:
        """Half of the JSON."""

        async def answer(request: web.Request) -> web.StreamResponse:
            whole = json.dumps(await self.forward(await request.json())).encode()
            return web.Response(body=whole[: len(whole) // 2], content_type="application/json")

        self.wire(answer)

    def hang(self) -> None:
        """Accepts the request and never answers, until let go, healed or closed."""

        async def answer(_request: web.Request) -> web.StreamResponse:
            await self._released.wait()
            return web.Response(status=503)

        self.wire(answer)

    def drop(self) -> None:
        """Closes the connection in answer to a request."""

        async def answer(request: web.Request) -> web.StreamResponse:
            assert request.transport is not None
            request.transport.abort()
            return web.Response()

        self.wire(answer)

    # The server ------------------------------------------------------------------------------------------------------

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        document = await request.json()
        calls = document if isinstance(document, list) else [document]
        async with self._came:
            self.requests.append([call["method"] for call in calls])
            self.log_ranges += [_blocks_in(call["params"][0]) for call in calls if call["method"] == "eth_getLogs"]
            self._came.notify_all()
        if self._wire_fault is not None:
            return await self._wire_fault(request)
        return web.json_response(await self.forward(document))

    async def forward(self, document: Json) -> Json:
        """The node's answer to this document, with the answer and batch faults in it."""
        async with self._session.post(self._upstream_url, json=document) as response:
            answer = await response.json()
        if not isinstance(document, list):
            return self._spoil(document, answer)
        by_id = {reply["id"]: reply for reply in answer}
        replies: Json = [self._spoil(call, by_id[call["id"]]) for call in document]
        for fault in self._batch_faults:
            replies = fault(document, replies)
        return replies

    def _spoil(self, call: Json, reply: Json) -> Json:
        if "result" not in reply:
            return reply
        result = copy.deepcopy(reply["result"])
        for fault in self._answer_faults:
            result = fault(call["method"], call.get("params", []), result)
            if isinstance(result, Refusal):
                error = {"code": result.code, "message": result.message}
                return {"jsonrpc": "2.0", "id": reply["id"], "error": error}
        return {**reply, "result": result}


def _blocks_in(query: Json) -> int:
    return int(query["toBlock"], 16) - int(query["fromBlock"], 16) + 1


def _touches(query: Json, first: int, last: int) -> bool:
    return int(query["fromBlock"], 16) <= last and int(query["toBlock"], 16) >= first
