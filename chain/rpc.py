"""JSON-RPC client of one endpoint over HTTP: sends a batch, checks the envelope, classifies failures.

Nothing is retried here: the reader decides which endpoint is asked next. Nothing that a node sends can raise anything
but `EndpointFailure`, and no message shows more of an endpoint's URL than its host, because providers put API keys into
userinfo, path and query.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from functools import partial
from typing import Final, Protocol
from urllib.parse import SplitResult, parse_qsl, unquote, urlsplit

import aiohttp
from pydantic_core import from_json

from domain.errors import ChainUnavailable, InvalidInput
from domain.retry_after import parse_retry_after

RESPONSE_BYTES_MAX: Final = 32 * 2**20
"""Larger answers are refused. A transaction is limited to 2^24 gas (EIP-7825), which buys about 11,000 logs of an
address and three topics: some 10 MB of JSON."""

OFFLOAD_BYTES_MIN: Final = 256 * 2**10
"""Larger answers are decoded in a thread, so that one large receipt does not delay every other payment."""

RETRY_AFTER_SECONDS_MAX: Final = 300.0
"""A `Retry-After` beyond this is cut: no answer of a node may exclude it for hours."""

CONNECTION_KEEP_ALIVE_SECONDS: Final = 4.0
"""Below the shortest idle time-out in wide use (5 s), so that a request rarely meets a connection that is being
closed.
"""

MESSAGE_CHARS_MAX: Final = 160

RATE_LIMIT_CODES: Final = frozenset({429, -32005})
"""JSON-RPC error codes that mean "too many requests": -32005 is EIP-1474's "limit exceeded"."""


class Failure(StrEnum):
    """Why an endpoint's answer cannot be used; also the `outcome` that metrics count, besides "ok"."""

    UNREACHABLE = "unreachable"
    TIMEOUT = "timeout"
    RATE_LIMITED = "rate_limited"
    HTTP_STATUS = "http_status"
    TOO_LARGE = "too_large"
    MALFORMED = "malformed"
    RPC_ERROR = "rpc_error"
    WRONG_CHAIN = "wrong_chain"
    BEHIND = "behind"
    CONTRADICTION = "contradiction"


OUTCOME_OK: Final = "ok"

STATUSES_THAT_MAY_REFUSE_BATCHES: Final = frozenset({400, 404, 405, 413, 415, 422, 500, 501})
"""HTTP statuses with which nodes and gateways without batch support answer a batch."""

ONE_BY_ONE_SECONDS: Final = 600.0
"""How long a node that refused a batch is asked one call at a time. The refusal may be temporary."""


class EndpointFailure(ChainUnavailable):
    """One endpoint gave no usable answer. `message` is one line without the endpoint's name or secrets.

    `may_refuse_batches` is set where a node without batch support would have answered the same. `rpc_code` is that of a
    JSON-RPC error.
    """

    def __init__(
        self,
        failure: Failure,
        message: str,
        *,
        retry_after_seconds: float | None = None,
        may_refuse_batches: bool = False,
        rpc_code: int | None = None,
    ) -> None:
        super().__init__(message)
        self.failure = failure
        self.rpc_code = rpc_code
        self.retry_after_seconds = retry_after_seconds
        self.may_refuse_batches = may_refuse_batches


class RequestObserver(Protocol):
    """Called for every HTTP request with the endpoint's label, "ok", a `Failure` or "cancelled", and the duration."""

    def __call__(self, endpoint: str, outcome: str, seconds: float, /) -> None: ...


@dataclass(frozen=True, slots=True)
class Call:
    """One JSON-RPC call of a batch."""

    method: str
    params: tuple[object, ...] = ()


@dataclass(frozen=True, slots=True)
class Reply:
    """The answer to one call: its `result`, unless `error` says that the node refused it."""

    method: str
    result: object = None
    error: EndpointFailure | None = None

    def value(self) -> object:
        """The result; raises the node's refusal as `EndpointFailure`."""
        if self.error is not None:
            raise self.error
        return self.result


