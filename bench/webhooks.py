"""Webhooks: how many are delivered a second, and how soon after its event's commit a receiver has accepted one."""

from __future__ import annotations

import asyncio
import json
import secrets
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final
from uuid import UUID

from aiohttp import web

from bench.http_path import client_wallet
from bench.parts import Latency
from bench.surroundings import databases, without_servers
from bench.webhooks_report import Webhooks
from commands.local_system import LocalSystem
from composition import payment_policy
from db.accounts.wallets import Payer
from db.engine import TenantDatabase
from devstack.errors import PartFailedError
from devstack.processes import wait_until
from domain.webhooks.events import EventType
from services.payments.submission import record_hash
from services.webhooks.endpoints import create_endpoint
from starter.payments import PaymentsClient
from starter.temporal import connect

ACCOUNTS: Final = 25
"""Of one account a worker sends eight webhooks at a time: what is measured is the system, not that limit."""

CENTS: Final = 100
AT_ONCE: Final = 8
SPACED: Final = 40
SPACED_SECONDS: Final = 0.13
"""No part of the second after which new events are read: so their times of waiting for it are spread evenly."""

DELIVERED_SECONDS_MAX: Final = 120.0


@dataclass(slots=True)
class Receiver:
    """Accepts whatever it is sent, and notes when it first has."""

    url: str = ""
    accepted: dict[UUID, float] = field(default_factory=dict)
    """By the payment that an event is about, in seconds of `time.monotonic`."""
    seen: set[str] = field(default_factory=set)
    repeated: int = 0

    @classmethod
    @asynccontextmanager
    async def running(cls) -> AsyncIterator[Receiver]:
        """A receiver on a free port of this machine."""
        receiver = cls()
        app = web.Application()
        app.router.add_post("/", receiver._accept)
        runner = web.AppRunner(app, access_log=None, handle_signals=False)
        await runner.setup()
        try:
            await web.TCPSite(runner, "127.0.0.1", 0).start()
            receiver.url = f"http://127.0.0.1:{runner.addresses[0][1]}/"
            yield receiver
        finally:
            await runner.cleanup()

    async def _accept(self, request: web.Request) -> web.Response:
        event, webhook_id = json.loads(await request.read()), request.headers["webhook-id"]
        self.repeated += webhook_id in self.seen
        self.seen.add(webhook_id)
        self.accepted.setdefault(UUID(event["data"]["attemptId"]), time.monotonic())
        return web.Response()


class WebhookBench:
    """Accounts with an endpoint each, and payments of theirs whose submission is an event."""

    def __init__(self, tenants: TenantDatabase, payments: PaymentsClient, receiver: Receiver, chain_id: int) -> None:
        self._tenants = tenants
        self._payments = payments
        self._receiver = receiver
        self._chain_id = chain_id
        self._committed: dict[UUID, float] = {}

    async def open_accounts(self) -> list[Payer]:
        """Accounts, each with an endpoint at the receiver."""
        payers = [await self._payments.provision(client_wallet(number).address) for number in range(ACCOUNTS)]
        for payer in payers:
            async with self._tenants.transaction(payer.user_id) as connection:
                await create_endpoint(
                    *(connection, payer.billing_account_id, self._receiver.url, [EventType.PAYMENT_SUBMITTED]),
                    allow_private=True,
                )
        return payers

    async def intents(self, payers: Sequence[Payer], count: int) -> list[tuple[Payer, UUID]]:
        """So many payments, of one account after the other, that can be submitted."""
        permits = asyncio.Semaphore(AT_ONCE)

        async def make(number: int) -> tuple[Payer, UUID]:
            payer = payers[number % len(payers)]
            async with permits:
                intent = await self._payments.create_intent(payer, CENTS)
            return payer, intent.attempt_id

        return await asyncio.gather(*(make(number) for number in range(count)))

    async def submit(self, payer: Payer, attempt_id: UUID) -> None:
        """Record a hash, which is the event; the payment has no workflow, and so nothing else to do."""
        tx_hash = f"0x{secrets.token_hex(32)}"
        await record_hash(self._tenants, payer.user_id, attempt_id, tx_hash, chain_id=self._chain_id)
        self._committed[attempt_id] = time.monotonic()

    async def at_once(self, due: Sequence[tuple[Payer, UUID]]) -> tuple[list[float], float]:
        """All as fast as they are committed: seconds of each until it was accepted, and how many were a second."""
        permits = asyncio.Semaphore(AT_ONCE)

        async def submit(payer: Payer, attempt_id: UUID) -> None:
            async with permits:
                await self.submit(payer, attempt_id)

        started = time.monotonic()
        await asyncio.gather(*(submit(payer, attempt_id) for payer, attempt_id in due))
        seconds = await self._until_accepted(due)
        last = max((self._receiver.accepted.get(attempt_id, started) for _, attempt_id in due), default=started)
        return seconds, len(seconds) / (last - started) if seconds else 0.0

    async def spaced(self, due: Sequence[tuple[Payer, UUID]]) -> list[float]:
        """One after the other, whatever has become of those before: seconds of each until it was accepted."""
        begin = time.monotonic()
        for number, (payer, attempt_id) in enumerate(due):
            await asyncio.sleep(max(begin + number * SPACED_SECONDS - time.monotonic(), 0.0))
            await self.submit(payer, attempt_id)
        return await self._until_accepted(due)

    async def _until_accepted(self, due: Sequence[tuple[Payer, UUID]]) -> list[float]:
        """Seconds of those that were accepted in time; the others are missing in the report."""
        accepted = self._receiver.accepted
        with suppress(PartFailedError):
            await wait_until(
                lambda: all(attempt_id in accepted for _, attempt_id in due),
                timeout_seconds=DELIVERED_SECONDS_MAX,
                what="delivered webhooks",
            )
        return [accepted[one] - self._committed[one] for _, one in due if one in accepted]


async def measure_webhooks(
    state_dir: Path, variables: Mapping[str, str], *, deliveries: int, on_progress: Callable[[str], None]
) -> Webhooks:
    """Deliver so many webhooks at once, and some one after the other, on a local system of its own."""
    async with (
        LocalSystem(
            state_dir,
            without_servers(variables),
            without=("api", "gateway", "upstream", "relay"),
            on_progress=on_progress,
            with_schedules=False,
            with_service_key=False,
        ) as system,
        databases(system.settings) as (tenants, _, _),
        Receiver.running() as receiver,
    ):
        payments = PaymentsClient(tenants, await connect(system.variables), payment_policy(system.settings))
        measuring = WebhookBench(tenants, payments, receiver, system.settings.chain_id)
        payers = await measuring.open_accounts()
        # What is done once in a worker's life is none of their time.
        await measuring.spaced(await measuring.intents(payers, 1))
        on_progress(f"{SPACED} webhooks now and then")
        spaced = await measuring.spaced(await measuring.intents(payers, SPACED))
        on_progress(f"{deliveries} webhooks at once")
        at_once, rate = await measuring.at_once(await measuring.intents(payers, deliveries))
        return Webhooks(
            accounts=ACCOUNTS,
            deliveries=deliveries + SPACED,
            delivered=len(at_once) + len(spaced),
            repeated=receiver.repeated,
            deliveries_per_second=round(rate, 1),
            at_once=Latency.of(at_once),
            spaced=Latency.of(spaced),
        )
