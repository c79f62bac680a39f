"""`/api/v1/keys` and `/api/v1/usage`: service keys and what they spent. The account is always the session's."""

from __future__ import annotations

from datetime import timedelta
from enum import StrEnum
from typing import Annotated, Any, Final
from uuid import UUID

from fastapi import APIRouter, Body, Depends, Path, Query, Request, Response

from api import examples
from api.accounts.queries import PAGE_SIZE, PAGE_SIZE_MAX
from api.accounts.routes import POSTED
from api.billing import queries
from api.billing.models import CallPage, KeyPage, NewKeyRequest, RotateRequest
from api.http.accept import CSV, prefers_csv
from api.http.bodies import JsonRoute
from api.http.dependencies import ONE_TURN, ApiServices, RepeatKey, SignedIn, limit_by_account
from api.http.openapi import answered, asked, followed_by
from api.http.problems import CROSS_SITE_REQUEST, INVALID_INPUT, documented
from db.clock import read_clock
from domain.billing.keys import parse_terms
from domain.billing.reports import UsageBy, UsagePeriod
from domain.errors import (
    DatabaseUnavailable,
    IdempotencyKeyReused,
    KeyNotFound,
    KeyNotInForce,
    NotSignedIn,
    RateLimited,
)
from services.billing import keys
from services.billing.keys import NewKey
from services.billing.reports import UsageReport

router = APIRouter(prefix="/api/v1", route_class=JsonRoute)

KeyId = Annotated[UUID, Path(alias="id", description="the key's id, not its secret")]
Limit = Annotated[int, Query(ge=1, le=PAGE_SIZE_MAX, description="rows per page")]

DAY_SCHEMA: Final[dict[str, Any]] = {"format": "date"}


async def _asked_period(
    first_day: Annotated[
        str | None,
        Query(alias="from", description="UTC day; by default 30 days up to `to`", json_schema_extra=DAY_SCHEMA),
    ] = None,
    last_day: Annotated[
        str | None, Query(alias="to", description="UTC day, included; by default today", json_schema_extra=DAY_SCHEMA)
    ] = None,
) -> UsagePeriod:
    return queries.asked_period(first_day, last_day)


AskedPeriod = Annotated[UsagePeriod, Depends(_asked_period)]


class OwnUsageBy(StrEnum):
    """What the rows of an account's report are."""

    KEY = UsageBy.KEY
    MODEL = UsageBy.MODEL
    DAY = UsageBy.DAY
    MEMBER = UsageBy.MEMBER
    ATTRIBUTED = UsageBy.ATTRIBUTED


limit_key_changes = limit_by_account(
    "keys",
    lambda services: services.settings.rate_limits.keys_per_account,
    lambda services: services.settings.rate_limits.keys_per_address,
)


@router.get(
    "/keys",
    tags=["keys"],
    operation_id="listKeys",
    dependencies=[ONE_TURN],
    summary="List the account's service keys",
    responses={
        200: answered("A page of keys.", {"page": examples.KEY_PAGE}),
        **documented(INVALID_INPUT, NotSignedIn, DatabaseUnavailable),
    },
)
async def list_keys(
    session: SignedIn,
    services: ApiServices,
    in_force: Annotated[bool, Query(alias="inForce", description="only those that are accepted")] = False,
    limit: Limit = PAGE_SIZE,
    cursor: Annotated[UUID | None, Query(description="`nextCursor` of the previous page")] = None,
) -> KeyPage:
    """Newest first, page by page, without their secrets."""
    return await queries.read_keys(
        services, session, session.billing_account_id, in_force=in_force, limit=limit, cursor=cursor
    )


@router.post(
    "/keys",
    tags=["keys"],
    operation_id="createKey",
    summary="Make a service key",
    status_code=201,
    responses={
        201: answered(
            "The key, with its secret.",
            {"key": examples.NEW_KEY},
            links=followed_by("rotateKey", "revokeKey", id_from="keyId"),
        ),
        **documented(*POSTED, NotSignedIn, IdempotencyKeyReused, RateLimited),
    },
    dependencies=[Depends(limit_key_changes), ONE_TURN],
)
async def create_key(
    body: Annotated[NewKeyRequest, Body(openapi_examples=asked(limited=examples.KEY_REQUEST))],
    session: SignedIn,
    services: ApiServices,
    idempotency_key: RepeatKey = None,
) -> NewKey:
    """The secret is in this answer and nowhere else: it is not stored.

    A repetition with the same `Idempotency-Key` makes no other key; its answer has no secret.
    """
    async with services.database.transaction(session.user_id) as connection:
        terms = parse_terms(now=await read_clock(connection.connection), **body.model_dump())
        return await keys.create_key(connection, session.billing_account_id, terms, idempotency_key=idempotency_key)


