"""Every path through `VerifyAndSettle`, each as one function that walks it with scripted activities.

A new path is a function with `@path`. Its history is then recorded with `python -m tests.workflow.record_histories`;
a test fails until that is done.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Final
from uuid import NAMESPACE_URL, UUID, uuid5

import pytest
from temporalio.api.enums.v1 import EventType
from temporalio.client import (
    Client,
    WithStartWorkflowOperation,
    WorkflowFailureError,
    WorkflowHandle,
    WorkflowUpdateFailedError,
    WorkflowUpdateHandle,
    WorkflowUpdateStage,
)
from temporalio.common import WorkflowIDConflictPolicy
from temporalio.exceptions import ApplicationError

from activities.messages import (
    AttemptOutcomeMessage,
    BonusToMint,
    CreditedPayment,
    MintedBonus,
    PaymentToCredit,
    PaymentToRefuse,
    PaymentToVerify,
    RecordedSubmission,
    ReplacedHash,
    SettlementResult,
    Submission,
)
from devstack.processes import wait_until
from domain.errors import HashInUse, TransferAlreadySettled
from domain.operations.events import PAYMENT_REVERSED, PlatformEvent
from domain.payments.attempt import AttemptStatus, ErrorCode, Purpose
from domain.payments.finality import Final as FinalPayment
from domain.payments.finality import ReorgedOut
from domain.payments.verification import Refused, Verified
from tests.support.histories import RECORDER
from tests.workflow.scripted import (
    BONUS,
    CREDITS,
    NOT_FOUND_IN_TIME,
    A,
    B,
    Gate,
    Script,
    credited,
    ended,
    final,
    gone,
    no,
    not_final_yet,
    not_yet,
    now,
    refused,
    scripted_worker,
    settlement,
    submission,
    verified,
)
from workflows.naming import HASH_REPLACED_SIGNAL, SUBMIT_UPDATE, workflow_id
from workflows.policies import LOCAL_LEDGER_SCHEDULE_TO_CLOSE
from workflows.verify_and_settle import VerifyAndSettle

SOON: Final = timedelta(milliseconds=50)
LONG: Final = timedelta(hours=1)

Handle = WorkflowHandle[VerifyAndSettle, SettlementResult]


@dataclass
class Stage:
    """One workflow on one server, and the script that its activities follow."""

    client: Client
    name: str
    task_queue: str
    script: Script
    attempt_id: UUID
    purpose: Purpose = Purpose.SELF
    submitted: list[str] = field(default_factory=list)

    @property
    def handle(self) -> Handle:
        """The workflow."""
        return self.client.get_workflow_handle_for(VerifyAndSettle.run, workflow_id(self.attempt_id))

    async def submit(
        self, tx_hash: str = A, *, age: timedelta = timedelta(0), recorded: RecordedSubmission | None = None
    ) -> RecordedSubmission:
        """As the starter does, which has recorded the hash: start, or signal with start where A was replaced."""
        submitted_at = now() - age
        recorded = recorded or self.script.pending(submission(self.attempt_id, tx_hash, submitted_at))
        replaced = []
        if self.submitted and recorded.verify_until is not None:
            replaced.append(
                ReplacedHash(tx_hash=tx_hash, submitted_at=submitted_at, verify_until=recorded.verify_until)
            )
        self.submitted.append(tx_hash)
        await self.client.start_workflow(
            VerifyAndSettle.run,
            settlement(
                self.attempt_id, tx_hash=tx_hash, purpose=self.purpose, submitted_at=submitted_at, recorded=recorded
            ),
            id=workflow_id(self.attempt_id),
            task_queue=self.task_queue,
            id_conflict_policy=WorkflowIDConflictPolicy.USE_EXISTING,
            start_signal=HASH_REPLACED_SIGNAL if replaced else None,
            start_signal_args=replaced,
        )
        return recorded

    async def update(self, tx_hash: str = A, *, count: int = 0) -> RecordedSubmission:
        """As a starter up to schema revision 0006 does: update with start; its answer."""
        return await (await self.send(tx_hash, count=count)).result()

    async def send(self, tx_hash: str = A, *, count: int = 0) -> WorkflowUpdateHandle[RecordedSubmission]:
        """The same, as soon as the workflow has taken it in hand."""
        submitted_at = now()
        start = WithStartWorkflowOperation(
            VerifyAndSettle.run,
            settlement(self.attempt_id, purpose=self.purpose, submitted_at=submitted_at),
            id=workflow_id(self.attempt_id),
            task_queue=self.task_queue,
            id_conflict_policy=WorkflowIDConflictPolicy.USE_EXISTING,
        )
        return await self.client.start_update_with_start_workflow(
            SUBMIT_UPDATE,
            submission(self.attempt_id, tx_hash, submitted_at),
            wait_for_stage=WorkflowUpdateStage.ACCEPTED,
            result_type=RecordedSubmission,
            id=f"submit-{count}-{tx_hash}",
            start_workflow_operation=start,
        )

    async def polled(self) -> None:
        """Wait for the first poll of the chain."""
        await wait_until(
            lambda: bool(self.script.named("await_confirmation")), timeout_seconds=30, what="the first poll"
        )

    async def happens(self, event_type: EventType.ValueType) -> None:
        """Wait for an event of the history."""

        async def happened() -> bool:
            return any(event.event_type == event_type for event in (await self.handle.fetch_history()).events)

        await wait_until(happened, timeout_seconds=30, what=EventType.Name(event_type))

    async def credited(self, tx_hash: str = A) -> None:
        """The workflow ends with a credited purchase."""
        result = await self.handle.result()
        assert (result.status, result.tx_hash) == (AttemptStatus.CREDITED, tx_hash)
        assert (result.buyer_credits, result.system_tenant_credits) == (CREDITS, BONUS)

    async def not_credited(self, status: AttemptStatus, error_code: ErrorCode) -> None:
        """The workflow ends without credits."""
        result = await self.handle.result()
        assert (result.status, result.error_code) == (status, error_code)
        assert (result.buyer_credits, result.system_tenant_credits) == (0, 0)


Path = Callable[[Stage], Awaitable[None]]
PATHS: Final[dict[str, Path]] = {}
FORMER_PATHS: Final[dict[str, Path]] = {}
"""Of runs that a starter up to schema revision 0006 has started. Their histories are no longer recorded."""


def path(function: Path) -> Path:
    """Name a path."""
    PATHS[function.__name__] = function
    return function


def former(function: Path) -> Path:
    """Name a path of a run that records its submissions itself."""
    FORMER_PATHS[function.__name__] = function
    return function


async def walk(client: Client, name: str, *, workflow: type[object] = VerifyAndSettle) -> Stage:
    """Walk one path to its end."""
    attempt_id = uuid5(NAMESPACE_URL, f"settle/{name}")
    stage = Stage(client, name, f"path-{name}", Script(), attempt_id)
    async with scripted_worker(client, stage.script, stage.task_queue, workflow=workflow, identity=RECORDER):
        await (PATHS | FORMER_PATHS)[name](stage)
    return stage


@path
async def purchase(stage: Stage) -> None:
    """The payment is confirmed at the third poll."""

    async def look(_: PaymentToVerify) -> Verified | Refused:
        if len(stage.script.named("await_confirmation")) < 3:
            raise not_yet(again_in=SOON)
        return verified()

    stage.script.look = look
    await stage.submit()
    await stage.credited()


@path
async def donation(stage: Stage) -> None:
    """The system tenant gets all of it, and no bonus."""
    stage.purpose = Purpose.SYSTEM
    await stage.submit()
    result = await stage.handle.result()
    assert (result.status, result.buyer_credits, result.system_tenant_credits) == (AttemptStatus.CREDITED, 0, CREDITS)
    assert stage.script.named("mint_bonus") == []


@path
async def rejected(stage: Stage) -> None:
    """The payment is there and wrong."""

    async def look(_: PaymentToVerify) -> Verified | Refused:
        return refused()

    stage.script.look = look
    await stage.submit()
    await stage.not_credited(AttemptStatus.REJECTED, ErrorCode.INSUFFICIENT_AMOUNT)


@path
async def reverted(stage: Stage) -> None:
    """The transaction failed on the chain."""

    async def look(_: PaymentToVerify) -> Verified | Refused:
        return refused(AttemptStatus.FAILED, ErrorCode.TX_REVERTED)

    stage.script.look = look
    await stage.submit()
    await stage.not_credited(AttemptStatus.FAILED, ErrorCode.TX_REVERTED)


@path
async def not_found_in_time(stage: Stage) -> None:
    """Time runs out, and the final poll finds nothing either."""
    stage.script.timeout = timedelta(seconds=1)

    async def look(payment: PaymentToVerify) -> Verified | Refused:
        if not payment.is_last_look:
            raise not_yet("not found yet", again_in=timedelta(milliseconds=300))
        return NOT_FOUND_IN_TIME

    stage.script.look = look
    await stage.submit()
    await stage.not_credited(AttemptStatus.FAILED, ErrorCode.RECEIPT_NOT_FOUND)
    assert [look.is_last_look for look in stage.script.named("await_confirmation")][-2:] == [False, True]


@path
async def last_look_finds_the_payment(stage: Stage) -> None:
    """Nothing ran until time was up; the payment is there all the same."""

    async def look(payment: PaymentToVerify) -> Verified | Refused:
        assert payment.is_last_look
        return verified()

    stage.script.look = look
    await stage.submit(age=timedelta(hours=25))
    await stage.credited()


@path
async def hash_replaced_during_the_last_look(stage: Stage) -> None:
    """The payer speeds the transaction up at the last moment: that hash has a day of its own."""
    gate = Gate()

    async def look(payment: PaymentToVerify) -> Verified | Refused:
        if not payment.is_last_look:
            return verified(B)
        await gate.passed()
        return NOT_FOUND_IN_TIME

    stage.script.look = look
    await stage.submit(age=timedelta(hours=25))
    await gate.reached()
    await stage.submit(B)
    gate.open()
    await stage.credited(B)


@path
async def hash_replaced_while_waiting(stage: Stage) -> None:
    """The first hash would be polled again in an hour; the one that replaces it is polled at once."""

    async def look(_: PaymentToVerify) -> Verified | Refused:
        if len(stage.script.named("await_confirmation")) == 1:
            raise not_yet("not found yet", again_in=LONG)
        return verified(B)

    stage.script.look = look
    await stage.submit()
    await stage.polled()
    await stage.submit(B)
    await stage.credited(B)


@path
async def first_hash_again(stage: Stage) -> None:
    """A, then B, then A: each is a submission of its own, and the last one counts."""

    async def look(_: PaymentToVerify) -> Verified | Refused:
        if len(stage.submitted) < 3:
            raise not_yet("not found yet", again_in=LONG)
        return verified()

    stage.script.look = look
    await stage.submit()
    await stage.submit(B)
    assert (await stage.submit(A)).tx_hash == A
    await stage.credited(A)


@path
async def hash_replaced_before_the_run_began(stage: Stage) -> None:
    """No worker ran when both were submitted: the run learns of them in their order, and the later one counts."""
    stage.submitted.append(A)

    async def look(_: PaymentToVerify) -> Verified | Refused:
        return verified(B)

    stage.script.look = look
    await stage.submit(B)
    await stage.credited(B)


@path
async def credit_that_the_database_delays(stage: Stage) -> None:
    """The first try of each ledger step fails: a regular activity, which operators see, goes on with it."""

    async def credit(message: PaymentToCredit) -> AttemptOutcomeMessage:
        if len(stage.script.named("credit_buyer")) == 1:
            raise ConnectionError("PostgreSQL is down")
        return credited(message)

    async def bonus(_: BonusToMint) -> MintedBonus:
        if len(stage.script.named("mint_bonus")) == 1:
            await asyncio.sleep(LOCAL_LEDGER_SCHEDULE_TO_CLOSE.total_seconds() * 2)
        return MintedBonus(amount_credits=BONUS)

    stage.script.credit, stage.script.bonus = credit, bonus
    await stage.submit()
    await stage.credited()
    assert [len(stage.script.named(step)) for step in ("credit_buyer", "mint_bonus")] == [2, 2]


@former
async def first_submission_refused(stage: Stage) -> None:
    """The database says no: the run fails, so that a later submission starts another."""

    async def record(_: Submission) -> RecordedSubmission:
        raise no(HashInUse.code)

    stage.script.record = record
    with pytest.raises(WorkflowUpdateFailedError):
        await stage.update()
    with pytest.raises(WorkflowFailureError):
        await stage.handle.result()


@former
async def first_refused_and_another_taken(stage: Stage) -> None:
    """While the first hash is being refused the payer submits another: this run settles that one."""
    gate = Gate()

    async def record(message: Submission) -> RecordedSubmission:
        if message.tx_hash == A:
            await gate.passed()
            raise no(HashInUse.code)
        return stage.script.pending(message)

    async def look(_: PaymentToVerify) -> Verified | Refused:
        return verified(B)

    stage.script.record, stage.script.look = record, look
    first = await stage.send(A)
    await gate.reached()
    second = await stage.send(B)
    gate.open()
    with pytest.raises(WorkflowUpdateFailedError):
        await first.result()
    assert (await second.result()).tx_hash == B
    await stage.credited(B)


@former
async def intent_expired(stage: Stage) -> None:
    """The submission came too late: the attempt has ended when the run hears of it."""

    async def record(_: Submission) -> RecordedSubmission:
        return RecordedSubmission(status=AttemptStatus.FAILED, tx_hash=None, error_code=ErrorCode.INTENT_EXPIRED)

    stage.script.record = record
    assert (await stage.update()).error_code is ErrorCode.INTENT_EXPIRED
    await stage.not_credited(AttemptStatus.FAILED, ErrorCode.INTENT_EXPIRED)
    assert stage.script.named("mint_bonus") == []


@path
async def already_credited(stage: Stage) -> None:
    """An earlier run was terminated after the buyer's credit: this one mints the bonus."""

    await stage.submit(recorded=RecordedSubmission(status=AttemptStatus.CREDITED, tx_hash=A))
    result = await stage.handle.result()
    assert (result.status, result.buyer_credits, result.system_tenant_credits) == (AttemptStatus.CREDITED, 0, BONUS)


