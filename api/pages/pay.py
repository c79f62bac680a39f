"""The page of a charge, `/pay/{id}`: public by its id, and without anything of the account that is paid.

It works without JavaScript; `static/pay.js` adds live progress, the countdown, copying and payment by signature.
"""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Decimal
from typing import Annotated, Any, Final
from uuid import UUID

import segno
from fastapi import APIRouter, Path, Request
from fastapi.responses import Response
from fastapi.responses import StreamingResponse as Streaming
from markupsafe import Markup

from api.deposits.events import charge_events
from api.http.dependencies import ApiServices
from api.http.openapi import Api
from api.http.rate_limits import client_address
from api.http.sse import EventStream
from api.pages.credits import HtmlRoute, network_name, site_of, templates, utc_words
from db.clock import estimated_now
from domain.deposits.charges import Charge, ChargeStatus, DepositState, SignedState
from domain.deposits.payment_uri import payment_uri
from domain.deposits.worth import typeable_raw
from domain.errors import ChargeNotFound
from domain.money import format_token
from domain.payments.finality import FinalityState
from services.deposits.views import ChargeView, DepositView, SignedPaymentView

QUIET_MODULES: Final = 4
"""The white edge that readers of QR codes need."""

STATE_LABELS: Final = {
    ChargeStatus.NEW: "Waiting for payment",
    ChargeStatus.PARTIAL: "Paid in part",
    ChargeStatus.CONFIRMING: "Confirming",
    ChargeStatus.PAID: "Paid",
    ChargeStatus.EXPIRED: "Price expired",
}
DEPOSIT_LABELS: Final = {
    DepositState.CONFIRMING: "confirming",
    DepositState.BELOW_MINIMUM: "too small by itself; it counts when more comes",
    DepositState.WITHOUT_PRICE: "confirmed; it counts as soon as its price is known",
    DepositState.CREDITED: "received",
    DepositState.NOT_CREDITED: "not received",
    DepositState.REVERSED: "reversed by the network",
}

ChargeId = Annotated[str, Path(alias="id")]

router = APIRouter(route_class=HtmlRoute, include_in_schema=False)


@dataclass(frozen=True, slots=True)
class QrCode:
    """A choice of QR code."""

    name: str
    label: str
    text: str
    svg: Markup
    link: str | None = None
    """The same for a wallet on this device."""


def install(app: Api) -> None:
    """Add the page to an app."""
    app.add_routes_of(router)


@router.get("/pay/{id}")
async def show_charge(request: Request, services: ApiServices, charge_id: ChargeId) -> Response:
    """How much to send, where, and what has come so far."""
    site = site_of(services)
    try:
        found = _parse(charge_id)
        owner = await services.charges.owner_of(found)
        # Of the page, not of the account: visitors do not take the places of its own requests.
        async with services.concurrency.place(f"pay:{found}"):
            charge, view = await services.charges.opened(owner, found)
    except ChargeNotFound:
        context: dict[str, Any] = {"site": site}
        return templates.TemplateResponse(request, "pay_not_found.html", context, status_code=404)
    context = {
        "site": site,
        "charge": charge,
        "view": view,
        "network": network_name(charge.method, site),
        "explorer_tx_url": services.settings.explorer_tx_url if charge.method.chain_id == site.chain_id else None,
        "codes": _codes_of(charge, view),
        "state_label": STATE_LABELS[view.status],
        "now": estimated_now(),
        "is_on_its_way": charge.is_payment_on_its_way,
        "can_sign": await services.signed_payments.is_offered(charge),
        "is_open": view.status is not ChargeStatus.PAID and view.missing_raw > 0,
    }
    return templates.TemplateResponse(request, "pay.html", context)


@router.get("/pay/{id}/events", response_class=Streaming)
async def stream_charge(request: Request, services: ApiServices, charge_id: ChargeId) -> Response:
    """The charge's progress as server-sent events, block by block, until it is paid."""
    try:
        found = _parse(charge_id)
        owner = await services.charges.owner_of(found)
        first = await services.charges.charge(owner, found)
    except ChargeNotFound:
        return Response(status_code=404)
    place = services.streams.place(f"pay:{found}", client_address(request))
    return EventStream(charge_events(services, owner, found, first), place)


def _parse(charge_id: str) -> UUID:
    """The id of an address. Raises `ChargeNotFound`."""
    try:
        return UUID(charge_id)
    except ValueError:
        raise ChargeNotFound(charge_id[:40]) from None


def _codes_of(charge: Charge, view: ChargeView) -> list[QrCode]:
    """The address alone first: every wallet and exchange reads it, and an amount only some of them."""
    codes = [QrCode("address", "Address only", charge.address, _draw(charge.address))]
    amount_raw = asked_raw(charge.missing_raw or charge.quoted_amount_raw, view)
    uri = payment_uri(charge.method, charge.address, amount_raw)
    if uri is not None:
        codes.append(QrCode("amount", "Address and amount", uri, _draw(uri), link=uri))
    return codes


def _draw(text: str) -> Markup:
    """A QR code as an SVG of its own size, without a style attribute: the content policy allows none."""
    made = segno.make(text, micro=False, error="m")
    svg = made.svg_inline(omitsize=True, border=QUIET_MODULES, dark="#000", light="#fff", svgclass=None, lineclass=None)
    # Drawn by us from an address and numbers; what a reader of the screen needs is said by the figure around it.
    return Markup(svg.replace("<svg ", '<svg aria-hidden="true" ', 1))  # noqa: S704


def how_a_deposit_stands(deposit: DepositView) -> str:
    """A deposit's state as text."""
    if deposit.state is DepositState.CONFIRMING and deposit.confirmations is not None:
        confirmed = min(deposit.confirmations, deposit.confirmations_needed)
        return f"{confirmed} of {deposit.confirmations_needed} confirmations"
    words = DEPOSIT_LABELS[deposit.state]
    return f"{words}, not final yet" if deposit.finality_state is FinalityState.PENDING else words


def how_a_signature_stands(payment: SignedPaymentView) -> str:
    """What is known of a signed payment, as text. What is not known is not called failed."""
    match payment.state:
        case SignedState.CLAIMED | SignedState.SENT if payment.valid_before <= estimated_now():
            return "signed, and not seen in time; whether it came is being found out"
        case SignedState.CLAIMED:
            return "signed; it is being sent"
        case SignedState.SENT:
            return "signed and sent; waiting for a block to include it"
        case SignedState.SUCCEEDED | SignedState.EXECUTED:
            return "on the network; it is counted here in a moment"
        case SignedState.REVERTED:
            return f"signed, and refused by the token so far; it may still come until {utc_words(payment.valid_before)}"
        case SignedState.EXPIRED:
            return "signed, and expired: it was not paid, and never will be"


def least_confirmed(view: ChargeView) -> DepositView | None:
    """The deposit that the charge waits for longest."""
    waiting = [deposit for deposit in view.deposits if deposit.state is DepositState.CONFIRMING]
    return min(waiting, key=lambda deposit: deposit.confirmations or 0, default=None)


def asked_raw(least_raw: int, view: ChargeView) -> int:
    """What the page asks for, in raw units: of a token with a price an amount that can be typed."""
    return least_raw if view.quote is None else typeable_raw(least_raw)


def price_words(price_usd: str) -> str:
    """A price as people read it: every digit, with thousands set apart."""
    return f"{Decimal(price_usd):,f}"


templates.env.filters |= {
    "asked_of": asked_raw,
    "price": price_words,
    "tokens": format_token,
    "deposit_words": how_a_deposit_stands,
    "signed_words": how_a_signature_stands,
    "least_confirmed": least_confirmed,
}
