"""The operators' pages: who may see them, what they show, and that nothing in them is taken at its word."""

from __future__ import annotations

import asyncio
import itertools
import re
from collections.abc import AsyncIterator, Iterator
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from html.parser import HTMLParser
from typing import Final
from urllib.parse import parse_qs, quote, urlencode, urlsplit
from uuid import uuid4

import psycopg
import pytest
from psycopg.types.json import Jsonb
from yarl import URL

from api.operators import pages
from db.operations import operator_pages as queries
from devstack.chain import LocalChain, Wallet, payer_wallets
from devstack.processes import quiet_port
from domain.payments.attempt import PaymentAttempt, Purpose
from starter import diagnosis
from starter.diagnosis import RIGHT_PAYMENT
from tests.support.api import Reply, RunningApi, SharedApi, Visitor, running_api, shared_api_on
from tests.support.database_pool import DatabasePool
from tests.support.engine import Engine, open_engine
from tests.support.payments import NOW, REVERTED, RolePair, tx_hash
from tests.support.servers import Namespace, TemporalServer
from tests.support.sql import connect, query

EXPLORER: Final = "https://explorer.example/tx/{tx_hash}"
UI: Final = "https://temporal.example"
VOID: Final = frozenset({"meta", "link", "input", "img", "br", "hr"})


def operator() -> Wallet:
    """The wallet that is an operator's."""
    return payer_wallets()[0]


def somebody() -> Wallet:
    """A wallet that is not."""
    return payer_wallets()[1]


def settings_for(engine: Engine, **changes: str) -> dict[str, str]:
    """Operators' pages on."""
    return {
        "OPERATOR_WALLETS": operator().address,
        "OPERATOR_DATABASE_URL": engine.database.operator_url,
        "EXPLORER_TX_URL": EXPLORER,
        "TEMPORAL_UI_URL": UI,
    } | changes


@pytest.fixture(scope="module")
async def module_roles(databases: DatabasePool) -> AsyncIterator[RolePair]:
    """The file's database."""
    async with databases.database() as roles:
        yield roles


@pytest.fixture(scope="module")
async def module_pages(
    module_roles: RolePair, temporal_server: TemporalServer, chain: LocalChain
) -> AsyncIterator[SharedApi]:
    """One interface with operators' pages for the whole file."""
    namespace = await temporal_server.namespace()
    async with (
        open_engine(namespace, module_roles, chain) as engine,
        shared_api_on(engine, **settings_for(engine)) as shared,
    ):
        yield shared


@pytest.fixture
async def api(module_pages: SharedApi, request: pytest.FixtureRequest) -> AsyncIterator[RunningApi]:
    """The same, with an empty database, but for an operator who is signed in where the test asks for one."""
    async with module_pages.lent(has_payer="reader" in request.fixturenames) as running:
        yield running


@pytest.fixture
async def reader(module_pages: SharedApi, api: RunningApi) -> AsyncIterator[Visitor]:
    """A signed-in operator."""
    async with module_pages.payer() as visitor:
        yield visitor


@pytest.fixture
def engine(api: RunningApi) -> Engine:
    """What the pages show."""
    return api.engine


@pytest.fixture
def own_engine(namespace: Namespace, roles: RolePair, chain: LocalChain) -> AbstractAsyncContextManager[Engine]:
    """For a test that ends connections."""
    return open_engine(namespace, roles, chain)


@pytest.fixture
def counter(api: RunningApi, module_roles: RolePair) -> RolePair:
    """Payments in one call, in the database that the pages show."""
    return module_roles


# -- reading a page


@dataclass
class Element:
    """One element of a page, with what is in it."""

    tag: str
    attributes: dict[str, str]
    children: list[Element | str] = field(default_factory=list)

    def walk(self) -> Iterator[Element]:
        """It and all in it."""
        yield self
        for child in self.children:
            if isinstance(child, Element):
                yield from child.walk()

    @property
    def text(self) -> str:
        """Its words, with single spaces."""
        parts = [child if isinstance(child, str) else child.text for child in self.children]
        return " ".join(" ".join(parts).split())

    def all(self, tag: str, **attributes: str) -> list[Element]:
        """Elements of a tag with these attributes; `class_` is one of its classes."""
        wanted_class = attributes.pop("class_", None)
        return [
            element
            for element in self.walk()
            if element.tag == tag
            and all(element.attributes.get(name) == value for name, value in attributes.items())
            and (wanted_class is None or wanted_class in element.attributes.get("class", "").split())
        ]

    def one(self, tag: str, **attributes: str) -> Element:
        """The only one."""
        [found] = self.all(tag, **attributes)
        return found


