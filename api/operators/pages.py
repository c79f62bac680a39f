"""Operators' pages: all payments, the details of one payment, and the system tenant's balance chart.

Not served unless operator wallets and a database address are configured. They are read-only.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import Annotated, Any, Final, TypeVar, assert_never
from urllib.parse import urlencode
from uuid import UUID

import structlog
from fastapi import APIRouter, Depends, Query, Request
from fastapi.responses import RedirectResponse, Response
from fastapi.routing import APIRoute
from fastapi.templating import Jinja2Templates
from pydantic import BaseModel, ConfigDict

from api.http.dependencies import ApiServices, OptionalSession, Services, Session
from api.http.openapi import Api
from api.http.problems import kind_of
from api.operators.balance_chart import Chart, draw
from api.pages import credits as pages
from api.pages.static_files import address_of
from db.clock import estimated_now
from db.engine import OperatorDatabase
from db.operations import operator_pages as operators
from db.operations.operator_pages import AttemptFilter, BalanceHistory
from domain.errors import AttemptNotFound, InvalidInput, NotAnOperator, NotSignedIn, SettleError, Unavailable
from domain.identifiers import SYSTEM_TENANT_ACCOUNT_ID, parse_attempt_id, parse_tx_hash
from domain.ledger.entries import USAGE_REASON, Reason
from domain.money import format_usd, format_usdc
from domain.payments.attempt import AttemptStatus, Purpose
from starter.diagnosis import diagnose

PAGE_ROWS: Final = 50
ACCOUNT_LENGTH_MAX: Final = 200
SHOWN_LENGTH_MAX: Final = 80
"""Longest part of an invalid value that an error quotes."""


@dataclass(frozen=True, slots=True)
class Period:
    """A period of the chart, the width of its steps, and the distance of its time labels."""

    days: int
    step: timedelta
    label_every: timedelta

    @property
    def words(self) -> str:
        """Its label."""
        return "1 day" if self.days == 1 else f"{self.days} days"


PERIODS: Final = (
    Period(1, step=timedelta(minutes=10), label_every=timedelta(hours=4)),
    Period(7, step=timedelta(hours=1), label_every=timedelta(days=1)),
    Period(30, step=timedelta(hours=4), label_every=timedelta(days=5)),
    Period(90, step=timedelta(hours=12), label_every=timedelta(days=15)),
)
USUAL_PERIOD: Final = PERIODS[1]
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)

REASON_LABELS: Final[Mapping[str, str]] = {
    Reason.CREDITS_PURCHASE: "purchase",
    Reason.PLATFORM_REVENUE_SHARE: "bonus",
    Reason.SYSTEM_DONATION: "donation",
    Reason.PAYMENT_REVERSAL: "reversal",
    Reason.OPERATOR_CREDIT: "operator's credit",
    USAGE_REASON: "usage",
}
PURPOSES_IN_WORDS: Final[Mapping[str, str]] = {Purpose.SELF: "purchase", Purpose.SYSTEM: "donation"}

log = structlog.get_logger(__name__)


class OperatorRoute(APIRoute):
    """A route for operators: errors are pages, and an unauthenticated user is redirected to sign in."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """The handler, including errors of its dependencies."""
        handle = super().get_route_handler()

        async def handle_for_an_operator(request: Request) -> Response:
            try:
                return await handle(request)
            except NotSignedIn:
                return RedirectResponse("/credits", status_code=303)
            except Unavailable as error:
                log.warning("dependency unavailable", code=error.code, reason=error.message)
                return _refusal(request, error, headers={"Retry-After": pages.RETRY_AFTER_SECONDS})
            except SettleError as error:
                if not error.is_refusal:
                    raise
                return _refusal(request, error)

        return handle_for_an_operator


router = APIRouter(prefix="/operator", route_class=OperatorRoute, include_in_schema=False)


def install(app: Api) -> None:
    """Add the pages to an app whose services (`app.state.services`) are configured for them."""
    services: Services = app.state.services
    if services.operators is not None and services.settings.operator_wallets:
        app.add_routes_of(router)


async def _operator(services: ApiServices, session: OptionalSession) -> Session:
    if session is None:
        raise NotSignedIn
    if session.wallet_address not in services.settings.operator_wallets:
        raise NotAnOperator
    return session


Operator = Annotated[Session, Depends(_operator)]


def _database(services: Services) -> OperatorDatabase:
    assert services.operators is not None, "without it there are no routes: see `install`"
    return services.operators


def _refusal(request: Request, error: SettleError, *, headers: Mapping[str, str] | None = None) -> Response:
    kind = kind_of(error)
    context = {"site_name": request.app.state.services.settings.platform_name, "error": error, "kind": kind}
    return templates.TemplateResponse(request, "operator_message.html", context, kind.status, headers)


# -- all attempts


class Asked(BaseModel):
    """The query string as written; invalid values are reported on the page, next to their field."""

    model_config = ConfigDict(frozen=True, str_strip_whitespace=True)

    status: str = ""
    purpose: str = ""
    account: str = ""
    hash: str = ""
    days: str = ""
    reference: str = ""
    before: str = ""
    after: str = ""

    def url(self, **changes: object) -> str:
        """The page's address with some parameters changed. Empty ones are dropped, and so is the page position."""
        values = {"status": self.status, "purpose": self.purpose, "account": self.account, "hash": self.hash}
        values |= {"days": self.days, **{name: str(value) for name, value in changes.items()}}
        found = urlencode({name: value for name, value in values.items() if value})
        return f"/operator?{found}" if found else "/operator"


