"""Queries on payment attempts, their audit trail and the transfers that paid them."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from typing import Any, Final, LiteralString
from uuid import UUID

import psycopg
from psycopg.rows import TupleRow
from psycopg.types.json import Jsonb
from sqlalchemy import Row, Select, bindparam, insert, select, text, tuple_, update
from sqlalchemy.exc import IntegrityError

from db.engine import (
    AnyConnection,
    ReadAllConnection,
    ServiceStatements,
    SettlementConnection,
    SettlementStatements,
    TenantConnection,
    fetch_one,
)
from db.errors import (
    FROM_A_PAYER,
    HASH_HELD_BY_ACCOUNT,
    NOT_CREDITED_BY_OPERATOR,
    NOT_TOO_OLD,
    ONE_ATTEMPT_PER_TRANSFER,
    violated_constraint,
)
from db.ledger.entries import PostedEntry, posted_entry, refuse_repeated_posting
from db.tables.accounts import BillingAccount
from db.tables.payments import PaymentAttemptRow, PaymentEvent, SettledTransferRow
from domain.errors import HashInUse, TransferAlreadySettled
from domain.ledger.entries import Posting
from domain.payments.attempt import AttemptStatus, ErrorCode, PaymentAttempt
from domain.payments.verification import SettledTransfer
from domain.payments.watched import WatchedTransaction
from domain.transfers.income import NonPayer


@dataclass(frozen=True, slots=True)
class Event:
    """One row of the audit trail."""

    event_type: str
    from_status: str | None
    to_status: str
    error_code: str | None
    details: dict[str, Any]
    created_at: datetime


def _select_attempt() -> Select[Any]:
    columns = [
        column for column in PaymentAttemptRow.__table__.columns if column.name not in {"updated_at", "payable_until"}
    ]
    return select(*columns, BillingAccount.owner_user_id).join(
        BillingAccount, BillingAccount.id == PaymentAttemptRow.billing_account_id
    )


# An attempt is read, submitted and credited by the driver: nothing is asked for as often.
_COLUMNS: Final = (
    *("id", "billing_account_id", "from_address", "chain_id", "token", "to_address", "amount_raw", "amount_usd_cents"),
    *("purpose", "status", "tx_hash", "error_code", "expires_at", "submitted_at", "submission_count", "revenue_share"),
    *("created_at", "kind", "amount_credits", "value_raw", "cash_account", "authorization_nonce"),
)
_ATTEMPT: Final[LiteralString] = (
    f"SELECT {', '.join(f'a.{name}' for name in _COLUMNS)}, b.owner_user_id"  # noqa: S608 - of constants
    "  FROM payment_attempts a JOIN billing_accounts b ON b.id = a.billing_account_id WHERE a.id = %(attempt_id)s"
)
_ATTEMPT_LOCKED: Final[LiteralString] = f"{_ATTEMPT} FOR UPDATE OF a"
_OWN_ATTEMPT: Final[LiteralString] = f"SELECT {', '.join(_COLUMNS)} FROM own_attempt(%(user_id)s, %(attempt_id)s)"  # noqa: S608 - of constants
_RECORD_SUBMISSION: Final[LiteralString] = (
    "SELECT record_own_submission(%(attempt_id)s, %(from_status)s, %(tx_hash)s, %(submitted_at)s, %(event_type)s,"
    " %(details)s)"
)
_CREDIT_PURCHASE: Final[LiteralString] = (
    "SELECT entry_id, amount, balance_after, posted FROM credit_own_purchase("
    "%(user_id)s, %(attempt_id)s, %(status)s, %(revenue_share)s::numeric, %(chain_id)s::bigint, %(tx_hash)s,"
    " %(log_index)s::bigint, %(block_number)s::bigint, %(block_hash)s, %(from_address)s, %(value_raw)s::numeric,"
    " %(surplus_raw)s::numeric, %(unapplied_raw)s::numeric, %(amount)s::bigint, %(contra_account)s, %(metadata)s,"
    " %(details)s)"
)

# Built once: composing a statement costs more than sending it.
_INSERT_ATTEMPT: Final = insert(PaymentAttemptRow)
_INSERT_EVENT: Final = insert(PaymentEvent.__table__)  # type: ignore[arg-type]
_INSERT_TRANSFER: Final = insert(SettledTransferRow)
_UPDATE_ATTEMPT: Final = update(PaymentAttemptRow).where(PaymentAttemptRow.id == bindparam("attempt_id"))
_UPDATE_CREDITED: Final = _UPDATE_ATTEMPT.values(
    status=AttemptStatus.CREDITED.value,
    tx_hash=bindparam("new_tx_hash"),
    revenue_share=bindparam("new_revenue_share"),
)


_CHAIN: Final = select(PaymentAttemptRow.chain_id).where(PaymentAttemptRow.id == bindparam("attempt_id"))

# Of credited ones only the latest, which an index by time finds: reconciliation reports older ones.
_UNFINISHED_BY_CHAIN: Final = text(
    """
    SELECT a.chain_id, count(*) AS attempts FROM payment_attempts a
     WHERE a.status = 'PENDING_UNVERIFIED'
        OR (a.status = 'CREDITED' AND a.updated_at > now() - interval '7 days'
            AND NOT EXISTS (SELECT 1 FROM transfer_finality f WHERE f.attempt_id = a.id))
     GROUP BY a.chain_id
    """
)


def _to_attempt(row: Row[Any]) -> PaymentAttempt:
    return PaymentAttempt.model_validate(row._mapping)


def _from_driver(row: TupleRow | None, owner_user_id: str | None = None) -> PaymentAttempt | None:
    """From the columns above; the owner's id comes last where it is not given."""
    if row is None:
        return None
    *values, owner = row if owner_user_id is None else (*row, owner_user_id)
    return PaymentAttempt.model_validate({**dict(zip(_COLUMNS, values, strict=True)), "owner_user_id": owner})