@path
async def donation_already_credited(stage: Stage) -> None:
    """The same for a donation, which has no bonus."""
    stage.purpose = Purpose.SYSTEM

    await stage.submit(recorded=RecordedSubmission(status=AttemptStatus.CREDITED, tx_hash=A))
    assert (await stage.handle.result()).status is AttemptStatus.CREDITED
    assert stage.script.named("mint_bonus") == []


@path
async def transfer_already_settled(stage: Stage) -> None:
    """Another attempt is paid with the transfer between poll and credit: poll again, which finds another one."""
    await _settled_by_another(stage)
    await stage.credited(A)


@path
async def donation_transfer_already_settled(stage: Stage) -> None:
    """The same for a donation."""
    stage.purpose = Purpose.SYSTEM
    await _settled_by_another(stage)
    assert (await stage.handle.result()).system_tenant_credits == CREDITS


async def _settled_by_another(stage: Stage) -> None:
    async def credit(message: PaymentToCredit) -> AttemptOutcomeMessage:
        if len(stage.script.named("await_confirmation")) == 1:
            raise no(TransferAlreadySettled.code)
        return credited(message)

    stage.script.credit = credit
    await stage.submit()
    await stage.handle.result()
    assert len(stage.script.named("await_confirmation")) == 2


@path
async def hash_replaced_while_crediting(stage: Stage) -> None:
    """The first hash is confirmed and being credited when another is submitted: what was paid is credited."""
    gate = Gate()

    async def credit(message: PaymentToCredit) -> AttemptOutcomeMessage:
        await gate.passed()
        return credited(message)

    stage.script.credit = credit
    await stage.submit()
    await gate.reached()
    await stage.submit(B)
    gate.open()
    await stage.credited(A)