class _Reader(HTMLParser):
    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.open = [Element("document", {})]

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        element = Element(tag, {name: value or "" for name, value in attrs})
        self.open[-1].children.append(element)
        if tag not in VOID:
            self.open.append(element)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.open[-1].children.append(Element(tag, {name: value or "" for name, value in attrs}))

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open.pop().tag == tag, f"</{tag}> closes something else"

    def handle_data(self, data: str) -> None:
        self.open[-1].children.append(data)


def read(html: str) -> Element:
    """A page as a tree; every element must be closed."""
    parser = _Reader()
    parser.feed(html)
    [document] = parser.open
    return document


async def page(visitor: Visitor, path: str = "/operator", *, expects: int = 200, **asked: object) -> Element:
    """A page that an operator asks for."""
    reply = await visitor.get(f"{path}?{urlencode(asked)}" if asked else path, allow_redirects=False)
    assert reply.status == expects, reply.body
    assert reply.headers["Content-Type"] == "text/html; charset=utf-8"
    return read(reply.body)


def listed(document: Element) -> list[str]:
    """Ids of the payments in the list, in its order."""
    links = [link.attributes["href"] for link in document.all("a")]
    return [href.removeprefix("/operator/attempts/") for href in links if href.startswith("/operator/attempts/")]


# -- who may see them

NO_ATTEMPT: Final = "11111111-2222-4333-8444-555555555555"
PATHS: Final = ("/operator", "/operator?status=nonsense", f"/operator/attempts/{NO_ATTEMPT}", "/operator/attempts/x")


@pytest.mark.parametrize("configured", [{}, {"OPERATOR_DATABASE_URL": "theirs"}])
async def test_without_operators_the_pages_are_addresses_like_any_unknown_one(
    engine: Engine, configured: dict[str, str]
) -> None:
    configured = {name: engine.database.operator_url for name in configured}
    async with running_api(engine, **configured) as api, api.visitor(operator()) as visitor:
        for method in ("GET", "POST"):
            nowhere = await visitor.call(method, "/nowhere")
            for path in PATHS:
                reply = await visitor.call(method, path, allow_redirects=False)
                assert (reply.status, reply.code) == (nowhere.status, nowhere.code) == (404, "NOT_FOUND")
                assert reply.body | {"requestId": ""} == nowhere.body | {"requestId": ""}


async def test_a_visitor_without_a_session_is_sent_to_the_sign_in(api: RunningApi) -> None:
    async with api.visitor() as visitor:
        for path in PATHS:
            reply = await visitor.get(path, allow_redirects=False)
            assert (reply.status, reply.headers["Location"], reply.body) == (303, "/credits", "")


async def test_another_wallet_is_refused_and_learns_nothing(api: RunningApi, counter: RolePair) -> None:
    attempt = await counter.settle(await counter.open_account(1), 1)
    async with api.visitor(somebody()) as visitor:
        for wanted in (*PATHS, f"/operator/attempts/{attempt.id}", f"/operator?reference={attempt.id}"):
            reply = await visitor.get(wanted, allow_redirects=False)
            assert reply.status == 403
            assert read(reply.body).one("h1").text == "Operator access required"
            for secret in (attempt.id, attempt.tx_hash, attempt.billing_account_id, attempt.from_address):
                assert str(secret) not in reply.body
            assert not re.search("[0-9a-f]{8}-[0-9a-f]{4}", reply.body)


async def test_an_operator_who_signs_out_is_one_no_longer(reader: Visitor) -> None:
    await page(reader)
    await reader.post("/api/v1/auth/logout")
    assert (await reader.get("/operator", allow_redirects=False)).status == 303


async def test_they_are_no_part_of_the_documented_interface(reader: Visitor) -> None:
    assert not [path for path in (await reader.get("/openapi.json")).body["paths"] if "operator" in path]


async def test_they_are_not_cached_and_run_no_scripts(reader: Visitor, counter: RolePair) -> None:
    """The content policy has no 'unsafe-inline': an inline style or script would be ignored, an injected one too."""
    attempt = await counter.settle(await counter.open_account(1), 1)
    for path in ("/operator", f"/operator/attempts/{attempt.id}", "/operator/attempts/x"):
        reply = await reader.get(path)
        assert reply.headers["Cache-Control"] == "no-store"
        assert "unsafe" not in reply.headers["Content-Security-Policy"]
        for element in read(reply.body).walk():
            assert element.tag not in {"script", "style", "iframe", "object"}
            assert not [name for name in element.attributes if name == "style" or name.startswith("on")]
    [style] = [
        link.attributes["href"] for link in read(reply.body).all("link") if "operator" in link.attributes["href"]
    ]
    assert (await reader.get(style)).headers["Content-Type"].startswith("text/css")


# -- the list


