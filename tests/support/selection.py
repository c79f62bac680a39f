"""Which tests are slow, and how a parallel run deals them out."""

from __future__ import annotations

from typing import Any, Final

import pytest
from xdist.scheduler import LoadScopeScheduling

USUAL_PORTS: Final = ("devstack", "bench")
"""Folders whose tests start servers on their usual ports, and expect them there again after a kill."""

LONG_FIRST: Final = ("devstack", "bench", "browser", "crash", "chains", "watcher", "database", "cli", "api", "worker")
"""Folders with the files that take longest, those first: a run ends when the last process does."""


def keep_what_is_not_slow(config: pytest.Config, items: list[pytest.Item]) -> None:
    """`@pytest.mark.slow(but=(ID, ...))` leaves these of the parametrized cases to `make test`.

    Raises `pytest.UsageError` for an id that no case has.
    """
    unmatched: dict[str, set[str]] = {}
    for item in items:
        mark = item.get_closest_marker("slow")
        if mark is None or "but" not in mark.kwargs:
            continue
        test = item.nodeid.partition("[")[0]
        case = item.nodeid.removeprefix(test)[1:-1]
        unmatched.setdefault(test, set(mark.kwargs["but"])).discard(case)
        if case in mark.kwargs["but"]:
            item.own_markers = [own for own in item.own_markers if own.name != "slow"]
    left = {test: sorted(ids) for test, ids in unmatched.items() if ids}
    if left and not any("::" in argument for argument in config.args):
        raise pytest.UsageError(f"slow tests with exceptions that are no cases of theirs: {left}")


def position(item: pytest.Item) -> int:
    """Where a test's folder stands in the order of a run."""
    folder = item.path.parent.name
    return LONG_FIRST.index(folder) if folder in LONG_FIRST else len(LONG_FIRST)


class ByFile(LoadScopeScheduling):  # type: ignore[misc]
    """A file at a time, so that what a module or a folder builds once is built in few processes.

    The folders that need the usual ports are one: their tests run one after another in one process.
    """

    def __init__(self, config: pytest.Config, log: Any = None) -> None:
        super().__init__(config, log)
        config.option.loadscopereorder = False  # by number of tests, which says nothing about their length

    def _split_scope(self, nodeid: str) -> str:
        file = nodeid.partition("::")[0]
        return "usual ports" if file.split("/")[-2] in USUAL_PORTS else file
