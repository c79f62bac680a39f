"""The Credits page. It works without JavaScript, except for the wallet: see `static/credits.js`."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, Final, assert_never
from urllib.parse import parse_qs, urlsplit
from uuid import UUID

import structlog
from fastapi import APIRouter, Query, Request
from fastapi.responses import RedirectResponse, Response
from fastapi.routing import APIRoute
from fastapi.templating import Jinja2Templates

from api.accounts.callers import Caller
from api.accounts.queries import read_attempts, read_summary
from api.accounts.sessions import sign_out
from api.deposits.routes import limit_charges
from api.http.dependencies import ApiServices, OptionalSession, Services, Session
from api.http.openapi import Api
from api.pages.static_files import FingerprintedFiles, address_of
from db.clock import estimated_now
from domain.deposits.methods import MethodKind, PaymentMethod
from domain.errors import Refusal, Unavailable
from domain.ledger.entries import USAGE_REASON, Reason
from domain.money import credits_for_usd_cents, format_usd, usd_cents_for_credits
from domain.payments.attempt import (
    FINAL_STATUSES,
    KEEP_THE_REFERENCE,
    OPEN_STATUSES,
    AttemptKind,
    AttemptStatus,
    ErrorCode,
    Purpose,
)
from domain.utxo import UTXO_CHAINS
from starter.models import AttemptView

log = structlog.get_logger(__name__)

FOLDER: Final = Path(__file__).parents[1]

STATIC_FILES: Final = (
    "charts.css",
    "credits.css",
    "credits.js",
    "favicon.svg",
    "pay.css",
    "pay.js",
    "usage.css",
    "usage.js",
)

PRESETS_USD_CENTS: Final = (1_000, 2_500, 5_000, 10_000)
CHOSEN_AT_FIRST_USD_CENTS: Final = 2_500
LEDGER_PAGE_ROWS: Final = 20
WAITING_PAYMENTS_MAX: Final = 20
UNPAID: Final = frozenset({AttemptStatus.CREATED_INTENT})
WAITING: Final = OPEN_STATUSES - UNPAID
UNPAID_PAYMENTS_MAX: Final = 5
ENDED: Final = FINAL_STATUSES
RECENT_PAYMENTS: Final = 10
CURSORS_KEPT: Final = 20
"""How many pages "Newer" can go back: each page's address carries the positions of the ones before."""

LOOPBACK: Final = frozenset({"localhost", "127.0.0.1", "::1"})

PAGE_SECONDS_MAX: Final = 15.0
"""Time limit of a page, below the limit of all requests, so that users get a page instead of a problem document."""

RETRY_AFTER_SECONDS: Final = "5"

REASON_LABELS: Final[Mapping[str, str]] = {
    Reason.CREDITS_PURCHASE: "Credits bought",
    Reason.PLATFORM_REVENUE_SHARE: "Share of a purchase",
    Reason.SYSTEM_DONATION: "Donation received",
    Reason.PAYMENT_REVERSAL: "Payment reversed",
    Reason.OPERATOR_CREDIT: "Payment credited by support",
    USAGE_REASON: "Call to a model",
}

REVERSED_IN_WORDS: Final = (
    "It was credited, then the network dropped the transaction, and the credits were reversed. If your wallet shows "
    "it as done, write to support with the reference below."
)


