"""Deposits: the transfers to deposit addresses, kept from what the chain watcher has observed, and their attempts."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final
from uuid import UUID, uuid5

from sqlalchemy import Row, text

from db.engine import ReadAllConnection, ServiceConnection
from domain.coin import NATIVE_COIN
from domain.deposits.methods import WORTH_CREDITS_MAX
from domain.deposits.worth import ONE_DOLLAR, UnitPrice, is_dollar_token, worth_in_credits
from domain.payments.attempt import AttemptStatus
from domain.transfers.identity import assign_places, place_of
from domain.transfers.income import NonPayer
from domain.utxo import COINBASE_MATURITY, COINBASE_SENDER

_DEPOSIT_NAMESPACE: Final = UUID("c7bd9a1e-5a5f-5f3e-8f0c-2f7f5a3f9d08")
"""Namespace of the ids of deposits."""


def deposit_id(chain_id: int, tx_hash: str, log_index: int, number: int = 0) -> UUID:
    """Id of a deposit by the place where it was first seen, and of its attempt.

    `number` distinguishes deposits that were first seen at one place: a reorganisation may exchange them.
    """
    place = f"{chain_id}:{tx_hash}:{log_index}"
    return uuid5(_DEPOSIT_NAMESPACE, place if number == 0 else f"{place}:{number}")


# Of the methods of one token that one which made the address; disabled or not: what was given out stays credited.
_OBSERVED: Final = text(
    """
    SELECT o.tx_hash, o.log_index, o.block_number, o.block_hash, o.block_time, o.token AS contract, o.from_address,
           o.value_raw, d.id AS address_id, m.id AS method_id, m.token, m.decimals
      FROM observed_transfers o
      JOIN deposit_addresses d ON d.chain_id = o.chain_id AND lower(d.address) = lower(o.to_address)
      JOIN LATERAL (
           SELECT * FROM payment_methods p
            WHERE p.chain_id = o.chain_id AND lower(coalesce(p.address, :coin)) = lower(o.token)
            ORDER BY (p.scheme = d.scheme AND p.ring_id IS NOT DISTINCT FROM d.ring_id) DESC, p.created_at LIMIT 1
           ) m ON true
     WHERE o.chain_id = :chain_id AND o.tx_hash = ANY (CAST(:tx_hashes AS text[]))
     ORDER BY o.log_index
    """
)

_RECORDED: Final = text(
    """
    SELECT d.id, d.tx_hash, d.log_index, d.block_hash, d.address_id, d.token AS contract, d.from_address, d.value_raw,
           d.attempt_id
      FROM deposits d WHERE d.chain_id = :chain_id AND d.tx_hash = ANY (CAST(:tx_hashes AS text[]))
     ORDER BY d.created_at, d.id FOR UPDATE
    """
)

_LOCK: Final = text("SELECT lock_transfers_of(:chain_id, h) FROM unnest(CAST(:tx_hashes AS text[])) h ORDER BY h")

_INSERT: Final = text(
    """
    INSERT INTO deposits (id, chain_id, tx_hash, log_index, address_id, method_id, token, from_address, value_raw,
                          credits, block_number, block_hash, block_time)
    VALUES (:id, :chain_id, :tx_hash, :log_index, :address_id, :method_id, :contract, :from_address, :value_raw,
            :credits, :block_number, :block_hash, :block_time)
    """
)
_TOUCH: Final = text(
    "UPDATE deposit_addresses SET active_at = now() WHERE id = :id AND active_at < now() - interval '1 minute'"
)
# Its price was that of the block that it has left, unless it is a payment by now.
_MOVE: Final = text(
    """
    UPDATE deposits SET log_index = :log_index, block_number = :block_number, block_hash = :block_hash,
           block_time = :block_time,
           credits = CASE WHEN quote_id IS NOT NULL AND attempt_id IS NULL THEN 0 ELSE credits END,
           quote_id = CASE WHEN attempt_id IS NULL THEN NULL ELSE quote_id END
     WHERE id = :id AND (log_index, block_hash) IS DISTINCT FROM (:log_index, :block_hash)
    """
)
_REMOVE: Final = text("DELETE FROM deposits WHERE id = :id AND attempt_id IS NULL")
_UNPLACE: Final = text(
    """
    UPDATE deposits SET log_index = least(-1, (SELECT min(x.log_index) - 1 FROM deposits x
                                                WHERE x.chain_id = :chain_id AND x.tx_hash = :tx_hash))
     WHERE id = :id AND log_index >= 0
    """
)
_EXISTS: Final = text(
    "SELECT EXISTS (SELECT FROM deposits WHERE id = :id) OR EXISTS (SELECT FROM payment_attempts WHERE id = :id)"
)


async def keep_deposits(connection: ServiceConnection, chain_id: int, tx_hashes: Collection[str]) -> None:
    """Make the deposits of these transactions what is observed of them now, in the caller's transaction.

    One that is in another block now moves there: its place in a block is no part of what it is
    (`domain.transfers.identity`). One that is observed no more is removed, unless it has an attempt, which says what
    became of it; then it has a place below zero until it is on the chain again.
    """
    if not tx_hashes:
        return
    values: dict[str, Any] = {"chain_id": chain_id, "tx_hashes": sorted(tx_hashes), "coin": NATIVE_COIN}
    execute = connection.connection.execute
    await execute(_LOCK, values)
    observed: dict[tuple[Any, ...], list[Row[Any]]] = defaultdict(list)
    for row in await execute(_OBSERVED, values):
        observed[_alike(row)].append(row)
    recorded: dict[tuple[Any, ...], list[Row[Any]]] = defaultdict(list)
    for row in await execute(_RECORDED, values):
        recorded[_alike(row)].append(row)
    # What is off the chain first, so that its place is free.
    for key in sorted(recorded.keys() | observed.keys(), key=lambda one: (len(observed[one]), str(one))):
        await _keep_twins(connection, chain_id, observed[key], recorded[key])


async def _keep_twins(
    connection: ServiceConnection, chain_id: int, observed: Sequence[Row[Any]], recorded: Sequence[Row[Any]]
) -> None:
    """The deposits of one sender, recipient, token and value in one transaction."""
    execute = connection.connection.execute
    block_hash = observed[0].block_hash if observed else None
    at = {row.log_index: row for row in observed}
    places = assign_places(block_hash, at.keys(), [place_of(row) for row in recorded])
    for number in set(range(len(recorded))) - set(places.values()):
        row = recorded[number]
        if row.attempt_id is None:
            await execute(_REMOVE, {"id": row.id})
        else:
            await execute(_UNPLACE, {"id": row.id, "chain_id": chain_id, "tx_hash": row.tx_hash})
    for log_index, row in at.items():
        place = {
            "log_index": log_index,
            "block_number": row.block_number,
            "block_hash": row.block_hash,
            "block_time": row.block_time,
        }
        if log_index in places:
            await execute(_MOVE, {"id": recorded[places[log_index]].id, **place})
            continue
        number = 0
        while (await execute(_EXISTS, {"id": deposit_id(chain_id, row.tx_hash, log_index, number)})).scalar_one():
            number += 1
        await execute(
            _INSERT,
            {
                **place,
                "id": deposit_id(chain_id, row.tx_hash, log_index, number),
                "chain_id": chain_id,
                "tx_hash": row.tx_hash,
                "address_id": row.address_id,
                "method_id": row.method_id,
                "contract": row.contract,
                "from_address": row.from_address,
                "value_raw": row.value_raw,
                "credits": _worth_of(row),
            },
        )
        await execute(_TOUCH, {"id": row.address_id})


def _worth_of(row: Row[Any]) -> int:
    """In credits; nothing where no price is known, or where it is more than any payment."""
    credits = worth_in_credits(row, int(row.value_raw)) if is_dollar_token(row.token) else 0
    return credits if credits <= WORTH_CREDITS_MAX else 0


def _alike(row: Row[Any]) -> tuple[Any, ...]:
    return (row.tx_hash, row.address_id, row.contract.lower(), row.from_address.lower(), row.value_raw)


# -- which are credited ------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class ConfirmedDeposit:
    """A deposit that is confirmed and not decided about, with its address, method and account."""

    id: UUID
    chain_id: int
    tx_hash: str
    log_index: int
    block_number: int
    block_hash: str
    block_time: datetime
    contract: str
    from_address: str
    value_raw: int
    credits: int
    address_id: UUID
    address: str
    method_id: str
    token: str
    """The symbol."""
    billing_account_id: str
    owner_user_id: str
    sender_kind: NonPayer | None
    attempt_id: UUID | None
    """The attempt that it had in a block that was replaced."""
    attempt_status: AttemptStatus | None
    attempt_error_code: str | None


# Summed by address: what is below its method's minimum waits for more.
_CONFIRMED: Final = text(
    """
    WITH confirmed AS (
        SELECT t.*, o.block_number AS in_block, m.min_amount_raw, m.token AS symbol,
               sum(t.value_raw) FILTER (WHERE t.attempt_id IS NULL) OVER (PARTITION BY t.address_id, m.token) AS sum_raw
          FROM deposits t
          JOIN payment_methods m ON m.id = t.method_id
          JOIN observed_transfers o
            ON o.chain_id = t.chain_id AND o.tx_hash = t.tx_hash AND o.log_index = t.log_index
         WHERE t.chain_id = :chain_id AND o.handled_at IS NULL AND t.credits > 0
           AND o.block_number <= 1 + :head - greatest(
                   m.confirmations, :min_confirmations, CASE WHEN t.from_address = :coinbase THEN :maturity END)
    )
    SELECT c.id, c.chain_id, c.tx_hash, c.log_index, c.block_number, c.block_hash, c.block_time, c.token AS contract,
           c.from_address, c.value_raw, c.credits, c.address_id, d.address, c.method_id, c.symbol AS token,
           d.billing_account_id, b.owner_user_id, non_payer_kind(c.from_address) AS sender_kind, c.attempt_id,
           a.status AS attempt_status, a.error_code AS attempt_error_code
      FROM confirmed c
      JOIN deposit_addresses d ON d.id = c.address_id
      JOIN billing_accounts b ON b.id = d.billing_account_id
      LEFT JOIN payment_attempts a ON a.id = c.attempt_id
     WHERE (c.attempt_id IS NOT NULL OR c.sum_raw >= c.min_amount_raw)
       AND (c.block_number, c.log_index, c.tx_hash) > (:after_block, :after_index, :after_hash)
     ORDER BY c.block_number, c.log_index, c.tx_hash LIMIT :limit
    """
)


async def list_confirmed(
    connection: ReadAllConnection,
    chain_id: int,
    *,
    head: int,
    min_confirmations: int,
    limit: int,
    after: ConfirmedDeposit | None = None,
) -> list[ConfirmedDeposit]:
    """Deposits to decide about at this height, in the chain's order; those that come after one."""
    values = {
        "chain_id": chain_id,
        "head": head,
        "min_confirmations": min_confirmations,
        "coinbase": COINBASE_SENDER,
        "maturity": COINBASE_MATURITY,
        "limit": limit,
        # In a block of Bitcoin, and of coin, the places of several transactions have the same number.
        "after_block": -1 if after is None else after.block_number,
        "after_index": -1 if after is None else after.log_index,
        "after_hash": "" if after is None else after.tx_hash,
    }
    return [_confirmed(row) for row in await connection.connection.execute(_CONFIRMED, values)]


