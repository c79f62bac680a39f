"""`/api/v1/payments`: intents, submissions, progress, credits. The account is always the session's."""

from __future__ import annotations

from typing import Annotated
from uuid import UUID

from fastapi import APIRouter, Body, Depends, Path, Query, Request
from fastapi.responses import StreamingResponse

from api import examples
from api.accounts.queries import PAGE_SIZE, PAGE_SIZE_MAX, read_attempts, read_summary
from api.accounts.routes import POSTED
from api.http.bodies import JsonRoute
from api.http.dependencies import (
    CALLERS_TURN,
    ONE_TURN,
    ApiServices,
    CallerOfAccount,
    RepeatKey,
    SignedIn,
    limit_by_account,
)
from api.http.openapi import answered, asked, followed_by
from api.http.problems import INVALID_INPUT, documented
from api.http.rate_limits import client_address
from api.http.sse import EventStream, attempt_events
from api.models import AttemptPage, CreditsSummary, IntentRequest, SubmitRequest
from db.accounts.wallets import Payer
from domain.errors import (
    AttemptNotFound,
    DatabaseUnavailable,
    HashInUse,
    IdempotencyKeyReused,
    KeyRefused,
    NotSignedIn,
    PayerRefused,
    RateLimited,
    TemporalUnavailable,
    TooManyReplacements,
    WrongChain,
)
from domain.payments.attempt import OPEN_STATUSES
from starter.models import AttemptView, Intent

router = APIRouter(prefix="/api/v1/payments", tags=["payments"], route_class=JsonRoute)

AttemptId = Annotated[UUID, Path(alias="id", description="the attempt's id, from the intent")]
Limit = Annotated[int, Query(ge=1, le=PAGE_SIZE_MAX, description="rows per page")]
Cursor = Annotated[UUID | None, Query(description="`nextCursor` of the previous page")]

_limit_intents = limit_by_account(
    "intents",
    lambda services: services.settings.rate_limits.intents_per_account,
    lambda services: services.settings.rate_limits.intents_per_address,
)
_limit_submits = limit_by_account(
    "submits",
    lambda services: services.settings.rate_limits.submits_per_account,
    lambda services: services.settings.rate_limits.submits_per_address,
)


@router.post(
    "/intents",
    operation_id="createIntent",
    summary="Create a payment intent",
    status_code=201,
    responses={
        201: answered(
            "What to send, where, and until when.",
            {"intent": examples.INTENT},
            links=followed_by("submitTransaction", "getAttempt", "streamAttempt"),
        ),
        **documented(*POSTED, NotSignedIn, PayerRefused, IdempotencyKeyReused, RateLimited),
    },
    dependencies=[Depends(_limit_intents), ONE_TURN],
)
async def create_intent(
    body: Annotated[
        IntentRequest,
        Body(openapi_examples=asked(purchase=examples.PURCHASE, donation=examples.DONATION)),
    ],
    session: SignedIn,
    services: ApiServices,
    idempotency_key: RepeatKey = None,
) -> Intent:
    """Returns how much of which token to send, to which address, and until when.

    The payment must come from the signed-in wallet, which cannot be the treasury.
    """
    payer = Payer(session.user_id, session.billing_account_id, session.wallet_address)
    return await services.payments.create_intent(
        payer, body.amount_usd_cents, body.purpose, idempotency_key=idempotency_key
    )


