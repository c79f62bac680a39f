"""Diagnosis of a payment, "why is it not credited?", from database, workflow and chain."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final, Self
from uuid import UUID

from pydantic import Field
from temporalio.client import Client

from chain.reader import ChainReader
from db.clock import estimated_now, read_clock
from db.engine import OperatorDatabase, ServiceDatabase
from db.ledger import entries as ledger
from db.payments import attempts
from db.payments.finality import FinalityStanding, find_standing
from domain.errors import AttemptNotFound, SettleError
from domain.ledger.entries import Reason
from domain.payments.attempt import AttemptStatus, PaymentAttempt, Purpose
from domain.payments.finality import finality_of
from domain.payments.verification import (
    NOTHING_KNOWN,
    KnownTransfers,
    Refused,
    SettledTransfer,
    VerificationResult,
    Verified,
    Waiting,
    evaluate,
    terms_of,
)
from domain.transfers.matching import renewal_id
from services.answers import ResponseModel
from starter.models import AttemptView
from starter.progress import WorkflowState, read_reversal, read_workflow
from starter.temporal import count_pollers
from workflows.naming import workflow_id

ANSWER_SECONDS_MAX: Final = 10.0
"""Time limit for Temporal and for the chain's nodes, which are asked one after another."""

NO_TRANSACTION: Final = "Not credited: no transaction has been submitted for this intent yet."
REVERSED: Final = "Reversed: it was credited, then the payment was reorged out, and its credits were reversed."
NOT_YET: Final = "Not credited yet"
RIGHT_PAYMENT: Final = "the right payment"
NO_WORKFLOW: Final = "no workflow settles it"
SUBMIT_AGAIN: Final = "submit the same hash again"
RUN_WORKER: Final = "run: settle worker"


class EventView(ResponseModel):
    """One row of the audit trail."""

    event_type: str
    from_status: str | None
    to_status: str
    error_code: str | None
    metadata: dict[str, Any]
    created_at: datetime

    @classmethod
    def of(cls, event: attempts.Event) -> Self:
        """A recorded event as it is shown."""
        return cls(
            event_type=event.event_type,
            from_status=event.from_status,
            to_status=event.to_status,
            error_code=event.error_code,
            metadata=event.details,
            created_at=event.created_at,
        )


class LedgerRowView(ResponseModel):
    """One ledger row caused by this attempt, of any account."""

    id: UUID
    billing_account_id: str
    amount: int
    balance_after: int
    reason: str
    reference: str | None
    created_at: datetime

    @classmethod
    def of(cls, row: ledger.LedgerRow) -> Self:
        """A ledger row as it is shown."""
        return cls.model_validate(row, from_attributes=True)


class Diagnosis(AttemptView):
    """An attempt with everything known about it."""

    explanation: str = Field(description="one sentence: why the payment is, or is not, credited")
    billing_account_id: str
    from_address: str
    token: str
    to: str
    amount_raw: int
    submitted_at: datetime | None
    surplus_raw: int = 0
    unapplied_raw: int = Field(default=0, description="sent in other transfers of the same transaction")
    chain: str | None = Field(description="the chain's current state of the submitted transaction")
    workflow: str | None = Field(description="the workflow's current state")
    finality: str | None = Field(default=None, description="of a credited payment: final, or what it waits for")
    workflow_id: str
    workflow_url: str | None
    events: list[EventView]
    ledger: list[LedgerRowView]


async def diagnose(
    attempt_id: UUID,
    *,
    database: ServiceDatabase | OperatorDatabase,
    temporal: Client,
    chain: ChainReader,
    min_confirmations: int,
    ui_url: str | None,
) -> Diagnosis:
    """Ask database, workflow and chain about one attempt.

    An unavailable Temporal or chain node becomes part of the answer. Raises `AttemptNotFound` and
    `DatabaseUnavailable`.
    """
    recorded = await _read(database, attempt_id)
    attempt, transfer = recorded.attempt, recorded.transfer
    (workflow, workflow_text), (verdict, chain_text), workers = await asyncio.gather(
        _ask_temporal(temporal, attempt_id),
        _ask_chain(chain, attempt, min_confirmations, recorded.under_verification),
        _count_workers(temporal, attempt.chain_id),
    )
    view = AttemptView.of(attempt).model_dump()
    standing = recorded.standing
    is_awaited = standing is not None and standing.final_level is None and standing.awaiting_block is not None
    view |= {"finality_state": finality_of(attempt.status, is_awaited=is_awaited)}
    if isinstance(verdict, Waiting | Verified):
        view |= {"confirmations": verdict.confirmations, "confirmations_needed": min_confirmations}
    return Diagnosis(
        **view,
        explanation=_explain(attempt, recorded.rows, _Seen(workflow, workflow_text, verdict, chain_text, workers))
        + _explain_renewal(recorded.renewal),
        billing_account_id=attempt.billing_account_id,
        from_address=attempt.from_address,
        token=attempt.token,
        to=attempt.to_address,
        amount_raw=attempt.amount_raw,
        submitted_at=attempt.submitted_at,
        surplus_raw=transfer.surplus_raw if transfer else 0,
        unapplied_raw=transfer.unapplied_raw if transfer else 0,
        chain=chain_text,
        workflow=workflow_text,
        finality=await _describe_finality(temporal, attempt_id, recorded.standing),
        workflow_id=workflow_id(attempt_id),
        workflow_url=workflow_url(ui_url, temporal.namespace, attempt_id),
        events=[EventView.of(event) for event in recorded.events],
        ledger=[LedgerRowView.of(row) for row in recorded.rows],
    )


