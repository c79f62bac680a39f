"""One call, from its hold to its charge.

A task of its own carries it out, whatever becomes of the client's connection: no way out of it leaves the hold open.
Only while it talks to the upstream can it be interrupted (the client left, the process ends), and what was produced
until then is charged.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Coroutine
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from http import HTTPStatus
from typing import Any, Final
from uuid import uuid4

import aiohttp
import structlog
from aiohttp import web

from domain.billing.charges import CallEnd
from domain.billing.requests import CallRequest
from domain.billing.upstreams import OnClientAbort, Upstream, UsageLookup
from domain.billing.usage import Dialect
from domain.errors import DatabaseUnavailable
from gateway import headers, refusals
from gateway.books import Settled
from gateway.call_account import CallAccount, Caller, Refused, offered
from gateway.claims import CallClaim
from gateway.draining import Drain
from gateway.interruption import Interrupted, Interruption
from gateway.metering import Handling, Meter
from gateway.policy import ANSWER_BYTES_MAX, CLIENT_WRITE_SECONDS_MAX
from gateway.refusals import Refusal
from gateway.sse import EventTooLarge, SseSplitter, comment
from gateway.state import Gateway
from gateway.upstream_client import Sending, UpstreamFailed
from telemetry.metrics import gateway as metrics

_OWN_ACCOUNT_STATUSES: Final = frozenset(
    {HTTPStatus.UNAUTHORIZED, HTTPStatus.PAYMENT_REQUIRED, HTTPStatus.PROXY_AUTHENTICATION_REQUIRED}
)
"""An upstream refuses the platform itself, not its user; the text may quote the platform's key."""

_PASSING_STATUSES: Final = frozenset({HTTPStatus.REQUEST_TIMEOUT, HTTPStatus.TOO_MANY_REQUESTS})
"""Another upstream may answer instead; so it is with 5xx."""

_BYTES_TYPES: Final = frozenset({"application/octet-stream", "binary/octet-stream"})

log = structlog.get_logger(__name__)


class _Broke(Exception):
    """The upstream broke off."""


@dataclass(frozen=True, slots=True)
class _Answer:
    """A whole answer, as the client gets it."""

    status: int
    headers: dict[str, str]
    body: bytes


@dataclass(frozen=True, slots=True)
class _Failure:
    """An upstream did not answer the call; another one may."""

    kind: str
    answer: _Answer | Refusal


