"""Queries of the relay, all by functions (db/functions/authorizations.sql): its role reads no table."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, Final
from uuid import UUID

from sqlalchemy import Row, text

from db.deposits.authorizations import ChargeLimits
from db.engine import RelayConnection
from db.payments.authorizations import DailyLimits
from domain.payments.authorizations import Authorization, SignedAuthorization

_CLAIMS: Final = text("SELECT * FROM relay_claims(:chain_id, :limit, :relayed, :failed)")
_CHARGE_CLAIMS: Final = text(
    "SELECT * FROM relay_charge_claims(:chain_id, :limit, :failed_per_charge, :failed_per_account)"
)
_NEXT_NONCE: Final = text("SELECT relay_next_nonce(:chain_id, :relayer, :chain_nonce)")
_STORE: Final = text(
    """
    SELECT relay_store(:chain_id, :relayer, :nonce, :payment_id, :replaces, :tx_hash, :raw, :gas,
                       CAST(:max_fee_wei AS numeric), CAST(:priority_fee_wei AS numeric))
    """
)
_OPEN: Final = text("SELECT * FROM relay_open_transactions(:chain_id, :relayer)")
_SENT: Final = text("SELECT relay_sent(:chain_id, :tx_hash)")
_ENDED: Final = text("SELECT relay_ended(:chain_id, :relayer, :nonce, :outcome, :tx_hash, CAST(:spent_wei AS numeric))")
_SPENT: Final = text("SELECT relay_spent_today(:chain_id, :relayer)")
_SEEN: Final = text("SELECT relay_seen(:chain_id, :relayer, :chain_nonce, CAST(:balance_wei AS numeric))")


@dataclass(frozen=True, slots=True)
class RelayClaim:
    """A claimed authorization for which nothing has been sent, or only what reverted."""

    payment_id: UUID
    """An attempt's, or that of what was signed for a charge."""
    token: str
    signed: SignedAuthorization
    is_contract: bool
    charge_id: UUID | None = None
    """The charge to whose address it pays; None where it pays the treasury."""


@dataclass(frozen=True, slots=True)
class SignedTransaction:
    """A transaction as it was, or is to be, stored."""

    tx_hash: str
    raw: bytes
    gas: int
    max_fee_wei: int
    priority_fee_wei: int


@dataclass(frozen=True, slots=True)
class StoredTransaction:
    """One that was stored."""

    transaction: SignedTransaction
    is_sent: bool
    """A node has taken it."""
    age_seconds: float


@dataclass(frozen=True, slots=True)
class OpenNonce:
    """A nonce without an outcome, with all that was signed for it, the newest last."""

    nonce: int
    payment_id: UUID
    transactions: tuple[StoredTransaction, ...]

    @property
    def newest(self) -> StoredTransaction:
        """The one that replaces the others."""
        return self.transactions[-1]

    @property
    def hashes(self) -> tuple[str, ...]:
        """Of each of them: any may be the one that is mined."""
        return tuple(one.transaction.tx_hash for one in self.transactions)


async def list_claims(
    connection: RelayConnection, chain_id: int, *, limits: DailyLimits, limit: int
) -> list[RelayClaim]:
    """Claims to be relayed, the oldest first, without those of accounts that are at a limit."""
    values = {"chain_id": chain_id, "limit": limit, "relayed": limits.relayed, "failed": limits.failed}
    return [
        _claim(row, row.attempt_id, payer=row.from_address, value_raw=row.amount_raw)
        for row in await connection.connection.execute(_CLAIMS, values)
    ]


async def list_charge_claims(
    connection: RelayConnection, chain_id: int, *, limits: ChargeLimits, limit: int
) -> list[RelayClaim]:
    """What was signed for charges and is to be relayed, the oldest first, without charges and accounts at a limit."""
    values = {
        "chain_id": chain_id,
        "limit": limit,
        "failed_per_charge": limits.failed_per_charge,
        "failed_per_account": limits.failed_per_account,
    }
    return [
        _claim(row, row.id, payer=row.payer, value_raw=int(row.value_raw), charge_id=row.charge_id)
        for row in await connection.connection.execute(_CHARGE_CLAIMS, values)
    ]