class Endpoint:
    """One node, or one provider's pool of nodes, behind one URL."""

    def __init__(
        self,
        url: str,
        *,
        label: str,
        session: aiohttp.ClientSession,
        timeout_seconds: float,
        response_bytes_max: int = RESPONSE_BYTES_MAX,
        on_request: RequestObserver | None = None,
    ) -> None:
        self.label = label
        self.request_count = 0
        self._url = url
        self._redact = _redactor(url)
        self._session = session
        self._timeout_seconds = timeout_seconds
        self._response_bytes_max = response_bytes_max
        self._on_request = on_request
        self._ids = itertools.count(1)
        self._one_by_one_until = 0.0

    def __repr__(self) -> str:
        return f"Endpoint({self.label})"

    async def batch(
        self, calls: Sequence[Call], *, deadline: float | None = None, tries_one_by_one: bool = True
    ) -> list[Reply]:
        """The replies to `calls`, in their order, from one HTTP request.

        Where the node refuses batches but answers a single call, the calls are sent one by one, and batches are not
        tried again for `ONE_BY_ONE_SECONDS`: some providers do not offer batches on every plan. Without
        `tries_one_by_one` a refusal is raised: of a large batch it may be the size that is refused.

        A refusal of a single call is in its `Reply`; a failure of the batch as a whole is raised as `EndpointFailure`,
        after `timeout_seconds` at the latest, or at `deadline` (the event loop's time) where a question of several
        batches has one.
        """
        loop = asyncio.get_running_loop()
        if deadline is None:
            deadline = loop.time() + self._timeout_seconds
        if not self.asks_one_by_one:
            try:
                return await self._request(calls, deadline, as_array=True)
            except EndpointFailure as refusal:
                if not refusal.may_refuse_batches or not tries_one_by_one:
                    raise
                try:
                    first = await self._request(calls[:1], deadline, as_array=False)
                except EndpointFailure:
                    raise refusal from None
                self._one_by_one_until = loop.time() + ONE_BY_ONE_SECONDS
                calls = calls[1:]
        else:
            first = []
        rest = await asyncio.gather(*(self._request([call], deadline, as_array=False) for call in calls))
        return [*first, *(reply for replies in rest for reply in replies)]

    @property
    def asks_one_by_one(self) -> bool:
        """Whether batches are not tried now, because the node has refused one."""
        return asyncio.get_running_loop().time() < self._one_by_one_until

    def timed_out(self) -> EndpointFailure:
        """The failure of an endpoint that has not answered in time."""
        return EndpointFailure(Failure.TIMEOUT, f"no answer within {self._timeout_seconds:g} s")

    async def _request(self, calls: Sequence[Call], deadline: float, *, as_array: bool) -> list[Reply]:
        """One HTTP request: the calls as a batch, or a single call as an object."""
        ids = {next(self._ids): call for call in calls}
        request = [
            {"jsonrpc": "2.0", "id": call_id, "method": call.method, "params": call.params}
            for call_id, call in ids.items()
        ]
        started = time.perf_counter()
        outcome: str = "cancelled"
        self.request_count += 1
        try:
            try:
                async with asyncio.timeout_at(deadline):
                    body = json.dumps(request if as_array else request[0]).encode()
                    document = await _decode(await self._post(body))
            except TimeoutError:
                raise self.timed_out() from None
            replies = self._match(ids, document if as_array else [document])
            outcome = OUTCOME_OK
        except EndpointFailure as failure:
            outcome = failure.failure
            raise
        finally:
            if self._on_request is not None:
                self._on_request(self.label, outcome, time.perf_counter() - started)
        return replies

    async def _post(self, body: bytes) -> bytes:
        """The body of a successful HTTP answer."""
        try:
            async with self._session.post(
                self._url,
                data=body,
                headers={"Content-Type": "application/json"},
                timeout=aiohttp.ClientTimeout(total=None),  # the caller's deadline bounds all of it
                # A redirect would carry the request, and perhaps the key, to a host that was not configured.
                allow_redirects=False,
            ) as response:
                if response.status != 200:
                    raise _status_failure(response.status, response.headers.get("Retry-After"))
                return await self._read_bounded(response)
        # Causes are cut off ("from None"): the text of several aiohttp errors is the whole URL.
        # ValueError: a host name that cannot be encoded shows only when it is resolved.
        except (aiohttp.ClientError, OSError, ValueError) as error:
            raise EndpointFailure(
                Failure.UNREACHABLE,
                _reason(error),
                may_refuse_batches=isinstance(error, aiohttp.ServerDisconnectedError),
            ) from None

    async def _read_bounded(self, response: aiohttp.ClientResponse) -> bytes:
        body = bytearray()
        async for chunk in response.content.iter_chunked(2**16):
            body += chunk
            if len(body) > self._response_bytes_max:
                raise EndpointFailure(Failure.TOO_LARGE, f"the answer is larger than {self._response_bytes_max} bytes")
        return bytes(body)

    def _match(self, ids: Mapping[int, Call], document: object) -> list[Reply]:
        """The replies by their ids: a node may answer a batch in any order (JSON-RPC 2.0, section 6)."""
        if isinstance(document, dict):
            # Not an array: the node refuses the batch as a whole (too large, not supported, over a limit).
            if "error" in document:
                refusal = self._refusal("batch", document["error"])
                refusal.may_refuse_batches = refusal.failure is Failure.RPC_ERROR
                raise refusal
            raise EndpointFailure(Failure.MALFORMED, "one object in answer to a batch")
        if not isinstance(document, list):
            raise EndpointFailure(Failure.MALFORMED, "the answer to a batch is not an array")
        by_id: dict[int, Reply] = {}
        for item in document:
            if not isinstance(item, dict):
                raise EndpointFailure(Failure.MALFORMED, "an item of the batch's answer is not an object")
            call_id = item.get("id")
            if type(call_id) is not int or call_id not in ids:
                # An error without an id is about the whole batch; any other item without one answers no call of ours.
                if call_id is None and item.get("error") is not None:
                    raise self._refusal("batch", item["error"])
                raise EndpointFailure(Failure.MALFORMED, "an item of the batch's answer has an id that was not sent")
            if call_id in by_id:
                raise EndpointFailure(Failure.MALFORMED, "two items of the batch's answer have the same id")
            method = ids[call_id].method
            if item.get("error") is not None:
                by_id[call_id] = Reply(method, error=self._refusal(method, item["error"]))
            elif "result" in item:
                by_id[call_id] = Reply(method, result=item["result"])
            else:
                raise EndpointFailure(Failure.MALFORMED, f"{method}: neither result nor error")
        missing = [call.method for call_id, call in ids.items() if call_id not in by_id]
        if missing:
            raise EndpointFailure(Failure.MALFORMED, f"no answer to {', '.join(missing)} in the batch")
        return [by_id[call_id] for call_id in ids]

    def _refusal(self, what: str, error: object) -> EndpointFailure:
        """A JSON-RPC error object as one safe line: nodes quote keys and addresses in messages."""
        code, message = (error.get("code"), error.get("message")) if isinstance(error, dict) else (None, error)
        text = self._redact(_one_line(str(message)))
        if type(code) is not int:
            return EndpointFailure(Failure.RPC_ERROR, f"{what}: {text}")
        failure = Failure.RATE_LIMITED if code in RATE_LIMIT_CODES else Failure.RPC_ERROR
        return EndpointFailure(failure, f"{what}: {text} (code {code})", rpc_code=code)


