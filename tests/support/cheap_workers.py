"""What makes a worker cheap to start, hundreds of times: workflows validated once, and few pollers."""

from __future__ import annotations

from typing import Final

from temporalio.worker import PollerBehaviorSimpleMaximum
from temporalio.worker.workflow_sandbox import SandboxedWorkflowRunner
from temporalio.workflow import _Definition

import worker

POLLERS: Final = 4

_validated: Final[set[type]] = set()
_prepare = SandboxedWorkflowRunner.prepare_workflow


def _prepare_once(runner: SandboxedWorkflowRunner, definition: _Definition) -> None:
    if definition.cls not in _validated:
        _prepare(runner, definition)
        _validated.add(definition.cls)


def validate_workflows_once() -> None:
    """A worker that starts imports each of its workflows again, on each of its queues, to see whether it may run in the
    sandbox. That is a quarter of a second of the processor's, hundreds of times, and the answer is always the same."""
    SandboxedWorkflowRunner.prepare_workflow = _prepare_once  # type: ignore[assignment, method-assign]


def poll_with_few() -> None:
    """Twenty polls of each kind serve many payments at once. To open and to end them is half of what a worker costs
    that a test starts for one."""
    for kind in ("workflow_task_poller_behavior", "activity_task_poller_behavior"):
        worker.WORKER_OPTIONS[kind] = PollerBehaviorSimpleMaximum(POLLERS)
