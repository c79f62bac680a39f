"""The gateway's routes."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from http import HTTPStatus
from typing import Any, Final
from uuid import uuid4

import structlog
from aiohttp import web
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from db.billing.holds import KeyState
from domain.billing.keys import hash_key, key_of
from domain.billing.media import parse_call
from domain.billing.requests import InvalidRequest
from domain.billing.usage import Dialect
from domain.errors import DatabaseUnavailable
from gateway import headers, models, refusals
from gateway.attribution import asked_accounts
from gateway.call import Call
from gateway.call_account import Caller, Refused, refusal_of_key
from gateway.claims import CallClaim, claim_call
from gateway.policy import REQUEST_BYTES_MAX, REQUEST_READ_SECONDS_MAX
from gateway.refusals import Refusal
from gateway.state import Gateway
from gateway.upstream_client import PATHS
from telemetry.health import Check, run_checks
from telemetry.metrics import gateway as metrics

log = structlog.get_logger(__name__)

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

DIALECTS: Final[Mapping[str, Dialect]] = {f"/v1{path}": dialect for dialect, path in PATHS.items()}
OF_PROCESS: Final = frozenset({"/livez", "/readyz", "/metrics"})
"""Answered however busy the process is: otherwise it would be restarted for it."""


def build_app(
    gateway: Gateway, *, checks: Mapping[str, Check], more_routes: Sequence[web.RouteDef] = ()
) -> web.Application:
    """All routes. `more_routes`: those of other parts of the process, such as ingest."""
    routes = _Routes(gateway, checks)
    app = web.Application(client_max_size=REQUEST_BYTES_MAX, middlewares=[routes.refuse_surplus])
    for path, dialect in DIALECTS.items():
        app.router.add_post(path, routes.call(dialect))
    app.add_routes(
        [
            web.get("/v1/models", routes.list_models, allow_head=False),
            web.get("/v1/models/{model:.+}", routes.show_model, allow_head=False),
            web.get("/v1/credits", routes.show_credits, allow_head=False),
            web.get("/v1/usage/{request_id}", routes.show_usage, allow_head=False),
            web.get("/livez", routes.livez),
            web.get("/readyz", routes.readyz),
            web.get("/metrics", routes.metrics),
            web.head("/", routes.alive),
            web.get("/", routes.alive, allow_head=False),
            *more_routes,
            web.route("*", "/{path:.*}", routes.unknown),
        ]
    )
    return app


class _Routes:
    def __init__(self, gateway: Gateway, checks: Mapping[str, Check]) -> None:
        self._gateway = gateway
        self._checks = checks
        self._models = models.ModelList(gateway)

    @web.middleware
    async def refuse_surplus(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Refuse what comes on a connection beyond the limit, but for health and metrics; no other request follows."""
        if not self._gateway.connections.is_surplus(request.protocol):
            return await handler(request)
        if request.path in OF_PROCESS:
            response = await handler(request)
        else:
            dialect = DIALECTS.get(request.path) or _dialect_of(request)
            response = _answer(refusals.too_many_connections(), dialect, _new_request_id())
        response.force_close()
        return response

    # -- calls

    def call(self, dialect: Dialect) -> Handler:
        """The handler of a dialect's calls."""

        async def handle(request: web.Request) -> web.StreamResponse:
            request_id = _new_request_id()
            try:
                started = await self._begin(request, dialect, request_id)
            except Refused as refused:
                return _answer(refused.refusal, dialect, request_id)
            if isinstance(started, web.Response):
                return started
            call, claim = started
            task = asyncio.create_task(self._carry_out(call, claim, dialect, request_id))
            self._gateway.tasks.add(task)
            task.add_done_callback(self._gateway.tasks.discard)
            try:
                return await asyncio.shield(task)
            except asyncio.CancelledError:
                call.leave()
                raise

        return handle

    async def _begin(
        self, request: web.Request, dialect: Dialect, request_id: str
    ) -> web.Response | tuple[Call, CallClaim | None]:
        """The call, ready to be made; or the answer that one with its Idempotency-Key had. Raises `Refused`."""
        key_hash = self._key_hash(request)
        if self._gateway.is_stopping:
            raise Refused(refusals.unavailable("The gateway is stopping: try again"))
        claim: CallClaim | None = None
        try:
            body = await _read_body(request)
            asked = parse_call(dialect, body, request.headers.get("content-type", ""))
            if not asked.model.isprintable():
                raise Refused(refusals.model_not_found(asked.model.encode(errors="replace").decode()))
            caller = Caller(key_hash, asked_accounts(request.headers, asked.body), request_id)
            claimed = await claim_call(self._gateway.books, request, body, caller)
            if isinstance(claimed, web.Response):
                return claimed
            claim = claimed
            return Call(self._gateway, request, asked, caller, claim), claim
        except InvalidRequest as error:
            await self._require_key(key_hash)
            raise Refused(refusals.invalid_request(error.message, error.param)) from None
        except Refused as refused:
            if claim is not None:
                await claim.finish(request_id, None, {}, None)
            if refused.refusal.status in (HTTPStatus.NOT_FOUND, HTTPStatus.REQUEST_ENTITY_TOO_LARGE):
                # What is there is said to who has a key only.
                await self._require_key(key_hash)
            raise

    async def _carry_out(
        self, call: Call, claim: CallClaim | None, dialect: Dialect, request_id: str
    ) -> web.StreamResponse:
        """Everything that must happen whether or not the client is still there."""
        try:
            return await call.run()
        except Refused as refused:
            refusal = refused.refusal
        except Exception:
            log.exception("a call failed before it was made", request_id=request_id)
            refusal = refusals.failed()
        if claim is not None:
            await claim.finish(request_id, None, {}, None)
        return _answer(refusal, dialect, request_id)

    # -- what a key may read

    async def list_models(self, request: web.Request) -> web.Response:
        """`GET /v1/models`, in the shape of the API that the client speaks."""
        dialect = _dialect_of(request)

        async def show(key: KeyState) -> Any:
            found = await self._models.open_to(key.models)
            return models.as_anthropic(found) if dialect else models.as_openai(found)

        return await self._show(request, dialect, show)

    async def show_model(self, request: web.Request) -> web.Response:
        """`GET /v1/models/{id}`."""
        dialect = _dialect_of(request)
        model = request.match_info["model"]

        async def show(key: KeyState) -> Any:
            owner = (await self._models.open_to(key.models)).get(model)
            if owner is None:
                raise Refused(refusals.model_not_found(model))
            return models.anthropic_model(model) if dialect else models.openai_model(model, owner)

        return await self._show(request, dialect, show)

    async def show_credits(self, request: web.Request) -> web.Response:
        """`GET /v1/credits`: what the key's account has."""

        async def show(key: KeyState) -> Any:
            return {
                "balanceCredits": key.balance,
                "heldCredits": key.held,
                "availableCredits": key.balance - key.held,
            }

        return await self._show(request, None, show)

    async def show_usage(self, request: web.Request) -> web.Response:
        """`GET /v1/usage/{requestId}`: what became of a request of the key's account."""
        asked_id = request.match_info["request_id"]
        key_hash = self._key_hash_or_none(request)

        async def show(_: KeyState) -> Any:
            found = asked_id.isprintable() and await self._gateway.books.usage_of_request(key_hash or "", asked_id)
            usage = found or None
            if usage is None:
                raise Refused(refusals.not_found("There is no such request"))
            return {
                "requestId": asked_id,
                "status": usage.status,
                "model": usage.model,
                "chargedCredits": usage.charged_credits,
                "heldCredits": usage.held_credits,
                "inputTokens": usage.input_tokens,
                "cachedInputTokens": usage.cached_input_tokens,
                "outputTokens": usage.output_tokens,
                "reasoningTokens": usage.reasoning_tokens,
                "estimated": usage.estimated,
                "providerCostUsd": format(usage.provider_cost_usd, "f"),
                "userCostUsd": format(usage.user_cost_usd, "f"),
                "createdAt": usage.created_at.isoformat(),
            }

        return await self._show(request, None, show)

    async def _show(
        self, request: web.Request, dialect: Dialect | None, show: Callable[[KeyState], Awaitable[Any]]
    ) -> web.Response:
        request_id = _new_request_id()
        try:
            document = await show(await self._require_key(self._key_hash(request)))
        except Refused as refused:
            return _answer(refused.refusal, dialect, request_id)
        except DatabaseUnavailable:
            return _answer(refusals.unavailable("The database does not answer: try again"), dialect, request_id)
        return web.json_response(document, headers=headers.of_request(request_id, dialect))

    # -- the process

    async def livez(self, _: web.Request) -> web.Response:
        """Whether the process works."""
        is_stopping = self._gateway.is_stopping
        return web.json_response({"status": "stopping" if is_stopping else "ok"}, status=503 if is_stopping else 200)

    async def readyz(self, _: web.Request) -> web.Response:
        """Whether calls can be made."""
        results = await run_checks(self._checks)
        ready = not self._gateway.is_stopping and all(result == "ok" for result in results.values())
        return web.json_response(
            {"status": "ok" if ready else "not ready", "checks": results}, status=200 if ready else 503
        )

    async def metrics(self, _: web.Request) -> web.Response:
        """For Prometheus."""
        return web.Response(body=generate_latest(), headers={"Content-Type": CONTENT_TYPE_LATEST})

    async def alive(self, _: web.Request) -> web.Response:
        """`HEAD /`, with which clients find out whether there is a server."""
        return web.Response(text="settle gateway\n", headers=headers.of_request(_new_request_id(), None))

    async def unknown(self, request: web.Request) -> web.Response:
        """What is no route: in the shape of the API that the client seems to speak."""
        refusal = (
            refusals.method_not_allowed("POST")
            if request.path in DIALECTS
            else refusals.not_found(f"{request.path[:200]} is no route")
        )
        return _answer(refusal, _dialect_of(request), _new_request_id())

    # -- keys

    def _key_hash_or_none(self, request: web.Request) -> str | None:
        key = key_of(request.headers)
        return None if key is None else hash_key(key)

    def _key_hash(self, request: web.Request) -> str:
        key_hash = self._key_hash_or_none(request)
        if key_hash is None:
            raise Refused(refusals.invalid_key("There is no API key: expected Authorization: Bearer, or x-api-key"))
        return key_hash

    async def _require_key(self, key_hash: str) -> KeyState:
        """The key, which is in force. Raises `Refused`."""
        try:
            key = await self._gateway.books.find_key(key_hash)
        except DatabaseUnavailable as error:
            raise Refused(refusals.unavailable("The database does not answer: try again")) from error
        if key is None or key.state != "active":
            raise Refused(refusal_of_key("unknown_key" if key is None else key.state))
        return key


def _new_request_id() -> str:
    return f"req_{uuid4().hex}"


def _dialect_of(request: web.Request) -> Dialect | None:
    """Messages, where the client speaks Anthropic's API; else OpenAI's."""
    return Dialect.MESSAGES if "anthropic-version" in request.headers else None


async def _read_body(request: web.Request) -> bytes:
    """The request's body. Raises `Refused`."""
    try:
        async with asyncio.timeout(REQUEST_READ_SECONDS_MAX):
            return await request.read()
    except web.HTTPRequestEntityTooLarge:
        raise Refused(refusals.too_large(REQUEST_BYTES_MAX)) from None
    except TimeoutError:
        raise Refused(refusals.invalid_request("The request body did not come in time")) from None


def _answer(refusal: Refusal, dialect: Dialect | None, request_id: str) -> web.Response:
    metrics.REFUSALS.labels(refusal.code).inc()
    return web.Response(
        status=refusal.status,
        headers={
            **refusal.headers,
            **headers.of_request(request_id, dialect),
            "Content-Type": "application/json",
        },
        body=refusal.body(dialect, request_id),
    )
