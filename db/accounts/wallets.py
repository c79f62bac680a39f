"""Queries on users and billing accounts."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

from sqlalchemy import select, text
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncConnection

from db.engine import AnyConnection
from db.errors import WALLET_IS_SOMEBODYS, violated_constraint
from db.tables.accounts import BillingAccount
from domain.errors import PayerRefused
from domain.transfers.income import NonPayer

_NON_PAYER_KIND: Final = text("SELECT non_payer_kind(:address)")
_PROVISION = text("SELECT user_id, billing_account_id, created FROM provision_wallet(:wallet)")


@dataclass(frozen=True, slots=True)
class Payer:
    """A signed-in wallet: its user and the account that is credited."""

    user_id: str
    billing_account_id: str
    wallet_address: str


@dataclass(frozen=True, slots=True)
class Funds:
    """What an account has. `held_credits` are set aside for calls in flight, and are part of the balance until then."""

    balance_credits: int
    held_credits: int

    @property
    def available_credits(self) -> int:
        """What another call may cost at most; negative where more was spent than there was."""
        return self.balance_credits - self.held_credits


async def provision_wallet(connection: AsyncConnection, wallet_address: str) -> Payer:
    """Find the wallet's user and account, or create them with a default key. Safe to run twice and concurrently.

    `wallet_address` is in EIP-55 checksum form. Raises `PayerRefused` for an address that cannot have an account.
    """
    with wallet_of_somebody(wallet_address):
        row = (await connection.execute(_PROVISION, {"wallet": wallet_address})).one()
    return Payer(row.user_id, row.billing_account_id, wallet_address)


@contextmanager
def wallet_of_somebody(wallet_address: str) -> Iterator[None]:
    """Convert the database's refusal of the zero address or a token, within the block, to `PayerRefused`."""
    try:
        yield
    except IntegrityError as error:
        if violated_constraint(error) != WALLET_IS_SOMEBODYS:
            raise
        raise PayerRefused(f"{wallet_address} cannot have an account") from error


async def find_non_payer_kind(connection: AsyncConnection, address: str) -> NonPayer | None:
    """Why an address cannot be a payer, as far as the database knows; None for a payer."""
    kind = (await connection.execute(_NON_PAYER_KIND, {"address": address})).scalar_one()
    return NonPayer(kind) if kind else None


async def balances(connection: AnyConnection) -> dict[str, int]:
    """`balance_credits` of every account the connection may see."""
    rows = await connection.connection.execute(
        select(BillingAccount.id, BillingAccount.balance_credits).order_by(BillingAccount.id)
    )
    return {row.id: row.balance_credits for row in rows}


async def find_funds(connection: AnyConnection, billing_account_id: str) -> Funds | None:
    """Balance and holds of one account at one moment, or None where the connection does not see it."""
    columns = (BillingAccount.balance_credits, BillingAccount.held_credits)
    row = (
        await connection.connection.execute(select(*columns).where(BillingAccount.id == billing_account_id))
    ).one_or_none()
    return Funds(row.balance_credits, row.held_credits) if row else None