async def find_chain(connection: ReadAllConnection, attempt_id: UUID) -> int | None:
    """The chain that an attempt belongs to; None where there is no such attempt."""
    found: int | None = (await connection.connection.execute(_CHAIN, {"attempt_id": attempt_id})).scalar_one_or_none()
    return found


async def count_unfinished_by_chain(connection: ReadAllConnection) -> dict[int, int]:
    """By chain, the attempts that a worker must handle: those that wait for the chain, or (of the last week) for
    finality.
    """
    return {row.chain_id: row.attempts for row in await connection.connection.execute(_UNFINISHED_BY_CHAIN)}


async def insert_attempt(connection: AnyConnection, attempt: PaymentAttempt) -> None:
    """Write a new intent."""
    values = attempt.model_dump(
        exclude={
            *("owner_user_id", "tx_hash", "error_code", "submitted_at", "submission_count", "revenue_share"),
            "authorization_nonce",
        }
    )
    await connection.connection.execute(_INSERT_ATTEMPT, values)


async def find_attempt(connection: AnyConnection | ServiceStatements, attempt_id: UUID) -> PaymentAttempt | None:
    """The attempt, or None where the connection sees none."""
    return _from_driver(await fetch_one(connection, _ATTEMPT, {"attempt_id": attempt_id}))


async def find_own_attempt(
    connection: SettlementConnection | SettlementStatements, attempt_id: UUID
) -> PaymentAttempt | None:
    """The same of the connection's tenant, also where each statement is a transaction of its own."""
    values = {"user_id": connection.user_id, "attempt_id": attempt_id}
    return _from_driver(await fetch_one(connection, _OWN_ATTEMPT, values), connection.user_id)


async def page_attempts(
    connection: TenantConnection,
    billing_account_id: str,
    *,
    limit: int,
    statuses: Collection[AttemptStatus] | None = None,
    before: UUID | None = None,
) -> list[PaymentAttempt]:
    """An account's attempts, of any status or of some, newest first, at most `limit`; older than the one `before`."""
    query = (
        _select_attempt()
        # Row-level security says the same, in a form that no index can order.
        .where(PaymentAttemptRow.billing_account_id == billing_account_id)
        .order_by(PaymentAttemptRow.created_at.desc(), PaymentAttemptRow.id.desc())
        .limit(limit)
    )
    if statuses is not None:
        query = query.where(PaymentAttemptRow.status.in_([status.value for status in statuses]))
    if before is not None:
        at = select(PaymentAttemptRow.created_at, PaymentAttemptRow.id).where(PaymentAttemptRow.id == before)
        query = query.where(tuple_(PaymentAttemptRow.created_at, PaymentAttemptRow.id) < at.scalar_subquery())
    return [_to_attempt(row) for row in await connection.connection.execute(query)]


