"""The HTTP interface on an engine's servers, served by this process, and a client of it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass
from socket import socket
from typing import Any, Final
from uuid import UUID

import aiohttp
import psycopg
import pytest
from yarl import URL

from api import process
from api.app import build_app
from api.resources import LOCAL_COOKIE, Services
from api.server import http_server, listen
from db.engine import TenantDatabase
from devstack.chain import Wallet, payer_wallets
from devstack.processes import wait_until
from settings import Settings, load
from tests.support.database_pool import Content, Superuser
from tests.support.engine import Engine
from tests.support.smart_wallets import personal_sign

PATIENCE_SECONDS: Final = 30.0


@dataclass(frozen=True, slots=True)
class RunningApi:
    """A served interface."""

    url: str
    engine: Engine
    services: Services

    async def pay(self, intent: dict[str, Any], wallet: Wallet | None = None) -> str:
        """Send what an intent asks for, without mining it; the transaction's hash."""
        key = (wallet or first_wallet()).private_key
        return await self.engine.chain.pay(key, intent["to"], intent["amountRaw"])

    @asynccontextmanager
    async def visitor(self, wallet: Wallet | None = None) -> AsyncIterator[Visitor]:
        """A client with a cookie jar; signed in, where a wallet is given."""
        jar = aiohttp.CookieJar(unsafe=True)
        timeout = aiohttp.ClientTimeout(total=PATIENCE_SECONDS)
        async with aiohttp.ClientSession(self.url, cookie_jar=jar, timeout=timeout) as session:
            visitor = Visitor(session, self.url)
            if wallet is not None:
                await visitor.sign_in(wallet)
            yield visitor


@dataclass(frozen=True, slots=True)
class Reply:
    """An answer, read to its end."""

    status: int
    headers: Any
    body: Any

    @property
    def code(self) -> str:
        """A problem's code."""
        assert self.headers["Content-Type"].startswith("application/problem+json"), self.body
        return str(self.body["code"])


class Visitor:
    """A client with cookies, without any other knowledge of the interface than its addresses."""

    def __init__(self, session: aiohttp.ClientSession, url: str) -> None:
        self.session = session
        self._url = URL(url)

    @property
    def cookie_name(self) -> str:
        """What the session cookie is called."""
        return f"{LOCAL_COOKIE}_{self._url.port}"

    @property
    def cookie(self) -> str:
        """The session cookie's value."""
        return next(found.value for found in self.session.cookie_jar if found.key.startswith(LOCAL_COOKIE))

    @cookie.setter
    def cookie(self, value: str) -> None:
        self.session.cookie_jar.update_cookies({self.cookie_name: value}, self._url)

    async def call(self, method: str, path: str, body: object = None, **options: Any) -> Reply:
        """One request; a body goes as JSON."""
        if body is not None:
            options["json"] = body
        async with self.session.request(method, path, **options) as response:
            is_json = "json" in response.headers.get("Content-Type", "")
            read = await (response.json(content_type=None) if is_json else response.text())
            return Reply(response.status, response.headers, read)

    async def get(self, path: str, **options: Any) -> Reply:
        """GET."""
        return await self.call("GET", path, **options)

    async def post(self, path: str, body: object = None, **options: Any) -> Reply:
        """POST."""
        return await self.call("POST", path, body, **options)

    async def challenge(self, address: str) -> dict[str, Any]:
        """A challenge for an address."""
        reply = await self.post("/api/v1/auth/challenge", {"address": address})
        assert reply.status == 200, reply.body
        answer: dict[str, Any] = reply.body
        return answer

    async def sign_in(self, wallet: Wallet) -> dict[str, Any]:
        """Sign in with a wallet's key."""
        challenge = await self.challenge(wallet.address)
        reply = await self.log_in(challenge["nonce"], sign(wallet, challenge["message"]))
        assert reply.status == 200, reply.body
        answer: dict[str, Any] = reply.body
        return answer

    async def log_in(self, nonce: str, signature: str) -> Reply:
        """Answer a challenge."""
        return await self.post("/api/v1/auth/login", {"nonce": nonce, "signature": signature})

    async def intent(self, cents: int = 10_000, **fields: Any) -> dict[str, Any]:
        """A new intent."""
        reply = await self.post("/api/v1/payments/intents", {"amountUsdCents": cents, **fields})
        assert reply.status == 201, reply.body
        answer: dict[str, Any] = reply.body
        return answer

    async def submit(self, attempt_id: str | UUID, tx_hash: str, **options: Any) -> Reply:
        """Submit a hash."""
        return await self.post(f"/api/v1/payments/attempts/{attempt_id}/submit", {"txHash": tx_hash}, **options)

    async def status(self, attempt_id: str | UUID) -> dict[str, Any]:
        """How an attempt stands."""
        reply = await self.get(f"/api/v1/payments/attempts/{attempt_id}")
        assert reply.status == 200, reply.body
        answer: dict[str, Any] = reply.body
        return answer

    async def ends(self, attempt_id: str | UUID) -> dict[str, Any]:
        """How an attempt stands once it is final."""
        seen: list[dict[str, Any]] = []

        async def is_final() -> bool:
            seen.append(await self.status(attempt_id))
            return bool(seen[-1]["clientStatus"] != "PENDING_VERIFICATION")

        await wait_until(is_final, timeout_seconds=PATIENCE_SECONDS, what=f"end of {attempt_id}")
        return seen[-1]


