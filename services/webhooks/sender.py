"""Sends one webhook once. What it connects to is decided here, by address, at the moment of connecting.

The name is resolved once, every address of the answer is checked, and the connection is made to one of these: the
check is repeated on the very address that the socket is opened for, so that a name that is resolved to another address
later, or an address that is written as a literal, passes no other way. TLS is for the name. Redirects are not followed,
no proxy of the environment is used, no cookie is kept, and a connection serves one webhook.
"""

from __future__ import annotations

import asyncio
import functools
import socket
import ssl
import time
from collections.abc import Awaitable, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from http import HTTPStatus
from ipaddress import ip_address
from typing import Any, Final
from urllib.parse import urlsplit

import aiohttp
from aiohttp.abc import AbstractResolver, ResolveResult
from aiohttp.hdrs import RETRY_AFTER

from domain.errors import InvalidInput
from domain.retry_after import parse_retry_after
from domain.webhooks.addresses import is_loopback, is_port_allowed, parse_url, refusal_of

CONNECT_SECONDS_MAX: Final = 5.0
SEND_SECONDS_MAX: Final = 10.0
"""From the resolution of the name to the end of the answer's head. A receiver works after it has answered."""

HEAD_SECONDS_MAX: Final = 1.0
HEAD_BYTES_MAX: Final = 512
"""All that is read of an answer's body: enough for a message, and no store for what a receiver chooses to send."""

USER_AGENT: Final = "settle-webhooks"

Resolve = Callable[[str, int], Awaitable[list[str]]]
"""The addresses of a name, as text. Raises `OSError`."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What came of sending. Without a status there was no answer, and `error` says why."""

    duration_ms: int
    status_code: int | None = None
    response_head: str | None = None
    error: str | None = None
    retry_after: timedelta = timedelta(0)
    """What a receiver that is busy asks to wait."""

    @property
    def is_accepted(self) -> bool:
        """Only 2xx is: a redirect is no acknowledgement."""
        return self.status_code is not None and 200 <= self.status_code < 300


class WebhookSender:
    """Sends webhooks. `allow_private` is for a developer's machine: private addresses, and http on loopback."""

    def __init__(
        self,
        *,
        allow_private: bool = False,
        resolve: Resolve | None = None,
        tls: ssl.SSLContext | None = None,
        seconds_max: float = SEND_SECONDS_MAX,
    ) -> None:
        self._allow_private = allow_private
        self._resolve = resolve or resolve_by_system
        self._tls = tls
        self._timeout = aiohttp.ClientTimeout(total=seconds_max, sock_connect=CONNECT_SECONDS_MAX)

    async def send(self, url: str, body: bytes, headers: Mapping[str, str]) -> Answer:
        """Post `body` once; never raises for what the receiver or the network does."""
        started = time.monotonic()

        def answer(**values: Any) -> Answer:
            return Answer(duration_ms=int((time.monotonic() - started) * 1000), **values)

        try:
            # What was allowed when it was written may not be now.
            parse_url(url, allow_private=self._allow_private)
        except InvalidInput as error:
            return answer(error=f"not sent: {error.message}")
        checked = _CheckedAddresses(
            self._resolve, allow_private=self._allow_private, is_plain=urlsplit(url).scheme == "http"
        )
        try:
            async with self._session(checked) as session, self._post(session, url, body, headers) as response:
                return answer(
                    status_code=response.status,
                    retry_after=_retry_after(response),
                    response_head=await _head_of(response),
                )
        except (aiohttp.ClientError, TimeoutError, OSError, ValueError) as error:
            return answer(error=checked.refused or _reason(error, self._timeout.total))

    def _session(self, checked: _CheckedAddresses) -> aiohttp.ClientSession:
        connector = aiohttp.TCPConnector(
            resolver=checked,
            socket_factory=checked.open_socket,
            ssl=self._tls or _system_tls(),
            force_close=True,
            use_dns_cache=False,
        )
        return aiohttp.ClientSession(
            connector=connector,
            cookie_jar=aiohttp.DummyCookieJar(),
            timeout=self._timeout,
            auto_decompress=False,
            trust_env=False,
        )

    def _post(
        self, session: aiohttp.ClientSession, url: str, body: bytes, headers: Mapping[str, str]
    ) -> aiohttp.client._RequestContextManager:
        sent = {"Content-Type": "application/json", "User-Agent": USER_AGENT, **headers}
        return session.post(url, data=body, headers=sent, allow_redirects=False)


