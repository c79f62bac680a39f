"""What the process's calls share."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import TYPE_CHECKING
from uuid import UUID

from domain.billing.upstreams import Upstreams
from gateway.books import CallBooks
from gateway.draining import Drains
from gateway.policy import GatewayPolicy
from gateway.pricing import Prices
from gateway.server import Connections
from gateway.upstream_client import UpstreamClient

if TYPE_CHECKING:
    from gateway.call import Call
    from gateway.call_account import CallAccount


@dataclass
class Gateway:
    """Everything that a call needs."""

    policy: GatewayPolicy
    upstreams: Upstreams
    client: UpstreamClient
    prices: Prices
    books: CallBooks
    connections: Connections
    drains: Drains = field(default_factory=Drains)
    calls: set[Call] = field(default_factory=set)
    open_holds: dict[UUID, CallAccount] = field(default_factory=dict)
    """Whose leases are renewed."""
    tasks: set[asyncio.Task[object]] = field(default_factory=set)
    """Of calls, whether or not their clients are still there."""
    is_stopping: bool = False
