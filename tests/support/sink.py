"""A receiver of events that behaves as a test sets it, on a port of its own."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web

TOKEN = "s3cret-token"

ResponseModel = Callable[[web.Request], Awaitable[web.Response]]


async def accept(_: web.Request) -> web.Response:
    """What a receiver says that took the event."""
    return web.Response(status=204)


@dataclass
class Sink:
    """An HTTP receiver of events."""

    answer: ResponseModel = accept
    documents: list[dict[str, Any]] = field(default_factory=list)
    content_types: list[str] = field(default_factory=list)
    url: str = ""

    async def receive(self, request: web.Request) -> web.Response:
        """Keep what was posted, and answer."""
        self.documents.append(json.loads(await request.text()))
        self.content_types.append(request.headers["Content-Type"])
        return await self.answer(request)

    def of_type(self, type_: str) -> list[dict[str, Any]]:
        """What was posted of one type."""
        return [document for document in self.documents if document["type"] == type_]


@asynccontextmanager
async def running_sink() -> AsyncIterator[Sink]:
    """A receiver for the length of a block, with a secret in its address."""
    receiver = Sink()
    app = web.Application()
    app.add_routes([web.post("/hook", receiver.receive)])
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    receiver.url = f"http://127.0.0.1:{runner.addresses[0][1]}/hook?key={TOKEN}"
    try:
        yield receiver
    finally:
        await runner.cleanup()