class Call:
    """Carries one call out. `run` raises `Refused`, and nothing else that is expected."""

    def __init__(
        self, gateway: Gateway, request: web.Request, asked: CallRequest, caller: Caller, claim: CallClaim | None
    ) -> None:
        self._gateway = gateway
        self._request = request
        self._asked = asked
        self._caller = caller
        self._claim = claim
        self._upstreams, price = offered(gateway, asked.model)
        self._upstream = self._upstreams[0]
        self._account = CallAccount(gateway, asked, caller, price, claim.hold_id if claim is not None else uuid4())
        self._sending = Sending()
        self._interruption = Interruption()
        self._drain = Drain(gateway.drains, partial(self.interrupt, CallEnd.CLIENT_LEFT))
        self._has_left = False
        self._has_noted_id = False
        self._stream: web.StreamResponse | None = None

    @property
    def _meter(self) -> Meter:
        return self._account.meter

    # -- from outside

    def leave(self) -> None:
        """The client has hung up."""
        if self._has_left:
            return
        self._has_left = True
        if not (self._goes_on_alone() and self._drain.begin()):
            self.interrupt(CallEnd.CLIENT_LEFT)

    def interrupt(self, end: CallEnd) -> None:
        """End the call now; what was produced until then is charged."""
        self._interruption.interrupt(end)

    def _goes_on_alone(self) -> bool:
        """Without a client: the upstream bills all of it anyway, or the answer is kept for who repeats the call."""
        is_kept = self._claim is not None and not self._asked.is_streamed
        has_upstream = self._sending.was_sent
        return is_kept or (has_upstream and self._upstream.on_client_abort is OnClientAbort.DRAINS)

    # -- the call

    async def run(self) -> web.StreamResponse:
        """Carry the call out; the answer, sent already where it is a stream. Raises `Refused`."""
        self._interruption.begin()
        started = time.monotonic()
        await self._account.hold(self._upstream)
        self._gateway.calls.add(self)
        try:
            return await self._try_each()
        except Exception:
            log.exception("a call failed", request_id=self._caller.request_id)
            settled = await self._account.settle(CallEnd.UPSTREAM_BROKE, self._upstream)
            if self._stream is not None and self._stream.prepared:
                # Not ended as if it were whole.
                if self._request.transport is not None:
                    self._request.transport.close()
                return self._stream
            return await self._conclude(refusals.upstream_failed("The call failed"), settled)
        finally:
            self._gateway.calls.discard(self)
            self._account.close()
            self._drain.end()
            metrics.CALL_SECONDS.labels(self._asked.dialect.value).observe(time.monotonic() - started)

    async def _try_each(self) -> web.StreamResponse:
        for upstream in self._upstreams:
            if upstream is not self._upstream:
                refusal = await self._fail_over(upstream)
                if refusal is not None:
                    settled = await self._account.settle(CallEnd.REFUSED, self._upstream)
                    return await self._conclude(refusal, settled)
            outcome = await self._try(upstream)
            if not isinstance(outcome, _Failure):
                return outcome
            failure = outcome
            metrics.UPSTREAM_ERRORS.labels(upstream.name, failure.kind).inc()
            log.warning(
                "an upstream failed", upstream=upstream.name, kind=failure.kind, request_id=self._caller.request_id
            )
            if self._interruption.by is not None:
                break
        settled = await self._account.settle(CallEnd.REFUSED, self._upstream)
        return await self._conclude(failure.answer, settled)

    async def _fail_over(self, upstream: Upstream) -> Refusal | None:
        """Let another upstream have the call; why not, where it cannot."""
        try:
            await self._account.pass_on(self._upstream, upstream)
        except Refused as refused:
            return refused.refusal
        except DatabaseUnavailable:
            return refusals.unavailable("Credits cannot be held now")
        self._upstream = upstream
        self._sending = Sending()
        self._has_noted_id = False
        return None

    async def _try(self, upstream: Upstream) -> web.StreamResponse | _Failure:
        started = time.monotonic()
        try:
            answer = await self._interruption.interruptibly(
                self._gateway.client.send(
                    upstream,
                    self._asked.dialect,
                    self._body_for(upstream),
                    self._request.headers,
                    is_beta=self._request.query.get("beta") == "true",
                    sending=self._sending,
                )
            )
        except Interrupted:
            return await self._end_interrupted()
        except UpstreamFailed as error:
            refusal = refusals.upstream_failed("The upstream gives no answer")
            return _Failure(error.kind, refusal)
        metrics.FIRST_BYTE_SECONDS.labels(upstream.name).observe(time.monotonic() - started)
        try:
            is_stream = answer.status < HTTPStatus.MULTIPLE_CHOICES and answer.content_type == "text/event-stream"
            if is_stream:
                return await self._pass_stream(answer)
            is_sound = answer.content_type.startswith("audio/") or answer.content_type in _BYTES_TYPES
            if is_sound and self._asked.dialect is Dialect.SPEECH and answer.status < HTTPStatus.MULTIPLE_CHOICES:
                return await self._pass_sound(answer)
            return await self._pass_whole(answer)
        finally:
            # Reused for another call only where all of the answer has come.
            answer.release() if answer.content.at_eof() else answer.close()

    async def _end_interrupted(self, *, is_refused: bool = False) -> web.StreamResponse:
        assert self._interruption.by is not None
        # Nothing was sent, or an error came: nothing was used.
        end = CallEnd.REFUSED if is_refused or not self._sending.was_sent else self._interruption.by
        settled = await self._account.settle(end, self._upstream)
        return await self._conclude(refusals.unavailable("The gateway is stopping"), settled)

    # -- answers that come whole

    async def _pass_whole(self, answer: aiohttp.ClientResponse) -> web.StreamResponse | _Failure:
        status = answer.status
        is_error = status >= HTTPStatus.MULTIPLE_CHOICES
        body = bytearray()
        try:
            await self._interruption.interruptibly(self._read(answer, body))
        except Interrupted:
            self._note_part(body)
            return await self._end_interrupted(is_refused=is_error)
        except _Broke:
            if is_error:
                return _Failure("broke", refusals.upstream_failed("The upstream broke off"))
            self._note_part(body)
            settled = await self._account.settle(CallEnd.UPSTREAM_BROKE, self._upstream)
            return await self._conclude(refusals.upstream_failed("The upstream broke off"), settled)
        self._meter.observe_body(bytes(body))
        if status in _OWN_ACCOUNT_STATUSES or HTTPStatus.MULTIPLE_CHOICES <= status < HTTPStatus.BAD_REQUEST:
            refusal = refusals.upstream_failed(f"The upstream cannot be used: it answers {status}")
            return _Failure(f"status_{status}", refusal)
        shown = self._gateway.client.without_key(self._upstream, bytes(body)) if is_error else bytes(body)
        passed = _Answer(status, headers.for_client(answer.headers, is_error=is_error), shown)
        if status >= HTTPStatus.INTERNAL_SERVER_ERROR or status in _PASSING_STATUSES:
            return _Failure(f"status_{status}", passed)
        if is_error:
            return await self._conclude(passed, await self._account.settle(CallEnd.REFUSED, self._upstream))
        if not self._meter.is_answer:
            refusal = refusals.upstream_failed("The upstream's answer is none of this API")
            return _Failure("no_api", refusal)
        if self._meter.is_error_only:
            return await self._conclude(passed, await self._account.settle(CallEnd.ERROR_ONLY, self._upstream))
        end = CallEnd.CLIENT_LEFT if self._has_left else CallEnd.COMPLETED
        return await self._conclude(passed, await self._account.settle(end, self._upstream), is_kept=True)

    def _note_part(self, body: bytearray) -> None:
        """Of a whole answer that is not whole, its bytes are what was produced; empty lines only keep a connection."""
        self._meter.output_bytes = max(self._meter.output_bytes, len(body.strip()))

    async def _read(self, answer: aiohttp.ClientResponse, body: bytearray) -> None:
        try:
            async for chunk in answer.content.iter_any():
                body += chunk
                if len(body) > ANSWER_BYTES_MAX:
                    raise _Broke
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise _Broke from error

    async def _conclude(
        self, answer: _Answer | Refusal, settled: Settled, *, is_kept: bool = False
    ) -> web.StreamResponse:
        """The answer to the client, and to who repeats the call."""
        request_id, dialect = self._caller.request_id, self._asked.dialect
        if isinstance(answer, Refusal):
            metrics.REFUSALS.labels(answer.code).inc()
            passed = {**answer.headers, "Content-Type": "application/json"}
            answer = _Answer(answer.status, passed, answer.body(dialect, request_id))
        sent = {**answer.headers, **self._own_headers()}
        if settled.charged is not None:
            sent["X-Credits-Charged"] = str(settled.charged)
        if settled.balance is not None:
            sent["X-Credits-Remaining"] = str(settled.balance)
        if self._claim is not None:
            await self._claim.finish(request_id, answer.status if is_kept else None, sent, answer.body)
        return web.Response(status=answer.status, headers=sent, body=answer.body)

    # -- answers that are streamed

    async def _pass_stream(self, answer: aiohttp.ClientResponse) -> web.StreamResponse:
        response = self._begin_stream(answer)
        end, tail = await self._relayed(self._relay(answer, response))
        settled = await self._settle_stream(answer, end)
        await self._write(response, self._charge_comment(settled) + (tail or self._error_event(end)))
        return await self._end_stream(response)

    async def _pass_sound(self, answer: aiohttp.ClientResponse) -> web.StreamResponse:
        """Pass speech on as it comes; its last bytes leave after the charge."""
        response = self._begin_stream(answer)
        end, tail = await self._relayed(self._relay_sound(answer, response))
        await self._settle_stream(answer, end)
        await self._write(response, tail)
        if end not in (CallEnd.COMPLETED, CallEnd.CLIENT_LEFT) and self._request.transport is not None:
            # Not ended as if it were whole.
            self._request.transport.close()
        return await self._end_stream(response)

    def _begin_stream(self, answer: aiohttp.ClientResponse) -> web.StreamResponse:
        sent = {
            **headers.for_client(answer.headers, is_error=False),
            **self._own_headers(),
            "X-Credits-Held": str(self._account.held.held),
            "cache-control": "no-cache",
            "X-Accel-Buffering": "no",
        }
        self._stream = web.StreamResponse(status=answer.status, headers=sent)
        return self._stream

    async def _relayed(self, relay: Coroutine[Any, Any, bytes]) -> tuple[CallEnd, bytes]:
        """How a stream ended, and what of it is held back until it is charged."""
        try:
            tail = await self._interruption.interruptibly(relay)
        except Interrupted:
            return self._interruption.by or CallEnd.CLIENT_LEFT, b""
        except _Broke:
            return CallEnd.UPSTREAM_BROKE, b""
        return self._end_of_stream(), tail

    async def _settle_stream(self, answer: aiohttp.ClientResponse, end: CallEnd) -> Settled:
        settled = await self._account.settle(end, self._upstream)
        if self._claim is not None:
            is_over = end in (CallEnd.COMPLETED, CallEnd.CLIENT_LEFT)
            await self._claim.finish(self._caller.request_id, answer.status if is_over else None, {}, None)
        return settled

    async def _end_stream(self, response: web.StreamResponse) -> web.StreamResponse:
        if not self._has_left:
            with suppress(ConnectionError, TimeoutError):
                async with asyncio.timeout(CLIENT_WRITE_SECONDS_MAX):
                    await response.write_eof()
        return response

    async def _relay(self, answer: aiohttp.ClientResponse, response: web.StreamResponse) -> bytes:
        """Pass events on as they come; what is held back until the call is charged. Raises `_Broke`."""
        splitter = SseSplitter()
        waiting = b""
        await self._prepare(response)
        try:
            async for chunk in answer.content.iter_any():
                passed = []
                for event in splitter.feed(chunk):
                    handling = self._meter.observe(event)
                    if handling is Handling.DROP:
                        continue
                    passed.append(waiting)
                    waiting = b""
                    if handling is Handling.PASS:
                        passed.append(event.raw)
                        continue
                    waiting = event.raw
                    if handling is Handling.LAST:
                        await self._write(response, b"".join(passed))
                        return waiting
                self._note_id()
                await self._write(response, b"".join(passed))
                self._drain_within(len(chunk))
        except (aiohttp.ClientError, TimeoutError, OSError, EventTooLarge) as error:
            raise _Broke from error
        rest = splitter.flush()
        if rest is not None and self._meter.observe(rest) is not Handling.DROP:
            waiting += rest.raw + b"\n\n"
        return waiting

    async def _relay_sound(self, answer: aiohttp.ClientResponse, response: web.StreamResponse) -> bytes:
        """Pass bytes on as they come, but for the last. Raises `_Broke`."""
        waiting = b""
        await self._prepare(response)
        try:
            async for chunk in answer.content.iter_any():
                self._meter.observe_sound(len(chunk))
                await self._write(response, waiting)
                waiting = chunk
                self._drain_within(len(chunk))
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise _Broke from error
        if not waiting:
            raise _Broke
        self._meter.has_ended = True
        return waiting

    def _drain_within(self, count: int) -> None:
        if self._has_left and self._drain.exceeds(count):
            self.interrupt(CallEnd.CLIENT_LEFT)
            self._interruption.stop_where_interrupted()

    def _end_of_stream(self) -> CallEnd:
        if self._meter.is_error_only:
            return CallEnd.ERROR_ONLY
        if self._meter.error is not None or not self._meter.is_complete:
            return CallEnd.UPSTREAM_BROKE
        return CallEnd.CLIENT_LEFT if self._has_left else CallEnd.COMPLETED

    async def _prepare(self, response: web.StreamResponse) -> None:
        if self._has_left:
            return
        try:
            await response.prepare(self._request)
        except ConnectionError:
            self.leave()
            self._interruption.stop_where_interrupted()

    async def _write(self, response: web.StreamResponse, data: bytes) -> None:
        if self._has_left or not data or not response.prepared:
            return
        try:
            async with asyncio.timeout(CLIENT_WRITE_SECONDS_MAX):
                await response.write(data)
        except (ConnectionError, TimeoutError):
            self.leave()
            self._interruption.stop_where_interrupted()

    def _note_id(self) -> None:
        """Where a record can be asked for by the upstream's id, the hold has to know it before this process dies."""
        if self._has_noted_id or self._meter.upstream_id is None:
            return
        self._has_noted_id = True
        if self._upstream.usage_lookup is not UsageLookup.NONE:
            self._gateway.books.note(self._account.progress)

    def _charge_comment(self, settled: Settled) -> bytes:
        if settled.charged is None:
            return comment(f"credits charged=pending usage=/v1/usage/{self._caller.request_id}")
        return comment(f"credits charged={settled.charged} remaining={settled.balance}")

    def _error_event(self, end: CallEnd) -> bytes:
        """The end of a stream that has none of its own."""
        if end is CallEnd.GATEWAY_DIED:
            refusal = refusals.unavailable("The gateway is stopping")
        elif end is CallEnd.UPSTREAM_BROKE and self._meter.error is None:
            refusal = refusals.upstream_failed("The upstream broke off")
        else:
            return b""
        return refusal.event(self._asked.dialect, self._caller.request_id)

    # -- parts

    def _body_for(self, upstream: Upstream) -> bytes:
        return self._asked.upstream_body(
            asks_for_usage=upstream.reports_usage_on_request, output_tokens_max=self._account.output_tokens_clamp
        )

    def _own_headers(self) -> dict[str, str]:
        _, per_minute = self._gateway.policy.rate(self._asked.dialect)
        return {
            **headers.of_request(self._caller.request_id, self._asked.dialect),
            **headers.of_rate(per_minute, self._account.held.rate_remaining),
        }