def labels(urls: Sequence[str]) -> list[str]:
    """A distinct printable name for each URL: its host, its port where one is written, a number where these repeat.

    Raises `InvalidInput` for a URL that is not http(s) with a host; the message does not quote the URL.
    """
    names = [_host(url, position) for position, url in enumerate(urls, start=1)]
    return [
        f"{name}#{names[:index].count(name) + 1}" if names.count(name) > 1 else name for index, name in enumerate(names)
    ]


def open_session(*, connections_max: int) -> aiohttp.ClientSession:
    """A session for all endpoints: at most `connections_max` connections to each, kept alive, no cookies."""
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(
            limit=0, limit_per_host=connections_max, keepalive_timeout=CONNECTION_KEEP_ALIVE_SECONDS
        ),
        cookie_jar=aiohttp.DummyCookieJar(),
    )


async def _decode(body: bytes) -> object:
    # Not `json.loads`: its depth is bounded by the interpreter's recursion limit alone, which libraries raise
    # (py_ecc, under eth-account, to 100,000), and then a node's "[[[[..." overflows the stack and kills the process.
    # pydantic's parser has a limit of its own.
    decode = partial(from_json, allow_inf_nan=False)
    try:
        return await asyncio.to_thread(decode, body) if len(body) >= OFFLOAD_BYTES_MIN else decode(body)
    except ValueError:
        raise EndpointFailure(Failure.MALFORMED, f"{len(body)} bytes that are not JSON") from None