@path
async def hash_replaced_while_refusing(stage: Stage) -> None:
    """The first hash reverted; its replacement arrives before the attempt has ended, and is polled."""
    gate = Gate()

    async def look(_: PaymentToVerify) -> Verified | Refused:
        return verified(B) if B in stage.submitted else refused(AttemptStatus.FAILED, ErrorCode.TX_REVERTED)

    async def refuse(_: PaymentToRefuse) -> AttemptOutcomeMessage:
        await gate.passed()
        return AttemptOutcomeMessage(status=AttemptStatus.PENDING_UNVERIFIED, tx_hash=B)

    stage.script.look, stage.script.refuse = look, refuse
    await stage.submit()
    await gate.reached()
    await stage.submit(B)
    gate.open()
    await stage.credited(B)


@former
async def submission_while_ending(stage: Stage) -> None:
    """A submission that arrives while the attempt ends is answered before the run returns."""
    gate = Gate()
    last = Gate()

    async def record(message: Submission) -> RecordedSubmission:
        if message.tx_hash == A:
            return stage.script.pending(message)
        await last.passed()
        return RecordedSubmission(status=AttemptStatus.REJECTED, tx_hash=A, error_code=ErrorCode.INSUFFICIENT_AMOUNT)

    async def look(_: PaymentToVerify) -> Verified | Refused:
        return refused()

    async def refuse(message: PaymentToRefuse) -> AttemptOutcomeMessage:
        await gate.passed()
        return ended(message)

    stage.script.record, stage.script.look, stage.script.refuse = record, look, refuse
    await stage.update()
    await gate.reached()
    late = await stage.send(B, count=1)
    await last.reached()
    gate.open()
    await stage.happens(EventType.EVENT_TYPE_UPSERT_WORKFLOW_SEARCH_ATTRIBUTES)
    last.open()
    assert (await late.result()).status is AttemptStatus.REJECTED
    await stage.not_credited(AttemptStatus.REJECTED, ErrorCode.INSUFFICIENT_AMOUNT)


