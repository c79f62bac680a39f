"""Operators' remedies, each as one piece of work inside the caller's transaction, and their audit trail.

Each locks the finding, lets `domain` decide, and writes what is done, the finding's end and who wanted it together.
Each is safe to run twice and at the same time: the second one finds the work done and says so.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from typing import Any, Final
from uuid import UUID

from sqlalchemy import bindparam, text
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.exc import IntegrityError

from db import findings, ledger
from db.accounts import find_non_payer_kind, provision_wallet
from db.engine import ReadAllConnection, ServiceConnection
from db.errors import violated_constraint
from domain.errors import BookkeepingError, RemedyRefused
from domain.findings import FindingKind, Remedy, transfer_key
from domain.identifiers import same_address
from domain.money import revenue_share_credits
from domain.remedies import (
    RemedyRequest,
    StoredFinding,
    TakenRemedy,
    check_remedy,
    operator_bonus_posting,
    operator_credit_posting,
    require_account_of_nobodys,
)
from domain.verdict import CreditedTransfer


@dataclass(frozen=True, slots=True)
class Action:
    """One row of the operators' audit trail."""

    action: str
    operator: str
    reason: str
    outcome: dict[str, Any]
    created_at: datetime


@dataclass(frozen=True, slots=True)
class _Creditable:
    """A transfer, or the surplus of one, where it is now."""

    part: str
    log_index: int
    block_number: int
    block_hash: str
    from_address: str
    value_raw: int


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
_TAKEN: Final = text(
    """
    SELECT action, operator, reason, outcome, created_at FROM operator_actions
     WHERE finding_id = :finding_id AND opening = :opening
    """
)
_MATCH_ANEW: Final = text(
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
                                  finding_id, billing_account_id, value_raw, amount_credits, revenue_share, reference)
    VALUES (:chain_id, :tx_hash, :log_index, :part, :block_number, :block_hash, :from_address,
            :finding_id, :billing_account_id, :value_raw, :amount_credits, :revenue_share, :reference)
    """
)
_CREDIT_OF_FINDING: Final = text(
    "SELECT reference, amount_credits, revenue_share FROM transfer_credits WHERE finding_id = :finding_id"
)
_CREDITED: Final = text(
    """
    SELECT log_index, block_hash, from_address, value_raw FROM transfer_credits
     WHERE chain_id = :chain_id AND tx_hash = :tx_hash AND part <> 'surplus'
     UNION ALL
    SELECT s.log_index, s.block_hash, s.from_address, s.value_raw
      FROM settled_transfers s JOIN payment_attempts a ON a.id = s.attempt_id
     WHERE s.chain_id = :chain_id AND s.tx_hash = :tx_hash AND a.status = 'REVERSED'
    """
)
_ACCOUNT: Final = text("SELECT is_system_tenant FROM billing_accounts WHERE id = :id")

_NOT_CREDITABLE: Final = {
    "transfer_credits_not_settled": "the transfer has paid an attempt, or was credited or sent back, already",
    "transfer_credits_of_transfer_on_chain": "the chain does not show the transfer as it was found",
    "transfer_credits_of_surplus": "there is no such surplus, or its payment is not final yet",
    "transfer_credits_is_income": "it is from the treasury itself: no money came in",
    "transfer_credits_not_too_old": "it was mined before the first block that payments are taken from",
    "transfer_credits_to_somebody": "that account is nobody's: name another one with --account",
    "transfer_credits_pkey": "the transfer was credited already",
    "transfer_credits_reference_key": "the transfer was credited already",
    "transfer_credits_finding_id_key": "the finding was credited already",
}
"""Why the database refuses a credit, by its constraint."""


async def take_remedy(connection: ServiceConnection, request: RemedyRequest, *, revenue_share: Decimal) -> TakenRemedy:
    """Do what the operator decided, once; or report that just this was done.

    `revenue_share` is that of a credit's bonus, which follows in a transaction of its own: decided here, so that no
    later setting changes it. Raises `FindingNotFound` and `RemedyRefused`.
    """
    finding = await findings.lock_finding(connection, request.finding_id)
    done = check_remedy(finding, request, await find_taken(connection, finding))
    if done is not None:
        return done
    outcome: dict[str, Any] = {}
    match request.remedy:
        case Remedy.CREDIT:
            outcome = await _credit(connection, finding, request, revenue_share)
        case Remedy.RETRY:
            await _match_anew(connection, finding)
        case Remedy.REFUND_RECORDED:
            await _claim_for_refund(connection, finding)
            outcome = {"refundTxHash": request.refund_tx_hash} if request.refund_tx_hash else {}
        case Remedy.WRITE_OFF:
            pass
    await findings.resolve_finding(connection, finding.id, request.remedy.value)
    taken_at = await insert_action(
        connection,
        action=request.remedy,
        operator=request.operator,
        reason=request.reason,
        finding=finding,
        attempt_id=finding.attempt_id,
        outcome=outcome,
    )
    return _taken(finding, Action(request.remedy.value, request.operator, request.reason, outcome, taken_at))


async def mint_bonus_of_credit(connection: ServiceConnection, finding_id: UUID) -> ledger.PostedEntry | None:
    """The system tenant's bonus on what an operator credited, or None where its share mints nothing.

    Raises `BookkeepingError` where nothing was credited.
    """
    credit = (await connection.connection.execute(_CREDIT_OF_FINDING, {"finding_id": finding_id})).one_or_none()
    if credit is None:
        raise BookkeepingError(f"finding {finding_id} was not credited: there is no bonus without a credit")
    posting = operator_bonus_posting(credit.reference, credit.amount_credits, credit.revenue_share)
    if posting is None:
        return None
    return await ledger.post(connection, posting, {"share": str(credit.revenue_share), "findingId": str(finding_id)})


async def list_credited_transfers(connection: ServiceConnection, chain_id: int, tx_hash: str) -> list[CreditedTransfer]:
    """Those of a transaction that pay nothing any more: credited or sent back by operators, or reversed before."""
    rows = await connection.connection.execute(_CREDITED, {"chain_id": chain_id, "tx_hash": tx_hash})
    return [CreditedTransfer.model_validate(row._mapping) for row in rows]


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
    """Append to the operators' audit trail; when it was."""
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


