"""A fresh upstream for each test, in this process; synchronous clients run in a thread beside it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import aiohttp
import pytest

from devstack.upstream import Upstream
from devstack.upstream.records import Call

# Each costs a second or two to import, which every process of a parallel run would pay when it collects the tests.
if TYPE_CHECKING:
    import anthropic
    import openai

T = TypeVar("T")
KEY = "sk-test"


@dataclass(frozen=True, slots=True)
class Running:
    """An upstream, its address, and a session without any behaviour of its own."""

    upstream: Upstream
    url: str
    session: aiohttp.ClientSession

    async def json(self, path: str, **query: Any) -> Any:
        """GET a JSON document, whatever its status."""
        async with self.session.get(self.url + path, params=query) as response:
            return await response.json()

    async def post(self, path: str, body: Any) -> tuple[int, bytes]:
        """POST JSON; status and body."""
        async with self.session.post(self.url + path, json=body) as response:
            return response.status, await response.read()

    async def last_call(self) -> Call:
        """The last call, when it is over."""
        call = list(self.upstream.records.calls())[-1]
        async with asyncio.timeout(10):
            while not call.has_ended:
                await asyncio.sleep(0.005)
        return call


async def in_thread(work: Callable[[], T]) -> T:
    """Run what blocks."""
    return await asyncio.to_thread(work)


@pytest.fixture
async def running() -> AsyncIterator[Running]:
    """An upstream that behaves."""
    upstream = Upstream()
    async with upstream.serve() as url, aiohttp.ClientSession() as session:
        yield Running(upstream, url, session)


@pytest.fixture
async def openai_client(running: Running) -> AsyncIterator[openai.AsyncOpenAI]:
    """The package's own client, without retries."""
    import openai

    async with openai.AsyncOpenAI(api_key=KEY, base_url=f"{running.url}/v1", max_retries=0) as client:
        yield client


@pytest.fixture
async def anthropic_client(running: Running) -> AsyncIterator[anthropic.AsyncAnthropic]:
    """The package's own client, without retries."""
    import anthropic

    async with anthropic.AsyncAnthropic(api_key=KEY, base_url=running.url, max_retries=0) as client:
        yield client