@router.post(
    "/attempts/{id}/submit",
    operation_id="submitTransaction",
    summary="Submit the transaction hash",
    status_code=202,
    responses={
        202: answered(
            "The payment's status.",
            {"submitted": examples.SUBMITTED},
            links=followed_by("getAttempt", "streamAttempt"),
        ),
        **documented(
            *POSTED,
            NotSignedIn,
            AttemptNotFound,
            HashInUse,
            TooManyReplacements,
            WrongChain,
            RateLimited,
            TemporalUnavailable,
        ),
    },
    dependencies=[Depends(_limit_submits), ONE_TURN],
)
async def submit(
    attempt_id: AttemptId,
    body: Annotated[SubmitRequest, Body(openapi_examples=asked(transaction=examples.SUBMIT_REQUEST))],
    session: SignedIn,
    services: ApiServices,
    request: Request,
) -> AttemptView:
    """Safe to repeat.

    The answer does not wait for the chain: the hash is recorded and a durable workflow runs. While a payment waits,
    another hash replaces the first. A finished payment, or an expired intent, answers with its result.
    """
    request_id: str = request.scope["state"]["request_id"]
    return await services.payments.submit(session.user_id, attempt_id, body.tx_hash, request_id=request_id)


@router.get(
    "/attempts",
    operation_id="listAttempts",
    dependencies=[ONE_TURN],
    summary="List the account's payments",
    responses={
        200: answered("A page of payments.", {"page": examples.ATTEMPT_PAGE}),
        **documented(INVALID_INPUT, NotSignedIn, DatabaseUnavailable),
    },
)
async def list_attempts(
    session: SignedIn,
    services: ApiServices,
    is_open: Annotated[bool, Query(alias="open", description="only those that are not finished")] = False,
    limit: Limit = PAGE_SIZE,
    cursor: Cursor = None,
) -> AttemptPage:
    """Newest first, page by page."""
    return await read_attempts(
        services, session, statuses=OPEN_STATUSES if is_open else None, limit=limit, cursor=cursor
    )


@router.get(
    "/attempts/{id}",
    operation_id="getAttempt",
    dependencies=[CALLERS_TURN],
    summary="Payment status",
    responses={
        200: answered(
            "The payment's status.",
            {"waiting": examples.WAITING, "credited": examples.CREDITED, "rejected": examples.REJECTED},
        ),
        **documented(INVALID_INPUT, NotSignedIn, KeyRefused, AttemptNotFound, DatabaseUnavailable),
    },
)
async def attempt(attempt_id: AttemptId, caller: CallerOfAccount, services: ApiServices) -> AttemptView:
    """Includes the confirmations so far and required, while the payment waits for the chain."""
    # A person sees the payments of all accounts that are theirs, a program those of its key's.
    only = None if caller.key_id is None else caller.billing_account_id
    return await services.payments.status(caller.user_id, attempt_id, only_account=only)


@router.get(
    "/attempts/{id}/events",
    operation_id="streamAttempt",
    summary="Payment status as events",
    response_class=StreamingResponse,
    responses={
        200: answered(
            "An event `status` immediately and after every change; the last one is final. `data` is an `AttemptView`.",
            {"waiting": examples.EVENT},
            media_type="text/event-stream",
            schema={"type": "string"},
        ),
        **documented(INVALID_INPUT, NotSignedIn, AttemptNotFound, RateLimited, DatabaseUnavailable),
    },
)
async def events(attempt_id: AttemptId, session: SignedIn, services: ApiServices, request: Request) -> EventStream:
    """The payment's status as server-sent events, block by block, until it is finished."""
    first = await services.payments.status(session.user_id, attempt_id)
    place = services.streams.place(session.billing_account_id, client_address(request))
    return EventStream(attempt_events(services, request, session, attempt_id, first), place)


@router.get(
    "/credits/summary",
    operation_id="getCreditsSummary",
    dependencies=[ONE_TURN],
    summary="Balance and ledger",
    responses={
        200: answered("The balance, and a page of the ledger.", {"summary": examples.SUMMARY}),
        **documented(INVALID_INPUT, NotSignedIn, DatabaseUnavailable),
    },
)
async def credits_summary(
    session: SignedIn, services: ApiServices, limit: Limit = PAGE_SIZE, cursor: Cursor = None
) -> CreditsSummary:
    """The account's balance and ledger rows, newest first."""
    return await read_summary(services, session, limit=limit, cursor=cursor)
