"""A namespace that tests share which do not read all of its schedules."""

from __future__ import annotations

import pytest
from temporalio.client import Client

from tests.support.servers import TemporalServer


@pytest.fixture(scope="module")
async def shared(temporal_server: TemporalServer) -> Client:
    """A client of it."""
    return (await temporal_server.namespace()).client
