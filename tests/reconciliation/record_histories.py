"""Record the history of every path of `ResolveFinding`: `python -m tests.reconciliation.record_histories`.

By hand, after a change that is meant to change histories; see `tests.workflow.record_histories`.
"""

from __future__ import annotations

import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final
from uuid import UUID

from temporalio import activity
from temporalio.client import Client, WorkflowFailureError, WorkflowHandle
from temporalio.worker import Worker

from activities.interceptors import DomainErrors
from activities.messages import MintedBonus
from devstack.chain import LOCAL_CHAIN_ID
from domain.errors import RemedyRefused
from domain.operations.findings import FindingKind, Remedy
from domain.operations.resolutions import RemedyRequest, TakenRemedy
from starter.resolutions import start_remedy
from tests.support.histories import RECORDER, Recorded
from tests.support.servers import TASK_QUEUE
from workflows.resolve_finding import ResolveFinding

PATHS: Final[dict[str, Remedy]] = {
    "credit": Remedy.CREDIT,
    "write_off": Remedy.WRITE_OFF,
    "refused": Remedy.RETRY,
}
"""Path and what is asked for; the scripted database refuses a retry."""


@activity.defn(name="take_remedy")
async def take_remedy(request: RemedyRequest) -> TakenRemedy:
    """As the product's, without a database."""
    if request.remedy is Remedy.RETRY:
        raise RemedyRefused("retry is no remedy for it")
    return TakenRemedy(
        kind=FindingKind.LATE_PAYMENT,
        taken_at=datetime(2026, 1, 1, tzinfo=UTC),
        bonus_credits=75 if request.remedy is Remedy.CREDIT else 0,
        **request.model_dump(exclude={"billing_account_id", "refund_tx_hash"}),
    )


@activity.defn(name="mint_bonus_of_credit")
async def mint_bonus_of_credit(taken: TakenRemedy) -> MintedBonus:
    """As the product's, without a database."""
    return MintedBonus(amount_credits=taken.bonus_credits)


async def walk(client: Client, path: str) -> WorkflowHandle[Any, Any]:
    """Walk one path to its end."""
    request = RemedyRequest(
        finding_id=UUID(int=1), remedy=PATHS[path], operator="ada", reason="why", chain_id=LOCAL_CHAIN_ID
    )
    async with Worker(
        client,
        task_queue=TASK_QUEUE,
        workflows=[ResolveFinding],
        activities=[take_remedy, mint_bonus_of_credit],
        interceptors=[DomainErrors()],
        identity=RECORDER,
    ):
        handle = await start_remedy(client, request)
        try:
            await handle.result()
        except WorkflowFailureError:
            assert path == "refused"
    return handle


RECORDED: Final = Recorded(Path(__file__).parent / "histories", PATHS, walk, lambda _: ResolveFinding)

if __name__ == "__main__":
    RECORDED.record(sys.argv[1:])
