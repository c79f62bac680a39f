"""Namespaces on a server that runs schedules; one is shared by tests which do not read all of its schedules."""

from __future__ import annotations

import pytest
from temporalio.client import Client

from tests.support.servers import Namespace, TemporalServer


@pytest.fixture(scope="module")
async def shared(temporal_server: TemporalServer) -> Client:
    """A client of it."""
    return (await temporal_server.namespace()).client


@pytest.fixture
def namespace(scheduling_namespace: Namespace) -> Namespace:
    """A Temporal namespace of one's own."""
    return scheduling_namespace