@dataclass(frozen=True, slots=True)
class _Recorded:
    """What the database has about an attempt."""

    attempt: PaymentAttempt
    events: list[attempts.Event]
    rows: list[ledger.LedgerRow]
    transfer: SettledTransfer | None
    standing: FinalityStanding | None
    under_verification: attempts.UnderVerification | None
    renewal: PaymentAttempt | None


async def _read(database: ServiceDatabase | OperatorDatabase, attempt_id: UUID) -> _Recorded:
    """Raises `AttemptNotFound` and `DatabaseUnavailable`."""
    async with database.transaction() as connection:
        attempt = await attempts.find_attempt(connection, attempt_id)
        if attempt is None:
            raise AttemptNotFound(attempt_id)
        await read_clock(connection.connection)  # the intent's expiry and the time of the next poll are relative to it
        return _Recorded(
            attempt,
            events=await attempts.list_events(connection, attempt_id),
            rows=await ledger.list_entries(connection, reference=str(attempt_id)),
            transfer=await attempts.find_settled_transfer(connection, attempt_id),
            standing=await find_standing(connection, attempt_id),
            under_verification=await attempts.find_under_verification(connection, attempt_id),
            renewal=await attempts.find_attempt(connection, renewal_id(attempt_id)),
        )


def workflow_url(ui_url: str | None, namespace: str, attempt_id: UUID) -> str | None:
    """Address of the attempt's workflow in Temporal's UI, where the UI's address is known."""
    if ui_url is None:
        return None
    return f"{ui_url.rstrip('/')}/namespaces/{namespace}/workflows/{workflow_id(attempt_id)}"


async def _describe_finality(temporal: Client, attempt_id: UUID, standing: FinalityStanding | None) -> str | None:
    """Final, or what a credited payment waits for; None where it is not credited, or not any more."""
    if standing is not None and standing.final_level is not None:
        return f"final: block {standing.final_block} is {standing.final_level.words}"
    if standing is None or standing.awaiting_block is None:
        return None
    words = f"in block {standing.awaiting_block}"
    for level, number in standing.reached.items():
        words += f"; {level.words} is block {number}, {max(standing.awaiting_block - number, 0)} to go"
    try:
        reversal = await read_reversal(temporal, attempt_id)
    except SettleError as error:
        return f"{words}; its reversal: {error.message}"
    return words if reversal is None else f"{words}; {reversal.workflow_id}: {_describe(reversal)}"


async def _ask_temporal(temporal: Client, attempt_id: UUID) -> tuple[WorkflowState | None, str]:
    try:
        state = await read_workflow(temporal, attempt_id)
    except SettleError as error:
        return None, error.message
    return (None, "there is none") if state is None else (state, _describe(state))


def _describe(state: WorkflowState) -> str:
    words = f"{state.status}, {state.history_length} history events"
    for pending in state.pending:
        words += f"; {pending.name}, attempt {pending.attempt}"
        if pending.last_failure:
            words += f": {pending.last_failure}"
        if pending.next_attempt_at:
            seconds = (pending.next_attempt_at - estimated_now()).total_seconds()
            words += f", next in {max(seconds, 0):.0f} s"
    return words


async def _count_workers(temporal: Client, chain_id: int) -> int | None:
    try:
        async with asyncio.timeout(ANSWER_SECONDS_MAX):
            return await count_pollers(temporal, chain_id)
    except (SettleError, TimeoutError):
        return None


