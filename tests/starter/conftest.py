"""A Temporal that is not there."""

from __future__ import annotations

from dataclasses import replace

import pytest
from temporalio.client import Client

from composition import payment_policy
from devstack.processes import quiet_port
from starter.payments import PaymentsClient
from starter.temporal import connect
from tests.support.engine import Engine


@pytest.fixture
async def dead_temporal() -> Client:
    """A client of an address where no server listens."""
    return await connect({"TEMPORAL_ADDRESS": f"127.0.0.1:{quiet_port()}"}, lazy=True)


@pytest.fixture
def cut_off(engine: Engine, dead_temporal: Client) -> PaymentsClient:
    """The payments client of an engine whose Temporal is down."""
    return PaymentsClient(engine.tenants, dead_temporal, payment_policy(engine.settings))


@pytest.fixture
def other_chain(engine: Engine) -> PaymentsClient:
    """The payments client of a service that settles another chain."""
    policy = replace(payment_policy(engine.settings), chain_id=8453)
    return PaymentsClient(engine.tenants, engine.namespace.client, policy)