async def lock_attempt(connection: AnyConnection, attempt_id: UUID) -> PaymentAttempt | None:
    """The attempt, locked until the transaction ends; None where the connection sees none."""
    return _from_driver(await fetch_one(connection, _ATTEMPT_LOCKED, {"attempt_id": attempt_id}))


_OBSERVED_PAYMENT_TIME: Final = text("SELECT observed_payment_time(:attempt_id, :tx_hash)")


async def find_observed_payment_time(connection: TenantConnection, attempt_id: UUID, tx_hash: str) -> datetime | None:
    """When the payer's own transfer in that transaction was mined; None where the chain watcher has not seen one."""
    values = {"attempt_id": attempt_id, "tx_hash": tx_hash}
    mined_at: datetime | None = (await connection.connection.execute(_OBSERVED_PAYMENT_TIME, values)).scalar_one()
    return mined_at


_OBSERVED_PAYMENT_BLOCK: Final = text("SELECT min(block_number) FROM observed_payments(:attempt_id, :tx_hash)")


async def find_observed_payment_block(connection: TenantConnection, attempt_id: UUID, tx_hash: str) -> int | None:
    """The block of the payer's own transfer in that transaction; None where the chain watcher has not seen one."""
    values = {"attempt_id": attempt_id, "tx_hash": tx_hash}
    block: int | None = (await connection.connection.execute(_OBSERVED_PAYMENT_BLOCK, values)).scalar_one()
    return block


async def record_submission(
    connection: AnyConnection,
    attempt: PaymentAttempt,
    tx_hash: str,
    at: datetime,
    *,
    event_type: str,
    details: dict[str, Any],
) -> PaymentAttempt:
    """The locked attempt (again) waits for `tx_hash`, and the audit trail says so.

    Raises `HashInUse` when an own attempt holds that hash.
    """
    values = {
        "attempt_id": attempt.id,
        "from_status": attempt.status.value,
        "tx_hash": tx_hash,
        "submitted_at": at,
        "event_type": event_type,
        "details": Jsonb(details),
    }
    try:
        [submitted_at] = await fetch_one(connection, _RECORD_SUBMISSION, values) or (None,)
    except psycopg.IntegrityError as error:
        if error.diag.constraint_name == HASH_HELD_BY_ACCOUNT:
            raise HashInUse(tx_hash) from error
        raise
    return attempt.model_copy(
        update={
            "status": AttemptStatus.PENDING_UNVERIFIED,
            "tx_hash": tx_hash,
            "error_code": None,
            "expires_at": None,
            "submitted_at": submitted_at,
            "submission_count": attempt.submission_count + 1,
        }
    )


async def credit_purchase(
    connection: SettlementConnection | SettlementStatements,
    attempt: PaymentAttempt,
    transfer: SettledTransfer,
    posting: Posting,
    *,
    revenue_share: Decimal,
    facts: dict[str, Any],
    details: dict[str, Any],
) -> PostedEntry | None:
    """Credit the tenant's own purchase with everything that must come with it, if `attempt` is still in its status.

    None where the status has changed since. The database refuses any other account, amount or purpose
    (`post_own_purchase`). Raises `TransferAlreadySettled` where the transfer has paid another attempt, may not pay any
    more, or is held by another attempt of the payer, which it will pay; `PostedMeanwhile` and `BookkeepingError` as
    `db.ledger.entries.post` does.
    """
    values = {
        **_transfer_values(attempt.id, transfer),
        "user_id": connection.user_id,
        "status": attempt.status.value,
        "revenue_share": revenue_share,
        "amount": posting.amount_credits,
        "contra_account": posting.contra_account,
        "metadata": Jsonb(facts),
        "details": Jsonb(details),
    }
    try:
        row = await fetch_one(connection, _CREDIT_PURCHASE, values)
    except psycopg.IntegrityError as error:
        _refuse_transfer(error.diag.constraint_name, transfer, error)
        refuse_repeated_posting(error)
        raise
    return None if row is None else posted_entry(row, posting.amount_credits)


