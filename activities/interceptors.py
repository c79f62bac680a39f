"""Conversion of domain errors to and from Temporal failures, and the interceptor that applies it."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta
from typing import Any, Final

from temporalio.exceptions import ApplicationError, ApplicationErrorCategory
from temporalio.worker import ActivityInboundInterceptor, ExecuteActivityInput, Interceptor

from domain.errors import Refusal, SettleError, TemporalUnavailable, WorkerOfAnotherChain, registered

RUN_ENDED_TYPE: Final = "AcceptedUpdateCompletedWorkflow"
"""The server's own failure type for an update whose run ended before its handler did."""

HANDED_BACK: Final = timedelta(seconds=5)
"""Delay before another worker is tried with work of another chain. Each retry costs an action."""


def to_application_error(error: SettleError) -> ApplicationError:
    """The error with its stable code as `type` and its facts as details; retryable unless it is a refusal."""
    if isinstance(error, WorkerOfAnotherChain):
        return ApplicationError(
            error.message, type=error.code, category=ApplicationErrorCategory.BENIGN, next_retry_delay=HANDED_BACK
        )
    facts = error.facts()
    return ApplicationError(error.message, *([facts] if facts else []), type=error.code, non_retryable=error.is_refusal)


def from_application_error(failure: ApplicationError) -> SettleError:
    """The reverse: an error of the original class, also where a workflow or a validator has raised it unconverted.

    A refusal with an unknown code (from a worker of a later version) stays a refusal with its code. Anything else is a
    fault that has to be investigated.
    """
    facts = failure.details[0] if failure.details and isinstance(failure.details[0], Mapping) else {}
    if failure.type == RUN_ENDED_TYPE:
        # The same call again finds the end of the run, or starts another.
        return TemporalUnavailable("the run ended before it could answer")
    known = SettleError.from_code(_code(failure.type or ""), failure.message, facts)
    if known is not None:
        return known
    if failure.non_retryable and failure.type:
        return Refusal.of_unknown_code(failure.type, failure.message)
    return SettleError(f"{failure.type or 'a failure without a type'}: {failure.message}")


def _code(failure_type: str) -> str:
    """The code that a failure's type stands for. An error that leaves a workflow unconverted has its class as type."""
    return next((code for code, kind in registered().items() if kind.__name__ == failure_type), failure_type)


class DomainErrors(Interceptor):
    """Gives every domain error that leaves an activity its code and its retryability."""

    def intercept_activity(self, next: ActivityInboundInterceptor) -> ActivityInboundInterceptor:
        """Wrap the activity."""
        return _DomainErrorsInbound(next)


class _DomainErrorsInbound(ActivityInboundInterceptor):
    async def execute_activity(self, input: ExecuteActivityInput) -> Any:
        try:
            return await super().execute_activity(input)
        except SettleError as error:
            raise to_application_error(error) from error