@functools.cache
def _system_tls() -> ssl.SSLContext:
    """Reading the system's certificates takes 30 ms: once in a process, when the first webhook is sent."""
    return ssl.create_default_context()


class _CheckedAddresses(AbstractResolver):
    """Resolves and connects to no address that is refused; `refused` says what it would not do."""

    def __init__(self, resolve: Resolve, *, allow_private: bool, is_plain: bool) -> None:
        self._resolve_name = resolve
        self._allow_private = allow_private
        self._is_plain = is_plain
        self.refused: str | None = None

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        """The addresses of a name, if all of them are allowed: one that is not is no mistake of the others' owner."""
        addresses = await self._resolve_name(host, port)
        for address in addresses:
            self._check(address, port, host)
        return [
            ResolveResult(
                hostname=host,
                host=address,
                port=port,
                family=socket.AF_INET6 if ":" in address else socket.AF_INET,
                proto=socket.IPPROTO_TCP,
                flags=socket.AI_NUMERICHOST,
            )
            for address in addresses
        ]

    def open_socket(self, address_info: tuple[Any, ...]) -> socket.socket:
        """The socket for an address, which is checked: nothing is connected to that has not come through here."""
        family, kind, protocol, _, address = address_info
        self._check(str(address[0]), int(address[1]), str(address[0]))
        return socket.socket(family=family, type=kind, proto=protocol)

    async def close(self) -> None:
        """Nothing is open."""

    def _check(self, text: str, port: int, name: str) -> None:
        address = ip_address(text)
        why = refusal_of(address, allow_private=self._allow_private)
        if why is None and self._is_plain and not is_loopback(address):
            why = "not loopback, and http is sent in the clear"
        if why is None and not self._allow_private and not is_port_allowed(port):
            why = f"port {port}, which belongs to another service"
        if why is not None:
            self.refused = f"not sent: {name} is {text}, which is {why}"[:300]
            raise OSError(self.refused)


_RESOLVING: Final = ThreadPoolExecutor(max_workers=64, thread_name_prefix="webhook-names")
"""Threads of their own: a name whose servers do not answer holds one for half a minute, whatever is given up before. In
the event loop's few, tenants' names would delay those of chain nodes."""


async def resolve_by_system(host: str, port: int) -> list[str]:
    """The addresses of a name, of both families, as the system resolves it. Raises `OSError`."""
    ask = partial(socket.getaddrinfo, host, port, type=socket.SOCK_STREAM)
    found = await asyncio.get_running_loop().run_in_executor(_RESOLVING, ask)
    return list(dict.fromkeys(str(address[0]) for *_, address in found))


def _retry_after(response: aiohttp.ClientResponse) -> timedelta:
    """What 429 and 503 ask to wait; of any other status the header means something else."""
    if response.status not in {HTTPStatus.TOO_MANY_REQUESTS, HTTPStatus.SERVICE_UNAVAILABLE}:
        return timedelta(0)
    seconds = parse_retry_after(response.headers.get(RETRY_AFTER), datetime.now(UTC))
    return timedelta(seconds=seconds or 0)


async def _head_of(response: aiohttp.ClientResponse) -> str:
    """The beginning of the body as printable text; whatever is there in time. The status has been received already."""
    head = bytearray()
    try:
        async with asyncio.timeout(HEAD_SECONDS_MAX):
            while len(head) < HEAD_BYTES_MAX:
                chunk = await response.content.read(HEAD_BYTES_MAX - len(head))
                if not chunk:
                    break
                head += chunk
    except (aiohttp.ClientError, TimeoutError, OSError):
        pass  # a body that does not come, or breaks off, is no part of the answer
    # What is left of it is not read: the connection is not used again.
    response.close()
    return "".join(char if char.isprintable() else " " for char in head.decode("utf-8", "replace"))


def _reason(error: BaseException, seconds_max: float | None) -> str:
    """Why there was no answer, without the address, which may hold a secret."""
    match error:
        case aiohttp.ClientConnectorCertificateError():
            return f"the receiver's certificate is not valid: {error.certificate_error}"[:300]
        case aiohttp.ClientSSLError():
            return "TLS with the receiver failed"
        case aiohttp.ClientConnectorDNSError():
            return "the receiver's name cannot be resolved"
        case TimeoutError():
            return f"no answer within {seconds_max:g} seconds"
        case aiohttp.ClientConnectorError():
            return f"cannot connect: {error.os_error.strerror or type(error.os_error).__name__}"[:300]
        case _:
            return f"the connection broke off: {type(error).__name__}"
