"""A gateway of one's own: its database, its upstreams, keys of funded accounts, and what the books say afterwards."""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from decimal import Decimal
from typing import Any, Final
from uuid import uuid4

import aiohttp

from devstack.upstream import Upstream
from devstack.upstream.records import Call
from domain.billing.upstreams import read_upstreams
from gateway.policy import GatewayPolicy, RateLimits
from gateway.process import GatewayOptions, serving
from gateway.sse import SseEvent, SseSplitter
from gateway.state import Gateway
from tests.support.payments import wallet
from tests.support.postgres import Database
from tests.support.spending import add_credits
from tests.support.sql import query, scalar

PATIENCE_SECONDS: Final = 30.0
MODEL: Final = "dev-small"
"""Of the upstream: with the markup 2 credits for a token of input and 8 for one of output."""
CREDITS_PER_CENT: Final = 100_000
UPSTREAM_KEY: Final = "sk-upstream-very-secret"

PRICES: Final = {
    MODEL: {"input_per_million_usd": "0.1", "output_per_million_usd": "0.4", "cached_input_per_million_usd": "0.01"},
    "text-embedding-3-small": {"input_per_million_usd": "0.02", "output_per_million_usd": "0"},
}
"""Those of the upstream (`devstack.upstream.prices`)."""

POLICY: Final = GatewayPolicy(
    markup_factor=Decimal(2),
    grace_credits=5_000_000,
    lease_seconds=60,
    rate_limits=RateLimits(chat=60_000, embeddings=60_000, images=600, audio=600),
    output_tokens_assumed=4096,
    unpriced_hold_credits=5_000_000,
    clamps_output=False,
    read_timeout_seconds=60.0,
    top_up_url="https://pay.example.com/credits",
)


def upstreams_document(
    urls: Mapping[str, str], *, prices: Mapping[str, Any] = PRICES, **changes: Any
) -> dict[str, Any]:
    """UPSTREAMS_FILE as a document: the upstreams by name and address, in this order."""
    given = {"models": ["*"], "api_key_env": "UPSTREAM_KEY"}
    return {
        "upstreams": [{"name": name, "base_url": f"{url}/v1", **given, **changes} for name, url in urls.items()],
        "prices": prices,
    }


@dataclass(frozen=True, slots=True)
class Account:
    """A funded account with a service key."""

    id: str
    key: str
    key_id: str


async def open_account(database: Database, *, cents: int = 100, number: int = 1, **key: Any) -> Account:
    """The account of wallet `number` with credits for so many cents more, and a key of it.

    `key` are columns of `virtual_keys`.
    """
    account_id = scalar(database.service_url, "SELECT billing_account_id FROM provision_wallet(%s)", wallet(number))
    if cents:
        add_credits(database, account_id, cents * CREDITS_PER_CENT)
    return add_key(database, account_id, **key)


def add_key(
    database: Database,
    account_id: str,
    *,
    expires_at: object = None,
    limit_day: int | None = None,
    limit_month: int | None = None,
    models: list[str] | None = None,
    may_attribute: bool = False,
) -> Account:
    """One more key of an account."""
    secret, key_id = f"sk-settle-{uuid4().hex}", str(uuid4())
    digest = hashlib.sha256(secret.encode()).hexdigest()
    [(created,)] = query(
        database.service_url,
        "SELECT create_key(%s, %s, 'test', %s, %s, %s, %s, %s, %s, %s)",
        *(key_id, account_id, digest, secret[-4:], expires_at, limit_day, limit_month, models, may_attribute),
    )
    assert created
    return Account(account_id, secret, key_id)


@dataclass(frozen=True, slots=True)
class Answer:
    """A whole answer."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        """The body as JSON."""
        return json.loads(self.body)

    @property
    def error(self) -> Any:
        """Its error object."""
        return self.json["error"]

    @property
    def events(self) -> list[SseEvent]:
        """The body as a stream's events."""
        splitter = SseSplitter()
        events = splitter.feed(self.body)
        assert splitter.flush() is None
        return events

    @property
    def comment(self) -> dict[str, str]:
        """What the stream's comment says of credits."""
        [line] = [line for line in self.body.decode().splitlines() if line.startswith(": credits ")]
        return dict(word.split("=", 1) for word in line.split()[2:])

    @property
    def request_id(self) -> str:
        """The gateway's id of the request."""
        return self.headers["X-Request-Id"]


def chat(content: str = "Say hello to the world", *, model: str = MODEL, **fields: Any) -> dict[str, Any]:
    """A chat's body."""
    return {"model": model, "messages": [{"role": "user", "content": content}], **fields}


def faulty(text: str = "Say hello", /, *, model: str = MODEL, stream: bool = False, **behaviour: Any) -> dict[str, Any]:
    """A chat whose upstream behaves so."""
    return chat(f"!upstream {json.dumps(behaviour)} {text}", model=model, **({"stream": True} if stream else {}))


