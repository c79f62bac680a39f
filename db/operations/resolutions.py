"""Queries of remedies: the operators' audit trail, and the transfers that they credited."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from typing import Any, Final
from uuid import UUID

from sqlalchemy import bindparam, text
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.exc import IntegrityError

from db.engine import ReadAllConnection, ServiceConnection
from db.errors import violated_constraint
from domain.operations.findings import Remedy
from domain.operations.resolutions import StoredFinding


@dataclass(frozen=True, slots=True)
class Action:
    """One row of the operators' audit trail."""

    action: str
    operator: str
    reason: str
    outcome: dict[str, Any]
    created_at: datetime


@dataclass(frozen=True, slots=True)
class Creditable:
    """A transfer, or the surplus of one, at its present place."""

    part: str
    log_index: int
    block_number: int
    block_hash: str
    from_address: str
    value_raw: int


@dataclass(frozen=True, slots=True)
class CreditOfFinding:
    """The credit of a finding, with the revenue share of its bonus."""

    reference: str
    amount_credits: int
    revenue_share: Decimal


class CreditRefused(Exception):
    """The database refuses a credit; `constraint` is the violated constraint."""

    def __init__(self, constraint: str) -> None:
        super().__init__(constraint)
        self.constraint = constraint


_INSERT_ACTION: Final = text(
    """
    INSERT INTO operator_actions (action, operator, reason, finding_id, opening, attempt_id, outcome)
    VALUES (:action, :operator, :reason, :finding_id, :opening, :attempt_id, :outcome)
    RETURNING created_at
    """
).bindparams(bindparam("outcome", type_=JSONB))
_LIST_ACTIONS: Final = text(
    """
    SELECT action, operator, reason, outcome, created_at FROM operator_actions
     WHERE finding_id = :finding_id OR (CAST(:finding_id AS uuid) IS NULL AND attempt_id = :attempt_id) ORDER BY id
    """
)
_ACTION_OF_OPENING: Final = text(
    """
    SELECT action, operator, reason, outcome, created_at FROM operator_actions
     WHERE finding_id = :finding_id AND opening = :opening
    """
)
_MATCH_AGAIN: Final = text(
    """
    UPDATE observed_transfers SET handled_at = NULL, attempt_id = NULL
     WHERE chain_id = :chain_id AND tx_hash = :tx_hash AND log_index = :log_index
    """
)
_OBSERVED: Final = text(
    """
    SELECT 'whole' AS part, o.log_index, o.block_number, o.block_hash, o.from_address, o.value_raw
      FROM observed_transfers o
     WHERE o.chain_id = :chain_id AND o.tx_hash = :tx_hash AND o.log_index = :log_index
    """
)
_SURPLUS: Final = text(
    """
    SELECT 'surplus' AS part, s.log_index, s.block_number, s.block_hash, s.from_address, s.surplus_raw AS value_raw
      FROM settled_transfers s JOIN payment_attempts a ON a.id = s.attempt_id
     WHERE s.attempt_id = :attempt_id AND s.surplus_raw > 0 AND a.status = 'CREDITED'
    """
)
_INSERT_CREDIT: Final = text(
    """
    INSERT INTO transfer_credits (chain_id, tx_hash, log_index, part, block_number, block_hash, from_address,
                                  finding_id, billing_account_id, value_raw, amount_credits, revenue_share, reference,
                                  token_decimals, price_raw, price_decimals)
    VALUES (:chain_id, :tx_hash, :log_index, :part, :block_number, :block_hash, :from_address,
            :finding_id, :billing_account_id, :value_raw, :amount_credits, :revenue_share, :reference, :token_decimals,
            :price_raw, :price_decimals)
    """
)
_CREDIT_OF_FINDING: Final = text(
    "SELECT reference, amount_credits, revenue_share FROM transfer_credits WHERE finding_id = :finding_id"
)
_ACCOUNT: Final = text("SELECT is_system_tenant FROM billing_accounts WHERE id = :id")