async def test_a_listed_payment_is_shown_with_everything_that_identifies_it(reader: Visitor, counter: RolePair) -> None:
    payer = await counter.open_account(1)
    attempt = await counter.create_submitted(payer, 77, cents=123_456_789, purpose=Purpose.SYSTEM, chain_id=8453)
    await counter.refuse(attempt, REVERTED)
    document = await page(reader)
    [row] = document.one("table", class_="cards").one("tbody").all("tr")
    when, *cells = [child for child in row.children if isinstance(child, Element)]
    assert when.text == "2026-01-02 03:04:05"
    assert when.one("time").attributes["datetime"] == NOW.isoformat()
    assert when.one("a").attributes["href"] == f"/operator/attempts/{attempt.id}"
    assert [cell.text for cell in cells] == [
        "FAILED TX_REVERTED",
        "donation",
        "1,234,567.89",
        payer.billing_account_id,
        payer.wallet_address,
        # Another chain's transaction: this chain's explorer does not know it.
        tx_hash(77),
    ]
    assert [cell.one("code").attributes["title"] for cell in cells[3:]] == [cell.text for cell in cells[3:]]
    assert "number" in cells[2].attributes["class"]
    assert "UTC" in document.one("table", class_="cards").one("thead").text


async def test_a_transaction_of_this_chain_is_linked_to_its_explorer(reader: Visitor, engine: Engine) -> None:
    payer, intent, sent = await engine.buy()
    await engine.submit(payer, intent, sent)
    for path in ("/operator", f"/operator/attempts/{intent.attempt_id}"):
        [link] = [link for link in (await page(reader, path)).all("a") if "explorer" in link.attributes["href"]]
        assert link.attributes["href"] == f"https://explorer.example/tx/{sent}"
        assert link.attributes["rel"] == "noopener noreferrer"


@dataclass(frozen=True)
class Payments:
    """One of each kind."""

    intent: PaymentAttempt
    credited: PaymentAttempt
    donated: PaymentAttempt
    refused: PaymentAttempt

    def ids(self, *names: str) -> list[str]:
        """Of those named."""
        return [str(getattr(self, name).id) for name in names]


@pytest.fixture
async def payments(counter: RolePair) -> Payments:
    """Two accounts' payments, a second apart, the refused one first."""
    one, two = await counter.open_account(1), await counter.open_account(2)
    refused = await counter.create_submitted(one, 1)
    await counter.refuse(refused)
    return Payments(
        refused=refused,
        donated=await counter.settle(one, 2, purpose=Purpose.SYSTEM, created_at=NOW + timedelta(seconds=1)),
        credited=await counter.settle(two, 3, created_at=NOW + timedelta(seconds=2)),
        intent=await counter.create(two, created_at=NOW + timedelta(seconds=3)),
    )


async def test_each_filter_shows_what_it_names_and_stays_in_the_form(reader: Visitor, payments: Payments) -> None:
    one, two = payments.refused.billing_account_id, payments.credited.billing_account_id
    expected: list[tuple[dict[str, str], tuple[str, ...]]] = [
        ({}, ("intent", "credited", "donated", "refused")),
        ({"status": "CREDITED"}, ("credited", "donated")),
        ({"status": "REJECTED"}, ("refused",)),
        ({"purpose": "system"}, ("donated",)),
        ({"purpose": "self", "status": "CREDITED"}, ("credited",)),
        ({"account": one}, ("donated", "refused")),
        ({"account": two, "status": "CREATED_INTENT"}, ("intent",)),
        ({"account": "nobody"}, ()),
        ({"hash": tx_hash(3)}, ("credited",)),
        ({"hash": "0x" + tx_hash(3)[2:].upper()}, ("credited",)),
        ({"hash": f" {tx_hash(3)} ", "account": f" {two}\n"}, ("credited",)),
        ({"hash": tx_hash(3), "account": one}, ()),
        # What a form sends for what is left empty.
        ({"status": "", "purpose": "", "account": "", "hash": "", "days": ""},
         ("intent", "credited", "donated", "refused")),
    ]  # fmt: skip
    for asked, names in expected:
        document = await page(reader, f"/operator?{urlencode(asked)}")
        assert listed(document) == payments.ids(*names), asked
        form = document.one("form", class_="filter")
        for name in ("account", "hash"):
            assert form.one("input", name=name).attributes["value"] == asked.get(name, "").strip()
        for name in ("status", "purpose"):
            chosen = [
                option.attributes.get("value", option.text)
                for option in form.one("select", name=name).all("option")
                if "selected" in option.attributes
            ]
            assert chosen == ([asked[name]] if asked.get(name) else [])


