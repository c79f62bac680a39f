"""A real browser in front of the real servers: page, API, worker, database, Temporal and chain."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final
from uuid import UUID

import pytest
from playwright.async_api import Browser, expect

from db.accounts import wallets as accounts
from devstack.browser import NO_BROWSER, find_browser
from devstack.chain import LocalChain, payer_wallets
from devstack.processes import wait_until
from domain.identifiers import SYSTEM_TENANT_ACCOUNT_ID
from tests.support.api import RunningApi, running_api
from tests.support.browser import (
    PATIENCE_MS,
    InjectedWallet,
    Visitor,
    running_browser,
    visiting,
)
from tests.support.engine import PATIENCE_SECONDS, Engine, open_engine
from tests.support.postgres import Database
from tests.support.servers import Namespace
from tests.support.sql import query

FOLDER: Final = Path(__file__).parent

expect.set_options(timeout=PATIENCE_MS)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip what needs a browser where there is none; `tests/conftest.py` says so at the end of the run."""
    if find_browser():
        return
    for item in items:
        if item.path.parent == FOLDER and "browser" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.skip(reason=NO_BROWSER))


@pytest.fixture(scope="session")
async def browser() -> AsyncIterator[Browser]:
    """This process's browser; each visitor has their own cookies and storage."""
    async with running_browser() as running:
        yield running


@dataclass(frozen=True)
class Site:
    """The running system, and who visits it."""

    engine: Engine
    browser: Browser
    api: RunningApi
    stack: AsyncExitStack
    visitors: list[Visitor]

    def wallet(self, **options: Any) -> InjectedWallet:
        """A wallet with the first payer's account."""
        return InjectedWallet(self.engine.chain, options.pop("account", payer_wallets()[0]), **options)

    async def visitor(self, *, wallets: Sequence[InjectedWallet] | None = None, **options: Any) -> Visitor:
        """A visitor with these wallets in the browser, or with a usual one; `options` are Playwright's."""
        injected = [self.wallet()] if wallets is None else wallets
        visit = visiting(self.browser, self.api.url, injected, **options)
        visitor = await self.stack.enter_async_context(visit)
        self.visitors.append(visitor)
        return visitor

    async def signed_in(self, **options: Any) -> Visitor:
        """A visitor who has signed in."""
        visitor = await self.visitor(**options)
        await visitor.sign_in()
        return visitor

    async def balance(self, billing_account_id: str = SYSTEM_TENANT_ACCOUNT_ID) -> int:
        """Credits of an account as the database has them."""
        async with self.engine.service.transaction() as connection:
            return (await accounts.balances(connection))[billing_account_id]

    async def own_balance(self) -> int:
        """Credits of the first payer."""
        return await self.balance((await self.engine.payer()).billing_account_id)

    async def attempt_ids(self) -> list[UUID]:
        """Every attempt that there is."""
        rows = query(self.engine.database.service_url, "SELECT id FROM payment_attempts ORDER BY created_at")
        return [row[0] for row in rows]


@asynccontextmanager
async def visited(engine: Engine, browser: Browser, api: RunningApi) -> AsyncIterator[Site]:
    """A running system for the length of a block, in which no page may complain."""
    async with AsyncExitStack() as stack:
        site = Site(engine, browser, api, stack, [])
        yield site
        complaints = [complaint for visitor in site.visitors for complaint in visitor.complaints]
        assert not complaints, complaints


OpenSite = Callable[..., AbstractAsyncContextManager[Site]]


@pytest.fixture
async def open_site(browser: Browser, namespace: Namespace, database: Database, chain: LocalChain) -> OpenSite:
    """Start the system with other settings, by their variables' names."""

    @asynccontextmanager
    async def open_with(**settings: str) -> AsyncIterator[Site]:
        async with (
            open_engine(namespace, database, chain, **settings) as engine,
            engine.worker(),
            running_api(engine) as api,
            visited(engine, browser, api) as site,
        ):
            yield site

            async def balance() -> bool:
                return not await engine.books()

            # The bonus comes in a transaction of its own, a moment after the credit that the page shows.
            await wait_until(balance, timeout_seconds=PATIENCE_SECONDS, what="books that balance")

    return open_with


@pytest.fixture
async def site(open_site: OpenSite) -> AsyncIterator[Site]:
    """The running system with a worker; no page may complain, and the books must balance."""
    async with open_site() as opened:
        yield opened
