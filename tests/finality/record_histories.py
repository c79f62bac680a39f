"""Record the history of every path of `ReversePayment`: `python -m tests.finality.record_histories`.

By hand, after a change that is meant to change histories; see `tests.workflow.record_histories`.
"""

from __future__ import annotations

import sys
from datetime import timedelta
from pathlib import Path
from typing import Final
from uuid import NAMESPACE_URL, uuid5

from temporalio.client import Client, WorkflowHandle
from temporalio.exceptions import ApplicationError

from activities.messages import CreditedPayment, ReversalResult
from db.accounts.wallets import Payer
from domain.operations.events import PlatformEvent
from domain.payments.attempt import AttemptStatus, PaymentAttempt, Purpose
from domain.payments.finality import Final as FinalPayment
from domain.payments.finality import ReorgedOut
from starter.reversals import start_reversal
from tests.support.histories import RECORDER, Recorded
from tests.support.payments import new_attempt, wallet
from tests.workflow.scripted import A, Script, final, gone, not_final_yet, scripted_worker
from workflows.naming import reversal_workflow_id, task_queue
from workflows.reverse_payment import ReversePayment

PATHS: Final[dict[str, tuple[Purpose, AttemptStatus]]] = {
    "in_another_block": (Purpose.SELF, AttemptStatus.CREDITED),
    "purchase_reversed": (Purpose.SELF, AttemptStatus.REVERSED),
    "donation_reversed": (Purpose.SYSTEM, AttemptStatus.REVERSED),
    "reversal_without_a_receiver": (Purpose.SELF, AttemptStatus.REVERSED),
}
"""Path, what the payment is for, and how it ends."""

Handle = WorkflowHandle[ReversePayment, ReversalResult]


def attempt_of(path: str) -> PaymentAttempt:
    """The credited attempt of a path."""
    payer = Payer("user", "account", wallet(1))
    return new_attempt(
        payer,
        id=uuid5(NAMESPACE_URL, f"settle/reversal/{path}"),
        purpose=PATHS[path][0],
        status=AttemptStatus.CREDITED,
        tx_hash=A,
        expires_at=None,
    )


def script_of(path: str) -> Script:
    """What the activities answer: the payment is missing twice before it is decided."""
    script = Script()

    async def finality(_: CreditedPayment) -> FinalPayment | ReorgedOut:
        if len(script.named("await_finality")) < 3:
            raise not_final_yet("not on the canonical chain since block 20", again_in=timedelta(milliseconds=50))
        return final() if PATHS[path][1] is AttemptStatus.CREDITED else gone()

    async def refuse(_: PlatformEvent) -> None:
        raise ApplicationError("no receiver", non_retryable=True)

    script.finality = finality
    script.announcement = refuse if path == "reversal_without_a_receiver" else None
    return script


async def walk(client: Client, path: str) -> tuple[Handle, Script]:
    """Walk one path to its end."""
    attempt, script = attempt_of(path), script_of(path)
    queue = task_queue(attempt.chain_id)
    async with scripted_worker(client, script, queue, workflow=ReversePayment, identity=RECORDER):
        await start_reversal(client, attempt, again=False)
        handle: Handle = client.get_workflow_handle(reversal_workflow_id(attempt.id), result_type=ReversalResult)
        result = await handle.result()
    assert result.status is PATHS[path][1]
    return handle, script


async def walk_to_its_end(client: Client, path: str) -> Handle:
    """Walk one path to its end, whatever its activities were asked."""
    handle, _ = await walk(client, path)
    return handle


RECORDED: Final = Recorded(Path(__file__).parent / "histories", PATHS, walk_to_its_end, lambda _: ReversePayment)

if __name__ == "__main__":
    RECORDED.record(sys.argv[1:])
