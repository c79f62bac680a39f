"""What a scheduled job is: one module, in the list of all of them, whose run needs no argument to be given."""

from __future__ import annotations

from pathlib import Path
from typing import get_type_hints

import pytest
from pydantic import BaseModel

import workflows.jobs
from workflows.registry import JOBS, WORKFLOWS, Job


def test_every_module_of_jobs_is_one_in_the_list() -> None:
    modules = {f"workflows.jobs.{file.stem}" for file in Path(workflows.jobs.__path__[0]).glob("[!_]*.py")}
    listed = [job.workflow.__module__ for job in JOBS.values()]
    assert sorted(listed) == sorted(modules), "each module's job is one line of workflows.registry"


def test_no_two_workflows_have_a_name_together() -> None:
    names = [workflow.__temporal_workflow_definition.name for workflow in WORKFLOWS]
    others = {workflow for workflow in WORKFLOWS if workflow not in {job.workflow for job in JOBS.values()}}
    assert len(names) == len(set(names)) == len(JOBS) + len(others)


@pytest.mark.parametrize("job", JOBS.values(), ids=lambda job: job.name)
def test_a_job_is_listed_as_it_is(job: Job) -> None:
    assert job.workflow.__temporal_workflow_definition.name == job.name
    hints = [hint for name, hint in get_type_hints(job.workflow.run).items() if name != "return"]
    assert hints == [job.input_model]
    assert issubclass(job.input_model, BaseModel)
    assert isinstance(job.input_model(), job.input_model), "without arguments: every field has a default"
