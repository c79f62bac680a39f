"""What is too little to ask an operator about is recorded and counted; many findings do not flood who hears of them."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Final

import pytest

from domain.operations.events import FINDING_OPENED, FINDINGS_OPENED_TOGETHER
from domain.operations.findings import DEFAULT_DUST_BELOW_RAW
from services.transfers import matcher as transfers
from telemetry.metrics.worker import DUST_TRANSFERS
from tests.watcher.conftest import Watches

FLOOR: Final = DEFAULT_DUST_BELOW_RAW


@pytest.mark.slow
async def test_a_flood_of_dust_is_recorded_and_makes_no_finding_and_no_event(watches: Watches) -> None:
    watch = await watches(dust_below_raw=FLOOR)
    counted = DUST_TRANSFERS._value.get()
    for _ in range(3):
        await watch.pay_raw(FLOOR - 1)
    at_the_floor = await watch.pay_raw(FLOOR)
    await watch.chain.mine(5)
    await watch.act()
    assert [tx for _, tx, _ in await watch.findings()] == [at_the_floor]
    assert len(watch.told) == 1
    rows = await watch.rows("SELECT value_raw, handled_at IS NOT NULL AS handled FROM observed_transfers")
    assert sorted((int(row["value_raw"]), row["handled"]) for row in rows) == [(FLOOR - 1, True)] * 3 + [(FLOOR, True)]
    assert DUST_TRANSFERS._value.get() - counted == 3


async def test_events_about_money_are_sent_first_and_the_rest_together(
    watches: Watches, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transfers, "ANNOUNCE_MAX", 2)
    watch = await watches()
    for cents in (1, 2, 3, 500, 4):
        await watch.pay(cents, blocks=0)
    await watch.chain.mine(5)
    await watch.act()
    first, second, rest = watch.told
    assert [event.type for event in watch.told] == [FINDING_OPENED, FINDING_OPENED, FINDINGS_OPENED_TOGETHER]
    assert (first.data["valueRaw"], second.data["valueRaw"]) == ("5000000", "40000")
    assert (rest.data["findings"], rest.data["valueRaw"]) == (3, "60000")
    assert rest.data["byKind"] == {"transfer_without_intent": {"findings": 3, "valueRaw": "60000"}}
    assert rest.time <= datetime.now(UTC)
    await watch.act()
    assert len(watch.told) == 3
