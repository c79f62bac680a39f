"""The relay killed at each commit and broadcast: each authorization is executed once, and its payment credited once."""

from __future__ import annotations

import signal
from typing import Final

import pytest
from eth_account import Account

from domain.payments.attempt import AttemptStatus
from services.payments.authorizations import ClaimedAuthorizations
from tests.support.api import running_api
from tests.support.faults import Fault, Moment
from tests.support.system import PaymentSystem
from tests.topups.conftest import HOLDER, RAW, Counter

COMMITS: Final = {"what is signed": "relay_store(", "that it is sent": "relay_sent(", "the outcome": "relay_ended("}
POINTS: Final = {
    "before a broadcast": Fault(moment=Moment.BEFORE_BROADCAST),
    "after a broadcast": Fault(moment=Moment.AFTER_BROADCAST),
} | {
    f"{moment.value} of {commit}": Fault(statement=statement, moment=moment)
    for commit, statement in COMMITS.items()
    for moment in (Moment.BEFORE_COMMIT, Moment.AFTER_COMMIT)
}
"""Where the relay is killed."""


BEFORE_IT_IS_KNOWN: Final = ("after a broadcast", f"{Moment.AFTER_COMMIT.value} of what is signed")
"""Where the payer's wallet may be deployed, and is not to be again."""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("point", "is_deployed"), [*((point, True) for point in POINTS), *((point, False) for point in BEFORE_IT_IS_KNOWN)]
)
async def test_a_relay_killed_anywhere_executes_an_authorization_once(
    system: PaymentSystem, point: str, is_deployed: bool
) -> None:
    chain = system.chain
    key = Account.create()
    await chain.set_balance(key.address, 10**18)
    variables = {
        "RELAY_DATABASE_URL": system.database.relay_url,
        "RELAY_PRIVATE_KEY": key.key.to_0x_hex(),
        "RELAY_HEALTH_PORT": "0",
    }
    factories = {"SMART_WALLET_FACTORIES": chain.smart_wallet_factory_address}
    variables |= factories
    claims = ClaimedAuthorizations(system.service, system.reader, system.payments, chain_id=chain.chain_id)
    before = await chain.token_balance_raw(chain.treasury_address)
    async with running_api(system, **factories) as api, api.visitor(HOLDER) as payee, system.worker():
        counter = Counter(system, api, payee)
        if is_deployed:
            attempt_id, _ = await counter.claimed()
        else:
            attempt_id = await counter.claimed_by(await counter.new_wallet())
        doomed = system.start_command("relay", fault=POINTS[point], **variables)
        async with system.mining():
            await system.ends(doomed, exit_code=-signal.SIGKILL)
            # What was sent is mined and confirmed by the time that the next one comes.
            seen = await chain.block_number()

            async def is_deep() -> bool:
                return await chain.block_number() > seen + 2 * system.settings.min_confirmations

            await system.until(is_deep, "some more blocks")
            system.start_command("relay", **variables)

            async def has_ended() -> bool:
                return await counter.rows("SELECT outcome FROM relay_nonces") == [("succeeded",)]

            await system.until(has_ended, "the outcome of the relay's nonce")
        assert await claims.submit_relayed() == 1
        await system.result(attempt_id)
        assert await counter.status(attempt_id) is AttemptStatus.CREDITED
    assert await chain.token_balance_raw(chain.treasury_address) == before + RAW
    for tag in ("latest", "pending"):
        assert int(await chain.rpc("eth_getTransactionCount", key.address, tag), 16) == 1
    await system.books_are_right()
