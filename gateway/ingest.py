"""`POST /internal/billing/ingest`: what an external proxy reports of its calls."""

from __future__ import annotations

import hmac
from collections.abc import Callable, Mapping, Sequence
from decimal import Decimal
from http import HTTPStatus
from typing import Any, Final

from aiohttp import web

from db.engine import TenantDatabase
from domain.billing.exact_json import NotJson
from domain.billing.ingested import read_items
from domain.billing.upstreams import PriceOverride
from domain.errors import DatabaseUnavailable
from services.billing.ingest import Ingest, ItemResult, Outcome

PATH: Final = "/internal/billing/ingest"

_STATUS: Final = {
    Outcome.CHARGED: HTTPStatus.OK,
    Outcome.REPEATED: HTTPStatus.OK,
    Outcome.IGNORED: HTTPStatus.OK,
    Outcome.CONFLICT: HTTPStatus.CONFLICT,
    Outcome.INVALID: HTTPStatus.UNPROCESSABLE_ENTITY,
}


def ingest_routes(
    secret: str | None, *, markup_factor: Decimal, overrides: Mapping[str, PriceOverride]
) -> Callable[[TenantDatabase], Sequence[web.RouteDef]]:
    """The route, for the gateway's database. Without a secret it answers that it is off."""

    def routes(database: TenantDatabase) -> Sequence[web.RouteDef]:
        ingest = Ingest(database, markup_factor=markup_factor, overrides=overrides)

        async def handle(request: web.Request) -> web.Response:
            if secret is None:
                return _refuse(HTTPStatus.SERVICE_UNAVAILABLE, "ingest is off: set BILLING_INGEST_SECRET")
            if not _is_bearer(request.headers.get("Authorization", ""), secret):
                return _refuse(HTTPStatus.UNAUTHORIZED, "expected Authorization: Bearer, with BILLING_INGEST_SECRET")
            try:
                items, is_list = read_items(await request.read())
                results = await ingest.take(items)
            except NotJson as error:
                return _refuse(HTTPStatus.BAD_REQUEST, f"the body is not JSON: {error}")
            except DatabaseUnavailable:
                return _refuse(HTTPStatus.SERVICE_UNAVAILABLE, "the database does not answer: send all of it again")
            return _answer(results, is_list=is_list)

        return [web.post(PATH, handle)]

    return routes


def _is_bearer(header: str, secret: str) -> bool:
    """Compared in constant time, so that the time of the answer does not help to guess the secret."""
    scheme, _, given = header.partition(" ")
    is_same = hmac.compare_digest(given.strip().encode("utf-8", "surrogateescape"), secret.encode())
    return scheme.lower() == "bearer" and is_same


def _answer(results: Sequence[ItemResult], *, is_list: bool) -> web.Response:
    """One result, or one for each item in their order. The status is the items' own; 207 where they differ."""
    statuses = {_STATUS[result.outcome] for result in results} or {HTTPStatus.OK}
    status = statuses.pop() if len(statuses) == 1 else HTTPStatus.MULTI_STATUS
    views = [_view(result) for result in results]
    return web.json_response({"results": views} if is_list else views[0], status=status)


def _view(result: ItemResult) -> dict[str, Any]:
    view: dict[str, Any] = {
        "status": result.outcome.value,
        "reference": result.reference,
        "receiptId": str(result.receipt_id) if result.receipt_id else None,
        "chargedCredits": result.charged_credits,
    }
    if result.outcome is Outcome.CONFLICT:
        view["error"] = "another body was charged under this reference"
    elif result.error is not None:
        view["error"] = result.error
    return view


def _refuse(status: HTTPStatus, message: str) -> web.Response:
    return web.json_response({"error": {"message": message}}, status=status)
