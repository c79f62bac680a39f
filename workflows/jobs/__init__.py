"""Scheduled jobs: one module each, found by being here.

A module holds one `@workflow.defn` class whose `run` takes one pydantic model, all of whose fields have defaults. The
worker runs every job that `discover` finds, and `settle schedules apply` accepts its name as `job:` and its model's
fields as `input:`. So a new job is one module and one entry in the schedules' file. A job whose model has a field
`chain_id` works on one chain: each chain has a schedule of its own for it.
"""

from __future__ import annotations

import importlib
import pkgutil
from dataclasses import dataclass
from typing import Any, Final, get_type_hints

CHAIN_FIELD: Final = "chain_id"
"""Field of a job's input that says for which chain it works; a job without it works for the platform."""


@dataclass(frozen=True, slots=True)
class Job:
    """One kind of scheduled workflow. `input_model` is a pydantic model that can be made without arguments."""

    name: str
    workflow: type[Any]
    input_model: type[Any]

    @property
    def is_of_one_chain(self) -> bool:
        """Whether each chain has a schedule of its own for it."""
        return CHAIN_FIELD in self.input_model.model_fields


def discover() -> dict[str, Job]:
    """Every job by its workflow's name. Raises `TypeError` for a module that is not as this package says.

    A function, because the workflow sandbox loads this package anew for every run and needs one module of it only.
    """
    jobs = [
        _job_of(importlib.import_module(f"{__name__}.{module.name}"))
        for module in pkgutil.iter_modules(__path__)
        if not module.name.startswith("_")
    ]
    found = {job.name: job for job in jobs}
    if len(found) < len(jobs):
        raise TypeError(f"two modules in {__name__} hold a job of the same name: {sorted(job.name for job in jobs)}")
    return found


def _job_of(module: Any) -> Job:
    from pydantic import BaseModel
    from temporalio.workflow import _Definition

    defined = [
        (definition, value)
        for value in vars(module).values()
        if isinstance(value, type) and value.__module__ == module.__name__
        for definition in [_Definition.from_class(value)]
        if definition is not None
    ]
    if len(defined) != 1:
        raise TypeError(f"{module.__name__} wants one workflow, has {len(defined)}")
    workflow: Any
    definition, workflow = defined[0]
    hints = [hint for name, hint in get_type_hints(workflow.run).items() if name != "return"]
    if len(hints) != 1 or not (isinstance(hints[0], type) and issubclass(hints[0], BaseModel)):
        raise TypeError(f"{module.__name__}: {workflow.__name__}.run wants one pydantic model as its only argument")
    without_default = [name for name, field in hints[0].model_fields.items() if field.is_required()]
    if without_default:
        raise TypeError(f"{module.__name__}: {hints[0].__name__}.{without_default[0]} wants a default")
    if definition.name is None:
        raise TypeError(f"{module.__name__}: {workflow.__name__} wants a name of its own")
    return Job(definition.name, workflow, hints[0])
