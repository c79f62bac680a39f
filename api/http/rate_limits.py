"""Rate limits: the keys that a request is counted against, and the refusal of one too many."""

from __future__ import annotations

from ipaddress import IPv6Address, ip_address, ip_network
from typing import Final

from fastapi import Request

from api.resources import Services
from db.accounts import rate_limits
from db.accounts.rate_limits import Bucket
from domain.errors import RateLimited
from telemetry.metrics.api import RATE_LIMITED

IPV6_PREFIX: Final = 64
"""A provider gives one customer at least this many bits of IPv6 address space."""


def client_address(request: Request) -> str:
    """Rate limit key of a client: its IPv4 address, or the network of its IPv6 address.

    The `X-Forwarded-For` of trusted proxies has been applied before.
    """
    host = request.client.host if request.client else "unknown"
    try:
        address = ip_address(host.partition("%")[0])
    except ValueError:
        return host[:100]
    if isinstance(address, IPv6Address):
        if address.ipv4_mapped is not None:
            return str(address.ipv4_mapped)
        return str(ip_network((address, IPV6_PREFIX), strict=False))
    return str(address)


async def take(services: Services, kind: str, buckets: list[Bucket]) -> None:
    """Count one request of a kind against each bucket in order. Raises `RateLimited` when one is full."""
    async with services.database.unscoped_statement() as connection:
        wait_seconds = await rate_limits.take(connection, buckets)
    if wait_seconds is not None:
        RATE_LIMITED.labels(kind=kind).inc()
        raise RateLimited(wait_seconds, kind)