class HtmlRoute(APIRoute):
    """A route for browsers: an unavailable dependency is reported as a page, not as a problem document."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """The handler, including errors of its dependencies."""
        handle = super().get_route_handler()

        async def handle_for_a_person(request: Request) -> Response:
            try:
                async with asyncio.timeout(PAGE_SECONDS_MAX):
                    return await handle(request)
            except (Unavailable, TimeoutError) as error:
                reason = error.message if isinstance(error, Unavailable) else f"no answer within {PAGE_SECONDS_MAX:g} s"
                log.warning("dependency unavailable", reason=reason)
                headers = {"Retry-After": RETRY_AFTER_SECONDS}
                return templates.TemplateResponse(request, "unavailable.html", status_code=503, headers=headers)

        return handle_for_a_person


router = APIRouter(route_class=HtmlRoute, include_in_schema=False)


def install(app: Api) -> None:
    """Add the pages and their static files to an app."""
    app.add_routes_of(router)
    app.mount("/static", FingerprintedFiles(), name="static")


@router.get("/")
async def go_to_the_page() -> Response:
    """Redirect to the only page."""
    return RedirectResponse("/credits", status_code=307)


@router.get("/credits")
async def show_credits(
    request: Request,
    services: ApiServices,
    session: OptionalSession,
    cursor: Annotated[list[str] | None, Query()] = None,
) -> Response:
    """Balance, both ways to pay, payments and ledger; without a session, an introduction and how to sign in.

    `cursor` is repeated: the last one is the current page, the ones before lead back to the newest.
    """
    if _goes_by_another_name(request, services.settings.origin):
        return RedirectResponse(f"{services.settings.origin}/credits", status_code=307)
    context: dict[str, Any] = {"site": site_of(services)}
    if session is None:
        return templates.TemplateResponse(request, "signed_out.html", context)
    try:
        cursors = [UUID(step) for step in (cursor or [])[-CURSORS_KEPT:]]
    except ValueError:
        return RedirectResponse("/credits", status_code=303)
    before = cursors[-1] if cursors else None
    async with services.concurrency.place(session.billing_account_id):
        context |= {
            "session": session,
            "is_operator": session.wallet_address in services.settings.operator_wallets,
            "cursors": cursors,
            # Payments are read first, so that the balance includes every payment shown as credited.
            "payments": await _shown_payments(services, session),
            "deposits": await services.charges.deposits(session, limit=WAITING_PAYMENTS_MAX),
            "can_sign": await services.topups.is_relayed(),
            "summary": await read_summary(services, session, limit=LEDGER_PAGE_ROWS, cursor=before),
        }
    return templates.TemplateResponse(request, "credits.html", context)


def _goes_by_another_name(request: Request, origin: str) -> bool:
    """Whether the request's host is another name of this machine (`localhost` or 127.0.0.1) than the sign-in message
    has.

    Wallets warn about a message for another site. Other hosts' names are not redirected: a proxy may have its own for
    us.
    """
    host, home = request.url, urlsplit(origin)
    return host.hostname != home.hostname and {host.hostname, home.hostname} <= LOOPBACK and host.port == home.port


async def _shown_payments(services: Services, session: Session) -> list[AttemptView]:
    """All that wait for the chain and the latest of the others, newest first."""
    waiting = await read_attempts(services, session, statuses=WAITING, limit=WAITING_PAYMENTS_MAX)
    unpaid = await read_attempts(services, session, statuses=UNPAID, limit=UNPAID_PAYMENTS_MAX)
    recent = await read_attempts(services, session, statuses=ENDED, limit=RECENT_PAYMENTS)
    # A payment that changes between two reads is in both: the later read wins.
    found = {found.attempt_id: found for found in [*unpaid.attempts, *waiting.attempts, *recent.attempts]}
    shown = (attempt for attempt in found.values() if not _was_never_paid(attempt))
    return sorted(shown, key=lambda attempt: attempt.created_at, reverse=True)


@router.post("/credits/address")
async def give_address_by_form(request: Request, services: ApiServices, session: OptionalSession) -> Response:
    """The account's own address for a method, from now on on the page. Whatever is refused, the page says how it is."""
    if session is not None:
        caller = Caller.of_session(session)
        # More fields than the form has are a ValueError.
        with suppress(Refusal, ValueError):
            [method] = parse_qs((await request.body()).decode(errors="replace"), max_num_fields=1).get("method", [])
            await limit_charges(request, services, caller)
            await services.charges.deposit_address(caller, method)
    return RedirectResponse("/credits#exchange", status_code=303)


@router.post("/credits/sign-out")
async def sign_out_by_form(request: Request, services: ApiServices) -> Response:
    """Sign out without JavaScript."""
    answer = RedirectResponse("/credits", status_code=303)
    await sign_out(services, request, answer)
    return answer


@dataclass(frozen=True, slots=True)
class Site:
    """Page context: the service's name and addresses, and the chain's parameters for the wallet."""

    name: str
    chain_id: int
    chain_name: str
    token: str
    min_cents: int
    max_cents: int
    explorer_tx_url: str
    public_rpc_url: str
    presets: tuple[int, ...]
    chosen_cents: int | None


def site_of(services: Services) -> Site:
    """The context that every page of the site has."""
    settings = services.settings
    presets = tuple(
        cents
        for cents in PRESETS_USD_CENTS
        if settings.payment_min_usd_cents <= cents <= settings.payment_max_usd_cents
    )
    first = CHOSEN_AT_FIRST_USD_CENTS
    return Site(
        name=settings.platform_name,
        chain_id=settings.chain_id,
        chain_name=settings.chain_name,
        token=settings.usdc_token_address,
        min_cents=settings.payment_min_usd_cents,
        max_cents=settings.payment_max_usd_cents,
        explorer_tx_url=settings.explorer_tx_url or "",
        public_rpc_url=settings.public_rpc_url or "",
        presets=presets,
        chosen_cents=first if first in presets else next(iter(presets), None),
    )


