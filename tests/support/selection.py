"""Which tests are slow, and how a parallel run deals them out."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence
from itertools import groupby
from math import gcd
from typing import Final

import pytest

IN_ONE_PROCESS: Final = {
    "devstack": "tests/devstack/",
    "bench": "tests/devstack/",
    "browser": "tests/browser/",
    "bitcoin": "tests/bitcoin/",
}
"""Folders whose files are run one after another, and what they are called together: their tests start servers on their
usual ports and expect them there again after a kill, or share a browser or a Bitcoin node, which take a second to
start."""

LONG_FIRST: Final = (
    "devstack",
    "bench",
    "governance",
    "browser",
    "crash",
    "chains",
    "watcher",
    "database",
    "cli",
    "api",
    "worker",
)
"""Folders with the files that take longest, those first: a run ends when the last process does."""

EACH_VALUE: Final = "each value"


def keep_what_is_not_slow(config: pytest.Config, items: list[pytest.Item]) -> None:
    """`@pytest.mark.slow(but=...)` leaves some of a test's parametrized cases to `make test`.

    `but=(ID, ...)` are these, `but=N` so many (`representative_cases`), `but="each value"` as many as show each value
    of each `parametrize`.

    Raises `pytest.UsageError` for an id that no case has.
    """
    left: dict[str, list[str]] = {}
    for test, group in groupby(items, lambda item: item.nodeid.partition("[")[0]):
        cases = list(group)
        mark = cases[0].get_closest_marker("slow")
        if mark is None or "but" not in mark.kwargs:
            continue
        but: tuple[str, ...] | int | str = mark.kwargs["but"]
        if isinstance(but, tuple):
            ids = {case.nodeid.removeprefix(test)[1:-1]: case for case in cases}
            if unknown := sorted(set(but) - set(ids)):
                left[test] = unknown
            kept = [ids[name] for name in but if name in ids]
        else:
            kept = [cases[place] for place in representative_cases([_values(case) for case in cases], but)]
        for case in kept:
            case.own_markers = [own for own in case.own_markers if own.name != "slow"]
    if left and not any("::" in argument for argument in config.args):
        raise pytest.UsageError(f"slow tests with exceptions that are no cases of theirs: {left}")


def _values(case: pytest.Item) -> frozenset[Hashable]:
    """The id of the value of each `parametrize`; several parameters of one are a value together."""
    assert isinstance(case, pytest.Function)
    return frozenset(enumerate(case.callspec._idlist))


def representative_cases(cases: Sequence[frozenset[Hashable]], count: int | str) -> Iterator[int]:
    """Places of `count` cases, the first among them, which show as many values as so many can, from all over the list.

    `count="each value"`: as many cases as show every value once.
    """
    stride = next(step for step in range(round(len(cases) * 0.618) or 1, len(cases) + 2) if gcd(step, len(cases)) == 1)
    waiting = [place * stride % len(cases) for place in range(len(cases))]
    unseen: set[Hashable] = set()
    everything = set().union(*cases)
    for number in range(len(cases)):
        if not unseen:
            if number == count or (number and count == EACH_VALUE):
                return
            unseen = set(everything)
        if number == count:
            return
        place = max(waiting, key=lambda place: len(cases[place] & unseen))
        waiting.remove(place)
        unseen -= cases[place]
        yield place


def folder_position(name: str) -> int:
    """Where a test's folder stands in the order of a run that does not know how long the files take."""
    folder = name.split("/")[-2]
    return LONG_FIRST.index(folder) if folder in LONG_FIRST else len(LONG_FIRST)


def file_of(nodeid: str) -> str:
    """The file of a test, as a path, or the folder whose files are run in one process."""
    file = nodeid.partition("::")[0]
    return IN_ONE_PROCESS.get(file.split("/")[-2], file)
