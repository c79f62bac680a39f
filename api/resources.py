"""Resources of the HTTP interface, opened by the entry point (`api/process.py`); nothing here reads settings."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Annotated, Final
from urllib.parse import urlsplit

from fastapi import Depends, Request
from temporalio.client import Client

from api.http.concurrency import AccountConcurrency
from api.http.stream_limits import StreamLimits
from chain.reader import ChainReader
from db.engine import OperatorDatabase, TenantDatabase
from services.deposits.charges import Charges
from services.deposits.signed_payments import SignedPayments
from services.payments.topups import TopUps
from starter.payments import PaymentsClient
from telemetry.health import Check

SECURE_COOKIE: Final = "__Host-settle_session"
LOCAL_COOKIE: Final = "settle_session"
"""Followed by the port: all ports of a host share cookies, and two local systems must not."""


@dataclass(frozen=True, slots=True)
class RateLimits:
    """Requests per minute, in a burst or spread."""

    logins_per_address: int
    logins_per_account: int
    intents_per_address: int
    intents_per_account: int
    submits_per_address: int
    submits_per_account: int
    keys_per_address: int
    keys_per_account: int
    topups_per_address: int
    topups_per_account: int
    charges_per_address: int
    charges_per_account: int


@dataclass(frozen=True, slots=True)
class ApiSettings:
    """Configuration of the interface.

    `origin` is the public scheme, host and port, bound into every sign-in message. `explorer_tx_url` is an address that
    contains `{tx_hash}`. `public_rpc_url` is a chain node that may be given to wallets, unlike `CHAIN_RPC_URLS`.
    """

    origin: str
    platform_name: str
    chain_id: int
    chain_name: str
    usdc_token_address: str
    min_confirmations: int
    block_time: timedelta
    payment_min_usd_cents: int
    payment_max_usd_cents: int
    challenge_lifetime: timedelta
    session_lifetime: timedelta
    rate_limits: RateLimits
    explorer_tx_url: str | None = None
    public_rpc_url: str | None = None
    operator_wallets: frozenset[str] = frozenset()
    temporal_ui_url: str | None = None
    webhook_allow_private: bool = False

    @property
    def is_secure(self) -> bool:
        """Whether clients reach it over TLS."""
        return self.origin.startswith("https://")

    @property
    def cookie_name(self) -> str:
        """The session cookie's name; over TLS one that browsers accept from this host only."""
        return SECURE_COOKIE if self.is_secure else f"{LOCAL_COOKIE}_{urlsplit(self.origin).port or 80}"


@dataclass(frozen=True)
class Services:
    """Opened connections, owned by the entry point, and the configuration."""

    settings: ApiSettings
    database: TenantDatabase
    payments: PaymentsClient
    topups: TopUps
    charges: Charges
    signed_payments: SignedPayments
    chain: ChainReader
    temporal: Client
    checks: Mapping[str, Check]
    operators: OperatorDatabase | None = None
    concurrency: AccountConcurrency = field(default_factory=AccountConcurrency)
    streams: StreamLimits = field(default_factory=StreamLimits)
    stopping: asyncio.Event = field(default_factory=asyncio.Event)
    """Set when the process is about to end, so that long-lived connections are closed."""


async def _services(request: Request) -> Services:
    services = request.app.state.services
    assert isinstance(services, Services)
    return services


ApiServices = Annotated[Services, Depends(_services)]


class SingleFlight:
    """Single-flight cache: callers within `lifetime_seconds` share one result, and callers during a read wait for it.

    A failure is shared with the callers that waited for it, and not cached.
    """

    def __init__(self, read: Callable[[], Awaitable[int]], *, lifetime_seconds: float) -> None:
        self._read = read
        self._lifetime_seconds = lifetime_seconds
        self._value: tuple[int, float] | None = None
        self._reading: asyncio.Task[int] | None = None

    async def __call__(self) -> int:
        """The result, at most `lifetime_seconds` old. Raises what the read raises."""
        if self._value is not None and time.monotonic() - self._value[1] < self._lifetime_seconds:
            return self._value[0]
        if self._reading is None or self._reading.done():
            self._reading = asyncio.ensure_future(self._read())
        # Shielded: one cancelled caller must not cancel the read for the others.
        value = await asyncio.shield(self._reading)
        self._value = (value, time.monotonic())
        return value