async def test_payments_are_counted_by_status_where_that_is_all_that_is_chosen(
    reader: Visitor, payments: Payments, monkeypatch: pytest.MonkeyPatch
) -> None:
    def counts(document: Element) -> list[str]:
        return document.one("nav", class_="counts").text.split()

    document = await page(reader, status="REJECTED", days=30)
    expected = "All CREATED_INTENT 1 PENDING_UNVERIFIED 0 CREDITED 2 REJECTED 1 FAILED 0 REVERSED 0"
    assert counts(document) == expected.split()
    current = [link for link in document.one("nav", class_="counts").all("a") if "aria-current" in link.attributes]
    assert [link.text for link in current] == ["REJECTED 1"]
    assert current[0].attributes["href"] == "/operator?status=REJECTED&days=30#payments"
    assert not (await page(reader, purpose="self")).all("nav", class_="counts")
    monkeypatch.setattr(queries, "COUNTED_MAX", 1)
    assert "1+" in counts(await page(reader))


async def test_an_accounts_payments_are_one_step_from_each_of_them(reader: Visitor, payments: Payments) -> None:
    account = payments.refused.billing_account_id
    for path in ("/operator", f"/operator/attempts/{payments.refused.id}"):
        links = {link.attributes["href"] for link in (await page(reader, path)).all("a")}
        assert f"/operator?account={account}#payments" in links


async def test_the_reference_that_a_payer_quotes_opens_their_payment(reader: Visitor, payments: Payments) -> None:
    given = f" {str(payments.intent.id).upper()} "
    reply = await reader.get(f"/operator?{urlencode({'reference': given})}", allow_redirects=False)
    assert (reply.status, reply.headers["Location"]) == (303, f"/operator/attempts/{payments.intent.id}")


BAD: Final = [
    ("status", "credited"),
    ("status", "CREDITED' OR '1'='1"),
    ("purpose", "donation"),
    ("purpose", "\x00"),
    ("account", "a\x00b"),
    ("account", "a" * 201),
    ("account", "\u202e"),
    ("hash", "0x1234"),
    ("hash", "f" * 66),
    ("hash", "0x" + "g" * 64),
    ("hash", "0x" + "１" * 64),
    ("hash", "\x00"),
    ("days", "0"),
    ("days", "-1"),
    ("days", "2"),
    ("days", "7.0"),
    ("days", "９０"),
    ("days", "1e9"),
    ("reference", "42"),
    ("reference", "\x00"),
]


async def test_each_bad_value_is_said_beside_its_field(reader: Visitor, payments: Payments) -> None:
    values: dict[str, list[str]] = {}
    for name, value in BAD:
        values.setdefault(name, []).append(value)
    # The first bad value of each field at once, then the second of each, until only days have one left.
    for number in range(max(map(len, values.values()))):
        asked = {name: bad[number] for name, bad in values.items() if number < len(bad)}
        document = await page(reader, f"/operator?{urlencode(asked)}", expects=422)
        said = {small.attributes["id"]: small.text for small in document.all("small", class_="wrong")}
        assert set(said) == {f"{name}-error" for name in asked}, asked
        for text in said.values():
            assert text.startswith("expected ")
            assert len(text) < 250
        # The picture is shown as usual.
        assert document.one("nav", class_="periods").one("a", **{"aria-current": "true"}).text == "7 days"
        if set(asked) == {"days"}:
            # It is the picture only that is asked for wrongly.
            assert len(listed(document)) == 4
            return
        assert listed(document) == []
        for name in set(asked) - {"days"}:
            [control] = [
                element for element in document.walk() if element.attributes.get("aria-describedby") == f"{name}-error"
            ]
            assert control.attributes["id"] == name
            assert control.attributes["aria-invalid"] == "true"
    pytest.fail("days were never the only ones")


ODD: Final = (
    "status=%ff%fe", "account=%ff", "account=%ed%a0%80", "hash=%00", "before=x", "after=x&before=y", "status[]=x",
    "before=00000000-0000-0000-0000-000000000000", "after=00000000-0000-0000-0000-000000000000", "days=7&days=30",
    "status=CREDITED&status=FAILED", "unknown=1", "&&&=&", "account=" + "a" * 8_000, "account=%F0%9F%92%B0",
    "before=%7B00000000-0000-0000-0000-000000000000%7D", "account=<script>", "account='--", "account=%25%s%(x)s",
)  # fmt: skip


async def test_no_address_makes_it_fail(reader: Visitor, payments: Payments) -> None:
    for asked in ODD:
        # As it is written, without what a well-meaning client makes of it.
        async with reader.session.get(URL(f"/operator?{asked}", encoded=True)) as response:
            assert response.status in {200, 422}, asked
            read(await response.text())


