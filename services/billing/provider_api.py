"""Asking providers, with the upstreams' own keys, for what they have on record."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any, Final

import aiohttp

from domain.billing import exact_json
from domain.billing.call_records import read_call_record
from domain.billing.upstreams import Upstream, UsageLookup
from domain.billing.usage import ImplausibleUsage, Usage
from domain.errors import ProviderUnavailable

ANSWER_SECONDS_MAX: Final = 15.0
ANSWER_BYTES_MAX: Final = 32 * 1024 * 1024
"""A proxy's log of one day, a row for each call."""

_TIMEOUT: Final = aiohttp.ClientTimeout(total=ANSWER_SECONDS_MAX)

_RECORDS: Final[Mapping[UsageLookup, tuple[str, str]]] = {
    UsageLookup.OPENROUTER: ("generation", "id"),
    UsageLookup.LITELLM: ("spend/logs", "request_id"),
}
"""Path below the upstream's address, and the parameter that takes the call's id."""


@dataclass(frozen=True, slots=True)
class Providers:
    """The upstreams of `UPSTREAMS_FILE`, and their keys by upstream's name."""

    upstreams: tuple[Upstream, ...] = ()
    api_keys: Mapping[str, str] = field(default_factory=dict, repr=False)
    admin_keys: Mapping[str, str] = field(default_factory=dict, repr=False)
    """For reports of costs."""

    def find(self, name: str) -> Upstream | None:
        """The upstream of that name; None where the file has none by now."""
        return next((upstream for upstream in self.upstreams if upstream.name == name), None)

    def keeps_records(self, name: str) -> bool:
        """Whether that upstream can be asked what a call used."""
        upstream = self.find(name)
        return upstream is not None and upstream.usage_lookup in _RECORDS

    async def look_up(self, name: str, upstream_id: str) -> Usage | ImplausibleUsage | None:
        """The provider's record of one call; None where it has none, for now. Raises `ProviderUnavailable`."""
        upstream = self.find(name)
        if upstream is None or upstream.usage_lookup not in _RECORDS:
            return None
        path, parameter = _RECORDS[upstream.usage_lookup]
        answer = await get_json(
            f"{upstream.base_url}/{path}",
            {parameter: upstream_id},
            headers=bearer(self.api_keys.get(name)),
            who=f"upstream {name}",
        )
        return read_call_record(upstream.usage_lookup, answer)


def bearer(key: str | None) -> dict[str, str]:
    """The header that carries a key."""
    return {} if key is None else {"Authorization": f"Bearer {key}"}


async def get_json(url: str, parameters: Mapping[str, str], *, headers: Mapping[str, str], who: str) -> Any:
    """The JSON of an answer, numbers as exact decimals; None where the provider answers 404.

    Raises `ProviderUnavailable`, which names `who` and no address: one may hold a secret.
    """
    try:
        async with (
            aiohttp.ClientSession(timeout=_TIMEOUT, cookie_jar=aiohttp.DummyCookieJar()) as session,
            session.get(url, params=parameters, headers=headers, allow_redirects=False) as response,
        ):
            if response.status == HTTPStatus.NOT_FOUND:
                return None
            if response.status != HTTPStatus.OK:
                raise ProviderUnavailable(f"{who} answers {response.status}")
            return exact_json.loads(await _read(response, who))
    except (aiohttp.ClientError, TimeoutError) as error:
        raise ProviderUnavailable(f"{who} cannot be reached: {type(error).__name__}") from error
    except exact_json.NotJson as error:
        raise ProviderUnavailable(f"{who} answers no JSON: {error}") from error


async def _read(response: aiohttp.ClientResponse, who: str) -> bytes:
    body = bytearray()
    async for chunk in response.content.iter_any():
        body += chunk
        if len(body) > ANSWER_BYTES_MAX:
            raise ProviderUnavailable(f"{who} answers more than {ANSWER_BYTES_MAX} bytes")
    return bytes(body)
