"""A starter of no workflows, for services whose other parts are real."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from uuid import UUID


async def _is_running(_: str, __: UUID) -> bool:
    return False


@dataclass(frozen=True, slots=True)
class ScriptedStarter:
    """Answers `resume_payment` by a function; all singleton workflows run."""

    resume: Callable[[str, UUID], Awaitable[bool]] = _is_running

    async def resume_payment(self, user_id: str, attempt_id: UUID) -> bool:
        """As the function answers; without one every payment has a workflow."""
        return await self.resume(user_id, attempt_id)

    async def start_singletons(self) -> list[str]:
        """Nothing to start."""
        return []
