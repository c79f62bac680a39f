"""Queries on charges and their deposits, in the scope of the account that they belong to."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final
from uuid import UUID

from psycopg.types.json import Jsonb
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from db.deposits.authorizations import list_signed
from db.deposits.methods import method_of_row
from db.deposits.prices import find_quote, find_source_of_quote
from db.engine import ServiceConnection, TenantConnection
from domain.deposits.charges import Charge, Deposit, Received, status_of
from domain.deposits.worth import UnitPrice
from domain.payments.attempt import AttemptStatus

DEPOSITS_SHOWN_MAX: Final = 50
"""Dust can be sent to any address; the sums are of all."""


@dataclass(frozen=True, slots=True)
class NewCharge:
    """A charge to write."""

    id: UUID
    billing_account_id: str
    method_id: str
    amount_usd_cents: int
    quoted_amount_raw: int
    address_id: UUID
    price_expires_at: datetime
    details: dict[str, Any]
    quote_id: UUID | None = None


_INSERT: Final = text(
    "INSERT INTO charges (id, billing_account_id, method_id, amount_usd_cents, quoted_amount_raw, address_id,"
    " price_expires_at, metadata, quote_id)"
    " VALUES (:id, :account, :method, :cents, :raw, :address, :expires_at, :metadata, :quote)"
)

_FIND: Final = text(
    """
    SELECT c.id AS charge_id, c.billing_account_id, c.amount_usd_cents, c.quoted_amount_raw,
           c.price_expires_at, c.metadata, c.created_at AS charged_at, c.address_id, c.quote_id, a.address AS pay_to,
           clock_timestamp() AS read_at, m.*
      FROM charges c
      JOIN deposit_addresses a ON a.id = c.address_id
      JOIN payment_methods m ON m.id = c.method_id
     WHERE c.id = :id AND c.billing_account_id = :account
    """
)

# What is paid in the charge's own token is summed as `refresh_charge` sums it. Credits are those of any token.
_RECEIVED: Final = text(
    """
    SELECT r.seen_raw, r.credited_raw, o.credits, o.waiting_raw
      FROM received_for_charge(:id) r, LATERAL (
           SELECT coalesce(sum(coalesce(d.operator_credits, d.credits))
                               FILTER (WHERE p.status = 'CREDITED' OR d.operator_credits IS NOT NULL), 0) AS credits,
                  coalesce(sum(d.value_raw) FILTER (WHERE d.attempt_id IS NULL AND d.operator_credits IS NULL), 0)
                      AS waiting_raw
             FROM deposits d LEFT JOIN payment_attempts p ON p.id = d.attempt_id
            WHERE d.address_id = :address) o
    """
)

_DEPOSITS: Final = text(
    """
    SELECT d.id, d.tx_hash, d.log_index, d.method_id, d.from_address, d.value_raw, d.credits, d.block_number,
           d.block_time, d.attempt_id, d.created_at, m.token, m.decimals,
           CASE WHEN d.operator_credits IS NULL THEN p.status ELSE 'CREDITED' END AS attempt_status,
           EXISTS (SELECT FROM transfers_awaiting_finality w WHERE w.attempt_id = d.attempt_id) AS is_awaiting_finality,
           m.chain_id = :chain AND m.token = :token AS is_of_charge,
           q.answer_raw AS price_raw, q.decimals AS price_decimals
      FROM deposits d
      JOIN payment_methods m ON m.id = d.method_id
      LEFT JOIN price_quotes q ON q.id = d.quote_id
      LEFT JOIN payment_attempts p ON p.id = d.attempt_id
     WHERE d.address_id = :address
     ORDER BY d.created_at DESC, d.block_number DESC, d.log_index DESC LIMIT :limit
    """
)

# What has an attempt is among the account's payments.
_WAITING: Final = text(
    """
    SELECT d.id, d.tx_hash, d.log_index, d.method_id, d.from_address, d.value_raw, d.credits, d.block_number,
           d.block_time, d.attempt_id, NULL AS attempt_status, false AS is_awaiting_finality, d.created_at,
           m.token, m.decimals, true AS is_of_charge,
           m.chain_id, m.confirmations, m.min_amount_raw, q.answer_raw AS price_raw, q.decimals AS price_decimals,
           sum(d.value_raw) OVER (PARTITION BY d.address_id, d.method_id) AS waiting_raw
      FROM deposits d
      JOIN payment_methods m ON m.id = d.method_id
      JOIN deposit_addresses a ON a.id = d.address_id
      LEFT JOIN price_quotes q ON q.id = d.quote_id
     WHERE a.billing_account_id = :account AND d.attempt_id IS NULL AND d.operator_credits IS NULL
     ORDER BY d.created_at DESC, d.id LIMIT :limit
    """
)

_OWNER: Final = text("SELECT user_id, billing_account_id FROM owner_of_charge(:id) WHERE user_id IS NOT NULL")

_DUE: Final = text(
    """
    SELECT c.id FROM charges c WHERE c.status = 'new' AND c.price_expires_at <= clock_timestamp()
     ORDER BY c.price_expires_at LIMIT :limit
    """
)

_REFRESH: Final = text("SELECT refresh_charge(:id)")


@dataclass(frozen=True, slots=True)
class WaitingDeposit:
    """A deposit that is no payment yet, and what it waits for."""

    deposit: Deposit
    chain_id: int
    confirmations_needed: int | None
    """None: as many as the installation waits for."""

    is_below_minimum: bool


@dataclass(frozen=True, slots=True)
class OwnerOfCharge:
    """Whose a charge is, and in whose scope it is read."""

    user_id: str
    billing_account_id: str


async def insert_charge(connection: TenantConnection, charge: NewCharge) -> None:
    """Write a charge. Its address names it already: the foreign key is checked at commit."""
    await connection.connection.execute(
        _INSERT,
        {
            "id": charge.id,
            "account": charge.billing_account_id,
            "method": charge.method_id,
            "cents": charge.amount_usd_cents,
            "raw": charge.quoted_amount_raw,
            "address": charge.address_id,
            "expires_at": charge.price_expires_at,
            "metadata": Jsonb(charge.details),
            "quote": charge.quote_id,
        },
    )


async def find_charge(connection: TenantConnection, charge_id: UUID, billing_account_id: str) -> Charge | None:
    """A charge of the account with what has come to it, as of now; None where the account has none by this id."""
    row = (await connection.connection.execute(_FIND, {"id": charge_id, "account": billing_account_id})).one_or_none()
    if row is None:
        return None
    method = method_of_row(row)
    of_address = {"id": charge_id, "address": row.address_id}
    sums = (await connection.connection.execute(_RECEIVED, of_address)).one()
    received = Received(
        seen_raw=int(sums.seen_raw),
        credited_raw=int(sums.credited_raw),
        waiting_raw=int(sums.waiting_raw),
        credits=int(sums.credits),
    )
    of_token = {"chain": method.chain_id, "token": method.token, "limit": DEPOSITS_SHOWN_MAX, **of_address}
    deposits = await connection.connection.execute(_DEPOSITS, of_token)
    quote = None if row.quote_id is None else await find_quote(connection, row.quote_id)
    return Charge(
        id=row.charge_id,
        billing_account_id=row.billing_account_id,
        method=method,
        address=row.pay_to,
        amount_usd_cents=row.amount_usd_cents,
        quoted_amount_raw=int(row.quoted_amount_raw),
        # Of the same moment as the sums: the row was read before them, and a deposit may have been credited in between.
        status=status_of(int(row.quoted_amount_raw), received, price_expires_at=row.price_expires_at, now=row.read_at),
        price_expires_at=row.price_expires_at,
        read_at=row.read_at,
        details=row.metadata,
        created_at=row.charged_at,
        received=received,
        deposits=tuple(deposit_of_row(found) for found in deposits),
        signed=await list_signed(connection, charge_id),
        quote=quote,
        source=None if quote is None else await find_source_of_quote(connection, quote),
    )


async def list_waiting_deposits(
    connection: TenantConnection, billing_account_id: str, *, limit: int
) -> list[WaitingDeposit]:
    """At most `limit` deposits of an account that have been seen and are no payments yet, the last ones first."""
    rows = await connection.connection.execute(_WAITING, {"account": billing_account_id, "limit": limit})
    return [
        WaitingDeposit(
            deposit=deposit_of_row(row),
            chain_id=row.chain_id,
            confirmations_needed=row.confirmations,
            is_below_minimum=row.waiting_raw < row.min_amount_raw,
        )
        for row in rows
    ]


def deposit_of_row(row: Any) -> Deposit:
    """A row of the query above, or one with the same columns, as a value."""
    return Deposit(
        id=row.id,
        tx_hash=row.tx_hash,
        log_index=row.log_index,
        method_id=row.method_id,
        token=row.token,
        decimals=row.decimals,
        is_of_charge=row.is_of_charge,
        from_address=row.from_address,
        value_raw=int(row.value_raw),
        credits=row.credits,
        block_number=row.block_number,
        block_time=row.block_time,
        attempt_id=row.attempt_id,
        attempt_status=AttemptStatus(row.attempt_status) if row.attempt_status else None,
        is_awaiting_finality=row.is_awaiting_finality,
        created_at=row.created_at,
        price=None if row.price_raw is None else UnitPrice(int(row.price_raw), row.price_decimals),
    )


async def find_owner(connection: AsyncConnection, charge_id: UUID) -> OwnerOfCharge | None:
    """Whose a charge is. Its id is the only secret of its page; who has it may see the page, and no more."""
    row = (await connection.execute(_OWNER, {"id": charge_id})).one_or_none()
    return OwnerOfCharge(row.user_id, row.billing_account_id) if row else None


async def list_due(connection: ServiceConnection, *, limit: int) -> list[UUID]:
    """At most `limit` charges whose price has run out with nothing received, the oldest first."""
    return list((await connection.connection.execute(_DUE, {"limit": limit})).scalars())


async def refresh(connection: ServiceConnection, charge_id: UUID) -> None:
    """Write the status that a charge has by now."""
    await connection.connection.execute(_REFRESH, {"id": charge_id})