async def test_pages_lead_to_every_payment_and_back(
    reader: Visitor, counter: RolePair, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pages, "PAGE_ROWS", 3)
    payer = await counter.open_account(1)
    for second in range(7):
        await counter.create(payer, created_at=NOW + timedelta(seconds=second))
    await counter.settle(payer, 1)

    def href(document: Element, rel: str) -> str | None:
        return next((link.attributes["href"].partition("#")[0] for link in document.all("a", rel=rel)), None)

    path: str | None = "/operator?status=CREATED_INTENT&days=30"
    seen: list[list[str]] = []
    while path:
        document = await page(reader, path)
        seen.append(listed(document))
        path = href(document, "next")
        assert path is None or path.startswith("/operator?status=CREATED_INTENT&days=30&before=")
    assert [len(ids) for ids in seen] == [3, 3, 1]
    assert len({attempt_id for ids in seen for attempt_id in ids}) == 7
    for expected in (seen[1], seen[0]):
        path = href(document, "prev")
        assert path is not None
        document = await page(reader, path)
        assert listed(document) == expected
    assert href(document, "prev") is not None or not document.all("a", rel="prev")
    # Paging back to the beginning, past rows that were added since, shows a whole page of the newest.
    newest = await counter.create(payer, created_at=NOW + timedelta(minutes=1))
    back = await page(reader, f"/operator?status=CREATED_INTENT&after={seen[0][1]}")
    assert listed(back) == [str(newest.id), *seen[0][:2]]
    assert href(back, "prev") is None