@router.post(
    "/keys/{id}/rotate",
    tags=["keys"],
    operation_id="rotateKey",
    summary="Replace a service key",
    status_code=201,
    responses={
        201: answered(
            "The new key, with its secret.",
            {"key": examples.NEW_KEY},
            links=followed_by("rotateKey", "revokeKey", id_from="keyId"),
        ),
        **documented(*POSTED, NotSignedIn, KeyNotFound, KeyNotInForce, IdempotencyKeyReused, RateLimited),
    },
    dependencies=[Depends(limit_key_changes), ONE_TURN],
)
async def rotate_key(
    key_id: KeyId,
    session: SignedIn,
    services: ApiServices,
    body: Annotated[RotateRequest | None, Body(openapi_examples=asked(atOnce=examples.ROTATE_REQUEST))] = None,
    idempotency_key: RepeatKey = None,
) -> NewKey:
    """The new key has the same label, limits and models, and works at once.

    The old one is accepted for `overlapSeconds` more, an hour by default, and never longer than before.
    """
    overlap = timedelta(seconds=(body or RotateRequest()).overlap_seconds)
    async with services.database.transaction(session.user_id) as connection:
        return await keys.rotate_key(
            connection, session.billing_account_id, key_id, overlap=overlap, idempotency_key=idempotency_key
        )


@router.delete(
    "/keys/{id}",
    tags=["keys"],
    operation_id="revokeKey",
    summary="Revoke a service key",
    status_code=204,
    response_description="The key is refused by every gateway from its next call on.",
    responses=documented(CROSS_SITE_REQUEST, INVALID_INPUT, NotSignedIn, KeyNotFound, RateLimited, DatabaseUnavailable),
    dependencies=[Depends(limit_key_changes), ONE_TURN],
)
async def revoke_key(key_id: KeyId, session: SignedIn, services: ApiServices) -> None:
    """For good. Safe to repeat."""
    async with services.database.transaction(session.user_id) as connection:
        await keys.revoke_key(connection, key_id)


_REPORT: Final = answered("What was spent.", {"byModel": examples.USAGE_REPORT})


@router.get(
    "/usage",
    tags=["usage"],
    operation_id="getUsage",
    dependencies=[ONE_TURN],
    summary="What was spent",
    responses={
        200: _REPORT
        | {"content": {**_REPORT["content"], CSV: {"schema": {"type": "string"}, "examples": examples.USAGE_CSV}}},
        **documented(INVALID_INPUT, NotSignedIn, DatabaseUnavailable),
    },
    response_model=UsageReport,
    response_model_exclude_none=True,
)
async def usage(
    request: Request,
    session: SignedIn,
    services: ApiServices,
    period: AskedPeriod,
    by: OwnUsageBy = OwnUsageBy.DAY,
) -> UsageReport | Response:
    """Sums of at most 366 UTC days, by the day on which calls were booked.

    As CSV with `Accept: text/csv`, in which text that a spreadsheet would run as a formula begins with an apostrophe.
    """
    report = await queries.read_usage(services, session, session.billing_account_id, UsageBy(by), period)
    if prefers_csv(request.headers.get("accept")):
        return csv_answer(report)
    return report


@router.get(
    "/usage/calls",
    tags=["usage"],
    operation_id="listCalls",
    dependencies=[ONE_TURN],
    summary="Recent calls with their receipts",
    responses={
        200: answered("A page of calls.", {"page": examples.CALL_PAGE}),
        **documented(INVALID_INPUT, NotSignedIn, DatabaseUnavailable),
    },
)
async def list_calls(
    session: SignedIn,
    services: ApiServices,
    limit: Limit = PAGE_SIZE,
    cursor: Annotated[str | None, Query(max_length=80, description="`nextCursor` of the previous page")] = None,
) -> CallPage:
    """The last booked first, page by page. A receipt has all that its price is computed from."""
    return await queries.read_calls(services, session, session.billing_account_id, limit=limit, cursor=cursor)


def csv_answer(report: UsageReport) -> Response:
    """A report as a file for spreadsheets."""
    name = f"usage-by-{report.by}-{report.first_day}-{report.last_day}.csv"
    headers = {"Content-Disposition": f'attachment; filename="{name}"'}
    return Response(report.as_csv(), media_type="text/csv; charset=utf-8", headers=headers)
