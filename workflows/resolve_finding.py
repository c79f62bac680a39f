"""Executes one operator's decision about a finding."""

from __future__ import annotations

from temporalio import workflow
from temporalio.exceptions import ActivityError, ApplicationError

with workflow.unsafe.imports_passed_through():
    from activities.operations.signatures import RemedySignatures
    from domain.operations.findings import Remedy
    from domain.operations.resolutions import RemedyRequest, TakenRemedy, describe
    from workflows.naming import RESOLVE_FINDING
    from workflows.policies import LEDGER_RETRY, LEDGER_START_TO_CLOSE, POLL_START_TO_CLOSE


@workflow.defn(name=RESOLVE_FINDING)
class ResolveFinding:
    """Executes the remedy, then mints the bonus of a credit, whatever crashes in between."""

    @workflow.run
    async def run(self, request: RemedyRequest) -> TakenRemedy:
        """Lifecycle of a remedy."""
        taken = await self._take_remedy(request)
        if taken.remedy is Remedy.CREDIT:
            await self._mint_bonus(taken)
        workflow.set_current_details(describe(taken))
        return taken

    async def _take_remedy(self, request: RemedyRequest) -> TakenRemedy:
        try:
            return await workflow.execute_activity_method(
                RemedySignatures.take_remedy,
                request,
                # Before a credit the chain's nodes are asked.
                start_to_close_timeout=POLL_START_TO_CLOSE,
                retry_policy=LEDGER_RETRY,
                summary=f"{request.remedy.value}, as {request.operator} decided",
            )
        except ActivityError as error:
            # The refusal itself, so that its code is not hidden one level down.
            raise (error.cause if isinstance(error.cause, ApplicationError) else error) from error

    async def _mint_bonus(self, taken: TakenRemedy) -> None:
        await workflow.execute_activity_method(
            RemedySignatures.mint_bonus_of_credit,
            taken,
            start_to_close_timeout=LEDGER_START_TO_CLOSE,
            retry_policy=LEDGER_RETRY,
            summary="credit the system tenant's bonus",
        )