def _claim(row: Row[Any], payment_id: UUID, *, payer: str, value_raw: int, charge_id: UUID | None = None) -> RelayClaim:
    return RelayClaim(
        payment_id=payment_id,
        token=row.token,
        signed=SignedAuthorization(
            authorization=Authorization(
                payer=payer,
                to=row.to_address,
                value_raw=value_raw,
                valid_after=row.valid_after,
                valid_before=row.valid_before,
                nonce=row.nonce,
            ),
            signature=bytes(row.signature),
        ),
        is_contract=row.is_contract,
        charge_id=charge_id,
    )


async def note_seen(
    connection: RelayConnection, chain_id: int, relayer: str, *, chain_nonce: int, balance_wei: int
) -> None:
    """The account's relay has completed a pass; `balance_wei` is what the account holds."""
    values = {
        "chain_id": chain_id,
        "relayer": relayer,
        "chain_nonce": chain_nonce,
        "balance_wei": Decimal(balance_wei),
    }
    await connection.connection.execute(_SEEN, values)


async def lock_next_nonce(connection: RelayConnection, chain_id: int, relayer: str, *, chain_nonce: int) -> int:
    """The account's next nonce, locked until the transaction ends; never below `chain_nonce`, the chain's own."""
    values = {"chain_id": chain_id, "relayer": relayer, "chain_nonce": chain_nonce}
    return int((await connection.connection.execute(_NEXT_NONCE, values)).scalar_one())


async def store(
    connection: RelayConnection,
    chain_id: int,
    relayer: str,
    nonce: int,
    transaction: SignedTransaction,
    *,
    payment_id: UUID,
    replaces: int = 0,
) -> bool:
    """Store a signed transaction before it is sent; False where another relay has been first.

    With `replaces`, it is one more for a nonce that has so many already.
    """
    values = {
        "chain_id": chain_id,
        "relayer": relayer,
        "nonce": nonce,
        "payment_id": payment_id,
        "replaces": replaces,
        "tx_hash": transaction.tx_hash,
        "raw": transaction.raw,
        "gas": transaction.gas,
        "max_fee_wei": Decimal(transaction.max_fee_wei),
        "priority_fee_wei": Decimal(transaction.priority_fee_wei),
    }
    return bool((await connection.connection.execute(_STORE, values)).scalar_one())


async def list_open(connection: RelayConnection, chain_id: int, relayer: str) -> list[OpenNonce]:
    """The account's nonces without an outcome, in order."""
    rows = await connection.connection.execute(_OPEN, {"chain_id": chain_id, "relayer": relayer})
    found: dict[int, OpenNonce] = {}
    for row in rows:
        stored = StoredTransaction(
            SignedTransaction(row.tx_hash, bytes(row.raw), row.gas, int(row.max_fee_wei), int(row.priority_fee_wei)),
            is_sent=row.sent_at is not None,
            age_seconds=row.age_seconds,
        )
        before: Sequence[StoredTransaction] = found[row.nonce].transactions if row.nonce in found else ()
        found[row.nonce] = OpenNonce(row.nonce, row.attempt_id, (*before, stored))
    return list(found.values())


async def note_sent(connection: RelayConnection, chain_id: int, tx_hash: str) -> None:
    """A node has taken the transaction."""
    await connection.connection.execute(_SENT, {"chain_id": chain_id, "tx_hash": tx_hash})


async def end_nonce(
    connection: RelayConnection,
    chain_id: int,
    relayer: str,
    nonce: int,
    *,
    outcome: str,
    tx_hash: str | None = None,
    spent_wei: int | None = None,
) -> bool:
    """Record what has become of a nonce, once: `succeeded` or `reverted` by `tx_hash`, or `lost`."""
    values = {
        "chain_id": chain_id,
        "relayer": relayer,
        "nonce": nonce,
        "outcome": outcome,
        "tx_hash": tx_hash,
        "spent_wei": None if spent_wei is None else Decimal(spent_wei),
    }
    return bool((await connection.connection.execute(_ENDED, values)).scalar_one())


async def read_spent_today(connection: RelayConnection, chain_id: int, relayer: str) -> int:
    """Wei that the account has spent in the last day; of what is open the most that it can cost."""
    values = {"chain_id": chain_id, "relayer": relayer}
    return int((await connection.connection.execute(_SPENT, values)).scalar_one())
