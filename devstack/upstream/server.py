"""The upstream's routes, in one `aiohttp` application on loopback."""

from __future__ import annotations

import asyncio
import json
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final

from aiohttp import web

from devstack.upstream import reports
from devstack.upstream.behaviour import PLAIN, Behaviour, BehaviourError, behaviour_of
from devstack.upstream.delivery import JSON, Delivery, answer_headers
from devstack.upstream.dialects import WIRES
from devstack.upstream.errors import error_body, error_object
from devstack.upstream.generation import generate
from devstack.upstream.prices import PRICES
from devstack.upstream.raw_json import dumps
from devstack.upstream.records import Call, Records
from devstack.upstream.requests import Asked, Dialect, RequestError, read_request

HOST: Final = "127.0.0.1"
BODY_BYTES_MAX: Final = 64 * 1024 * 1024
SHUTDOWN_SECONDS: Final = 0.5
"""How long answers in progress may go on after SIGTERM."""
RELEASED: Final = datetime(2025, 1, 1, tzinfo=UTC)
PATHS: Final = {
    "/v1/chat/completions": Dialect.CHAT,
    "/v1/completions": Dialect.COMPLETIONS,
    "/v1/responses": Dialect.RESPONSES,
    "/v1/messages": Dialect.MESSAGES,
    "/v1/embeddings": Dialect.EMBEDDINGS,
    "/v1/images/generations": Dialect.IMAGES,
    "/v1/audio/speech": Dialect.SPEECH,
    "/v1/audio/transcriptions": Dialect.TRANSCRIPTIONS,
}

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


@dataclass(slots=True)
class Order:
    """A behaviour for the next requests that name none themselves."""

    behaviour: Behaviour
    requests: int | None
    """None: all of them."""
    path: str | None
    """Only those to this path."""


