"""`POST /api/v1/payments/topups`: credits for a signature (EIP-3009), by x402 or by a page. For sessions and programs.

Without a signature the answer is 402 and says what to sign. With one it never is again: the signature is claimed, and
broadcast by the relay, whatever becomes of this request.
"""

from __future__ import annotations

import asyncio
import re
from typing import Annotated, Any, Final
from uuid import UUID

from fastapi import APIRouter, Body, Depends, Header, Query, Request, Response
from fastapi.responses import JSONResponse

from api import examples
from api.accounts.callers import Caller
from api.accounts.routes import POSTED
from api.http.bodies import JsonRoute
from api.http.dependencies import ApiServices, CallerOfAccount, Services, limit_by_caller
from api.http.openapi import answered, asked, followed_by
from api.http.problems import documented
from api.models import IntentRequest, TopUpOffer
from db.clock import estimated_now
from domain.errors import (
    AttemptNotFound,
    AuthorizationInUse,
    AuthorizationRefused,
    ChainUnavailable,
    InvalidInput,
    KeyRefused,
    NotSignedIn,
    PayerRefused,
    RateLimited,
)
from domain.payments import x402
from domain.payments.attempt import AttemptStatus
from domain.payments.authorizations import SIGNING_TIME, typed_data
from services.answers import ResponseModel
from services.payments.topups import Offer, Payee, check_same_request
from starter.models import AttemptView

WAIT_SECONDS: Final = 3.0
"""How long an answer waits for the payment to be confirmed: less than clients wait for an answer, which is 5 s."""

WAIT_SECONDS_MAX: Final = 20.0
"""The same where the request asks for it (`Prefer: wait=20`, RFC 7240)."""

POLL_SECONDS: Final = 0.25

_WAIT: Final = re.compile(r"(?:^|[,;]\s*)wait=(\d{1,3})(?:$|[,;\s])", re.ASCII)
_EXPOSED: Final = f"{x402.PAYMENT_REQUIRED}, {x402.PAYMENT_RESPONSE}"

router = APIRouter(prefix="/api/v1/payments", tags=["payments"], route_class=JsonRoute)

_limit_topups = limit_by_caller(
    "topups",
    lambda services: services.settings.rate_limits.topups_per_account,
    lambda services: services.settings.rate_limits.topups_per_address,
)

Signature = Annotated[
    str | None,
    Header(
        alias=x402.PAYMENT_SIGNATURE,
        description="x402, version 2: the signed payment, JSON in Base64. Its resource names the attempt.",
    ),
]
Named = Annotated[
    UUID | None, Query(alias=x402.ATTEMPT_PARAMETER, description="the attempt of an earlier offer; else a new one")
]


@router.post(
    "/topups",
    operation_id="topUp",
    summary="Buy credits with a signature",
    response_model=AttemptView,
    responses={
        200: answered(
            "The payment is credited.",
            {"credited": examples.CREDITED},
            headers={x402.PAYMENT_RESPONSE: examples.BASE64_HEADER},
            links=followed_by("getAttempt"),
        ),
        202: answered(
            "The signature is claimed and is, or will be, broadcast. The same request again gives the same payment.",
            {"waiting": examples.TOP_UP_WAITING},
            headers={x402.PAYMENT_RESPONSE: examples.BASE64_HEADER},
            links=followed_by("getAttempt"),
            schema={"$ref": "#/components/schemas/AttemptView"},
        ),
        402: answered(
            "What to sign: for x402 in the header, for a wallet (`eth_signTypedData_v4`) in the body.",
            {"offer": examples.TOP_UP_OFFER},
            headers={x402.PAYMENT_REQUIRED: examples.BASE64_HEADER},
        )
        | {"model": TopUpOffer},
        **documented(
            *POSTED,
            NotSignedIn,
            KeyRefused,
            AttemptNotFound,
            AuthorizationRefused,
            AuthorizationInUse,
            PayerRefused,
            RateLimited,
            ChainUnavailable,
        ),
    },
    dependencies=[Depends(_limit_topups)],
)
async def top_up(
    body: Annotated[
        IntentRequest, Body(openapi_examples=asked(purchase=examples.PURCHASE, donation=examples.DONATION))
    ],
    caller: CallerOfAccount,
    services: ApiServices,
    request: Request,
    *,
    signature: Signature = None,
    attempt_id: Named = None,
) -> Response:
    """Any wallet may sign, it pays no gas, and it does not matter who broadcasts what it has signed.

    Where the payment takes longer than a few seconds the answer is 202; `Prefer: wait=20` waits longer.
    """
    payee = Payee(caller.user_id, caller.billing_account_id)
    async with services.concurrency.place(caller.billing_account_id):
        if signature is None:
            return await _offer(services, payee, body, attempt_id)
        claim = x402.read_payment_signature(signature)
        named = claim.attempt_id or attempt_id
        if named is None:
            raise InvalidInput(
                x402.PAYMENT_SIGNATURE, "its resource names no attempt: expected the address of the offer"
            )
        offer = await services.topups.find(payee, named)
        check_same_request(offer.attempt, body.amount_usd_cents, body.purpose)
        x402.check_accepted(claim, offer.price)
        await services.topups.claim(offer, claim.signed)
    return await _settled(services, caller, offer, wait_seconds=wait_of(request, WAIT_SECONDS))


