"""`POST /api/v1/charges/{id}/pay`: a charge paid by signature, by a page or over x402. Public by the charge's id.

Without a signature the answer is 402 and says what to sign, as long as something is missing and nothing is on its way.
With one it never is: the signature is kept, and broadcast by the relay, whatever becomes of this request.
"""

from __future__ import annotations

import asyncio
from typing import Annotated
from uuid import UUID

from fastapi import APIRouter, Depends, Path, Request, Response

from api import examples
from api.deposits.models import ChargeOffer, ChargePayment
from api.http.bodies import JsonRoute
from api.http.dependencies import ApiServices, Services, limit_by_page
from api.http.openapi import answered
from api.http.problems import INVALID_INPUT, documented
from api.payments.topups import POLL_SECONDS, Signature, signing_terms, wait_of, with_x402
from db.clock import estimated_now
from domain.deposits.charges import Charge, ChargeStatus, DepositState, SignedPayment, SignedState
from domain.errors import (
    AuthorizationInUse,
    AuthorizationRefused,
    ChainUnavailable,
    ChargeNotFound,
    PayerRefused,
    RateLimited,
)
from domain.money import format_token
from domain.payments import x402
from domain.payments.authorizations import SIGNING_TIME, SignedAuthorization, typed_data
from services.deposits.charges import Owner
from services.deposits.signed_payments import find_signed
from services.deposits.views import ChargeView

router = APIRouter(prefix="/api/v1", tags=["deposits"], route_class=JsonRoute)

_limit_payers = limit_by_page(
    "charge-payments",
    lambda services: services.settings.rate_limits.topups_per_account,
    lambda services: services.settings.rate_limits.topups_per_address,
)

_RESPONSE = {x402.PAYMENT_RESPONSE: examples.BASE64_HEADER}


@router.post(
    "/charges/{id}/pay",
    operation_id="payCharge",
    summary="Pay a charge with a signature",
    response_model=ChargePayment,
    responses={
        200: answered("The charge is paid.", {"paid": examples.CHARGE_PAID}, headers=_RESPONSE),
        202: answered(
            "What was signed is kept and is, or will be, broadcast. The same request again gives the same answer.",
            {"sent": examples.CHARGE_PAYMENT_SENT},
            headers=_RESPONSE,
            schema={"$ref": "#/components/schemas/ChargePayment"},
        ),
        402: answered(
            "What to sign: for x402 in the header, for a wallet (`eth_signTypedData_v4`) in the body.",
            {"offer": examples.CHARGE_OFFER},
            headers={x402.PAYMENT_REQUIRED: examples.BASE64_HEADER},
        )
        | {"model": ChargeOffer},
        **documented(
            INVALID_INPUT,
            ChargeNotFound,
            AuthorizationRefused,
            AuthorizationInUse,
            PayerRefused,
            RateLimited,
            ChainUnavailable,
        ),
    },
    dependencies=[Depends(_limit_payers)],
)
async def pay_charge(
    charge_id: Annotated[UUID, Path(alias="id", description="the charge's id")],
    services: ApiServices,
    request: Request,
    *,
    signature: Signature = None,
) -> Response:
    """Anyone who has the charge's id may pay it, without an account and without gas.

    What is signed goes to the charge's address and is credited as what arrives there is.
    """
    owner = await services.charges.owner_of(charge_id)
    signed: SignedAuthorization | None = None
    # Of the page, not of the account: visitors do not take the places of its own requests.
    async with services.concurrency.place(f"pay:{charge_id}"):
        charge, _ = await services.charges.opened(owner, charge_id)
        if signature is None:
            if _is_open(charge):
                return await _offer(services, charge)
        else:
            signed = await _claimed(services, owner, charge, signature)
    return await _settled(services, owner, charge_id, signed, wait_seconds=wait_of(request, 0.0))


def _is_open(charge: Charge) -> bool:
    return charge.missing_raw > 0 and not charge.is_payment_on_its_way


def _resource(services: Services, charge: Charge) -> str:
    return f"{services.settings.origin}/api/v1/charges/{charge.id}/pay"


async def _offer(services: Services, charge: Charge) -> Response:
    terms = await services.signed_payments.terms(charge)
    amount = format_token(terms.price.amount_raw, charge.method.decimals)
    description = f"{amount} {charge.method.token} to {services.settings.platform_name}"
    required = x402.payment_required(
        terms.price, terms.domain, resource=_resource(services, charge), description=description
    )
    message = typed_data(
        terms.price,
        terms.domain,
        nonce=terms.nonce,
        valid_before=int((estimated_now() + SIGNING_TIME).timestamp()),
    )
    offer = ChargeOffer(charge_id=charge.id, authorization=message, **signing_terms(required))
    return with_x402(402, offer, x402.PAYMENT_REQUIRED, required)


async def _claimed(services: Services, owner: Owner, charge: Charge, header: str) -> SignedAuthorization:
    """What was signed, kept for the charge; what is kept already is not checked again."""
    claim = x402.read_payment_signature(header)
    if find_signed(charge, claim.signed) is None:
        terms = await services.signed_payments.terms(charge)
        x402.check_accepted(claim, terms.price)
        await services.signed_payments.claim(owner, charge, terms, claim.signed)
    return claim.signed


async def _settled(
    services: Services, owner: Owner, charge_id: UUID, signed: SignedAuthorization | None, *, wait_seconds: float
) -> Response:
    """The answer as soon as the payment is credited, or when the time is up."""
    loop = asyncio.get_running_loop()
    until = loop.time() + wait_seconds
    while True:
        charge, view = await services.charges.opened(owner, charge_id)
        payment = None if signed is None else find_signed(charge, signed)
        if payment is not None and payment.state is SignedState.EXPIRED:
            raise AuthorizationInUse("it has expired without being executed, and never can be: ask for new terms")
        is_settled = _is_credited(view, payment) if payment else view.status is ChargeStatus.PAID
        if is_settled or loop.time() >= until or services.stopping.is_set():
            return _answer(charge, view, payment, is_settled=is_settled)
        await asyncio.sleep(POLL_SECONDS)


def _is_credited(view: ChargeView, payment: SignedPayment) -> bool:
    return any(
        deposit.state is DepositState.CREDITED and deposit.tx_hash == payment.tx_hash for deposit in view.deposits
    )


def _answer(charge: Charge, view: ChargeView, payment: SignedPayment | None, *, is_settled: bool) -> Response:
    last = view.deposits[0] if view.deposits else None
    response = x402.payment_response(
        chain_id=charge.method.chain_id,
        payer=payment.payer if payment else (last.from_address or "") if last else "",
        amount_raw=payment.value_raw if payment else view.received_raw,
        tx_hash=payment.tx_hash if payment else last.tx_hash if last else None,
        is_settled=is_settled,
    )
    shown = ChargePayment.of(view, payment)
    return with_x402(200 if is_settled else 202, shown, x402.PAYMENT_RESPONSE, response)