def _confirmed(row: Row[Any]) -> ConfirmedDeposit:
    values = dict(row._mapping)
    values["value_raw"] = int(row.value_raw)
    values["sender_kind"] = NonPayer(row.sender_kind) if row.sender_kind else None
    values["attempt_status"] = AttemptStatus(row.attempt_status) if row.attempt_status else None
    return ConfirmedDeposit(**values)


_LOCK_ONE: Final = text("SELECT lock_transfers_of(:chain_id, :tx_hash)")

_ASSIGN: Final = text(
    """
    UPDATE deposits SET attempt_id = :attempt_id
     WHERE id = :id AND block_hash = :block_hash AND attempt_id IS NOT DISTINCT FROM :old_attempt_id
    """
)

_HANDLED: Final = text(
    """
    UPDATE observed_transfers o SET handled_at = now(), attempt_id = :attempt_id
      FROM deposits t
     WHERE t.id = :id AND t.block_hash = :block_hash AND o.chain_id = t.chain_id AND o.tx_hash = t.tx_hash
       AND o.log_index = t.log_index AND o.block_hash = t.block_hash AND o.handled_at IS NULL
    """
)


async def lock_deposit(connection: ServiceConnection, deposit: ConfirmedDeposit) -> None:
    """Until the transaction ends nothing else is decided about the deposit, and it does not move."""
    values = {"chain_id": deposit.chain_id, "tx_hash": deposit.tx_hash}
    await connection.connection.execute(_LOCK_ONE, values)