@dataclass(frozen=True, slots=True)
class Client:
    """A client of the gateway with a key."""

    session: aiohttp.ClientSession
    url: str
    key: str

    async def post(
        self, body: Any, path: str = "/v1/chat/completions", *, key: str | None = None, **headers: str
    ) -> Answer:
        """The whole answer to a call; `headers` with underscores for hyphens."""
        async with self.open(body, path, key=key, **headers) as response:
            return Answer(response.status, response.headers, await response.read())

    def open(self, body: Any, path: str = "/v1/chat/completions", *, key: str | None = None, **headers: str) -> Any:
        """The answer to a call as it comes."""
        sent = {name.replace("_", "-"): value for name, value in headers.items()}
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        return self.session.post(
            self.url + path, data=data, headers={"Authorization": f"Bearer {key or self.key}", **sent}
        )

    async def get(self, path: str, *, key: str | None = None, **headers: str) -> Answer:
        """What a path answers."""
        sent = {name.replace("_", "-"): value for name, value in headers.items()}
        async with self.session.get(
            self.url + path, headers={"Authorization": f"Bearer {key or self.key}", **sent}
        ) as response:
            return Answer(response.status, response.headers, await response.read())


@dataclass(frozen=True, slots=True)
class Books:
    """What the database has."""

    database: Database

    def balance(self, account_id: str) -> tuple[int, int]:
        """Balance and held credits of an account."""
        [(balance, held)] = query(
            self.database.service_url,
            "SELECT balance_credits, held_credits FROM billing_accounts WHERE id = %s",
            account_id,
        )
        return balance, held

    def holds(self) -> list[tuple[Any, ...]]:
        """State and amount of every hold, in the order in which they were taken."""
        return query(self.database.service_url, "SELECT state, amount_credits FROM credit_holds ORDER BY created_at")

    def states(self) -> list[str]:
        """The state of every hold."""
        return [state for state, _ in self.holds()]

    def receipts(self) -> list[dict[str, Any]]:
        """Every receipt, in the order in which they were written."""
        rows = query(
            self.database.service_url,
            "SELECT row_to_json(r) FROM (SELECT * FROM charge_receipts ORDER BY created_at) r",
        )
        return [json.loads(json.dumps(row)) for (row,) in rows]

    def receipt(self) -> dict[str, Any]:
        """The only one."""
        [receipt] = self.receipts()
        return receipt


@dataclass(frozen=True, slots=True)
class Served:
    """A gateway, its upstreams, a client with a funded key, and the books."""

    gateway: Gateway
    upstreams: Mapping[str, Upstream]
    client: Client
    account: Account
    books: Books

    @property
    def upstream(self) -> Upstream:
        """The first one."""
        return next(iter(self.upstreams.values()))

    def calls(self, name: str | None = None) -> list[Call]:
        """What an upstream has got."""
        upstream = self.upstreams[name] if name else self.upstream
        return list(upstream.records.calls())

    async def is_quiet(self) -> None:
        """No call is open any more, whether or not its client is there."""
        await until(lambda: not self.gateway.tasks and not self.gateway.open_holds)


async def until(holds: Callable[[], Any], *, seconds: float = PATIENCE_SECONDS) -> None:
    """Wait for a condition."""
    async with asyncio.timeout(seconds):
        while not holds():
            await asyncio.sleep(0.01)


@asynccontextmanager
async def served(
    database: Database,
    *,
    names: tuple[str, ...] = ("first",),
    drains: bool = False,
    cents: int = 100,
    account: Account | None = None,
    upstreams: Mapping[str, Any] | None = None,
    app_url: str | None = None,
    connections_max: int = 2000,
    prices: Mapping[str, Any] = PRICES,
    **policy: Any,
) -> AsyncIterator[Served]:
    """A gateway before upstreams of these names; `policy` are changes of the policy, `upstreams` of their entries."""
    async with AsyncExitStack() as stack:
        running = {name: Upstream(drains=drains) for name in names}
        urls = {name: await stack.enter_async_context(upstream.serve()) for name, upstream in running.items()}
        given = {"on_client_abort": "drains" if drains else "stops", **(upstreams or {})}
        document = upstreams_document(urls, prices=prices, **given)
        account = account or await open_account(database, cents=cents)
        options = GatewayOptions(
            database_url=app_url or database.app_url,
            host="127.0.0.1",
            port=0,
            connections_max=connections_max,
            policy=replace(POLICY, **policy),
            upstreams=read_upstreams(document, where="the test"),
            api_keys=dict.fromkeys(names, UPSTREAM_KEY),
        )
        gateway, url = await stack.enter_async_context(serving(options))
        session = await stack.enter_async_context(aiohttp.ClientSession(auto_decompress=False))
        yield Served(gateway, running, Client(session, url, account.key), account, Books(database))
