"""The part of `settle demo` in which credits are spent: a stream, a gateway killed in mid-stream, a refusal, and a call
of the governance loop, which is paid from the bonus of a purchase.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from typing import Any, Final
from uuid import uuid4

import aiohttp
import psycopg
from temporalio.client import Client

from commands.local_system import LocalSystem
from commands.output import grouped
from composition import tenant_database
from db.accounts.wallets import Payer
from db.billing.keys import create_key
from db.engine import ServiceDatabase
from db.operations.governance_calls import find_latest
from devstack.database import DATABASE
from devstack.processes import wait_until
from domain.billing.keys import KeySecret, KeyTerms, make_key
from domain.errors import DemoFailed
from domain.identifiers import SYSTEM_TENANT_ACCOUNT_ID
from domain.operations.governance_call import CallOutcome, GovernanceCall
from workflows.naming import schedule_id

LEASE_SECONDS: Final = 3
"""The shortest: a killed gateway's hold is resolved when its lease is over."""
GOVERNANCE_BUDGET_CREDITS: Final = 1_000_000
GOVERNANCE_SCHEDULE: Final = "governance-loop"
PROMPT: Final = "You run a platform that sells credits. Say in one sentence how its own account is doing."

HOUSEKEEPING_SCHEDULE: Final = "billing-housekeeping"
"""Its job starts what resolves lapsed holds."""

MODEL: Final = "dev-large"
"""Of the local upstream: 10 USD for a million tokens of input, 40 for those of output, before the markup."""
TOKENS_BEYOND_THE_BALANCE: Final = 10_000_000
WAIT_SECONDS_MAX: Final = 60.0
_CHARGE: Final = re.compile(rb": credits charged=(\d+) remaining=(-?\d+)")


@dataclass(frozen=True)
class SpentCall:
    """One call of the demo, and whether it went as expected."""

    title: str
    request_id: str
    expectation: str
    outcome: str
    held: bool
    """Whether the expectation was met."""
    charged_credits: int
    account_id: str


def settings(folder: Path, governance_key: KeySecret) -> dict[str, str]:
    """Settings of the demo's system. The key is stored once the database is there."""
    prompt = folder / "prompt.txt"
    prompt.write_text(PROMPT)
    return {
        "HOLD_LEASE_SECONDS": str(LEASE_SECONDS),
        "GOVERNANCE_MODEL": MODEL,
        "GOVERNANCE_PROMPT_FILE": str(prompt),
        "GOVERNANCE_BUDGET_CREDITS_PER_DAY": str(GOVERNANCE_BUDGET_CREDITS),
        "GOVERNANCE_SERVICE_KEY": governance_key.key,
    }