@router.get("")
async def show_attempts(
    request: Request, services: ApiServices, session: Operator, asked: Annotated[Asked, Query()]
) -> Response:
    """The system tenant's balance, and attempts by filter, newest first."""
    errors: dict[str, str] = {}
    if asked.reference:
        try:
            return RedirectResponse(f"/operator/attempts/{parse_attempt_id(asked.reference)}", status_code=303)
        except InvalidInput as error:
            errors["reference"] = _said(error)
    wanted = _wanted(asked, errors)
    period = _period(asked.days, errors)
    context: dict[str, Any] = {
        "asked": asked,
        "errors": errors,
        "wanted": wanted,
        "period": period,
        "periods": PERIODS,
        "statuses": list(AttemptStatus),
        "purposes": list(Purpose),
        "counted_max": operators.COUNTED_MAX,
        "scanned_max": operators.SCANNED_MAX,
    }
    if errors.keys() <= {"days"}:
        context |= await _list(services, wanted, before=_cursor(asked.before), after=_cursor(asked.after))
    context["balance"] = await _balance(services, period)
    return _page(request, services, session, "operator_attempts.html", context, status_code=422 if errors else 200)


async def _list(
    services: Services, wanted: AttemptFilter, *, before: UUID | None, after: UUID | None
) -> dict[str, object]:
    """A page of attempts and, with the status as the only filter, the number of attempts per status."""
    context: dict[str, object] = {}
    async with _database(services).transaction() as connection:
        if wanted == AttemptFilter(status=wanted.status):
            context["counts"] = await operators.count_by_status(connection)
        page = await operators.page_attempts(connection, wanted, limit=PAGE_ROWS, before=before, after=after)
        is_newest = before is None and (after is None or page.newer is None)
        if after is not None and is_newest:
            # Paged back to the start of the list: show a full page of it.
            page = await operators.page_attempts(connection, wanted, limit=PAGE_ROWS)
    return context | {"page": page, "is_newest": is_newest}


_Word = TypeVar("_Word", bound=StrEnum)


def _one_of(words: type[_Word], name: str, given: str, errors: dict[str, str]) -> _Word | None:
    if not given:
        return None
    try:
        return words(given)
    except ValueError:
        errors[name] = f"expected one of {', '.join(words)}, got {given[:SHOWN_LENGTH_MAX]!r}"
        return None


def _wanted(asked: Asked, errors: dict[str, str]) -> AttemptFilter:
    """The filter, without invalid values, which are added to `errors` by field."""
    tx_hash = None
    if asked.hash:
        try:
            tx_hash = parse_tx_hash(asked.hash)
        except InvalidInput as error:
            errors["hash"] = _said(error)
    # PostgreSQL's text cannot hold NUL, and ids are printable.
    if not asked.account.isprintable() or len(asked.account) > ACCOUNT_LENGTH_MAX:
        errors["account"] = f"expected an account's id, up to {ACCOUNT_LENGTH_MAX} printable characters"
    return AttemptFilter(
        status=_one_of(AttemptStatus, "status", asked.status, errors),
        purpose=_one_of(Purpose, "purpose", asked.purpose, errors),
        billing_account_id=asked.account if asked.account and "account" not in errors else None,
        tx_hash=tx_hash,
    )


def _said(error: InvalidInput) -> str:
    """Its message without the field's name, next to which it is shown."""
    return error.message.removeprefix(f"{error.field}: ")


def _period(days: str, errors: dict[str, str]) -> Period:
    found = next((period for period in PERIODS if days == str(period.days)), None)
    if found is None and days:
        wants = ", ".join(str(period.days) for period in PERIODS)
        errors["days"] = f"expected one of {wants} days, got {days[:SHOWN_LENGTH_MAX]!r}"
    return found or USUAL_PERIOD


