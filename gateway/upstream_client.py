"""Calls to upstreams: raw bytes, no redirects, no cookies, no proxies of the environment."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from http import HTTPStatus
from io import BytesIO
from typing import Any, Final

import aiohttp
from multidict import CIMultiDictProxy
from yarl import URL

from domain.billing.upstreams import Upstream
from domain.billing.usage import Dialect
from gateway import headers
from gateway.policy import ApiKeys

CONNECT_SECONDS_MAX: Final = 10.0
ONE_PIECE_BYTES_MAX: Final = 1024 * 1024
MODELS_SECONDS_MAX: Final = 5.0

KEEP_ALIVE_SECONDS: Final = 4.0
"""Shorter than any server's in use (uvicorn's is 5): a call on a connection that its server is closing is lost, and
must not be sent twice."""

PATHS: Final[Mapping[Dialect, str]] = {
    Dialect.CHAT: "/chat/completions",
    Dialect.COMPLETIONS: "/completions",
    Dialect.RESPONSES: "/responses",
    Dialect.MESSAGES: "/messages",
    Dialect.EMBEDDINGS: "/embeddings",
    Dialect.IMAGES: "/images/generations",
    Dialect.SPEECH: "/audio/speech",
    Dialect.TRANSCRIPTIONS: "/audio/transcriptions",
}
"""Below an upstream's `base_url`; the gateway's own are below /v1."""


class UpstreamFailed(Exception):
    """An upstream gave no answer; `kind` says why, for metrics and logs."""

    def __init__(self, kind: str) -> None:
        super().__init__(kind)
        self.kind = kind


@dataclass(slots=True)
class Sending:
    """Whether an upstream has got anything of a call."""

    was_sent: bool = False


@dataclass(frozen=True, slots=True)
class UpstreamClient:
    """Sends calls to upstreams with their own keys."""

    session: aiohttp.ClientSession
    api_keys: ApiKeys

    async def send(
        self,
        upstream: Upstream,
        dialect: Dialect,
        body: bytes,
        client_headers: CIMultiDictProxy[str],
        *,
        is_beta: bool,
        sending: Sending,
    ) -> aiohttp.ClientResponse:
        """The answer's head. Raises `UpstreamFailed`."""
        address = f"{upstream.base_url}{PATHS[dialect]}{'?beta=true' if is_beta else ''}"
        try:
            return await self.session.post(
                URL(address, encoded=True),
                # In one piece a long body would hold up the other calls.
                data=body if len(body) <= ONE_PIECE_BYTES_MAX else BytesIO(body),
                headers=headers.for_upstream(client_headers, dialect, upstream, self.api_keys.get(upstream.name)),
                allow_redirects=False,
                trace_request_ctx=sending,
            )
        except (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError) as error:
            raise UpstreamFailed("connect") from error
        except TimeoutError as error:
            raise UpstreamFailed("timeout") from error
        except aiohttp.ClientError as error:
            raise UpstreamFailed("no_answer") from error

    def without_key(self, upstream: Upstream, body: bytes) -> bytes:
        """An error's text without the upstream's key, which some quote."""
        api_key = self.api_keys.get(upstream.name)
        return body.replace(api_key.encode(), b"[key]") if api_key else body

    async def models(self, upstream: Upstream) -> list[str]:
        """The names of the models that an upstream offers. Raises `UpstreamFailed`."""
        api_key = self.api_keys.get(upstream.name)
        sent = {"accept": "application/json", "anthropic-version": headers.ANTHROPIC_VERSION}
        if api_key is not None:
            sent |= {"authorization": f"Bearer {api_key}", "x-api-key": api_key}
        try:
            async with self.session.get(
                f"{upstream.base_url}/models",
                headers=sent,
                allow_redirects=False,
                timeout=aiohttp.ClientTimeout(total=MODELS_SECONDS_MAX),
            ) as response:
                document = await response.json(content_type=None) if response.status == HTTPStatus.OK else None
        except (aiohttp.ClientError, TimeoutError, ValueError) as error:
            raise UpstreamFailed("models") from error
        listed = document.get("data") if isinstance(document, dict) else None
        if not isinstance(listed, list):
            raise UpstreamFailed("models")
        return [model["id"] for model in listed if isinstance(model, dict) and isinstance(model.get("id"), str)]


async def _note_sending(_: aiohttp.ClientSession, context: Any, __: aiohttp.TraceRequestHeadersSentParams) -> None:
    if isinstance(context.trace_request_ctx, Sending):
        context.trace_request_ctx.was_sent = True


@asynccontextmanager
async def upstream_client(api_keys: ApiKeys, *, read_timeout_seconds: float) -> AsyncIterator[UpstreamClient]:
    """A client for the length of the block."""
    trace = aiohttp.TraceConfig()
    trace.on_request_headers_sent.append(_note_sending)
    async with aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=KEEP_ALIVE_SECONDS, ttl_dns_cache=60),
        timeout=aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_SECONDS_MAX, sock_read=read_timeout_seconds),
        cookie_jar=aiohttp.DummyCookieJar(),
        trust_env=False,
        trace_configs=[trace],
        skip_auto_headers=("user-agent", "accept", "accept-encoding"),
    ) as session:
        yield UpstreamClient(session, api_keys)