async def _ask_chain(
    chain: ChainReader, attempt: PaymentAttempt, min_confirmations: int, known: attempts.UnderVerification | None
) -> tuple[VerificationResult | None, str | None]:
    if attempt.tx_hash is None:
        return None, None
    if attempt.chain_id != chain.chain_id:
        return None, f"not asked: the payment is on chain {attempt.chain_id}, CHAIN_ID here is {chain.chain_id}"
    try:
        async with asyncio.timeout(ANSWER_SECONDS_MAX):
            view = await chain.payments.look(attempt.tx_hash, coin=terms_of(attempt).scope.is_of_coin)
    except SettleError as error:
        return None, error.message
    except TimeoutError:
        return None, no_node_answered(ANSWER_SECONDS_MAX)
    verdict = evaluate(
        terms_of(attempt),
        attempt.tx_hash,
        view,
        min_confirmations=min_confirmations,
        known=KnownTransfers(held_log_indexes=known.settled_log_indexes) if known else NOTHING_KNOWN,
        first_block=known.first_block if known else None,
        payer_kind=known.payer_kind if known else None,
    )
    match verdict:
        case Verified(transfer=transfer, confirmations=confirmations):
            return verdict, (
                f"{RIGHT_PAYMENT}, in block {transfer.block_number}, log {transfer.log_index}, "
                f"{confirmations} confirmations"
            )
        case Refused(error_code=code, message=message):
            return verdict, f"{code.value}: {message}"
        case Waiting(message=message):
            return verdict, message


def no_node_answered(seconds: float) -> str:
    """What is known of the chain where none of its nodes answers in time."""
    return f"no chain node has answered within {seconds:.0f} s"


def credited(buyer_credits: int, bonus: str) -> str:
    """The explanation of a credited purchase; `bonus` continues the sentence."""
    return f"Credited: {buyer_credits:,} credits to the buyer{bonus}."


def donated(amount_credits: int) -> str:
    """The explanation of a credited donation."""
    return f"Credited: {amount_credits:,} credits donated to the system tenant."


def ended(status: AttemptStatus, code: str) -> str:
    """How the explanation of a payment begins that ended without credits."""
    return f"Not credited: it ended {status.value} with {code}"


@dataclass(frozen=True, slots=True)
class _Seen:
    """The answers of Temporal and the chain, as values and as text."""

    workflow: WorkflowState | None
    workflow_text: str
    verdict: VerificationResult | None
    chain_text: str | None
    workers: int | None


def _explain(attempt: PaymentAttempt, rows: list[ledger.LedgerRow], seen: _Seen) -> str:
    """One sentence for support."""
    match attempt.status:
        case AttemptStatus.CREATED_INTENT:
            if attempt.expires_at and estimated_now() >= attempt.expires_at:
                return f"Not credited: the intent expired at {attempt.expires_at:%F %T} UTC without a transaction."
            return NO_TRANSACTION
        case AttemptStatus.CREDITED:
            return _explain_credited(attempt, rows, seen)
        case AttemptStatus.REVERSED:
            return REVERSED
        case AttemptStatus.REJECTED | AttemptStatus.FAILED:
            code = attempt.error_code.value if attempt.error_code else "no code"
            then = f" Current state on the chain: {seen.chain_text}." if isinstance(seen.verdict, Verified) else ""
            return f"{ended(attempt.status, code)}.{then}"
        case AttemptStatus.PENDING_UNVERIFIED:
            return _explain_pending(seen)


def _explain_renewal(renewed: PaymentAttempt | None) -> str:
    """The state of a payment that arrived after the attempt had ended."""
    if renewed is None:
        return ""
    return f" Its payment came afterwards, and was submitted for attempt {renewed.id}, which is {renewed.status.value}."


def _explain_credited(attempt: PaymentAttempt, rows: list[ledger.LedgerRow], seen: _Seen) -> str:
    amounts = {row.reason: row.amount for row in rows}
    if attempt.purpose is Purpose.SYSTEM:
        return donated(amounts.get(Reason.SYSTEM_DONATION, 0))
    bought = amounts.get(Reason.CREDITS_PURCHASE, 0)
    if Reason.PLATFORM_REVENUE_SHARE in amounts:
        return credited(bought, f", {amounts[Reason.PLATFORM_REVENUE_SHARE]:,} to the system tenant")
    if attempt.revenue_share == 0:
        return credited(bought, "; no bonus, the share was 0")
    if seen.workflow is not None and seen.workflow.is_running:
        return credited(bought, f"; the bonus is still due: the workflow is {seen.workflow_text}")
    return credited(bought, f"; its bonus is missing (workflow: {seen.workflow_text}): {SUBMIT_AGAIN}")


def _explain_pending(seen: _Seen) -> str:
    if seen.workflow is None:
        return f"Not credited: {NO_WORKFLOW} ({seen.workflow_text}); {SUBMIT_AGAIN}."
    if not seen.workflow.is_running:
        return f"Not credited: its workflow is {seen.workflow.status}; {SUBMIT_AGAIN} to start another."
    if isinstance(seen.verdict, Waiting):
        hint = f" No worker runs; {RUN_WORKER}." if seen.workers == 0 else ""
        return f"{NOT_YET}: {seen.chain_text}.{hint}"
    confirmed = isinstance(seen.verdict, Verified)
    chain = "the chain has confirmed it" if confirmed else seen.chain_text or "the chain was not asked"
    if seen.workers == 0:
        return f"{NOT_YET}: {chain}, but no worker runs; {RUN_WORKER}."
    return f"{NOT_YET}: {chain}; the workflow is {seen.workflow_text}."