@former
async def final_after_some_looks(stage: Stage) -> None:
    """The credit is there long before its block is finalized; the run goes on until then."""

    async def finality(_: CreditedPayment) -> FinalPayment | ReorgedOut:
        if len(stage.script.named("await_finality")) < 3:
            raise not_final_yet(again_in=SOON)
        return final()

    stage.script.finality = finality
    await stage.update()
    await stage.credited(A)
    assert (await stage.handle.result()).final_block == 17


async def _gone(_: CreditedPayment) -> FinalPayment | ReorgedOut:
    return gone()


async def _reversed(stage: Stage) -> SettlementResult:
    stage.script.finality = _gone
    await stage.update()
    result = await stage.handle.result()
    assert (result.status, result.final_block) == (AttemptStatus.REVERSED, None)
    assert [event.type for event in stage.script.named("announce")][:1] == [PAYMENT_REVERSED]
    return result


@former
async def purchase_reversed(stage: Stage) -> None:
    """A credited purchase is reorged out: credit and bonus are reversed, each in its own step."""
    await _reversed(stage)
    steps = [name for name, _ in stage.script.calls]
    assert steps[-4:] == ["await_finality", "reverse_payment", "reverse_bonus", "announce"]


@former
async def donation_reversed(stage: Stage) -> None:
    """The same for a donation, which has no bonus."""
    stage.purpose = Purpose.SYSTEM
    await _reversed(stage)
    assert stage.script.named("reverse_bonus") == []


