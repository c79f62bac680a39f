"""What processes take of the machine, as Linux counts it; nothing elsewhere."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Final

_TICKS: Final = os.sysconf("SC_CLK_TCK")
_MIB: Final = 1024


def memory_mb(pid: int) -> float:
    """Resident memory of a process in MB; 0 where it cannot be read."""
    for line in _read(f"/proc/{pid}/status").splitlines():
        if line.startswith("VmRSS:"):
            return round(int(line.split()[1]) / _MIB, 1)
    return 0.0


def cpu_seconds_of(pids: Mapping[str, int]) -> dict[str, float]:
    """CPU time of each process and of all that it started, but for those that are in `pids` themselves."""
    parents: dict[int, list[int]] = {}
    times: dict[int, float] = {}
    for entry in Path("/proc").glob("[0-9]*"):
        fields = _read(f"{entry}/stat").rpartition(")")[2].split()
        if fields:
            found = int(entry.name)
            parents.setdefault(int(fields[1]), []).append(found)
            times[found] = sum(map(int, fields[11:15])) / _TICKS
    named = set(pids.values())

    def total(pid: int) -> float:
        return times.get(pid, 0.0) + sum(total(child) for child in parents.get(pid, ()) if child not in named)

    return {name: total(pid) for name, pid in pids.items()}


def _read(path: str) -> str:
    try:
        return Path(path).read_text()
    except OSError:
        return ""