async def test_a_search_that_was_cut_short_says_so_and_goes_on(
    reader: Visitor, payments: Payments, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(queries, "SCANNED_MAX", 2)
    document = await page(reader, purpose="system")
    assert "2 payments searched" in document.one("p", class_="empty").text
    path = document.one("a", rel="next").attributes["href"].partition("#")[0]
    assert listed(await page(reader, path)) == payments.ids("donated")


# -- the balance


def figures(document: Element) -> dict[str, str]:
    """The figures above the picture, by their names."""
    [figures] = document.all("dl", class_="figures")
    return {part.one("dt").text: part.one("strong").text for part in figures.all("div")}


async def test_the_balance_is_shown_by_reason(reader: Visitor, counter: RolePair, engine: Engine) -> None:
    payer = await counter.open_account(1)
    old = await counter.settle(payer, 1, cents=500)
    await counter.settle(payer, 2, cents=1_000)
    await counter.settle(payer, 3, cents=700, purpose=Purpose.SYSTEM)
    ten_days_ago = datetime.now(UTC) - timedelta(days=10)
    with connect(engine.database.superuser_url, triggers=False) as superuser:
        superuser.execute("UPDATE credit_ledger SET created_at = %s WHERE reference = %s", (ten_days_ago, str(old.id)))
    week = {"Now": "182,500,000", "Bonuses in 7 days": "+75,000,000", "Donations in 7 days": "+70,000,000"}
    month = {"Now": "182,500,000", "Bonuses in 30 days": "+112,500,000", "Donations in 30 days": "+70,000,000"}
    assert figures(await page(reader)) == figures(await page(reader, days=7)) == week
    document = await page(reader, days=30)
    assert figures(document) == month
    assert document.one("nav", class_="periods").one("a", **{"aria-current": "true"}).text == "30 days"
    with connect(engine.database.service_url) as service:
        service.execute("SELECT * FROM post_entry('cogni_system', -2500000, 'usage', NULL, 'revenue:usage', '{}')")
    assert figures(await page(reader, days=1)) == {
        "Now": "180,000,000",
        "Bonuses in 1 day": "+75,000,000",
        "Donations in 1 day": "+70,000,000",
        "Other changes in 1 day": "−2,500,000",
    }


async def test_the_picture_is_an_image_with_words_and_its_numbers_beside_it(
    reader: Visitor, counter: RolePair, engine: Engine
) -> None:
    payer = await counter.open_account(1)
    attempts = [await counter.settle(payer, number, cents=1_000) for number in (1, 2)]
    at = datetime.now(UTC) - timedelta(days=3)
    with connect(engine.database.superuser_url, triggers=False) as superuser:
        superuser.execute("UPDATE credit_ledger SET created_at = %s WHERE reference = %s", (at, str(attempts[0].id)))
    document = await page(reader)
    chart = document.one("svg", role="img")
    words = [chart.one("title", id="picture-title").text, chart.one("desc", id="picture-says").text]
    assert chart.attributes["aria-labelledby"] == "picture-title picture-says"
    assert "cogni_system" in words[0]
    assert words[1].startswith("From 0 at ")
    assert " to 150,000,000 at " in words[1]
    assert "at least 0, at most 150,000,000" in words[1]
    assert chart.one("path", class_="curve").attributes["d"].count("V") == 2
    table = document.one("details").one("table")
    rows = [[cell.text for cell in row.all("td")] for row in table.one("tbody").all("tr")]
    assert rows == [["+75,000,000", "0", "0", "150,000,000"], ["+75,000,000", "0", "0", "75,000,000"]]
    assert table.one("tbody").all("th")[1].text == f"{at:%Y-%m-%d %H}:00"
    assert "UTC" in table.one("thead").text


async def test_a_big_ledger_makes_no_bigger_picture(reader: Visitor, engine: Engine) -> None:
    with connect(engine.database.superuser_url, triggers=False) as superuser:
        superuser.execute(
            "INSERT INTO credit_ledger (billing_account_id, amount, balance_after, reason, reference, created_at)"
            " SELECT 'cogni_system', 1, n, 'platform_revenue_share', n::text,"
            # Each nine minutes of a day, then less and less often for 90: more than any picture has places for.
            " now() - interval '9 minutes' * CASE WHEN n <= 160 THEN n ELSE 160 * 1.005 ^ (n - 160) END"
            " FROM generate_series(1, 1100) n"
        )
        superuser.execute("UPDATE billing_accounts SET balance_credits = 1100")
    for period in pages.PERIODS:
        document = await page(reader, days=period.days)
        assert 100 < len(document.one("details").one("tbody").all("tr")) <= 200
        assert len(document.all("rect", class_="stretch")) <= 201


async def test_a_balance_that_takes_too_long_leaves_the_rest_of_the_page(
    reader: Visitor, payments: Payments, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(queries, "BALANCE_TIMEOUT_SECONDS", 1)
    with connect(engine.database.superuser_url) as superuser:
        superuser.execute("LOCK TABLE credit_ledger IN ACCESS EXCLUSIVE MODE")
        document = await page(reader)
    assert len(listed(document)) == 4
    assert "not available right now" in document.one("section", id="balance").text
    assert not document.all("svg", role="img")
    assert (await page(reader)).all("svg", role="img")


# -- one payment


def facts(document: Element) -> dict[str, str]:
    """Both lists of facts."""
    return {part.one("dt").text: part.one("dd").text for listing in document.all("dl") for part in listing.all("div")}


def table(document: Element, title: str) -> list[list[str]]:
    """The cells of a table."""
    [found] = document.all("table", **{"aria-labelledby": title})
    rows = found.one("tbody").all("tr")
    return [[cell.text for cell in row.children if isinstance(cell, Element)] for row in rows]


async def test_a_credited_payments_whole_story(reader: Visitor, engine: Engine) -> None:
    async with engine.worker():
        payer, intent, sent = await engine.buy(2_500)
        await engine.submit(payer, intent, sent)
        await engine.result(intent.attempt_id)
    document = await page(reader, f"/operator/attempts/{intent.attempt_id}")
    said = "Credited: 250,000,000 credits to the buyer, 187,500,000 to the system tenant."
    assert document.one("h1").text == f"Payment {intent.attempt_id}: {said}"
    # It comes before everything else.
    assert next(element for element in document.one("main").walk() if element.tag in {"h1", "h2", "dl"}).tag == "h1"
    known = facts(document)
    assert known["Payment"] == str(intent.attempt_id)
    assert known["Amount"] == "$25.00 = 25.00 USDC"
    assert known["Account"] == payer.billing_account_id
    assert known["Payer"] == payer.wallet_address
    assert known["Transaction"].startswith(sent)
    assert known["The payer sees"] == "CONFIRMED"
    assert known["The chain says"].startswith(RIGHT_PAYMENT)
    assert known["Temporal says"].startswith("COMPLETED, ")
    [link] = [link.attributes["href"] for link in document.all("a") if UI in link.attributes["href"]]
    name = f"verify-and-settle-{intent.attempt_id}"
    assert link == f"{UI}/namespaces/{engine.namespace.name}/workflows/{name}"
    events = table(document, "events-title")
    assert [(event, status) for _, event, status, _ in events] == [
        ("intent_created", "CREATED_INTENT"),
        ("submitted", "CREATED_INTENT → PENDING_UNVERIFIED"),
        ("credited", "PENDING_UNVERIFIED → CREDITED"),
    ]
    assert sent in events[1][3]
    assert [row[1:] for row in table(document, "ledger-title")] == [
        ["purchase", payer.billing_account_id, "+250,000,000", "250,000,000"],
        ["bonus", "cogni_system", "+187,500,000", "187,500,000"],
    ]
    assert re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d", events[0][0])
    assert "All times are UTC" in document.one("footer").text


async def test_a_payment_that_is_not_paid_yet(reader: Visitor, engine: Engine) -> None:
    _, intent = await engine.intent(100, Purpose.SYSTEM)
    document = await page(reader, f"/operator/attempts/{intent.attempt_id}")
    assert document.one("h1").text.endswith(diagnosis.NO_TRANSACTION)
    known = facts(document)
    assert known["The chain says"] == "no transaction submitted"
    assert known["Temporal says"] == "there is none"
    assert (known["Purpose"], known["Expires"]) == ("donation", f"{intent.expires_at:%F %T}")
    assert {"Transaction", "Submitted", "Overpayment"}.isdisjoint(known)
    assert "No ledger entries" in document.one("section", **{"aria-labelledby": "ledger-title"}).text


async def test_an_overpayment_is_shown(reader: Visitor, engine: Engine) -> None:
    async with engine.worker():
        payer, intent = await engine.intent()
        sent = await engine.pay_and_confirm(intent, amount_raw=intent.amount_raw + 7)
        await engine.submit(payer, intent, sent)
        await engine.result(intent.attempt_id)
    assert facts(await page(reader, f"/operator/attempts/{intent.attempt_id}"))["Overpayment"] == "0.000007 USDC"


async def test_with_temporal_and_the_chain_silent_the_rest_is_shown(engine: Engine) -> None:
    payer, intent, sent = await engine.buy()
    await engine.submit(payer, intent, sent)
    nowhere = f"127.0.0.1:{quiet_port()}"
    dead = {"TEMPORAL_ADDRESS": nowhere, "CHAIN_RPC_URLS": f"http://{nowhere}/a-secret-key"}
    async with running_api(engine, **settings_for(engine, **dead)) as api, api.visitor(operator()) as reader:
        reply = await reader.get(f"/operator/attempts/{intent.attempt_id}")
        assert reply.status == 200
        known = facts(read(reply.body))
        assert known["Temporal says"].startswith("Temporal does not answer: ")
        assert "no chain node" in known["The chain says"].lower() or "endpoint" in known["The chain says"].lower()
        assert known["Transaction"].startswith(sent)
        assert len(table(read(reply.body), "events-title")) == 2
        assert "a-secret-key" not in reply.body
        assert len(listed(await page(reader))) == 1


async def test_servers_that_hang_do_not_hang_the_page(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    payer, intent, sent = await engine.buy()
    await engine.submit(payer, intent, sent)
    monkeypatch.setattr("starter.diagnosis.ANSWER_SECONDS_MAX", 1.0)
    held: list[asyncio.StreamWriter] = []

    async def hold(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        held.append(writer)

    async with await asyncio.start_server(hold, "127.0.0.1", 0) as server:
        nowhere = f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
        dead = {"TEMPORAL_ADDRESS": nowhere, "CHAIN_RPC_URLS": f"http://{nowhere}"}
        async with running_api(engine, **settings_for(engine, **dead)) as api, api.visitor(operator()) as reader:
            started = asyncio.get_running_loop().time()
            known = facts(await page(reader, f"/operator/attempts/{intent.attempt_id}"))
            assert asyncio.get_running_loop().time() - started < 10
        for writer in held:
            writer.close()
    assert held
    assert known["The chain says"] == diagnosis.no_node_answered(1)
    assert known["Temporal says"].startswith("Temporal does not answer: ")


async def test_a_payment_that_is_not_there_is_a_page_that_says_so(reader: Visitor) -> None:
    for wanted in (str(uuid4()), "x", "\x00", "a" * 3_000, "<script>alert(1)", "00000000", "💰", " ", "{}"):
        document = await page(reader, f"/operator/attempts/{quote(wanted)}", expects=404)
        assert document.one("h1").text == "Payment not found", wanted
        assert len(document.one("main").text) < 300


# -- hostile strings

HOSTILE: Final = (
    "<script>alert(1)</script>",
    "\"><img src=x onerror=alert(1)>",
    "' onmouseover='alert(1)",
    "{{ 7 * 7 }}",
    "javascript:alert(1)",
    "&lt;b&gt;",
    "\u202egnp.exe",
    "</details></table><h1>mine</h1>",
    "a&status=FAILED#b+c%20",
)  # fmt: skip


def tags(document: Element) -> list[str]:
    """All elements and their attributes' names: what a string that is taken at its word would change."""
    return [f"{element.tag} {sorted(element.attributes)}" for element in document.walk()]


async def test_what_the_database_holds_is_shown_and_never_obeyed(
    reader: Visitor, counter: RolePair, engine: Engine
) -> None:
    attempt = await counter.settle(await counter.open_account(1), 1)
    path = f"/operator/attempts/{attempt.id}"

    async def with_everything_called(text: str) -> tuple[Reply, Reply]:
        with connect(engine.database.superuser_url, triggers=False) as superuser:
            superuser.execute(
                "UPDATE billing_accounts SET id = %s WHERE id IN (SELECT billing_account_id FROM payment_attempts)",
                (text,),
            )
            superuser.execute("UPDATE payment_attempts SET billing_account_id = %s", (text,))
            superuser.execute(
                "UPDATE credit_ledger SET reason = %s, billing_account_id = %s"
                " WHERE reason <> 'platform_revenue_share'",
                (text, text),
            )
            superuser.execute(
                "UPDATE payment_events SET event_type = %s, from_status = %s, to_status = %s, error_code = %s,"
                " metadata = %s",
                (text, text, text + "!", text, Jsonb({text: text, "list": [text, {text: None}], "number": 1})),
            )
        return await reader.get("/operator"), await reader.get(path)

    harmless = [tags(read(reply.body)) for reply in await with_everything_called("harmless")]
    # All that is printable in one text: what one part of it opens, no other closes.
    for hostile in ("".join(filter(str.isprintable, HOSTILE)), *itertools.filterfalse(str.isprintable, HOSTILE)):
        replies = await with_everything_called(hostile)
        assert [tags(read(reply.body)) for reply in replies] == harmless
        story = read(replies[1].body)
        assert [row[1] for row in table(story, "events-title")] == [hostile] * 3
        assert [row[1] for row in table(story, "ledger-title")] == [hostile, "bonus"]
        assert facts(story)["Account"] == hostile
        [account] = [cell.text for cell in read(replies[0].body).all("td", **{"data-name": "Account"})]
        assert account == hostile
        # A value of JSON is shown in ASCII, so that no character in it turns the reading around.
        assert all(row[3].isascii() for row in table(story, "events-title"))
        # The link that filters by it does so.
        [link] = [
            link.attributes["href"].partition("#")[0]
            for link in read(replies[0].body).all("a")
            if link.attributes["href"].startswith("/operator?account=")
        ]
        assert parse_qs(urlsplit(link).query) == {"account": [hostile]}
        if hostile.isprintable():
            assert listed(await page(reader, link)) == [str(attempt.id)]


async def test_what_an_address_holds_is_shown_and_never_obeyed(reader: Visitor) -> None:
    # With wrong days alone, as with a wrong place in the list, the list is there, too.
    for names in (("status", "purpose", "account", "hash", "days", "reference"), ("days",), ("before", "after")):
        plain = tags(await _any_page(reader, dict.fromkeys(names, "a" * 201)))
        for hostile in HOSTILE:
            assert tags(await _any_page(reader, dict.fromkeys(names, hostile + "a" * 201))) == plain, (names, hostile)


async def _any_page(reader: Visitor, asked: dict[str, str]) -> Element:
    return read((await reader.get(f"/operator?{urlencode(asked)}")).body)


# -- without the database


async def test_without_the_database_an_operator_is_asked_to_come_back(
    own_engine: AbstractAsyncContextManager[Engine],
) -> None:
    async with (
        own_engine as engine,
        running_api(engine, **settings_for(engine)) as api,
        api.visitor(operator()) as reader,
    ):
        with psycopg.connect(engine.database.superuser_url, autocommit=True) as superuser:
            name = engine.database.name
            superuser.execute(f'ALTER DATABASE "{name}" CONNECTION LIMIT 0')
            superuser.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s AND pid <> pg_backend_pid()",
                (name,),
            )
            try:
                for path in ("/operator", f"/operator/attempts/{uuid4()}"):
                    reply = await reader.get(path)
                    assert (reply.status, reply.headers["Retry-After"]) == (503, "5")
                    assert read(reply.body).one("h1").text == "Temporarily unavailable"
                    assert "127.0.0.1" not in reply.body
            finally:
                superuser.execute(f'ALTER DATABASE "{name}" CONNECTION LIMIT -1')
        assert (await reader.get("/operator")).status == 200


async def test_reading_pages_changes_nothing(reader: Visitor, payments: Payments, engine: Engine) -> None:
    counters = (
        "SELECT sum(xmin::text::bigint), count(*) FROM payment_attempts"
        " UNION ALL SELECT sum(xmin::text::bigint), count(*) FROM payment_events"
        " UNION ALL SELECT sum(xmin::text::bigint), count(*) FROM credit_ledger"
    )
    before = query(engine.database.superuser_url, counters)
    await page(reader)
    await page(reader, f"/operator/attempts/{payments.credited.id}")
    for method in ("POST", "PUT", "DELETE"):
        assert (await reader.call(method, "/operator")).status == 405
    assert query(engine.database.superuser_url, counters) == before
