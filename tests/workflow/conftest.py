"""A namespace that the scripted tests share, and the server that skips time."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
from temporalio.client import Client
from temporalio.testing import WorkflowEnvironment

from devstack.chain import LocalChain
from tests.support.engine import Engine, open_engine
from tests.support.payments import RolePair
from tests.support.servers import Namespace, TemporalServer, running_skipping_temporal


@pytest.fixture(scope="module")
async def client(temporal_server: TemporalServer) -> Client:
    """A client of a namespace that the module's tests share; their workflows have ids of their own."""
    return (await temporal_server.namespace()).client


@pytest.fixture(scope="session")
async def skipping() -> AsyncIterator[WorkflowEnvironment]:
    """A server on which a day passes in no time while no activity runs."""
    async with running_skipping_temporal() as environment:
        yield environment


@pytest.fixture
async def short_lived_engine(namespace: Namespace, roles: RolePair, chain: LocalChain) -> AsyncIterator[Engine]:
    """An engine that gives a payment one second."""
    async with open_engine(namespace, roles, chain, VERIFICATION_TIMEOUT_SECONDS="1") as opened:
        yield opened