class SpendingScenes:
    """The calls, each as a program with a service key would make them."""

    def __init__(
        self, system: LocalSystem, database: ServiceDatabase, temporal: Client, say: Callable[[str], None]
    ) -> None:
        self._system = system
        self._service = database
        self._temporal = temporal
        self._say = say

    async def play(self, payer: Payer) -> list[SpentCall]:
        """All calls, on the credits that the payer has bought."""
        secret = make_key()
        async with (
            tenant_database(self._system.settings) as database,
            database.transaction(payer.user_id) as connection,
        ):
            made = await create_key(connection, uuid4(), payer.billing_account_id, secret, KeyTerms(label="Demo"))
        assert made, "the account is the payer's own"
        self._say(f"spending: service key {secret.key_hint} for the account of the first purchase")
        url = self._system.variables["GATEWAY_URL"]
        headers = {"Authorization": f"Bearer {secret.key}"}
        async with aiohttp.ClientSession(url, headers=headers) as http:
            caller = _Caller(http, payer.billing_account_id)
            return [
                await self._stream(caller),
                await self._killed_in_mid_stream(caller),
                await self._more_than_there_is(caller),
            ]

    async def _stream(self, caller: _Caller) -> SpentCall:
        title = "a streamed call"
        async with caller.streamed("Say something about credits", {"tokens": 60}) as (request_id, chunks):
            answer = b"".join([chunk async for chunk in chunks])
        reported = _CHARGE.search(answer)
        usage = await caller.usage(request_id)
        charged = usage["chargedCredits"] or 0
        self._say(f"{title}: {usage['outputTokens']} tokens, {grouped(charged)} credits, reported at the stream's end")
        return caller.spent(
            title,
            request_id,
            "charged by its usage, reported before the stream ends",
            f"{usage['status']}, {grouped(charged)} credits",
            held=reported is not None
            and answer.rstrip().endswith(b"data: [DONE]")
            and (usage["status"], usage["estimated"], charged) == ("charged", False, int(reported[1]))
            and charged > 0,
            charged_credits=charged,
        )

    async def _killed_in_mid_stream(self, caller: _Caller) -> SpentCall:
        """Kill the gateway as soon as its database has noted that something was produced."""
        title = "a call whose gateway is killed"
        gateway = self._system.stack.processes["gateway"]
        behaviour = {"tokens": 2_000, "tokens_per_second": 50}
        try:
            async with caller.streamed("Go on and on", behaviour) as (request_id, chunks):
                reading = asyncio.create_task(_count(chunks))
                async with self._database() as database:
                    await self._until("progress on the hold", lambda: _is_noted(database, request_id))
                    pid = gateway.pid
                    self._say(f"{title}: the stream goes on, SIGKILL to gateway {pid}")
                    await gateway.kill()
                    received = await reading
                    await gateway.start()
                    self._say(f"{title}: {grouped(received)} bytes had come; gateway started again as {gateway.pid}")
                    await self._until("the end of the lease", lambda: _is_lapsed(database, request_id))
        except aiohttp.ClientError:
            pass  # the connection ends with the gateway
        # It runs every minute; a demo does not wait for it.
        await self._temporal.get_schedule_handle(schedule_id(HOUSEKEEPING_SCHEDULE)).trigger()
        await self._until("the hold's resolution", lambda: caller.is_charged(request_id))
        usage = await caller.usage(request_id)
        charged = usage["chargedCredits"] or 0
        self._say(f"{title}: its hold was resolved, {grouped(charged)} credits by what was produced (estimated)")
        return caller.spent(
            title,
            request_id,
            "charged by what was produced until it died, estimated",
            f"{usage['status']}, {grouped(charged)} credits{', estimated' if usage['estimated'] else ''}",
            held=(usage["status"], usage["estimated"]) == ("charged", True) and charged > 0,
            charged_credits=charged,
        )

    async def _more_than_there_is(self, caller: _Caller) -> SpentCall:
        title = "a call for more than the balance"
        status, request_id, body = await caller.whole("Write a book", max_tokens=TOKENS_BEYOND_THE_BALANCE)
        error = body.get("error", {})
        self._say(f"{title}: {status} {error.get('code')}, needs {error.get('needed')} of {error.get('available')}")
        return caller.spent(
            title,
            request_id,
            "402 insufficient_credits, not sent to the provider",
            f"{status} {error.get('code')} ({error.get('limit_source')})",
            held=(status, error.get("code"), error.get("limit_source"))
            == (HTTPStatus.PAYMENT_REQUIRED, "insufficient_credits", "balance"),
            charged_credits=0,
        )

    async def governance(self, secret: KeySecret) -> SpentCall:
        """A run of the governance loop, with a key of the system tenant's."""
        title = "a call of the governance loop"
        terms = KeyTerms(label="Governance", limit_day_credits=GOVERNANCE_BUDGET_CREDITS)
        async with self._service.transaction() as connection:
            await create_key(connection, uuid4(), SYSTEM_TENANT_ACCOUNT_ID, secret, terms)
        schedule = self._temporal.get_schedule_handle(schedule_id(GOVERNANCE_SCHEDULE))
        await schedule.pause(note="the demo starts it")
        await schedule.trigger()
        found: list[GovernanceCall] = []

        async def is_made() -> bool:
            async with self._service.autocommit() as connection:
                call = await find_latest(connection)
            found.extend([call] if call else [])
            return bool(found)

        await self._until("the governance call", is_made)
        call = found[0]
        self._say(f"{title}: {call.words}, of the system tenant's bonus")
        return SpentCall(
            title,
            call.request_id or "",
            "charged to the system tenant like anyone, within its key's budget",
            call.words,
            call.outcome is CallOutcome.ANSWERED and bool(call.answer) and call.charged_credits > 0,
            call.charged_credits,
            SYSTEM_TENANT_ACCOUNT_ID,
        )

    @asynccontextmanager
    async def _database(self) -> AsyncIterator[psycopg.AsyncConnection]:
        url = self._system.stack.postgres.superuser_url(DATABASE)
        connecting = psycopg.AsyncConnection.connect(url, application_name="settle demo", autocommit=True)
        async with await connecting as connection:
            yield connection

    @staticmethod
    async def _until(what: str, condition: Callable[[], Awaitable[bool]]) -> None:
        await wait_until(condition, timeout_seconds=WAIT_SECONDS_MAX, what=what)


