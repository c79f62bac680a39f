"""The check of `settle doctor` on the relay: its rights, its gas, what waits for it, and whether it works."""

from __future__ import annotations

from typing import Final

from chain.reader import ChainReader
from composition import chain_reader, service_database
from db.engine import RelayDatabase
from db.payments import relay_state
from db.payments.relay_state import RelayAccount, WaitingClaims
from db.startup import check_relay_database
from domain.errors import RelayNotWorking
from relay.process import STALE_AFTER_SECONDS
from settings import Settings

UNSENT_SECONDS_MAX: Final = 120.0
"""What is signed is sent within seconds, and is valid for ten minutes, usually."""

STUCK_SECONDS_MAX: Final = 600.0
"""The threshold of the alert SettleRelayStuck: all nonces after it wait."""

RIGHTS_ARE_CORRECT: Final = "schema and rights are correct"
UNSENT: Final = "signed payments are not sent"
STOPPED: Final = "is `settle relay` running?"
NOT_USED: Final = "none has run on this chain, and nothing waits for one"


async def check_relay(settings: Settings) -> str:
    """Whether signed payments are sent. Raises `RelayNotWorking` with all that is wrong, and what its parts raise."""
    words: list[str] = []
    if settings.relay_database_url is not None:
        database = RelayDatabase(settings.relay_database_url, application_name="settle cli")
        try:
            await check_relay_database(database)
        finally:
            await database.dispose()
        words.append(RIGHTS_ARE_CORRECT)
    async with service_database(settings) as service, service.transaction() as connection:
        accounts = await relay_state.list_accounts(connection, settings.chain_id)
        waiting = await relay_state.count_waiting(connection, settings.chain_id)
    troubles = _troubles_of(accounts, waiting)
    if accounts:
        async with chain_reader(settings) as chain:
            said, low = await _gas(chain, accounts[0], settings)
        words.append(said)
        troubles += low
    if troubles:
        raise RelayNotWorking("; ".join(troubles))
    return "; ".join([*words, *([] if accounts else [NOT_USED])])


def _troubles_of(accounts: list[RelayAccount], waiting: WaitingClaims) -> list[str]:
    """What is wrong, by the database."""
    found: list[str] = []
    if accounts:
        last = accounts[0]
        if last.seen_seconds_ago is None or last.seen_seconds_ago > STALE_AFTER_SECONDS:
            when = "never" if last.seen_seconds_ago is None else f"{last.seen_seconds_ago:.0f} s ago"
            found.append(f"{last.address} last completed a pass {when}: {STOPPED}")
    if waiting.number and (waiting.oldest_seconds > UNSENT_SECONDS_MAX or not accounts):
        found.append(f"{waiting.number} {UNSENT}, the oldest for {waiting.oldest_seconds:.0f} s")
    stuck = [account for account in accounts if (account.oldest_open_seconds or 0.0) > STUCK_SECONDS_MAX]
    return found + [
        f"nonce {account.first_open_nonce} of {account.address} is not confirmed: {account.open_nonces} are open, the "
        f"oldest for {account.oldest_open_seconds:.0f} s"
        for account in stuck
    ]


async def _gas(chain: ChainReader, account: RelayAccount, settings: Settings) -> tuple[str, list[str]]:
    """What the account holds, and what is wrong with that."""
    balance_wei = (await chain.transactions.account(account.address)).balance_wei
    said = f"{account.address} holds {balance_wei} wei, {account.open_nonces} transactions are open"
    if balance_wei >= settings.relay_balance_alert_wei:
        return said, []
    least = settings.relay_balance_alert_wei
    return said, [f"{account.address} holds {balance_wei} wei: expected at least {least} (RELAY_BALANCE_ALERT_WEI)"]
