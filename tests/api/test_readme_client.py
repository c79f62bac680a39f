"""The client in the README works as it is printed there, time-outs and repetitions included."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path
from typing import Any

import pytest

from tests.support.api import RunningApi, Visitor
from tests.support.deposits import add_method, see_deposit, settle_deposit

README = Path(__file__).resolve().parents[2] / "README.md"


async def test_an_order_is_charged_once_and_its_credits_are_read(
    api: RunningApi, payer: Visitor, monkeypatch: pytest.MonkeyPatch
) -> None:
    add_method(api.engine.database, "USDC:base")
    key = (await payer.post("/api/v1/keys", {"label": "Shop"})).body["key"]
    monkeypatch.setenv("SETTLE_KEY", key)
    monkeypatch.setenv("API_URL", api.url)
    printed = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)
    [code] = [block for block in printed if "def charge(" in block]
    client: dict[str, Any] = {}
    exec(code, client)
    try:
        first, again = [await asyncio.to_thread(client["charge"], "7f3a", 2_500) for _ in range(2)]
        assert first == again
        assert (first["metadata"], first["amountRaw"]) == ({"orderId": "7f3a"}, 25_000_000)
        assert await asyncio.to_thread(client["credited"], first["chargeId"]) == 0
        deposit_id = see_deposit(api.engine.database, first["address"], 24_000_000, method_id="USDC:base")
        settle_deposit(api.engine.database, deposit_id)
        assert await asyncio.to_thread(client["credited"], first["chargeId"]) == 240_000_000
    finally:
        client["settle"].close()