class Upstream:
    """A provider with its records. `drains`: generations go on, and are billed, when the client hangs up."""

    def __init__(self, *, drains: bool = False) -> None:
        self.records = Records()
        self.drains = drains
        self._orders: deque[Order] = deque()
        self._without_client: set[asyncio.Task[Any]] = set()

    # -- life

    @asynccontextmanager
    async def serve(self, port: int = 0) -> AsyncIterator[str]:
        """Serve on a port of loopback, or on any that is free; gives the base URL, without `/v1`."""
        runner = web.AppRunner(
            self.application(), access_log=None, handler_cancellation=True, shutdown_timeout=SHUTDOWN_SECONDS
        )
        await runner.setup()
        try:
            await web.TCPSite(runner, HOST, port, backlog=1024).start()
            yield f"http://{HOST}:{runner.addresses[0][1]}"
        finally:
            await runner.cleanup()
            for task in self._without_client:
                task.cancel()
            await asyncio.gather(*self._without_client, return_exceptions=True)

    def application(self) -> web.Application:
        """All routes."""
        app = web.Application(client_max_size=BODY_BYTES_MAX)
        router = app.router
        for path, dialect in PATHS.items():
            router.add_post(path, self._generation_handler(dialect))
        router.add_get("/v1/models", self._models)
        router.add_get("/v1/models/{model:.+}", self._model)
        router.add_post("/v1/messages/count_tokens", self._count_tokens)
        router.add_get("/", self._alive)
        router.add_get("/livez", self._alive)
        router.add_post("/_control", self._add_order)
        router.add_delete("/_control", self._clear_orders)
        router.add_get("/_calls", self._calls)
        router.add_get("/_billed", self._billed)
        router.add_post("/_reset", self._reset)
        router.add_get("/v1/organization/costs", self._openai_costs)
        router.add_get("/v1/organizations/cost_report", self._anthropic_costs)
        for prefix in ("", "/v1", "/api/v1"):
            router.add_get(f"{prefix}/generation", self._openrouter_generation)
            router.add_get(f"{prefix}/activity", self._openrouter_activity)
            router.add_get(f"{prefix}/spend/logs", self._litellm_spend_logs)
        router.add_route("*", "/{path:.*}", self._unknown)
        return app

    # -- generations

    def _generation_handler(self, dialect: Dialect) -> Handler:
        async def handle(request: web.Request) -> web.StreamResponse:
            body = await request.read()
            call = self.records.begin(request.path, dialect, request.raw_headers, body)
            try:
                asked = read_request(dialect, body, request.headers.get("Content-Type", ""))
                if not asked.is_directed:
                    asked.behaviour = self._ordered(request.path)
            except (RequestError, BehaviourError) as error:
                self.records.end(call)
                return self._refuse(call, dialect, error)
            return await self._answer(request, call, asked)

        return handle

    async def _answer(self, request: web.Request, call: Call, asked: Asked) -> web.StreamResponse:
        generation = generate(asked)
        self.records.attach(call, generation)
        if asked.behaviour is PLAIN and not asked.stream:
            # The usual answer, without anything that only unusual ones need: it is what benches call.
            generation.produced = generation.whole.output
            call.is_billed, call.status = True, 200
            self.records.end(call)
            headers = answer_headers(asked.dialect, generation.id)
            headers["Content-Type"] = JSON
            return web.Response(body=dumps(WIRES[asked.dialect].document(generation)), headers=headers)
        delivery = Delivery(request, call, generation, drains=self.drains)
        task = asyncio.create_task(self._deliver(delivery, call))
        self._without_client.add(task)
        task.add_done_callback(self._without_client.discard)
        try:
            response = await asyncio.shield(task)
        except asyncio.CancelledError:
            delivery.hang_up()
            raise
        if response is None:
            raise ConnectionResetError("the client hung up")
        return response

    async def _deliver(self, delivery: Delivery, call: Call) -> web.StreamResponse | None:
        try:
            return await delivery.run()
        finally:
            self.records.end(call)

    def _refuse(self, call: Call, dialect: Dialect, error: ValueError) -> web.Response:
        call.status = 400
        param = error.param if isinstance(error, RequestError) else None
        return _json(error_body(dialect, error_object(dialect, 400, str(error), param), f"req_{call.number}"), 400)

    # -- what is not a generation

    async def _alive(self, request: web.Request) -> web.Response:
        return web.Response(text="ok\n")

    async def _unknown(self, request: web.Request) -> web.Response:
        message = f"Invalid URL ({request.method} {request.path})"
        return _json(error_body(None, error_object(None, 400, message), ""), 404)

    async def _models(self, request: web.Request) -> web.Response:
        if "anthropic-version" in request.headers:
            models = [_anthropic_model(name) for name in PRICES]
            ends = {"first_id": models[0]["id"], "last_id": models[-1]["id"]}
            return _json({"data": models, "has_more": False, **ends})
        return _json({"object": "list", "data": [_openai_model(name) for name in PRICES]})

    async def _model(self, request: web.Request) -> web.Response:
        name = request.match_info["model"]
        is_anthropic = "anthropic-version" in request.headers
        if name not in PRICES:
            dialect = Dialect.MESSAGES if is_anthropic else None
            return _json(error_body(dialect, error_object(dialect, 404), "req_models"), 404)
        return _json(_anthropic_model(name) if is_anthropic else _openai_model(name))

    async def _count_tokens(self, request: web.Request) -> web.Response:
        body = await request.read()
        try:
            fields = json.loads(body)
            fields = {"max_tokens": 1, **fields} if isinstance(fields, dict) else fields
            asked = read_request(Dialect.MESSAGES, json.dumps(fields).encode())
        except ValueError as error:
            return _json(error_body(Dialect.MESSAGES, error_object(Dialect.MESSAGES, 400, str(error)), "req_0"), 400)
        return _json({"input_tokens": asked.prompt_tokens})

    # -- control

    def _ordered(self, path: str) -> Behaviour:
        for order in self._orders:
            if order.path in (None, path):
                if order.requests is not None:
                    order.requests -= 1
                    if order.requests == 0:
                        self._orders.remove(order)
                return order.behaviour
        return PLAIN

    def order(self, behaviour: Behaviour, requests: int | None = 1, path: str | None = None) -> None:
        """Let the next requests behave so; `requests` None: all of them, until `clear_orders`."""
        self._orders.append(Order(behaviour, requests, path))

    def clear_orders(self) -> None:
        """Answer plainly again."""
        self._orders.clear()

    async def _add_order(self, request: web.Request) -> web.Response:
        try:
            fields = json.loads(await request.read())
            if not isinstance(fields, dict):
                raise BehaviourError(f"an order is {type(fields).__name__}: expected an object")
            unknown = set(fields) - {"behaviour", "requests", "path"}
            if unknown:
                raise BehaviourError(f"unknown field {min(unknown)!r}; known: behaviour, requests, path")
            requests = fields.get("requests", 1)
            if requests is not None and (isinstance(requests, bool) or not isinstance(requests, int) or requests < 1):
                raise BehaviourError(f"requests is {requests!r}: expected an integer above 0, or null")
            self.order(behaviour_of(fields.get("behaviour")), requests, fields.get("path"))
        except ValueError as error:
            return _json({"error": {"message": str(error)}}, 400)
        return _json({"orders": len(self._orders)})

    async def _clear_orders(self, request: web.Request) -> web.Response:
        self.clear_orders()
        return _json({"orders": 0})

    async def _calls(self, request: web.Request) -> web.Response:
        try:
            after = int(request.query.get("after", "0"))
        except ValueError:
            return _json({"error": {"message": "after: expected an integer"}}, 400)
        return _json({"calls": [call.view() for call in self.records.calls(after)]})

    async def _billed(self, request: web.Request) -> web.Response:
        return _json(self.records.billed_view())

    async def _reset(self, request: web.Request) -> web.Response:
        self.records.clear()
        self.clear_orders()
        return _json({})

    # -- reports

    async def _openai_costs(self, request: web.Request) -> web.Response:
        return _report(None, lambda: reports.openai_costs(self.records, request.query, _groups(request)))

    async def _anthropic_costs(self, request: web.Request) -> web.Response:
        groups = _groups(request)
        return _report(Dialect.MESSAGES, lambda: reports.anthropic_costs(self.records, request.query, groups))

    async def _openrouter_activity(self, request: web.Request) -> web.Response:
        return _report(None, lambda: reports.openrouter_activity(self.records, request.query))

    async def _openrouter_generation(self, request: web.Request) -> web.Response:
        ident = request.query.get("id", "")
        call = self.records.look_up(ident)
        if call is None:
            return _json({"error": {"message": f"Generation {ident} not found", "code": 404}}, 404)
        return _json(reports.openrouter_generation(call))

    async def _litellm_spend_logs(self, request: web.Request) -> web.Response:
        return _report(None, lambda: reports.litellm_spend_logs(self.records, request.query))


def _json(document: Any, status: int = 200) -> web.Response:
    return web.Response(body=dumps(document), status=status, content_type=JSON)


def _report(dialect: Dialect | None, make: Callable[[], Any]) -> web.Response:
    try:
        return _json(make())
    except RequestError as error:
        return _json(error_body(dialect, error_object(dialect, 400, str(error), error.param), "req_report"), 400)


def _groups(request: web.Request) -> frozenset[str]:
    return frozenset([*request.query.getall("group_by", []), *request.query.getall("group_by[]", [])])


def _openai_model(name: str) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": int(RELEASED.timestamp()), "owned_by": "devstack"}


def _anthropic_model(name: str) -> dict[str, Any]:
    released = RELEASED.strftime("%Y-%m-%dT%H:%M:%SZ")
    return {"type": "model", "id": name, "display_name": name, "created_at": released, "lifecycle": "active"}