@former
async def reversal_that_nobody_hears_of(stage: Stage) -> None:
    """The alert cannot be delivered: what is reversed stays reversed, and the run ends."""

    async def announcement(_: PlatformEvent) -> None:
        raise ApplicationError("no receiver", non_retryable=True)

    stage.script.announcement = announcement
    await _reversed(stage)


@former
async def already_reversed(stage: Stage) -> None:
    """An earlier run was terminated between the two reversals: this one takes the bonus back."""

    async def record(message: Submission) -> RecordedSubmission:
        return RecordedSubmission(status=AttemptStatus.REVERSED, tx_hash=message.tx_hash)

    stage.script.record = record
    await _reversed(stage)
    assert stage.script.named("mint_bonus") == []
    assert len(stage.script.named("reverse_bonus")) == 1


@former
async def submission_while_not_final(stage: Stage) -> None:
    """The payer's page submits again while the run waits for finality: the answer is that it is credited."""
    gate = Gate()

    async def record(message: Submission) -> RecordedSubmission:
        if message.tx_hash == A:
            return stage.script.pending(message)
        return RecordedSubmission(status=AttemptStatus.CREDITED, tx_hash=A)

    async def finality(_: CreditedPayment) -> FinalPayment | ReorgedOut:
        await gate.passed()
        return final()

    stage.script.record, stage.script.finality = record, finality
    await stage.update()
    await gate.reached()
    assert (await stage.update(B, count=1)).status is AttemptStatus.CREDITED
    gate.open()
    await stage.credited(A)


@former
async def purchase_by_update(stage: Stage) -> None:
    """The run records the hash, and each ledger step is a regular activity."""
    assert (await stage.update()).status is AttemptStatus.PENDING_UNVERIFIED
    await stage.credited()
    assert [name for name, _ in stage.script.calls][:4] == [
        "record_submission", "await_confirmation", "credit_buyer", "mint_bonus",
    ]  # fmt: skip


@former
async def hash_replaced_by_update(stage: Stage) -> None:
    """The first hash would be polled again in an hour; the one that replaces it is polled at once."""
    await _replaced(stage, stage.update(B, count=1))


@former
async def hash_replaced_by_a_present_starter(stage: Stage) -> None:
    """The same, where the starter has recorded it and signals the run of before."""
    stage.submitted.append(A)
    await _replaced(stage, stage.submit(B))


async def _replaced(stage: Stage, submitting: Awaitable[RecordedSubmission]) -> None:
    async def look(_: PaymentToVerify) -> Verified | Refused:
        if len(stage.script.named("await_confirmation")) == 1:
            raise not_yet("not found yet", again_in=LONG)
        return verified(B)

    stage.script.look = look
    await stage.update()
    await stage.polled()
    await submitting
    await stage.credited(B)
