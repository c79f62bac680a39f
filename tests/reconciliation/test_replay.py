"""Replay notices a remedy that takes other steps."""

from __future__ import annotations

import pytest
from temporalio import workflow
from temporalio.workflow import NondeterminismError

from domain.operations.resolutions import RemedyRequest, TakenRemedy
from tests.reconciliation.record_histories import RECORDED
from tests.support.histories import replay
from workflows.naming import RESOLVE_FINDING
from workflows.resolve_finding import ResolveFinding


@workflow.defn(name=RESOLVE_FINDING)
class _WithoutBonus(ResolveFinding):
    """The bonus is forgotten."""

    @workflow.run
    async def run(self, request: RemedyRequest) -> TakenRemedy:
        return await self._take_remedy(request)


async def test_replay_notices_a_bonus_that_is_left_out() -> None:
    with pytest.raises(NondeterminismError):
        await replay(RECORDED.read("credit"), _WithoutBonus, in_sandbox=False)
