"""Whether a process of ours is ready, as its `/readyz` says."""

from __future__ import annotations

import asyncio
from typing import Any

import aiohttp

from domain.errors import ApiNotReady


async def check_ready(url: str, *, what: str, command: str, seconds_max: float) -> str:
    """What it answers, as text. `what` is what should be there, `command` what starts it. Raises `ApiNotReady`."""
    try:
        async with (
            asyncio.timeout(seconds_max),
            aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=None)) as session,
        ):
            status, found = await _read_health(session, f"{url}/readyz")
            # README: a proxy keeps /readyz inside, and passes /livez on.
            is_hidden = found is None and (await _read_health(session, f"{url}/livez"))[1] is not None
    except aiohttp.ClientConnectorError as error:
        reason = error.strerror if error.errno else "no connection"
        raise ApiNotReady(f"nothing answers at {url} ({reason}); run: {command}") from error
    except TimeoutError as error:
        raise ApiNotReady(f"{url} does not answer within {seconds_max:g} s") from error
    except aiohttp.ClientError as error:
        raise ApiNotReady(f"{url} is not {what} ({type(error).__name__})") from error
    if is_hidden:
        return f"alive at {url}; readiness is unknown: /readyz is not public (HTTP {status})"
    if found is None:
        raise ApiNotReady(f"{url} is not {what}: HTTP {status} to /readyz without a readiness report")
    if found["status"] != "ok":
        wrong = [f"{name}: {result}" for name, result in found.get("checks", {}).items() if result != "ok"]
        raise ApiNotReady(f"not ready at {url}: {'; '.join(wrong) or 'it is stopping'}")
    return f"ready at {url}"


async def _read_health(session: aiohttp.ClientSession, url: str) -> tuple[int, dict[str, Any] | None]:
    """The HTTP status, and the document where it is one of our own."""
    async with session.get(url, allow_redirects=False) as response:
        try:
            found = await response.json(content_type=None)
        except ValueError:
            return response.status, None
    is_ours = (
        isinstance(found, dict)
        and found.get("status") in ("ok", "not ready")
        and isinstance(found.get("checks", {}), dict)
    )
    return response.status, found if is_ours else None
