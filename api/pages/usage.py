"""The Usage page: what was spent, service keys, recent calls.

It works without JavaScript; `static/usage.js` adds copying and the visitor's time zone.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Coroutine, Mapping
from dataclasses import dataclass, field
from datetime import date, datetime, timedelta
from typing import Annotated, Any, Final
from urllib.parse import parse_qsl, urlencode
from uuid import UUID, uuid4

from fastapi import APIRouter, Path, Query, Request
from fastapi.responses import RedirectResponse, Response
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from api.billing import queries
from api.billing.models import TIME
from api.billing.routes import OwnUsageBy, csv_answer, limit_key_changes
from api.http.dependencies import ApiServices, OptionalSession, Services, Session
from api.http.openapi import Api
from api.http.problems import kind_of
from api.pages.credits import HtmlRoute, site_of, templates
from api.pages.usage_accounts import ChosenAccount, choose_account
from api.pages.usage_chart import DayChart, draw_days, every_day, share_of
from db.accounts import wallets as accounts
from db.clock import estimated_now, read_clock
from domain.billing.keys import KeyTerms, parse_terms
from domain.billing.reports import UsageBy, UsagePeriod
from domain.errors import AccountNotFound, BookkeepingError, InvalidInput, NotSignedIn, Refusal
from domain.money import format_exact, parse_usd_as_credits, usd_for_credits
from services.billing import keys
from services.billing.keys import NewKey
from services.billing.reports import REST_LABEL, UsageReport, UsageReportRow

KEYS_SHOWN_MAX: Final = 100
CALLS_SHOWN: Final = 20
ROWS_SHOWN_MAX: Final = 20
"""Of each table of sums; all of them are in its CSV."""

FORM_FIELDS: Final = frozenset({"label", "expiresAt", "limitDayCredits", "limitMonthCredits", "models"})
"""Of a new key; what is wrong with one is shown beside it."""

FORM_FIELDS_MAX: Final = 20

QUICK_DAYS: Final = (7, 30, 90)

DONE_IN_WORDS: Final[Mapping[str, str]] = {
    "revoked": "The key is revoked: it is refused from its next call on.",
}

OVERLAPS: Final[Mapping[int, str]] = {0: "not at all", 3_600: "for an hour", 86_400: "for a day", 604_800: "for a week"}
"""How long a replaced key may go on, in seconds."""


class UsageRoute(HtmlRoute):
    """A route of the page: who is not signed in is sent to where one signs in."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """The handler, including errors of its dependencies."""
        handle = super().get_route_handler()

        async def handle_signed_in(request: Request) -> Response:
            try:
                return await handle(request)
            except NotSignedIn:
                return RedirectResponse("/credits", status_code=303)

        return handle_signed_in


router = APIRouter(prefix="/usage", route_class=UsageRoute, include_in_schema=False)


def install(app: Api) -> None:
    """Add the page to an app."""
    app.add_routes_of(router)


class Asked(BaseModel):
    """The query string as written; invalid values are reported on the page, next to their field."""

    model_config = ConfigDict(frozen=True, str_strip_whitespace=True, populate_by_name=True)

    first: str = Field(default="", alias="from")
    last: str = Field(default="", alias="to")
    cursor: str = ""
    done: str = ""
    account: str = ""
    """Whose usage is shown; empty: the visitor's own."""


@dataclass(frozen=True, slots=True)
class KeyForm:
    """What was typed for a new key, to be shown again where it is refused. `token` makes a repeated form one key."""

    token: str = field(default_factory=lambda: str(uuid4()))
    values: Mapping[str, str] = field(default_factory=dict)
    errors: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Shown:
    """What one request adds to the page."""

    form: KeyForm = field(default_factory=KeyForm)
    made: NewKey | None = None
    notice: str | None = None
    status: int = 200


@router.get("")
async def show_usage(
    request: Request, services: ApiServices, session: OptionalSession, asked: Annotated[Asked, Query()]
) -> Response:
    """What was spent in a period, the keys in force, and the recent calls."""
    return await _page(request, services, _signed_in(session), asked, Shown())


@router.get("/by-{by}.csv")
async def download_report(
    services: ApiServices,
    session: OptionalSession,
    by: Annotated[OwnUsageBy, Path()],
    asked: Annotated[Asked, Query()],
) -> Response:
    """A report as a file; an invalid period leads back to the page, which says what is wrong."""
    owner = _signed_in(session)
    try:
        period = queries.asked_period(asked.first or None, asked.last or None)
    except InvalidInput:
        return RedirectResponse("/usage", status_code=303)
    async with services.concurrency.place(owner.billing_account_id):
        account = await choose_account(services, owner, asked.account)
        return csv_answer(await queries.read_usage(services, owner, account.chosen.id, UsageBy(by), period))


