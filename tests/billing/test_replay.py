"""Replay notices a resolution of a hold that takes other steps."""

from __future__ import annotations

import pytest
from temporalio import workflow
from temporalio.workflow import NondeterminismError

from activities.billing.signatures import CallRecord, ResolvedHold
from activities.messages import HoldRef
from tests.billing.record_histories import RECORDED
from tests.support.histories import replay
from workflows.naming import RESOLVE_HOLD
from workflows.resolve_hold import ResolveHold


@workflow.defn(name=RESOLVE_HOLD)
class _WithoutAsking(ResolveHold):
    """The provider is not asked."""

    @workflow.run
    async def run(self, hold: HoldRef) -> ResolvedHold:
        return await self._charge(hold, CallRecord())


async def test_replay_notices_a_provider_that_is_not_asked() -> None:
    with pytest.raises(NondeterminismError):
        await replay(RECORDED.read("by_record"), _WithoutAsking, in_sandbox=False)