def sign(wallet: Wallet, message: str) -> str:
    """What `personal_sign` returns."""
    return personal_sign(wallet.private_key, message)


class _Lent(TenantDatabase):
    """The connections of an engine, which last longer than an interface on them."""

    def __init__(self, owner: TenantDatabase) -> None:
        self.__dict__.update(owner.__dict__)

    async def dispose(self) -> None:
        """They stay: the next test uses them. Those of the driver's own would not be counted (`DatabasePool`)."""
        self._hot.renew()


@contextmanager
def _on_connections_of(engine: Engine, settings: Settings) -> Iterator[None]:
    """An interface opened in this block uses the engine's own where it is on the same database.

    New ones have never used a table or function: 20 ms of the processor's for an interface.
    """
    with pytest.MonkeyPatch.context() as patch:
        if settings.database_url == engine.database.app_url:
            patch.setattr(process, "TenantDatabase", lambda *_, **__: _Lent(engine.tenants))
        yield


@asynccontextmanager
async def running_api(engine: Engine, **changes: str) -> AsyncIterator[RunningApi]:
    """The interface on the engine's servers; `changes` are settings by their variables' names."""
    with listen("127.0.0.1", 0) as listening:
        url = f"http://127.0.0.1:{listening.getsockname()[1]}"
        variables = dict(engine.variables) | {"API_URL": url} | changes
        settings = load(variables)
        async with AsyncExitStack() as stack:
            with _on_connections_of(engine, settings):
                services = await stack.enter_async_context(process.open_services(settings, variables))
            await stack.enter_async_context(serving(services, listening, settings))
            yield RunningApi(url, engine, services)


@dataclass(frozen=True, slots=True)
class SharedApi:
    """An interface that serves a module's tests one after another: what they wrote is undone after each."""

    running: RunningApi
    cookie: str
    """Of the session that `payer` puts back."""
    _empty: Content
    _signed_in: Content
    _superuser: Superuser

    @asynccontextmanager
    async def lent(self, *, has_payer: bool = False) -> AsyncIterator[RunningApi]:
        """The interface, for one test: with an empty database, or with what `payer` needs.

        Raises PartFailedError if the test left a transaction open or changed the schema: it needs its own interface.
        """
        content = self._signed_in if has_payer else self._empty
        # It is there already where the test before began with it, too: that is seen at once.
        await self._put_back(content)
        yield self.running
        await self._put_back(content)

    @asynccontextmanager
    async def payer(self) -> AsyncIterator[Visitor]:
        """A payer who is signed in already, with a wallet that holds test USDC."""
        async with self.running.visitor() as visitor:
            visitor.cookie = self.cookie
            yield visitor

    async def _put_back(self, content: Content) -> None:
        async def is_back() -> bool:
            return await content.restore(self._superuser)

        # A request may be answered a moment before its transaction has ended.
        await wait_until(is_back, timeout_seconds=PATIENCE_SECONDS, what="database without open transactions")


@asynccontextmanager
async def shared_api_on(engine: Engine, payer: Wallet | None = None, /, **changes: str) -> AsyncIterator[SharedApi]:
    """An interface that several tests can use, on an engine that nothing else uses; `changes` as in `running_api`."""
    async with (
        running_api(engine, **changes) as running,
        await psycopg.AsyncConnection.connect(engine.database.superuser_url, autocommit=True) as superuser,
    ):
        empty = await Content.read(superuser)
        async with running.visitor(payer or first_wallet()) as visitor:
            yield SharedApi(running, visitor.cookie, empty, await Content.read(superuser), superuser)


@asynccontextmanager
async def serving(services: Services, listening: socket, settings: Settings) -> AsyncIterator[None]:
    """A server in this process, as long as the block runs."""
    server = http_server(build_app(services, trusted_proxies=settings.trusted_proxies))
    task = asyncio.create_task(server.serve([listening]))
    await wait_until(lambda: server.started or task.done(), timeout_seconds=PATIENCE_SECONDS, what="API")
    try:
        yield
    finally:
        services.stopping.set()
        server.should_exit = True
        await task


def first_wallet() -> Wallet:
    """A wallet with test USDC."""
    return payer_wallets()[0]
