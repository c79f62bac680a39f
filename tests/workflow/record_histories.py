"""Record the history of every path: `make histories`, or `python -m tests.workflow.record_histories`.

To be run by hand after a change that is meant to change histories, and the files committed with that change. A
change that is not meant to leaves them alone: that the old ones still replay is what protects running payments.
Names on the command line record those paths only.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any, Final

from temporalio.client import Client, WorkflowHandle

from tests.support.histories import Recorded
from tests.workflow.paths import PATHS, walk
from workflows.verify_and_settle import VerifyAndSettle


async def walk_to_its_end(client: Client, path: str) -> WorkflowHandle[Any, Any]:
    """Walk one path to its end, whatever its activities were asked."""
    return (await walk(client, path)).handle


RECORDED: Final = Recorded(Path(__file__).parent / "histories", PATHS, walk_to_its_end, lambda _: VerifyAndSettle)

if __name__ == "__main__":
    RECORDED.record(sys.argv[1:])
