"""The check of `settle doctor` on `SMART_WALLET_FACTORIES`: they are contracts, and the relay has the same ones."""

from __future__ import annotations

import asyncio
from typing import Final

import aiohttp
from prometheus_client.parser import text_string_to_metric_families

from composition import chain_reader
from domain.errors import ChainUnavailable, ConfigurationError
from settings import Settings
from telemetry.health import CHECK_TIMEOUT_SECONDS
from telemetry.metrics.topups import NO_FACTORIES, WALLET_FACTORIES

SETTING: Final = "SMART_WALLET_FACTORIES"
PORT_SETTING: Final = "RELAY_HEALTH_PORT"

NO_CODE: Final = "has no code"
UNKNOWN: Final = "it is not known whether"
RELAY_LACKS: Final = "the relay does not have"
RELAY_ALONE: Final = "only the relay has"
NONE_LISTED: Final = "none listed"
THE_SAME: Final = "the relay has the same"
NOT_COMPARED: Final = "not compared with the relay's"
NO_ANSWER: Final = "nothing answers at"
NO_RELAY: Final = "is of no relay of chain"

LISTENS_ON_ALL: Final = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}  # noqa: S104  # asked, not listened on


async def check_factories(settings: Settings) -> str:
    """Whether every listed factory has code on the chain, and whether the relay runs with the same list.

    The relay's list is in its metrics, at `RELAY_HEALTH_HOST` and `RELAY_HEALTH_PORT`; where they cannot be read, it is
    said that nothing was compared. Raises `ConfigurationError` with all that is wrong.
    """
    listed = settings.smart_wallet_factories
    troubles = [trouble for trouble in await _without_code(settings) if trouble is not None]
    theirs = await _read_of_relay(settings)
    if isinstance(theirs, str):
        compared = f"{NOT_COMPARED}: {theirs}"
    else:
        compared = THE_SAME
        troubles += [f"{RELAY_LACKS} {one}: its wallets' payments wait" for one in _missing(listed, theirs)]
        troubles += [f"{RELAY_ALONE} {one}: its wallets are refused" for one in _missing(theirs, listed)]
    if troubles:
        raise ConfigurationError(f"{SETTING}: {'; '.join(troubles)}")
    words = f"{len(listed)} with code on every node that answers" if listed else NONE_LISTED
    return f"{words}; {compared}"


def _missing(listed: tuple[str, ...], other: tuple[str, ...]) -> list[str]:
    return [one for one in listed if one not in other]


async def _without_code(settings: Settings) -> list[str | None]:
    """Of each listed factory what is wrong with it, or None."""
    listed = settings.smart_wallet_factories
    if not listed:
        return []
    async with chain_reader(settings) as chain:

        async def trouble(factory: str) -> str | None:
            try:
                has_code = await chain.contracts.has_code(factory)
            except ChainUnavailable as error:
                return f"{UNKNOWN} {factory} is a contract: {error.message}"
            return None if has_code else f"{factory} {NO_CODE} on chain {settings.chain_id}: it deploys nothing"

        return list(await asyncio.gather(*(trouble(factory) for factory in listed)))


async def _read_of_relay(settings: Settings) -> tuple[str, ...] | str:
    """The relay's list, or the reason why it is not known."""
    host, port = settings.relay_health_host, settings.relay_health_port
    if not port:
        return f"{PORT_SETTING} is not set here"
    host = LISTENS_ON_ALL.get(host, f"[{host}]" if ":" in host else host)
    url = f"http://{host}:{port}/metrics"
    try:
        async with (
            aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=CHECK_TIMEOUT_SECONDS)) as session,
            session.get(url, allow_redirects=False) as response,
        ):
            found = _list_in(await response.text(), settings.chain_id)
    except (aiohttp.ClientError, TimeoutError, ValueError) as error:
        return f"{NO_ANSWER} {url} ({type(error).__name__})"
    return f"{url} {NO_RELAY} {settings.chain_id} that says its list" if found is None else found


def _list_in(exposition: str, chain_id: int) -> tuple[str, ...] | None:
    [described] = WALLET_FACTORIES.describe()
    for family in text_string_to_metric_families(exposition):
        for sample in family.samples if family.name == described.name else ():
            if sample.labels["chain"] == str(chain_id):
                factories = sample.labels["factories"]
                return () if factories == NO_FACTORIES else tuple(factories.split(","))
    return None
