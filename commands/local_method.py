"""The payment method of a local system: its test USDC, at addresses that pay the local treasury."""

from __future__ import annotations

from typing import Final

from composition import service_database
from db.deposits.methods import find_method
from domain.deposits.methods import Scheme
from domain.money import USDC_DECIMALS
from services.deposits.registration import parse_method, register
from settings import Settings

LOCAL_METHOD: Final = "USDC:local"


async def seed_local_method(settings: Settings) -> None:
    """Register `USDC:local` unless it is there: one that was disabled stays so. The chain was set up with its token."""
    new = parse_method(
        method_id=LOCAL_METHOD,
        chain_id=settings.chain_id,
        token=settings.usdc_token_address,
        decimals=USDC_DECIMALS,
        scheme=Scheme.CREATE2,
        xpub=None,
        path=None,
        min_amount_raw=1,
        confirmations=None,
    )
    async with service_database(settings) as database, database.transaction() as connection:
        if await find_method(connection, LOCAL_METHOD) is None:
            await register(connection, new, own_chain_id=settings.chain_id, usdc=settings.usdc_token_address)
