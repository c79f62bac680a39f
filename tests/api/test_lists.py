"""The ledger and the payments, page by page."""

from __future__ import annotations

from uuid import uuid4

from devstack.chain import payer_wallets
from tests.support.api import RunningApi, Visitor
from tests.support.engine import MIN_CONFIRMATIONS
from tests.support.sql import query


async def test_the_ledger_pages_from_newest_to_oldest(api: RunningApi, payer: Visitor) -> None:
    account = (await payer.get("/api/v1/auth/session")).body["billingAccountId"]
    for amount in range(1, 8):
        post = "SELECT posted FROM post_entry(%s, %s, 'adjustment', NULL, 'cash:usdc', '{}')"
        assert query(api.engine.database.service_url, post, account, amount) == [(True,)]
    seen: list[int] = []
    cursor: str | None = None
    pages = 0
    while True:
        path = "/api/v1/payments/credits/summary?limit=3" + (f"&cursor={cursor}" if cursor else "")
        page = (await payer.get(path)).body
        pages += 1
        seen += [row["amount"] for row in page["ledger"]]
        assert page["balanceCredits"] == 28
        cursor = page.get("nextCursor")
        if cursor is None:
            break
    assert (seen, pages) == ([7, 6, 5, 4, 3, 2, 1], 3)


async def test_a_strangers_cursor_shows_nothing(api: RunningApi, payer: Visitor) -> None:
    async with api.visitor(payer_wallets()[1]) as other:
        theirs = (await other.intent())["attemptId"]
    await payer.intent()
    assert (await payer.get(f"/api/v1/payments/attempts?cursor={theirs}")).body["attempts"] == []
    assert (await payer.get(f"/api/v1/payments/credits/summary?cursor={uuid4()}")).body["ledger"] == []


async def test_open_payments_are_listed_apart(api: RunningApi, payer: Visitor) -> None:
    intents = [await payer.intent() for _ in range(3)]
    async with api.engine.worker():
        sent = await api.pay(intents[1])
        await api.engine.chain.mine(MIN_CONFIRMATIONS)
        await payer.submit(intents[1]["attemptId"], sent)
        await payer.ends(intents[1]["attemptId"])
    everything = (await payer.get("/api/v1/payments/attempts?limit=2")).body
    ids = [intent["attemptId"] for intent in intents]
    assert [found["attemptId"] for found in everything["attempts"]] == [ids[2], ids[1]]
    older = (await payer.get(f"/api/v1/payments/attempts?limit=2&cursor={everything['nextCursor']}")).body
    assert [found["attemptId"] for found in older["attempts"]] == [ids[0]]
    still_open = (await payer.get("/api/v1/payments/attempts?open=true")).body["attempts"]
    assert [found["attemptId"] for found in still_open] == [ids[2], ids[0]]
