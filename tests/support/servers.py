"""The other real servers of a test session: Temporal with a namespace for each test, and a chain mined by hand."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from google.protobuf.duration_pb2 import Duration
from temporalio.api.workflowservice.v1 import RegisterNamespaceRequest
from temporalio.client import Client
from temporalio.contrib.pydantic import pydantic_data_converter
from temporalio.testing import WorkflowEnvironment

from devstack.chain import LOCAL_CHAIN_ID, LocalChain
from devstack.processes import wait_until
from devstack.temporal import EmbeddedTemporal, locate_test_server
from domain.errors import StartupCheckFailed, TemporalUnavailable
from starter.temporal import add_search_attributes, connect, register_search_attributes
from tests.support.parallel import process_number
from workflows.naming import SEARCH_ATTRIBUTES, task_queue

TASK_QUEUE: Final = task_queue(LOCAL_CHAIN_ID)
"""Of the chain that the tests run."""

FIRST_TEMPORAL_PORT: Final = 27_233
FIRST_CHAIN_PORT: Final = 28_545
RETENTION_SECONDS: Final = 86_400
NAMESPACE_SECONDS_MAX: Final = 30.0
NAMESPACES_ON_A_SERVER: Final = 25
NO_SCHEDULES: Final = ("worker.perNamespaceWorkerCount=0",)
"""Each namespace has a worker inside the server that runs its schedules: half of what a namespace costs."""


@dataclass(frozen=True, slots=True)
class Namespace:
    """A Temporal namespace of one's own, with our search attributes."""

    address: str
    name: str
    client: Client

    @property
    def variables(self) -> dict[str, str]:
        """Temporal's own environment variables for it."""
        return {"TEMPORAL_ADDRESS": self.address, "TEMPORAL_NAMESPACE": self.name}


class TemporalServer:
    """A running server that hands out namespaces."""

    def __init__(self, server: EmbeddedTemporal) -> None:
        self.server = server
        self._numbers = itertools.count(1)
        self._admin: Client | None = None

    async def namespace(self) -> Namespace:
        """A new namespace, ready to be used."""
        name = f"test-{next(self._numbers)}"
        self._admin = self._admin or await connect({"TEMPORAL_ADDRESS": self.server.address})
        await self._admin.workflow_service.register_namespace(
            RegisterNamespaceRequest(
                namespace=name,
                workflow_execution_retention_period=Duration(seconds=RETENTION_SECONDS),
            ),
            retry=True,  # the server limits how many are made in a second
        )
        client = await connect({"TEMPORAL_ADDRESS": self.server.address, "TEMPORAL_NAMESPACE": name})

        async def known() -> bool:
            try:
                await register_search_attributes(client)
            except (StartupCheckFailed, TemporalUnavailable):
                return False
            return True

        # A new namespace reaches the server's own caches a moment later.
        await wait_until(known, timeout_seconds=NAMESPACE_SECONDS_MAX, what=f"namespace {name}")
        return Namespace(self.server.address, name, client)


@asynccontextmanager
async def running_temporal(state_dir: Path, *, schedules: bool = True) -> AsyncIterator[TemporalServer]:
    """A Temporal server, with or without what runs schedules."""
    server = EmbeddedTemporal(
        state_dir, FIRST_TEMPORAL_PORT + 2 * process_number(), dynamic_config=() if schedules else NO_SCHEDULES
    )
    await server.start()
    try:
        yield TemporalServer(server)
    finally:
        await server.stop()


class Namespaces:
    """Namespaces for single tests, on a new server every so often.

    A server reports the metrics of every namespace that it ever had, every second: after a hundred of them that is a
    tenth of a processor.
    """

    def __init__(self, folder: Callable[[], Path]) -> None:
        self._folder = folder
        self._current: _Lending | None = None

    @asynccontextmanager
    async def lent(self) -> AsyncIterator[Namespace]:
        """A namespace for the length of a block."""
        if self._current is None or self._current.made == NAMESPACES_ON_A_SERVER:
            previous, self._current = self._current, _Lending()
            if previous is not None:
                await previous.retire()
            await self._current.start(self._folder())
        current = self._current
        current.made += 1
        current.in_use += 1
        try:
            yield await current.server().namespace()
        finally:
            current.in_use -= 1
            await current.stop_when_retired()

    async def close(self) -> None:
        """Stop the server."""
        if self._current is not None:
            await self._current.retire()


class _Lending:
    """A server, and how many of its namespaces are in use."""

    def __init__(self) -> None:
        self.made = 0
        self.in_use = 0
        self._is_retired = False
        self._stack = AsyncExitStack()
        self._server: TemporalServer | None = None

    async def start(self, folder: Path) -> None:
        self._server = await self._stack.enter_async_context(running_temporal(folder, schedules=False))

    def server(self) -> TemporalServer:
        assert self._server is not None
        return self._server

    async def retire(self) -> None:
        self._is_retired = True
        await self.stop_when_retired()

    async def stop_when_retired(self) -> None:
        if self._is_retired and self.in_use == 0:
            await self._stack.aclose()


@asynccontextmanager
async def running_skipping_temporal() -> AsyncIterator[WorkflowEnvironment]:
    """A server on which a day passes in no time while no activity runs. It has no schedules and lists no workflows."""
    async with await WorkflowEnvironment.start_time_skipping(
        data_converter=pydantic_data_converter, test_server_existing_path=str(locate_test_server())
    ) as environment:
        await add_search_attributes(environment.client, [key.name for key in SEARCH_ATTRIBUTES])
        yield environment
        await asyncio.sleep(0.2)  # its native threads need a moment, or they may crash an exiting process


@asynccontextmanager
async def running_chain(
    state_dir: Path, *, slots_in_an_epoch: int = 32, first_port: int = FIRST_CHAIN_PORT
) -> AsyncIterator[LocalChain]:
    """A chain with the test token that mines only on request. One beside another has another `first_port`."""
    chain = LocalChain(
        state_dir,
        first_port + process_number(),
        block_time_seconds=None,
        slots_in_an_epoch=slots_in_an_epoch,
    )
    await chain.start()
    try:
        async with chain.keeping_connections():
            await chain.deploy()
            yield chain
    finally:
        await chain.stop()
