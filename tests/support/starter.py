"""A starter of no workflows, for services whose other parts are real."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from uuid import UUID

from activities.operations.housekeeping import HousekeepingActivities
from services.payments.finality import FinalityDecider
from services.payments.recovery import PaymentRecovery
from tests.support.engine import Engine


async def _is_running(_: str, __: UUID) -> bool:
    return False


@dataclass(frozen=True, slots=True)
class ScriptedStarter:
    """Answers `resume_payment` by a function; all singleton workflows run."""

    resume: Callable[[str, UUID], Awaitable[bool]] = _is_running

    async def resume_payment(self, user_id: str, attempt_id: UUID) -> bool:
        """As the function answers; without one every payment has a workflow."""
        return await self.resume(user_id, attempt_id)

    async def start_reversal(self, user_id: str, attempt_id: UUID, *, again: bool) -> bool:
        """Never called: no payment is reorged out."""
        raise AssertionError(f"attempt {attempt_id} of {user_id} is on the chain")

    async def start_singletons(self) -> list[str]:
        """Nothing to start."""
        return []


def housekeeping_activities(
    engine: Engine, starter: ScriptedStarter | None = None, *, chain_id: int | None = None
) -> HousekeepingActivities:
    """Housekeeping of an engine's chain, or of another, that starts workflows as `starter` does."""
    starter = starter or ScriptedStarter()
    return HousekeepingActivities(
        engine.service,
        recovery=PaymentRecovery(engine.service, chain_id=chain_id or engine.settings.chain_id, starter=starter),
        finality=FinalityDecider(engine.reader, engine.service, starter, policy=engine.settings.finality_policy),
        starter=starter,
    )
