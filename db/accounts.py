"""Queries on users and billing accounts."""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import select, text
from sqlalchemy.ext.asyncio import AsyncConnection

from db.engine import AnyConnection
from db.schema import BillingAccount

_PROVISION = text("SELECT user_id, billing_account_id, created FROM provision_wallet(:wallet)")


@dataclass(frozen=True, slots=True)
class Payer:
    """A signed-in wallet: its user and the account that is credited."""

    user_id: str
    billing_account_id: str
    wallet_address: str


async def provision_wallet(connection: AsyncConnection, wallet_address: str) -> Payer:
    """Find the wallet's user and account, or open them with a default key. Safe twice and at once.

    `wallet_address` is in EIP-55 checksum form.
    """
    row = (await connection.execute(_PROVISION, {"wallet": wallet_address})).one()
    return Payer(row.user_id, row.billing_account_id, wallet_address)


async def balances(connection: AnyConnection) -> dict[str, int]:
    """`balance_credits` of every account the connection may see."""
    rows = await connection.connection.execute(
        select(BillingAccount.id, BillingAccount.balance_credits).order_by(BillingAccount.id)
    )
    return {row.id: row.balance_credits for row in rows}


async def find_balance(connection: AnyConnection, billing_account_id: str) -> int | None:
    """Credits of one account, or None where the connection does not see it."""
    return (
        await connection.connection.execute(
            select(BillingAccount.balance_credits).where(BillingAccount.id == billing_account_id)
        )
    ).scalar_one_or_none()