class _Caller:
    """A client of the gateway, as a program would be one."""

    def __init__(self, http: aiohttp.ClientSession, account_id: str) -> None:
        self._http = http
        self._account_id = account_id

    @asynccontextmanager
    async def streamed(self, text: str, behaviour: dict[str, Any]) -> AsyncIterator[tuple[str, AsyncIterator[bytes]]]:
        """A stream's request id, and its bytes as they come. `behaviour` is what the local upstream is to do."""
        async with self._http.post(
            "/v1/chat/completions", json=_body(f"!upstream {json.dumps(behaviour)} {text}") | {"stream": True}
        ) as response:
            if response.status != HTTPStatus.OK:
                raise DemoFailed(f"a stream was refused: {response.status} {(await response.text())[:300]}")
            yield response.headers["X-Request-Id"], response.content.iter_any()

    async def whole(self, text: str, **fields: Any) -> tuple[int, str, dict[str, Any]]:
        """Status, request id and body of a call that is not streamed."""
        async with self._http.post("/v1/chat/completions", json=_body(text) | fields) as response:
            return response.status, response.headers["X-Request-Id"], await response.json()

    async def usage(self, request_id: str) -> dict[str, Any]:
        """What became of a call."""
        async with self._http.get(f"/v1/usage/{request_id}") as response:
            if response.status != HTTPStatus.OK:
                raise DemoFailed(f"usage of {request_id}: {response.status} {(await response.text())[:300]}")
            found: dict[str, Any] = await response.json()
            return found

    async def is_charged(self, request_id: str) -> bool:
        """Whether its hold is captured."""
        return bool((await self.usage(request_id))["status"] == "charged")

    def spent(
        self, title: str, request_id: str, expectation: str, outcome: str, *, held: bool, charged_credits: int
    ) -> SpentCall:
        """The scene's result."""
        return SpentCall(title, request_id, expectation, outcome, held, charged_credits, self._account_id)


def _body(text: str) -> dict[str, Any]:
    return {"model": MODEL, "max_tokens": 2_000, "messages": [{"role": "user", "content": text}]}


async def _count(chunks: AsyncIterator[bytes]) -> int:
    """Bytes until the stream ends, or its connection."""
    received = 0
    try:
        async for chunk in chunks:
            received += len(chunk)
    except aiohttp.ClientError:
        pass
    return received


async def _is_noted(database: psycopg.AsyncConnection, request_id: str) -> bool:
    return await _holds(database, "output_bytes > 0", request_id)


async def _is_lapsed(database: psycopg.AsyncConnection, request_id: str) -> bool:
    return await _holds(database, "lease_until < clock_timestamp()", request_id)


async def _holds(database: psycopg.AsyncConnection, condition: str, request_id: str) -> bool:
    cursor = await database.execute(
        f"SELECT 1 FROM credit_holds WHERE request_id = %s AND {condition}",  # noqa: S608 - one of the two above
        (request_id,),
    )
    return await cursor.fetchone() is not None
