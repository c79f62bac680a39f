"""A namespace that the scripted tests share, and the server that skips time."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
from temporalio.client import Client
from temporalio.contrib.pydantic import pydantic_data_converter
from temporalio.testing import WorkflowEnvironment

from devstack.chain import LocalChain
from devstack.temporal import locate_test_server
from starter.temporal import add_search_attributes
from tests.support.engine import Engine, open_engine
from tests.support.postgres import Database
from tests.support.servers import Namespace, TemporalServer
from workflows.naming import SEARCH_ATTRIBUTES


@pytest.fixture(scope="module")
async def client(temporal_server: TemporalServer) -> Client:
    """A client of a namespace that the module's tests share; their workflows have ids of their own."""
    return (await temporal_server.namespace()).client


@pytest.fixture(scope="session")
async def skipping() -> AsyncIterator[WorkflowEnvironment]:
    """A server on which a day passes in no time while nobody works."""
    async with await WorkflowEnvironment.start_time_skipping(
        data_converter=pydantic_data_converter, test_server_existing_path=str(locate_test_server())
    ) as environment:
        await add_search_attributes(environment.client, [key.name for key in SEARCH_ATTRIBUTES])
        yield environment
        await asyncio.sleep(0.2)  # its native threads need a moment, or they may crash an exiting process


@pytest.fixture
async def short_lived_engine(namespace: Namespace, database: Database, chain: LocalChain) -> AsyncIterator[Engine]:
    """An engine that gives a payment one second."""
    async with open_engine(namespace, database, chain, VERIFICATION_TIMEOUT_SECONDS="1") as opened:
        yield opened