@router.post("/keys")
async def make_key(request: Request, services: ApiServices, session: OptionalSession) -> Response:
    """Make a key and show its secret, this once."""
    owner = _signed_in(session)
    values = await _form(request)
    form = KeyForm(_token(values.get("token", "")), values)

    async def make() -> NewKey:
        await limit_key_changes(request, services, owner)
        async with services.database.transaction(owner.user_id) as connection:
            terms = _terms(values, now=await read_clock(connection.connection))
            token = f"page-{form.token}"
            account_id = values.get("account") or owner.billing_account_id
            return await keys.create_key(connection, account_id, terms, idempotency_key=token)

    return await _after(request, services, owner, make, form)


@router.post("/keys/{key_id}/rotate")
async def rotate_key(request: Request, services: ApiServices, session: OptionalSession, key_id: UUID) -> Response:
    """Replace a key and show the new one's secret, this once."""
    owner = _signed_in(session)
    values = await _form(request)

    async def rotate() -> NewKey:
        await limit_key_changes(request, services, owner)
        overlap = values.get("overlap", "")
        if overlap not in {str(seconds) for seconds in OVERLAPS}:
            expected = ", ".join(map(str, OVERLAPS))
            raise InvalidInput("overlap", f"expected one of {expected} seconds, got {overlap!r:.40}")
        async with services.database.transaction(owner.user_id) as connection:
            return await keys.rotate_key(
                connection, owner.billing_account_id, key_id, overlap=timedelta(seconds=int(overlap))
            )

    return await _after(request, services, owner, rotate, KeyForm(values={"account": values.get("account", "")}))


@router.post("/keys/{key_id}/revoke")
async def revoke_key(request: Request, services: ApiServices, session: OptionalSession, key_id: UUID) -> Response:
    """Revoke a key; the page that asked has had it confirmed."""
    owner = _signed_in(session)
    values = await _form(request)

    async def revoke() -> None:
        await limit_key_changes(request, services, owner)
        async with services.database.transaction(owner.user_id) as connection:
            await keys.revoke_key(connection, key_id)

    return await _after(request, services, owner, revoke, KeyForm(values=values))


def _signed_in(session: Session | None) -> Session:
    if session is None:
        raise NotSignedIn
    return session


async def _form(request: Request) -> dict[str, str]:
    """The fields of a form. What is no text is refused where it is parsed."""
    body = (await request.body()).decode(errors="replace")
    try:
        return {name: value.strip() for name, value in parse_qsl(body, max_num_fields=FORM_FIELDS_MAX)}
    except ValueError:
        raise InvalidInput("body", f"expected a form of at most {FORM_FIELDS_MAX} fields") from None


def _token(given: str) -> str:
    """The form's own token; another one where it is none."""
    try:
        return str(UUID(given))
    except ValueError:
        return str(uuid4())


def _terms(values: Mapping[str, str], *, now: datetime) -> KeyTerms:
    """The terms of the form's key. Raises `InvalidInput` in the field names of the HTTP interface."""
    models = [model for model in values.get("models", "").split(",") if model.strip()]
    return parse_terms(
        label=values.get("label", ""),
        now=now,
        expires_at=_midnight(values["expiresAt"]) if values.get("expiresAt") else None,
        limit_day_credits=_limit(values, "limitDayCredits"),
        limit_month_credits=_limit(values, "limitMonthCredits"),
        models=models or None,
    )


def _limit(values: Mapping[str, str], name: str) -> int | None:
    return parse_usd_as_credits(values[name], field=name) if values.get(name) else None


def _midnight(text: str) -> datetime | None:
    try:
        return TIME.validate_python(f"{text}T00:00:00Z")
    except ValidationError:
        raise InvalidInput("expiresAt", f"expected a day as YYYY-MM-DD, got {text!r:.40}") from None


async def _after(
    request: Request, services: Services, owner: Session, change: Callable[[], Awaitable[NewKey | None]], form: KeyForm
) -> Response:
    """The page after a change of a key, or with the reason why it was refused. Raises `AccountNotFound`."""
    account = form.values.get("account", "")
    try:
        async with services.concurrency.place(owner.billing_account_id):
            await choose_account(services, owner, account)
            made = await change()
    except AccountNotFound:
        raise  # not the page of another account
    except Refusal as error:
        status = kind_of(error).status
        if isinstance(error, InvalidInput) and error.field in FORM_FIELDS:
            errors = {error.field: error.message.removeprefix(f"{error.field}: ")}
            shown = Shown(form=KeyForm(form.token, form.values, errors), status=status)
        else:
            shown = Shown(form=form, notice=f"{error.message[0].upper()}{error.message[1:]}.", status=status)
    else:
        if made is None:
            asked = {"done": "revoked"} | ({"account": account} if account else {})
            return RedirectResponse(f"/usage?{urlencode(asked)}#keys", status_code=303)
        shown = Shown(made=made, status=201)
    return await _page(request, services, owner, Asked(account=account), shown)


