"""What processes take of the machine, as Linux counts it; nothing elsewhere."""

from __future__ import annotations

import os
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


def cpu_seconds(pid: int) -> float:
    """CPU time of a process and of all that it started, ended or not; 0 where it cannot be read."""
    parents: dict[int, list[int]] = {}
    times: dict[int, float] = {}
    for entry in Path("/proc").glob("[0-9]*"):
        fields = _read(f"{entry}/stat").rpartition(")")[2].split()
        if fields:
            found = int(entry.name)
            parents.setdefault(int(fields[1]), []).append(found)
            times[found] = sum(map(int, fields[11:15])) / _TICKS
    waiting, total = [pid], 0.0
    while waiting:
        one = waiting.pop()
        total += times.get(one, 0.0)
        waiting.extend(parents.get(one, ()))
    return total


def _read(path: str) -> str:
    try:
        return Path(path).read_text()
    except OSError:
        return ""