async def find_taken(connection: ServiceConnection, finding: StoredFinding) -> TakenRemedy | None:
    """What ended the finding the last time it was open; None where no operator has."""
    values = {"finding_id": finding.id, "opening": finding.times_opened}
    row = (await connection.connection.execute(_TAKEN, values)).one_or_none()
    if row is None:
        return None
    return _taken(finding, Action(row.action, row.operator, row.reason, row.outcome, row.created_at))


async def list_actions(
    connection: ReadAllConnection, *, finding_id: UUID | None = None, attempt_id: UUID | None = None
) -> list[Action]:
    """What operators did about a finding, or about an attempt, oldest first."""
    rows = await connection.connection.execute(_LIST_ACTIONS, {"finding_id": finding_id, "attempt_id": attempt_id})
    return [Action(row.action, row.operator, row.reason, row.outcome, row.created_at) for row in rows]


async def _match_anew(connection: ServiceConnection, finding: StoredFinding) -> None:
    if finding.tx_hash is not None and finding.kind is not FindingKind.SURPLUS:
        place = {"chain_id": finding.chain_id, "tx_hash": finding.tx_hash, "log_index": finding.log_index}
        await connection.connection.execute(_MATCH_ANEW, place)


async def _credit(
    connection: ServiceConnection, finding: StoredFinding, request: RemedyRequest, revenue_share: Decimal
) -> dict[str, Any]:
    transfer = await _find_creditable(connection, finding)
    account_id = request.billing_account_id
    if account_id is None:
        known = await find_non_payer_kind(connection.connection, transfer.from_address)
        require_account_of_nobodys(transfer.from_address, known)
        account_id = (await provision_wallet(connection.connection, transfer.from_address)).billing_account_id
    await _require_account(connection, account_id)
    reference = transfer_key(finding.chain_id, finding.tx_hash, transfer.log_index)
    posting = operator_credit_posting(account_id, reference, transfer.value_raw)
    # In the order in which a settlement takes its locks: first the transaction's, last the account's.
    await _insert_credit(
        connection,
        {
            "chain_id": finding.chain_id,
            "tx_hash": finding.tx_hash,
            "log_index": transfer.log_index,
            "part": transfer.part,
            "block_number": transfer.block_number,
            "block_hash": transfer.block_hash,
            "from_address": transfer.from_address,
            "finding_id": finding.id,
            "billing_account_id": account_id,
            "value_raw": Decimal(transfer.value_raw),
            "amount_credits": posting.amount_credits,
            "revenue_share": revenue_share,
            "reference": reference,
        },
    )
    facts = {"findingId": str(finding.id), "operator": request.operator, "valueRaw": str(transfer.value_raw)}
    entry = await ledger.post(connection, posting, facts)
    return {
        "billingAccountId": account_id,
        "reference": reference,
        "amountCredits": entry.amount_credits,
        "bonusCredits": revenue_share_credits(entry.amount_credits, revenue_share),
        "valueRaw": str(transfer.value_raw),
    }