def _cursor(text: str) -> UUID | None:
    """A page's position; an invalid one is the first page."""
    try:
        return parse_attempt_id(text)
    except InvalidInput:
        return None


# -- the balance


@dataclass(frozen=True, slots=True)
class BalanceView:
    """The system tenant's balance over a period, and its chart."""

    account: str
    history: BalanceHistory
    chart: Chart
    now: datetime


async def _balance(services: Services, period: Period) -> BalanceView | None:
    """The balance, or None where the database does not sum it up in time: the rest of the page does not need it."""
    now = estimated_now()
    # Whole steps, so that the same moment falls into the same step at every request.
    end = _EPOCH + ((now - _EPOCH) // period.step + 1) * period.step
    start = end - timedelta(days=period.days)
    try:
        async with _database(services).transaction() as connection:
            history = await operators.balance_history(
                connection, SYSTEM_TENANT_ACCOUNT_ID, start=start, end=end, width=period.step
            )
    except Unavailable as error:
        log.warning("cannot show the balance", code=error.code, reason=error.message)
        return None
    chart = draw(
        history.opening_credits,
        [(step.at, step.balance_credits) for step in history.steps],
        start=start,
        end=end,
        now=now,
        label_every=period.label_every,
    )
    return BalanceView(SYSTEM_TENANT_ACCOUNT_ID, history, chart, now)


# -- one attempt


@router.get("/attempts/{attempt_id}")
async def show_attempt(request: Request, services: ApiServices, session: Operator, attempt_id: str) -> Response:
    """Why it is credited or not, with everything known about it."""
    try:
        wanted = parse_attempt_id(attempt_id)
    except InvalidInput:
        raise AttemptNotFound(attempt_id[:SHOWN_LENGTH_MAX]) from None
    settings = services.settings
    found = await diagnose(
        wanted,
        database=_database(services),
        temporal=services.temporal,
        chain=services.chain,
        min_confirmations=settings.min_confirmations,
        ui_url=settings.temporal_ui_url,
    )
    context = {"attempt": found, "asked": Asked(), "now": estimated_now()}
    return _page(request, services, session, "operator_attempt.html", context)


def _page(
    request: Request,
    services: Services,
    session: Session,
    name: str,
    context: Mapping[str, Any],
    *,
    status_code: int = 200,
) -> Response:
    settings = services.settings
    shared = {
        "site_name": settings.platform_name,
        "session": session,
        "explorer_tx_url": settings.explorer_tx_url or "",
        "chain_id": settings.chain_id,
    }
    return templates.TemplateResponse(request, name, {**shared, **context}, status_code)


# -- formatting for the templates


def utc_seconds(moment: datetime) -> str:
    """`2026-01-02 03:04:05`; the pages say that all times are UTC."""
    return f"{moment.astimezone(UTC):%Y-%m-%d %H:%M:%S}"


def utc_minutes(moment: datetime) -> str:
    """`2026-01-02 03:04`."""
    return f"{moment.astimezone(UTC):%Y-%m-%d %H:%M}"


def in_json(value: object) -> str:
    """A value of an event's metadata on one line, in ASCII: no character in it may change how the page reads."""
    return value if isinstance(value, str) and value.isascii() and value.isprintable() else json.dumps(value)


def reason_label(reason: str) -> str:
    """Label of a ledger reason; an unknown one is shown as it is."""
    return REASON_LABELS.get(reason, reason)


def purpose_label(purpose: str) -> str:
    """Label of a purpose."""
    return PURPOSES_IN_WORDS.get(purpose, purpose)


def status_in_style(status: AttemptStatus) -> str:
    """CSS class of a status: open, waiting, good or bad."""
    match status:
        case AttemptStatus.CREATED_INTENT:
            return "open"
        case AttemptStatus.PENDING_UNVERIFIED:
            return "waiting"
        case AttemptStatus.CREDITED:
            return "good"
        case AttemptStatus.REJECTED | AttemptStatus.FAILED | AttemptStatus.REVERSED:
            return "bad"
    assert_never(status)


templates = Jinja2Templates(directory=pages.FOLDER / "templates")
templates.env.filters |= {
    "usd": format_usd,
    "worth": pages.worth_in_usd,
    "thousands": pages.with_thousands,
    "signed": pages.signed,
    "short": pages.shortened,
    "seconds": utc_seconds,
    "minutes": utc_minutes,
    "usdc": format_usdc,
    "value": in_json,
    "reason": reason_label,
    "purpose": purpose_label,
    "style": status_in_style,
}
templates.env.globals |= {
    "static": pages.templates.env.globals["static"],
    "operator_css": address_of("operator.css"),
}