async def insert_action(
    connection: ServiceConnection,
    *,
    action: Remedy,
    operator: str,
    reason: str,
    finding: StoredFinding | None = None,
    attempt_id: UUID | None = None,
    outcome: dict[str, Any] | None = None,
) -> datetime:
    """Append a row to the operators' audit trail; returns its time."""
    row = (
        await connection.connection.execute(
            _INSERT_ACTION,
            {
                "action": action.value,
                "operator": operator,
                "reason": reason,
                "finding_id": finding.id if finding else None,
                "opening": finding.times_opened if finding else None,
                "attempt_id": attempt_id,
                "outcome": outcome or {},
            },
        )
    ).one()
    created_at: datetime = row.created_at
    return created_at


async def find_last_action(connection: ServiceConnection, finding: StoredFinding) -> Action | None:
    """The action that resolved the finding when it was last open; None where no operator did."""
    values = {"finding_id": finding.id, "opening": finding.times_opened}
    row = (await connection.connection.execute(_ACTION_OF_OPENING, values)).one_or_none()
    return Action(row.action, row.operator, row.reason, row.outcome, row.created_at) if row else None


async def list_actions(
    connection: ReadAllConnection, *, finding_id: UUID | None = None, attempt_id: UUID | None = None
) -> list[Action]:
    """The actions on a finding, or on an attempt, oldest first."""
    rows = await connection.connection.execute(_LIST_ACTIONS, {"finding_id": finding_id, "attempt_id": attempt_id})
    return [Action(row.action, row.operator, row.reason, row.outcome, row.created_at) for row in rows]


async def match_again(connection: ServiceConnection, finding: StoredFinding) -> None:
    """Remove the decision about the finding's transfer, so that the watcher matches it again."""
    place = {"chain_id": finding.chain_id, "tx_hash": finding.tx_hash, "log_index": finding.log_index}
    await connection.connection.execute(_MATCH_AGAIN, place)


async def find_observed_creditable(connection: ServiceConnection, finding: StoredFinding) -> Creditable | None:
    """The finding's transfer at its present place; None where it is not on the chain."""
    place = {"chain_id": finding.chain_id, "tx_hash": finding.tx_hash, "log_index": finding.log_index}
    row = (await connection.connection.execute(_OBSERVED, place)).one_or_none()
    return _creditable(row) if row else None


async def find_overpayment(connection: ServiceConnection, finding: StoredFinding) -> Creditable | None:
    """The overpayment of a credited attempt; None where it has none."""
    row = (await connection.connection.execute(_SURPLUS, {"attempt_id": finding.attempt_id})).one_or_none()
    return _creditable(row) if row else None


async def insert_credit(connection: ServiceConnection, values: dict[str, Any]) -> None:
    """Record that a transfer was credited or refunded. Raises `CreditRefused` with the violated constraint."""
    try:
        await connection.connection.execute(_INSERT_CREDIT, values)
    except IntegrityError as error:
        constraint = violated_constraint(error)
        if constraint is None:
            raise
        raise CreditRefused(constraint) from error


async def find_credit(connection: ServiceConnection, finding_id: UUID) -> CreditOfFinding | None:
    """The credit of the finding; None where there is none."""
    row = (await connection.connection.execute(_CREDIT_OF_FINDING, {"finding_id": finding_id})).one_or_none()
    return CreditOfFinding(row.reference, row.amount_credits, row.revenue_share) if row else None


async def is_system_tenant(connection: ServiceConnection, account_id: str) -> bool | None:
    """Whether the account is the platform's own; None where there is no such account."""
    row = (await connection.connection.execute(_ACCOUNT, {"id": account_id})).one_or_none()
    return bool(row.is_system_tenant) if row else None


def _creditable(row: Any) -> Creditable:
    return Creditable(row.part, row.log_index, row.block_number, row.block_hash, row.from_address, int(row.value_raw))
