"""`settle sessions revoke`: ends a wallet's sessions."""

from __future__ import annotations

from chain.addresses import checksum_address
from commands.output import print_json, stdout
from composition import service_database
from db.accounts.sessions import end_sessions_of_wallet
from settings import Settings


async def revoke(settings: Settings, *, wallet: str, as_json: bool) -> None:
    """End all sessions of a wallet; safe to repeat. Raises `InvalidInput` and `SettleError`."""
    address = checksum_address(wallet, field="--wallet")
    async with service_database(settings) as database, database.transaction() as connection:
        ended = await end_sessions_of_wallet(connection, address)
    if as_json:
        print_json({"address": address, "endedSessions": ended})
    else:
        stdout.print(f"{ended} session{'' if ended == 1 else 's'} of {address} ended")