def _was_never_paid(attempt: AttemptView) -> bool:
    """An unpaid intent is not shown once it has expired; one that was to be signed and was not, never."""
    if attempt.kind is AttemptKind.AUTHORIZATION and not attempt.signed:
        return True
    return attempt.error_code == ErrorCode.INTENT_EXPIRED and attempt.tx_hash is None


# -- formatting for the templates


def worth_in_usd(credits: int) -> str:
    """Dollar value of credits in whole cents, rounded down."""
    return format_usd(usd_cents_for_credits(credits))


def with_thousands(number: int) -> str:
    """`1,000,000`."""
    return f"{number:,}"


def signed(number: int) -> str:
    """`+1,000` or `−1,000`."""
    return f"+{number:,}" if number > 0 else f"−{-number:,}" if number < 0 else "0"


def readable(number: int) -> str:
    """`1,000` or `−1,000`: the minus of typography is as wide as a digit."""
    return f"−{-number:,}" if number < 0 else f"{number:,}"


def worth_in_dollars(credits: int) -> str:
    """`$1,234.50` or `−$0.25`: the same as `worth_in_usd`, with the sign before the currency."""
    return f"{'−' if credits < 0 else ''}${worth_in_usd(abs(credits))}"


def in_words(reason: str) -> str:
    """Label of a ledger reason."""
    return REASON_LABELS.get(reason) or reason.replace("_", " ").capitalize()


def shortened(text: str) -> str:
    """`0x1234…abcd`, for addresses and hashes."""
    return f"{text[:6]}…{text[-4:]}" if len(text) > 14 else text


def utc_words(moment: datetime) -> str:
    """For browsers that do not convert it to their own time zone."""
    return f"{moment.astimezone(UTC):%Y-%m-%d %H:%M} UTC"


def network_name(method: PaymentMethod, site: Site) -> str:
    """A method's network as wallets and exchanges call it: a chain's name, else the word of the method's id."""
    if method.chain_id in UTXO_CHAINS:
        return UTXO_CHAINS[method.chain_id].name
    if method.chain_id == site.chain_id and method.kind is not MethodKind.UTXO:
        return site.chain_name
    return method.id.partition(":")[2].replace("-", " ").replace("_", " ").capitalize()


def payment_state(attempt: AttemptView) -> str:
    """State of a payment in templates and CSS: unpaid, expired, pending, credited or failed."""
    match attempt.status:
        case AttemptStatus.CREATED_INTENT if attempt.kind is AttemptKind.DEPOSIT or attempt.signed:
            return "pending"
        case AttemptStatus.CREATED_INTENT if attempt.expires_at and attempt.expires_at <= estimated_now():
            return "expired"
        case AttemptStatus.FAILED if attempt.error_code is ErrorCode.INTENT_EXPIRED:
            return "expired"
        case AttemptStatus.CREATED_INTENT:
            return "unpaid"
        case AttemptStatus.PENDING_UNVERIFIED:
            return "pending"
        case AttemptStatus.CREDITED:
            return "credited"
        case AttemptStatus.REJECTED | AttemptStatus.FAILED | AttemptStatus.REVERSED:
            return "failed"
    assert_never(attempt.status)


def why_it_failed(attempt: AttemptView) -> str:
    """The error code's message for the payer."""
    if attempt.status is AttemptStatus.REVERSED:
        return REVERSED_IN_WORDS
    return attempt.error_code.for_the_payer if attempt.error_code else f"It could not be credited. {KEEP_THE_REFERENCE}"


def what_it_buys(attempt: AttemptView) -> str:
    """A payment in one line."""
    if attempt.kind is AttemptKind.DEPOSIT:
        return what_a_deposit_buys(attempt.amount_credits or 0)
    paid = f"{format_usd(attempt.amount_usd_cents)} USDC"
    if attempt.purpose == Purpose.SYSTEM:
        return f"Donation of {paid}"
    return f"{credits_for_usd_cents(attempt.amount_usd_cents):,} credits for {paid}"


def what_a_deposit_buys(credits: int) -> str:
    """A deposit in one line."""
    return f"{credits:,} credits for a deposit of ${worth_in_usd(credits)}"


templates = Jinja2Templates(directory=FOLDER / "templates")
templates.env.filters |= {
    "usd": format_usd,
    "worth": worth_in_usd,
    "thousands": with_thousands,
    "signed": signed,
    "readable": readable,
    "dollars": worth_in_dollars,
    "reason": in_words,
    "short": shortened,
    "utc": utc_words,
    "state": payment_state,
    "failure": why_it_failed,
    "title_of": what_it_buys,
    "deposit_title": what_a_deposit_buys,
    "network": network_name,
    "credits_for": credits_for_usd_cents,
}
templates.env.globals |= {"static": {name: address_of(name) for name in STATIC_FILES}}