async def assign_attempt(connection: ServiceConnection, deposit: ConfirmedDeposit, attempt_id: UUID) -> bool:
    """The deposit is paid into this attempt; False where it has moved, or has another one by now."""
    values = {
        "id": deposit.id,
        "block_hash": deposit.block_hash,
        "attempt_id": attempt_id,
        "old_attempt_id": deposit.attempt_id,
    }
    return (await connection.connection.execute(_ASSIGN, values)).rowcount == 1


async def mark_deposit_handled(
    connection: ServiceConnection, deposit: ConfirmedDeposit, attempt_id: UUID | None
) -> bool:
    """Record the decision about it; False where there is one already, or it has moved."""
    values = {"id": deposit.id, "block_hash": deposit.block_hash, "attempt_id": attempt_id}
    return (await connection.connection.execute(_HANDLED, values)).rowcount == 1


# Also of one that a reorganisation has removed since: it waits until it is on the chain again.
_DECIMALS: Final = text(
    """
    SELECT m.decimals FROM deposits d JOIN payment_methods m ON m.id = d.method_id WHERE d.attempt_id = :attempt_id
    """
)


async def find_decimals_of_deposit(connection: ReadAllConnection, attempt_id: UUID) -> int | None:
    """In which the amounts of a deposit's token are counted; None where no deposit names the attempt.

    One that is named is a worker's, for an address that it has derived.
    """
    found: int | None = (
        await connection.connection.execute(_DECIMALS, {"attempt_id": attempt_id})
    ).scalar_one_or_none()
    return found


