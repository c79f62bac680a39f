"""Record the history of every path: `make histories`, or `python -m tests.workflow.record_histories`.

To be run by hand after a change that is meant to change histories, and the files committed with that change. A
change that is not meant to leaves them alone: that the old ones still replay is what protects running payments.
Names on the command line record those paths only.
"""

from __future__ import annotations

import asyncio
import json
import sys
import tempfile
from pathlib import Path
from typing import Any, Final

from devstack.processes import quiet_port
from devstack.temporal import EmbeddedTemporal
from starter.temporal import connect, register_search_attributes
from tests.workflow.paths import PATHS, RECORDER, Stage, walk

HISTORIES: Final = Path(__file__).parent / "histories"

LEFT_OUT: Final = frozenset({"stackTrace", "encodedAttributes"})
"""A failure's stack trace names files of the recording machine; replay does not read it."""


def without_traces(value: Any) -> Any:
    """The same JSON without what identifies the machine."""
    if isinstance(value, dict):
        return {name: without_traces(item) for name, item in value.items() if name not in LEFT_OUT}
    return [without_traces(item) for item in value] if isinstance(value, list) else value


async def history_of(stage: Stage) -> str:
    """The run's history as it is written to a file."""
    history = await stage.handle.fetch_history()
    return json.dumps(without_traces(json.loads(history.to_json())), indent=1) + "\n"


async def main(names: list[str]) -> None:
    """Record the named paths, or all, and forget histories of paths that are no more."""
    HISTORIES.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        server = EmbeddedTemporal(Path(folder), quiet_port())
        await server.start()
        try:
            client = await connect({"TEMPORAL_ADDRESS": server.address, "TEMPORAL_NAMESPACE": "default"})
            client.service_client.config.identity = RECORDER
            await register_search_attributes(client)
            for name in names or PATHS:
                stage = await walk(client, name)
                (HISTORIES / f"{name}.json").write_text(await history_of(stage))
                sys.stdout.write(f"{name}\n")
        finally:
            await server.stop()
    for file in HISTORIES.glob("*.json"):
        if file.stem not in PATHS:
            file.unlink()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1:]))
