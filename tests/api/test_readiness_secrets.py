"""Readiness is public: the answer says what is wrong, and shows no credentials."""

from __future__ import annotations

import json
from contextlib import AsyncExitStack
from typing import Final

from devstack.chain import payer_wallets
from devstack.processes import quiet_port, wait_until
from tests.support.api import PATIENCE_SECONDS, Reply, running_api
from tests.support.engine import Engine
from tests.support.postgres import ROLE_PASSWORD
from tests.support.relay import relay_to, through

KEY: Final = "sekret-api-key"


async def test_with_every_dependency_unavailable_readiness_reveals_no_secret(engine: Engine) -> None:
    relay = relay_to(engine.variables["DATABASE_URL"])
    await relay.open()
    port = quiet_port()
    settings = {
        "DATABASE_URL": through(relay, engine.database.app_url),
        "OPERATOR_DATABASE_URL": through(relay, engine.database.operator_url),
        "OPERATOR_WALLETS": payer_wallets()[0].address,
        "CHAIN_RPC_URLS": f"http://user:{KEY}@127.0.0.1:{port}/v2/{KEY}?key={KEY}",
        "TEMPORAL_ADDRESS": f"127.0.0.1:{quiet_port()}",
        "TEMPORAL_API_KEY": KEY,
    }
    seen: list[Reply] = []
    async with AsyncExitStack() as stack:
        stack.push_async_callback(relay.cut)
        api = await stack.enter_async_context(running_api(engine, **settings))
        visitor = await stack.enter_async_context(api.visitor())
        await relay.cut()

        async def names_them_all() -> bool:
            seen.append(await visitor.get("/readyz"))
            checks = seen[-1].body["checks"]
            return all(result != "ok" for result in checks.values())

        await wait_until(names_them_all, timeout_seconds=PATIENCE_SECONDS, what="all dependencies unavailable")
    told = json.dumps(seen[-1].body)
    assert len(seen[-1].body["checks"]) == 7
    assert KEY not in told and ROLE_PASSWORD not in told and "postgresql://" not in told, told