@dataclass(frozen=True, slots=True)
class DepositOfTransfer:
    """The deposit that a transfer is: whose it is, and what it is worth."""

    billing_account_id: str
    token: str
    """The symbol."""
    decimals: int
    credits: int
    price: UnitPrice
    """Of one whole token: a dollar of a dollar token."""
    is_priced: bool
    """False while it is not known what it is worth."""


_OF_TRANSFER: Final = text(
    """
    SELECT a.billing_account_id, m.token, m.decimals, d.credits, q.answer_raw, q.decimals AS price_decimals
      FROM deposits d JOIN deposit_addresses a ON a.id = d.address_id JOIN payment_methods m ON m.id = d.method_id
      LEFT JOIN price_quotes q ON q.id = d.quote_id
     WHERE d.chain_id = :chain_id AND d.tx_hash = :tx_hash AND d.log_index = :log_index
    """
)


async def find_deposit_of_transfer(
    connection: ReadAllConnection, chain_id: int | None, tx_hash: str | None, log_index: int
) -> DepositOfTransfer | None:
    """The deposit at a place; None where the transfer there went to a treasury."""
    place = {"chain_id": chain_id, "tx_hash": tx_hash, "log_index": log_index}
    row = (await connection.connection.execute(_OF_TRANSFER, place)).one_or_none()
    if row is None:
        return None
    return DepositOfTransfer(
        billing_account_id=row.billing_account_id,
        token=row.token,
        decimals=row.decimals,
        credits=row.credits,
        price=ONE_DOLLAR if row.answer_raw is None else UnitPrice(int(row.answer_raw), row.price_decimals),
        is_priced=row.answer_raw is not None or is_dollar_token(row.token),
    )