def _split(url: str, position: int) -> SplitResult:
    try:
        parts = urlsplit(url.strip())
        valid = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        valid = False
    if not valid:
        raise InvalidInput("CHAIN_RPC_URLS", f"address {position}: expected http:// or https:// and a host")
    return parts


def _host(url: str, position: int) -> str:
    parts = _split(url, position)
    host = f"[{parts.hostname}]" if ":" in str(parts.hostname) else str(parts.hostname)
    return f"{host}:{parts.port}" if parts.port is not None else host


class _Redact(Protocol):
    def __call__(self, text: str, /) -> str: ...


def _redactor(url: str) -> _Redact:
    """Replace every part of the URL that may be a key: userinfo, path segments, query."""
    parts = urlsplit(url)
    candidates = {parts.username, parts.password, parts.query, parts.path.strip("/"), *parts.path.split("/")}
    candidates |= {value for _, value in parse_qsl(parts.query)}
    candidates |= {unquote(part) for part in candidates if part}
    # Short parts ("v3", "rpc") are no secrets, and replacing them would mangle ordinary words.
    secrets = sorted((part for part in candidates if part and len(part) >= 6), key=len, reverse=True)

    def redact(text: str, /) -> str:
        for secret in secrets:
            text = text.replace(secret, "***")
        return text

    return redact


def _one_line(text: str) -> str:
    text = re.sub(r"\s+", " ", "".join(char if char.isprintable() else " " for char in text[:2000])).strip()
    return text if len(text) <= MESSAGE_CHARS_MAX else text[: MESSAGE_CHARS_MAX - 1] + "…"


def _reason(error: Exception) -> str:
    """The failure on the wire, without the text of the error (which may quote the URL)."""
    if isinstance(error, aiohttp.ClientConnectorDNSError):
        return "the host's name cannot be resolved"
    if isinstance(error, aiohttp.ClientConnectorError):
        number = error.os_error.errno  # the error's own text is asyncio's, with the address in it
        return f"cannot connect ({os.strerror(number) if number else type(error.os_error).__name__})"
    if isinstance(error, aiohttp.ServerDisconnectedError):
        return "the connection was closed without an answer"
    if isinstance(error, aiohttp.ClientPayloadError):
        return "the answer broke off"
    return f"the request failed ({type(error).__name__})"


def _status_failure(status: int, retry_after: str | None) -> EndpointFailure:
    if status == 429:
        return EndpointFailure(
            Failure.RATE_LIMITED, "HTTP 429 (too many requests)", retry_after_seconds=_retry_after(retry_after)
        )
    # A 503 may carry Retry-After as well (RFC 9110, section 10.2.3).
    return EndpointFailure(
        Failure.HTTP_STATUS,
        f"HTTP {status}",
        retry_after_seconds=_retry_after(retry_after),
        may_refuse_batches=status in STATUSES_THAT_MAY_REFUSE_BATCHES,
    )


def _retry_after(text: str | None) -> float | None:
    """Seconds of a `Retry-After` header, up to the maximum; None when unusable."""
    seconds = parse_retry_after(text, datetime.now(UTC))
    return None if seconds is None else min(seconds, RETRY_AFTER_SECONDS_MAX)
