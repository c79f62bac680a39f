"""`/api/v1/payment-methods`, `/api/v1/deposit-address`, `/api/v1/charges`: by session, or by service key."""

from __future__ import annotations

from typing import Annotated
from uuid import UUID

from fastapi import APIRouter, Body, Depends, Path

from api import examples
from api.accounts.routes import POSTED
from api.deposits.models import ChargeRequest, DepositAddressRequest
from api.http.bodies import JsonRoute
from api.http.dependencies import CALLERS_TURN, ApiServices, CallerOfAccount, ChargeKey, limit_by_caller
from api.http.openapi import answered, asked, followed_by
from api.http.problems import INVALID_INPUT, documented
from domain.errors import (
    AddressBudgetExhausted,
    ChargeNotFound,
    DatabaseUnavailable,
    KeyRefused,
    MethodDisabled,
    MethodNotFound,
    NotSignedIn,
    PriceUnavailable,
    RateLimited,
    RequestOfKeyDiffers,
)
from services.deposits.views import ChargeView, DepositAddressView, MethodList

router = APIRouter(prefix="/api/v1", tags=["deposits"], route_class=JsonRoute)

ChargeId = Annotated[UUID, Path(alias="id", description="the charge's id")]

limit_charges = limit_by_caller(
    "charges",
    lambda services: services.settings.rate_limits.charges_per_account,
    lambda services: services.settings.rate_limits.charges_per_address,
)


@router.get(
    "/payment-methods",
    operation_id="listPaymentMethods",
    dependencies=[CALLERS_TURN],
    summary="Ways to pay",
    responses={
        200: answered("The methods that take new charges.", {"usdc": examples.METHODS}),
        **documented(NotSignedIn, KeyRefused, DatabaseUnavailable),
    },
)
async def list_payment_methods(caller: CallerOfAccount, services: ApiServices) -> MethodList:
    """The tokens, and their chains, that can be sent to a deposit address."""
    return await services.charges.list_methods(caller.user_id)


@router.post(
    "/deposit-address",
    operation_id="getDepositAddress",
    summary="The account's own address",
    responses={
        200: answered("The address, the same at each call.", {"usdc": examples.DEPOSIT_ADDRESS}),
        **documented(
            *POSTED, NotSignedIn, KeyRefused, MethodNotFound, MethodDisabled, AddressBudgetExhausted, RateLimited
        ),
    },
    dependencies=[Depends(limit_charges), CALLERS_TURN],
)
async def deposit_address(
    body: Annotated[DepositAddressRequest, Body(openapi_examples=asked(usdc=examples.DEPOSIT_ADDRESS_REQUEST))],
    caller: CallerOfAccount,
    services: ApiServices,
) -> DepositAddressView:
    """Everything of the method's token that is ever sent to it, from wherever, is credited to the account.

    It belongs to the account for good, and each transfer is credited by itself for what it is worth.
    """
    return await services.charges.deposit_address(caller, body.method)


@router.post(
    "/charges",
    operation_id="createCharge",
    summary="Make a charge",
    status_code=201,
    responses={
        201: answered(
            "What to send, where, and until when it has this price.",
            {"charge": examples.NEW_CHARGE},
            links=followed_by("getCharge", id_from="chargeId"),
        ),
        **documented(
            *POSTED,
            NotSignedIn,
            KeyRefused,
            MethodNotFound,
            MethodDisabled,
            RequestOfKeyDiffers,
            AddressBudgetExhausted,
            PriceUnavailable,
            RateLimited,
        ),
    },
    dependencies=[Depends(limit_charges), CALLERS_TURN],
)
async def create_charge(
    body: Annotated[ChargeRequest, Body(openapi_examples=asked(order=examples.CHARGE_REQUEST))],
    caller: CallerOfAccount,
    services: ApiServices,
    idempotency_key: ChargeKey = None,
) -> ChargeView:
    """A quote, an address of its own, and at `payUrl` a page for the payer, who may pay from an exchange or any wallet.

    What comes is credited to the account for what it is worth, whether it is short, over or late.
    """
    return await services.charges.create_charge(
        caller, body.method, body.amount_usd_cents, body.metadata, idempotency_key=idempotency_key
    )


@router.get(
    "/charges/{id}",
    operation_id="getCharge",
    dependencies=[CALLERS_TURN],
    summary="How a charge stands",
    responses={
        200: answered("The charge.", {"partial": examples.PARTIAL_CHARGE}),
        **documented(INVALID_INPUT, NotSignedIn, KeyRefused, ChargeNotFound, DatabaseUnavailable),
    },
)
async def get_charge(charge_id: ChargeId, caller: CallerOfAccount, services: ApiServices) -> ChargeView:
    """With what has come to its address, and the credits that the account has got for it."""
    return await services.charges.charge(caller, charge_id)
