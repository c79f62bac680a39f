"""Recorded histories of workflows: recording every path of them, and replaying one.

A module `record_histories` declares its `RECORDED`; `tests/workflow/test_recorded_histories.py` checks them all.
"""

from __future__ import annotations

import asyncio
import json
import sys
import tempfile
from collections.abc import Awaitable, Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from temporalio.client import Client, WorkflowHandle, WorkflowHistory
from temporalio.contrib.pydantic import pydantic_data_converter
from temporalio.worker import Replayer, UnsandboxedWorkflowRunner, WorkflowRunner
from temporalio.worker.workflow_sandbox import SandboxedWorkflowRunner

from devstack.processes import quiet_port
from devstack.temporal import EmbeddedTemporal
from starter.temporal import connect, register_search_attributes

RECORDER: Final = "recorder"
"""Identity of the recording worker and client, in place of the machine's name."""

LEFT_OUT: Final = frozenset({"stackTrace", "encodedAttributes"})
"""A failure's stack trace names files of the recording machine; replay does not read it."""


@dataclass(frozen=True)
class Recorded:
    """Histories of all paths of some workflows, in files of a folder, and how they are recorded."""

    folder: Path
    paths: Collection[str]
    walk: Callable[[Client, str], Awaitable[WorkflowHandle[Any, Any]]]
    """Walks a path to its end, with a worker whose identity is `RECORDER`."""

    workflow_of: Callable[[str], type[Any]]
    """The workflow whose path it is."""

    @property
    def files(self) -> list[Path]:
        """Histories of the paths."""
        return sorted(self.folder.glob("*.json"))

    @property
    def former(self) -> list[Path]:
        """Of earlier versions, by what they lack: runs that were under way when a newer one came."""
        return sorted(self.folder.glob("*/*.json"))

    def read(self, path: str) -> WorkflowHistory:
        """The history of a path."""
        return read_history(self.folder / f"{path}.json")

    def record(self, names: list[str]) -> None:
        """Record the named paths, or all, and forget histories of paths that are no more."""
        asyncio.run(self._record(names or list(self.paths)))
        for file in self.files:
            if file.stem not in self.paths:
                file.unlink()

    async def _record(self, names: list[str]) -> None:
        self.folder.mkdir(exist_ok=True)
        with tempfile.TemporaryDirectory() as folder:
            server = EmbeddedTemporal(Path(folder), quiet_port())
            await server.start()
            try:
                client = await connect({"TEMPORAL_ADDRESS": server.address, "TEMPORAL_NAMESPACE": "default"})
                client.service_client.config.identity = RECORDER
                await register_search_attributes(client)
                for name in names:
                    handle = await self.walk(client, name)
                    history = without_traces(json.loads((await handle.fetch_history()).to_json()))
                    (self.folder / f"{name}.json").write_text(json.dumps(history, indent=1) + "\n")
                    sys.stdout.write(f"{name}\n")
            finally:
                await server.stop()


def without_traces(value: Any) -> Any:
    """The same JSON without what identifies the machine."""
    if isinstance(value, dict):
        return {name: without_traces(item) for name, item in value.items() if name not in LEFT_OUT}
    return [without_traces(item) for item in value] if isinstance(value, list) else value


def read_history(file: Path) -> WorkflowHistory:
    """The history in a file, which is named after its path."""
    return WorkflowHistory.from_json(file.stem, file.read_text())


async def replay(history: WorkflowHistory, workflow: type[Any], *, in_sandbox: bool = True) -> None:
    """Replay a history as a worker would. A workflow that a test declares cannot run in the sandbox.

    Raises:
        NondeterminismError: the workflow takes other steps.
    """
    runner: WorkflowRunner = SandboxedWorkflowRunner() if in_sandbox else UnsandboxedWorkflowRunner()
    replayer = Replayer(workflows=[workflow], data_converter=pydantic_data_converter, workflow_runner=runner)
    await replayer.replay_workflow(history)