async def update_credited(
    connection: AnyConnection, attempt_id: UUID, tx_hash: str, revenue_share: Decimal | None
) -> None:
    """The attempt ends CREDITED, paid by `tx_hash`; a purchase with the share of its bonus.

    Raises `TransferAlreadySettled` when another attempt of the payer holds that hash: this one released it by a
    replacement after the chain had been read, and the other one will be paid by it.
    """
    values = {"attempt_id": attempt_id, "new_tx_hash": tx_hash, "new_revenue_share": revenue_share}
    try:
        await connection.connection.execute(_UPDATE_CREDITED, values)
    except IntegrityError as error:
        if violated_constraint(error) == HASH_HELD_BY_ACCOUNT:
            raise TransferAlreadySettled(_HELD.format(tx_hash)) from error
        raise


async def update_reversed(connection: AnyConnection, attempt_id: UUID) -> None:
    """The credited attempt ends REVERSED."""
    await connection.connection.execute(
        update(PaymentAttemptRow).where(PaymentAttemptRow.id == attempt_id).values(status=AttemptStatus.REVERSED.value)
    )


async def update_refused(
    connection: AnyConnection, attempt_id: UUID, status: AttemptStatus, error_code: ErrorCode
) -> None:
    """The attempt ends without credits, REJECTED or FAILED."""
    await connection.connection.execute(
        update(PaymentAttemptRow)
        .where(PaymentAttemptRow.id == attempt_id)
        .values(status=status.value, error_code=error_code.value)
    )


async def insert_event(
    connection: AnyConnection,
    attempt_id: UUID,
    event_type: str,
    *,
    from_status: AttemptStatus | None,
    to_status: AttemptStatus,
    error_code: ErrorCode | None = None,
    details: dict[str, Any] | None = None,
) -> None:
    """Append to the audit trail."""
    values = {
        "attempt_id": attempt_id,
        "event_type": event_type,
        "from_status": from_status.value if from_status else None,
        "to_status": to_status.value,
        "error_code": error_code.value if error_code else None,
        "metadata": details or {},
    }
    await connection.connection.execute(_INSERT_EVENT, values)


async def list_events(connection: AnyConnection, attempt_id: UUID) -> list[Event]:
    """The audit trail of one attempt, oldest first."""
    rows = await connection.connection.execute(
        select(PaymentEvent).where(PaymentEvent.attempt_id == attempt_id).order_by(PaymentEvent.id)
    )
    return [
        Event(row.event_type, row.from_status, row.to_status, row.error_code, row._mapping["metadata"], row.created_at)
        for row in rows
    ]


_NOT_TAKEN: Final = {
    ONE_ATTEMPT_PER_TRANSFER: "has paid another attempt",
    NOT_CREDITED_BY_OPERATOR: "has paid before, or was credited by an operator",
    # The chain is polled again, and the result then includes it: the database's state has changed since.
    FROM_A_PAYER: "is from an address that cannot be a payer",
    NOT_TOO_OLD: "is from before the first block that payments are taken from",
}
"""Error message for a transfer that the database refuses as a payment, by its constraint."""

_HELD: Final = "transaction {} is held by another attempt"


async def insert_settled_transfer(connection: AnyConnection, attempt_id: UUID, transfer: SettledTransfer) -> None:
    """Record which transfer paid the attempt.

    Raises `TransferAlreadySettled` when that transfer has paid another attempt, or may not pay any more.
    """
    try:
        await connection.connection.execute(_INSERT_TRANSFER, _transfer_values(attempt_id, transfer))
    except IntegrityError as error:
        _refuse_transfer(violated_constraint(error), transfer, error)
        raise


def _transfer_values(attempt_id: UUID, transfer: SettledTransfer) -> dict[str, Any]:
    return {
        "chain_id": transfer.chain_id,
        "tx_hash": transfer.tx_hash,
        "log_index": transfer.log_index,
        "attempt_id": attempt_id,
        "block_number": transfer.block_number,
        "block_hash": transfer.block_hash,
        "from_address": transfer.from_address,
        "value_raw": Decimal(transfer.value_raw),
        "surplus_raw": Decimal(transfer.surplus_raw),
        "unapplied_raw": Decimal(transfer.unapplied_raw),
    }


def _refuse_transfer(constraint: str | None, transfer: SettledTransfer, error: Exception) -> None:
    """Raise `TransferAlreadySettled` where the constraint says that the transfer pays nothing (any more)."""
    if constraint == HASH_HELD_BY_ACCOUNT:
        raise TransferAlreadySettled(_HELD.format(transfer.tx_hash)) from error
    if constraint in _NOT_TAKEN:
        raise TransferAlreadySettled(
            f"transfer {transfer.log_index} of transaction {transfer.tx_hash} {_NOT_TAKEN[constraint]}"
        ) from error


