"""Domain errors as Temporal sees them: one table, and the interceptor that applies it."""

from __future__ import annotations

from typing import Any, Final

from temporalio.exceptions import ApplicationError
from temporalio.worker import ActivityInboundInterceptor, ExecuteActivityInput, Interceptor

from domain.errors import Refusal, SettleError, TransferAlreadySettled

NON_RETRYABLE: Final[tuple[type[SettleError], ...]] = (Refusal, TransferAlreadySettled)
"""A "no" stays a "no". Everything else is retried until it is mended, in sight of the operator."""


def to_application_error(error: SettleError) -> ApplicationError:
    """The error with its stable code as `type`, retryable unless it is a "no"."""
    return ApplicationError(error.message, type=error.code, non_retryable=isinstance(error, NON_RETRYABLE))


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