async def _claim_for_refund(connection: ServiceConnection, finding: StoredFinding) -> None:
    """What is sent back pays nothing any more; refused where it has paid. A surplus nobody else can use."""
    if finding.tx_hash is None or finding.kind is FindingKind.SURPLUS:
        return
    transfer = await _find_creditable(connection, finding)
    await _insert_credit(
        connection,
        {
            "chain_id": finding.chain_id,
            "tx_hash": finding.tx_hash,
            "log_index": transfer.log_index,
            "part": "refund",
            "block_number": transfer.block_number,
            "block_hash": transfer.block_hash,
            "from_address": transfer.from_address,
            "finding_id": finding.id,
            "billing_account_id": None,
            "value_raw": Decimal(transfer.value_raw),
            "amount_credits": 0,
            "revenue_share": Decimal(0),
            "reference": None,
        },
    )


async def _find_creditable(connection: ServiceConnection, finding: StoredFinding) -> _Creditable:
    """The transfer that was found, where it is now. Raises `RemedyRefused` where another one is in its place."""
    query = _SURPLUS if finding.kind is FindingKind.SURPLUS else _OBSERVED
    values = {
        "attempt_id": finding.attempt_id,
        "chain_id": finding.chain_id,
        "tx_hash": finding.tx_hash,
        "log_index": finding.log_index,
    }
    names = query.compile().params.keys()
    row = (await connection.connection.execute(query, {name: values[name] for name in names})).one_or_none()
    if row is None:
        constraint = "transfer_credits_of_surplus" if query is _SURPLUS else "transfer_credits_of_transfer_on_chain"
        raise RemedyRefused(f"{_NOT_CREDITABLE[constraint]}: nothing was done")
    found = _Creditable(row.part, row.log_index, row.block_number, row.block_hash, row.from_address, int(row.value_raw))
    sender = finding.details.get("sender")
    if finding.value_raw not in {None, found.value_raw} or (sender and not same_address(sender, found.from_address)):
        raise RemedyRefused(
            f"another transfer is in its place now, {found.value_raw} raw units from {found.from_address}: "
            "nothing was done"
        )
    return found


async def _require_account(connection: ServiceConnection, account_id: str) -> None:
    row = (await connection.connection.execute(_ACCOUNT, {"id": account_id})).one_or_none()
    if row is None:
        raise RemedyRefused(f"no billing account {account_id}")
    if row.is_system_tenant:
        raise RemedyRefused("the platform's own account gets donations and bonuses, not what an operator credits")


async def _insert_credit(connection: ServiceConnection, values: dict[str, Any]) -> None:
    try:
        await connection.connection.execute(_INSERT_CREDIT, values)
    except IntegrityError as error:
        why = _NOT_CREDITABLE.get(violated_constraint(error) or "")
        if why is None:
            raise
        raise RemedyRefused(f"{why}: nothing was done") from error


def _taken(finding: StoredFinding, action: Action) -> TakenRemedy:
    return TakenRemedy(
        finding_id=finding.id,
        kind=finding.kind,
        remedy=Remedy(action.action),
        operator=action.operator,
        reason=action.reason,
        taken_at=action.created_at,
        billing_account_id=action.outcome.get("billingAccountId"),
        reference=action.outcome.get("reference"),
        amount_credits=action.outcome.get("amountCredits", 0),
        bonus_credits=action.outcome.get("bonusCredits", 0),
        refund_tx_hash=action.outcome.get("refundTxHash"),
        chain_id=finding.chain_id,
    )
