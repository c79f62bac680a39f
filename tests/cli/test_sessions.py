"""`settle sessions revoke`: an operator signs a wallet out everywhere."""

from __future__ import annotations

import asyncio
from pathlib import Path

from devstack.chain import payer_wallets
from tests.cli.command import settle
from tests.support.api import running_api
from tests.support.engine import Engine

SESSION = "/api/v1/auth/session"


async def test_a_wallet_is_signed_out_everywhere_and_no_other_is(engine: Engine, tmp_path: Path) -> None:
    alice, bob = payer_wallets()[:2]
    async with (
        running_api(engine) as api,
        api.visitor(alice) as roles,
        api.visitor(alice) as phone,
        api.visitor(bob) as stranger,
    ):
        command = ["sessions", "revoke", "--wallet", alice.address.lower(), "--json"]
        ended = [(await asyncio.to_thread(settle, command, engine.variables, tmp_path)).json() for _ in range(2)]
        assert [(await visitor.get(SESSION)).status for visitor in (roles, phone, stranger)] == [401, 401, 200]
    assert ended == [{"address": alice.address, "endedSessions": count} for count in (2, 0)]
