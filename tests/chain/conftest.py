"""A chain for each test on a real node, and readers and faulty nodes in front of it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from typing import Any

import pytest

from chain.reader import ChainReader
from tests.chain.anvil import CHAIN_ID, Clock, Node, running_anvil
from tests.chain.faulty_node import FaultyNode

FaultyNodes = Callable[[int], Awaitable[list[FaultyNode]]]
Readers = Callable[..., Awaitable[ChainReader]]


@pytest.fixture(scope="session")
async def anvil() -> AsyncIterator[Node]:
    """This process's node: its start takes 40 ms of the processor's."""
    async with running_anvil() as running:
        yield running


@pytest.fixture
async def node(anvil: Node) -> Node:
    """A chain of its own for each test, on the same node."""
    await anvil.begin_anew()
    return anvil


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
async def faulty_nodes(node: Node) -> AsyncIterator[FaultyNodes]:
    """Makes proxies in front of the node."""
    async with AsyncExitStack() as stack:

        async def make(count: int) -> list[FaultyNode]:
            return [await stack.enter_async_context(FaultyNode.in_front_of(node.url)) for _ in range(count)]

        yield make


@pytest.fixture
async def readers(clock: Clock) -> AsyncIterator[Readers]:
    """Makes open readers of the given endpoints."""
    async with AsyncExitStack() as stack:

        async def make(*endpoints: FaultyNode | Node | str, **options: Any) -> ChainReader:
            # Most tests ask one question after the other; `test_joined_batches` has those of many at once.
            urls = [endpoint if isinstance(endpoint, str) else endpoint.url for endpoint in endpoints]
            settings: dict[str, Any] = {
                "chain_id": CHAIN_ID,
                "timeout_seconds": 5.0,
                "join_seconds": 0.0,
                "clock": clock,
            } | options
            return await stack.enter_async_context(ChainReader(urls, **settings))

        yield make