async def _page(request: Request, services: Services, owner: Session, asked: Asked, shown: Shown) -> Response:
    errors: dict[str, str] = {}
    try:
        period = queries.asked_period(asked.first or None, asked.last or None)
    except InvalidInput as error:
        errors[error.field] = error.message.removeprefix(f"{error.field}: ")
        period = queries.asked_period(None, None)
    async with services.concurrency.place(owner.billing_account_id):
        account = await choose_account(services, owner, asked.account)
        account_id = account.chosen.id
        try:
            calls = await queries.read_calls(
                services, owner, account_id, limit=CALLS_SHOWN, cursor=asked.cursor or None
            )
        except InvalidInput:
            return RedirectResponse("/usage", status_code=303)
        async with services.database.transaction(owner.user_id) as connection:
            funds = await accounts.find_funds(connection, account_id)
        if funds is None:
            raise BookkeepingError(f"account {account_id} is managed and does not exist")
        context = {
            "site": site_of(services),
            "session": owner,
            "is_operator": owner.wallet_address in services.settings.operator_wallets,
            "asked": asked,
            "errors": errors,
            "funds": funds,
            "account": account,
            "spending": await _spending(services, owner, account, period),
            "keys": await queries.read_keys(services, owner, account_id, in_force=True, limit=KEYS_SHOWN_MAX),
            "calls": calls,
            "quick": [(days, _last_days(days)) for days in QUICK_DAYS],
            "overlaps": OVERLAPS,
            "shown": shown,
            "notice": shown.notice or DONE_IN_WORDS.get(asked.done),
        }
    return templates.TemplateResponse(request, "usage.html", context, 422 if errors else shown.status)


@dataclass(frozen=True, slots=True)
class Share:
    """A row of a table of sums, with the length of its bar."""

    title: str
    row: UsageReportRow
    share: str


@dataclass(frozen=True, slots=True)
class Spending:
    """What was spent in a period."""

    period: UsagePeriod
    report: UsageReport
    chart: DayChart
    models: list[Share]
    keys: list[Share]
    members: list[Share]
    """Of an organization."""
    query: str
    """The account and the period, for links."""


async def _spending(services: Services, owner: Session, account: ChosenAccount, period: UsagePeriod) -> Spending:
    account_id = account.chosen.id
    by_day = await queries.read_usage(services, owner, account_id, UsageBy.DAY, period)
    spent = {row.day: row.charged_credits for row in by_day.rows}
    models = await queries.read_usage(services, owner, account_id, UsageBy.MODEL, period)
    by_key = await queries.read_usage(services, owner, account_id, UsageBy.KEY, period)
    members: list[Share] = []
    if account.is_organization:
        by_member = await queries.read_usage(services, owner, account_id, UsageBy.MEMBER, period)
        members = _shares(by_member, lambda row: row.label or row.user_id or "keys that no member made")
    return Spending(
        members=members,
        query=account.query(period),
        period=period,
        report=by_day,
        chart=draw_days([(day, spent.get(day, 0)) for day in every_day(period.first, period.last)]),
        models=_shares(models, lambda row: row.model or REST_LABEL),
        keys=_shares(by_key, lambda row: row.label or "a key of another account"),
    )


def _shares(report: UsageReport, title: Callable[[UsageReportRow], str]) -> list[Share]:
    largest = max((row.charged_credits for row in report.rows), default=0)
    return [Share(title(row), row, share_of(row.charged_credits, largest)) for row in report.rows[:ROWS_SHOWN_MAX]]


def _last_days(days: int) -> UsagePeriod:
    today = estimated_now().date()
    return UsagePeriod(today - timedelta(days=days - 1), today)


# -- formatting for the templates


def exact_usd(credits: int) -> str:
    """What credits are worth in US dollars, exactly, with two decimals or more: `−0.0001234`, `1,000.00`."""
    whole, _, decimals = format_exact(abs(usd_for_credits(credits))).partition(".")
    return f"{'−' if credits < 0 else ''}{int(whole):,}.{decimals:0<2}"


def day_label(day: date) -> str:
    """`5 Jan 2026`."""
    return f"{day.day} {day:%b %Y}"


templates.env.filters |= {"exact_usd": exact_usd, "day": day_label}