async def find_settled_transfer(connection: AnyConnection, attempt_id: UUID) -> SettledTransfer | None:
    """The transfer that paid the attempt, or None."""
    row = (
        await connection.connection.execute(
            select(SettledTransferRow).where(SettledTransferRow.attempt_id == attempt_id)
        )
    ).one_or_none()
    return None if row is None else settled_transfer_of(row)


def settled_transfer_of(row: Any) -> SettledTransfer:
    """From a row with the columns of `settled_transfers`."""
    return SettledTransfer(
        chain_id=row.chain_id,
        tx_hash=row.tx_hash,
        log_index=row.log_index,
        block_number=row.block_number,
        block_hash=row.block_hash,
        from_address=row.from_address,
        value_raw=int(row.value_raw),
        expected_raw=int(row.value_raw - row.surplus_raw),
        unapplied_raw=int(row.unapplied_raw),
    )


_UNDER_VERIFICATION = text(
    """
    SELECT a.tx_hash, a.submitted_at, clock_timestamp() AS now,
           coalesce((SELECT array_agg(s.log_index) FROM settled_transfers s
                      WHERE s.chain_id = a.chain_id AND s.tx_hash = a.tx_hash AND s.attempt_id <> a.id), '{}')
             AS settled_log_indexes,
           first_block_answered_for(a.chain_id, a.token, a.to_address) AS first_block,
           non_payer_kind(a.from_address) AS payer_kind,
           w.block_number AS watched_block, w.head_number AS watched_head, w.updated_at AS watched_at,
           w.waits_for IS NOT NULL AS watcher_waits, o.block_number AS seen_in_block, o.observed_at AS seen_at
      FROM payment_attempts a
      LEFT JOIN LATERAL (
               SELECT * FROM chain_cursors c
                WHERE c.chain_id = a.chain_id AND lower(c.token) = lower(a.token)
                  AND lower(c.to_address) = lower(a.to_address) AND c.retired_at IS NULL
                ORDER BY c.updated_at DESC LIMIT 1) w ON true
      LEFT JOIN LATERAL (
               SELECT max(t.block_number) AS block_number, min(t.observed_at) AS observed_at
                 FROM observed_transfers t
                WHERE t.chain_id = a.chain_id AND t.tx_hash = a.tx_hash AND lower(t.token) = lower(a.token)
                  AND lower(t.to_address) = lower(a.to_address)) o ON true
     WHERE a.id = :attempt_id
    """
)


@dataclass(frozen=True, slots=True)
class UnderVerification:
    """State that a poll of the chain needs."""

    tx_hash: str
    submitted_at: datetime
    settled_log_indexes: frozenset[int]
    now: datetime
    """By the database's clock, as `submitted_at` is."""
    first_block: int | None = None
    """The first accepted block, as far as the database knows."""
    payer_kind: NonPayer | None = None
    watched: WatchedTransaction | None = None
    """What the chain watcher has written; None where it does not follow the attempt's token and treasury."""


async def find_under_verification(connection: ReadAllConnection, attempt_id: UUID) -> UnderVerification | None:
    """The hash that the attempt waits for now, the logs of that transaction that have paid others, and what the chain
    watcher has written about it.
    """
    row = (await connection.connection.execute(_UNDER_VERIFICATION, {"attempt_id": attempt_id})).one_or_none()
    if row is None or row.tx_hash is None or row.submitted_at is None:
        return None
    return UnderVerification(
        row.tx_hash,
        row.submitted_at,
        frozenset(row.settled_log_indexes),
        row.now,
        row.first_block,
        NonPayer(row.payer_kind) if row.payer_kind else None,
        _watched(row),
    )


def _watched(row: Row[Any]) -> WatchedTransaction | None:
    if row.watched_at is None:
        return None
    return WatchedTransaction(
        block_number=row.watched_block,
        head_number=row.watched_head,
        written_ago=row.now - row.watched_at,
        is_waiting=row.watcher_waits,
        seen_in_block=row.seen_in_block,
        seen_ago=row.now - row.seen_at if row.seen_at is not None else None,
    )
