"""A stream of events does not outlive the session that it was opened with."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Final

import pytest

from api.http import sse as feed
from db.accounts.sessions import end_sessions_of_wallet
from tests.support.api import PATIENCE_SECONDS, RunningApi, Visitor, first_wallet

SECONDS_MAX: Final = feed.SESSION_CHECK_SECONDS + 4.0
"""For a machine that stalls."""


async def signs_out(_: RunningApi, payer: Visitor) -> None:
    """As the page does."""
    assert (await payer.post("/api/v1/auth/logout")).status == 204


async def is_revoked(api: RunningApi, _: Visitor) -> None:
    """As `settle sessions revoke` does."""
    async with api.engine.service.transaction() as connection:
        assert await end_sessions_of_wallet(connection, first_wallet().address) == 1


@pytest.mark.parametrize("end", [signs_out, is_revoked])
async def test_it_ends_within_two_seconds_of_its_session(
    api: RunningApi,
    payer: Visitor,
    end: Callable[[RunningApi, Visitor], Awaitable[None]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert feed.SESSION_CHECK_SECONDS <= 2
    monkeypatch.setattr(feed, "UNPAID_TICK_SECONDS", PATIENCE_SECONDS)  # however seldom the payment is polled
    async with api.visitor() as other:
        # Its cookie outlives the session in another window.
        other.cookie = payer.cookie
        path = f"/api/v1/payments/attempts/{(await payer.intent())['attemptId']}/events"
        async with asyncio.timeout(PATIENCE_SECONDS), other.session.get(path) as stream:
            assert (await stream.content.readline()).startswith(b"event: status")
            await end(api, payer)
            ended = time.monotonic()
            await stream.read()
    assert time.monotonic() - ended < SECONDS_MAX


async def test_it_goes_on_as_long_as_the_session_does(
    api: RunningApi, payer: Visitor, monkeypatch: pytest.MonkeyPatch
) -> None:
    checked: list[bool] = []
    is_still_signed_in = feed._is_still_signed_in

    async def count(*asked: object) -> bool:
        checked.append(await is_still_signed_in(*asked))  # type: ignore[arg-type]
        return checked[-1]

    monkeypatch.setattr(feed, "_is_still_signed_in", count)
    monkeypatch.setattr(feed, "SESSION_CHECK_SECONDS", 0.05)
    monkeypatch.setattr(feed, "KEEPALIVE_SECONDS", 0.5)
    monkeypatch.setattr(feed, "UNPAID_TICK_SECONDS", 0.5)
    path = f"/api/v1/payments/attempts/{(await payer.intent())['attemptId']}/events"
    async with asyncio.timeout(PATIENCE_SECONDS), payer.session.get(path) as stream:
        while not (await stream.content.readline()).startswith(b":"):
            pass
    assert checked and all(checked)