async def _offer(services: Services, payee: Payee, body: IntentRequest, attempt_id: UUID | None) -> Response:
    """402 with what to sign; of an attempt that is claimed already, where it stands."""
    if attempt_id is None:
        offer = await services.topups.offer(payee, body.amount_usd_cents, body.purpose)
    else:
        offer = await services.topups.find(payee, attempt_id)
        check_same_request(offer.attempt, body.amount_usd_cents, body.purpose)
        if offer.attempt.is_claimed:
            return await _answer(services, payee, offer)
        if offer.attempt.status is not AttemptStatus.CREATED_INTENT:
            raise AuthorizationRefused("the offer has expired: ask for a new one")
    resource = x402.resource_url(f"{services.settings.origin}{x402.TOP_UP_PATH}", offer.attempt.id)
    description = f"Credits for {offer.attempt.amount_usd_cents} US cents"
    required = x402.payment_required(offer.price, offer.domain, resource=resource, description=description)
    expires_at = offer.attempt.expires_at
    assert expires_at is not None, "an open intent has an expiry"
    valid_before = int((estimated_now() + SIGNING_TIME).timestamp())
    shown = TopUpOffer(
        attempt_id=offer.attempt.id,
        authorization=typed_data(offer.price, offer.domain, nonce=offer.own_nonce, valid_before=valid_before),
        expires_at=expires_at,
        **signing_terms(required),
    )
    return with_x402(402, shown, x402.PAYMENT_REQUIRED, required)


async def _settled(services: Services, caller: Caller, offer: Offer, *, wait_seconds: float) -> Response:
    """The answer as soon as the payment has ended, or when the time is up."""
    payee = Payee(caller.user_id, caller.billing_account_id)
    loop = asyncio.get_running_loop()
    until = loop.time() + wait_seconds
    while True:
        found = await services.topups.find(payee, offer.attempt.id)
        if found.attempt.is_final or loop.time() >= until or services.stopping.is_set():
            return await _answer(services, payee, found)
        await asyncio.sleep(POLL_SECONDS)


async def _answer(services: Services, payee: Payee, offer: Offer) -> Response:
    """200 where it is credited, else 202. Raises `AuthorizationInUse` where it has ended without credits."""
    attempt = offer.attempt
    if attempt.is_final and attempt.status is not AttemptStatus.CREDITED:
        code = attempt.error_code.value if attempt.error_code else attempt.status.value
        raise AuthorizationInUse(f"payment {attempt.id} has ended {attempt.status.value} ({code}): ask for a new offer")
    view = await services.payments.with_progress(attempt)
    if view.tx_hash is None:
        view = view.model_copy(update={"tx_hash": await services.topups.relayed_hash(payee, attempt.id)})
    is_credited = attempt.status is AttemptStatus.CREDITED
    response = x402.payment_response(
        chain_id=attempt.chain_id,
        payer=attempt.from_address,
        amount_raw=attempt.amount_raw,
        tx_hash=view.tx_hash,
        is_settled=is_credited,
    )
    return with_x402(200 if is_credited else 202, view, x402.PAYMENT_RESPONSE, response)


def signing_terms(required: dict[str, Any]) -> dict[str, Any]:
    """What `PAYMENT-REQUIRED` says, as fields of a `SigningOffer`."""
    return {
        "x402_version": required["x402Version"],
        "error": required["error"],
        "resource": required["resource"],
        "accepts": required["accepts"],
    }


def with_x402(status: int, shown: ResponseModel, header: str, content: dict[str, Any]) -> JSONResponse:
    """An answer with a header of x402, which scripts of any page may read."""
    headers = {header: x402.as_header(content), "Access-Control-Expose-Headers": _EXPOSED}
    return JSONResponse(shown.model_dump(mode="json", by_alias=True), status, headers)


def wait_of(request: Request, otherwise_seconds: float) -> float:
    """How long the request asks to wait for the end of its payment, in seconds."""
    found = _WAIT.search(request.headers.get("prefer", ""))
    return otherwise_seconds if found is None else min(float(found[1]), WAIT_SECONDS_MAX)
