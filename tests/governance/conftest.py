"""A worker with the product's jobs on real servers, and the receiver of their events."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import pytest

from devstack.chain import LocalChain
from domain.operations.events import PlatformEvent, Publish
from settings import load
from tests.support.engine import Engine, open_engine
from tests.support.payments import RolePair
from tests.support.servers import Namespace
from tests.support.sink import Sink, running_sink
from worker import Workers, build_worker


@dataclass
class Heard:
    """Everything that was announced, in order; an event's publisher in the tests."""

    events: list[PlatformEvent] = field(default_factory=list)

    async def publish(self, event: PlatformEvent) -> None:
        """Keep it."""
        self.events.append(event)

    def of_type(self, type_: str) -> list[PlatformEvent]:
        """What was announced of one type."""
        return [event for event in self.events if event.type == type_]


@pytest.fixture
async def engine(namespace: Namespace, roles: RolePair, chain: LocalChain) -> AsyncIterator[Engine]:
    """The engine, whose settlements begin at the next block: the chain is the session's, and a watcher must not find
    what other tests have paid."""
    begin = await chain.block_number() + 1
    async with open_engine(namespace, roles, chain, CHAIN_WATCH_FROM_BLOCK=str(begin)) as opened:
        yield opened


@pytest.fixture
async def sink() -> AsyncIterator[Sink]:
    """An HTTP receiver."""
    async with running_sink() as receiver:
        yield receiver


@pytest.fixture
def heard() -> Heard:
    """An empty one."""
    return Heard()


@asynccontextmanager
async def working(engine: Engine, publish: Publish, **changes: str) -> AsyncIterator[Workers]:
    """The product's own worker for the length of the block; `changes` are settings by their variables' names."""
    worker = build_worker(
        engine.namespace.client,
        load({**engine.variables, **changes}),
        chain=engine.reader,
        settlement=engine.settlement,
        service=engine.service,
        publish=publish,
    )
    async with worker:
        yield worker
