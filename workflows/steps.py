"""Independent steps of a job: one that fails does not stop those after it, and the run reports all that failed."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import TypeVar

from temporalio.exceptions import ActivityError, ApplicationError

Input = TypeVar("Input")


async def run_steps(
    steps: Iterable[Callable[[Input], Awaitable[Mapping[str, object]]]], wanted: Input, *, incomplete: str
) -> dict[str, object]:
    """Fields of the job's result that its steps, one after another, have filled.

    Raises:
        ApplicationError: of type `incomplete`, after the last step, with each activity that failed.
    """
    fields: dict[str, object] = {}
    failures: list[str] = []
    for step in steps:
        try:
            fields |= await step(wanted)
        except ActivityError as error:
            failures.append(f"{error.activity_type}: {error.cause}")
    if failures:
        raise ApplicationError("; ".join(failures), type=incomplete)
    return fields
