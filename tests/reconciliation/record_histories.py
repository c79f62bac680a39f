"""Record the history of every path of `ResolveFinding`: `python -m tests.reconciliation.record_histories`.

By hand, after a change that is meant to change histories; see `tests.workflow.record_histories`.
"""

from __future__ import annotations

import asyncio
import json
import sys
import tempfile
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final
from uuid import UUID

from temporalio import activity
from temporalio.client import Client, WorkflowFailureError
from temporalio.worker import Worker

from activities.interceptors import DomainErrors
from activities.messages import MintedBonus
from devstack.chain import LOCAL_CHAIN_ID
from devstack.processes import quiet_port
from devstack.temporal import EmbeddedTemporal
from domain.errors import RemedyRefused
from domain.operations.findings import FindingKind, Remedy
from domain.operations.resolutions import RemedyRequest, TakenRemedy
from starter.resolutions import start_remedy
from starter.temporal import connect
from tests.support.servers import TASK_QUEUE
from tests.workflow.paths import RECORDER
from tests.workflow.record_histories import without_traces
from workflows.resolve_finding import ResolveFinding

HISTORIES: Final = Path(__file__).parent / "histories"

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


async def _record(client: Client, name: str) -> dict[str, Any]:
    request = RemedyRequest(
        finding_id=UUID(int=1), remedy=PATHS[name], operator="ada", reason="why", chain_id=LOCAL_CHAIN_ID
    )
    handle = await start_remedy(client, request)
    try:
        await handle.result()
    except WorkflowFailureError:
        assert name == "refused"
    history: dict[str, Any] = without_traces(json.loads((await handle.fetch_history()).to_json()))
    return history


async def main() -> None:
    """Record them all."""
    HISTORIES.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        server = EmbeddedTemporal(Path(folder), quiet_port())
        await server.start()
        try:
            client = await connect({"TEMPORAL_ADDRESS": server.address, "TEMPORAL_NAMESPACE": "default"})
            client.service_client.config.identity = RECORDER
            async with Worker(
                client,
                task_queue=TASK_QUEUE,
                workflows=[ResolveFinding],
                activities=[take_remedy, mint_bonus_of_credit],
                interceptors=[DomainErrors()],
                identity=RECORDER,
            ):
                for name in PATHS:
                    history = await _record(client, name)
                    (HISTORIES / f"{name}.json").write_text(json.dumps(history, indent=1) + "\n")
                    sys.stdout.write(f"{name}\n")
        finally:
            await server.stop()


if __name__ == "__main__":
    asyncio.run(main())
