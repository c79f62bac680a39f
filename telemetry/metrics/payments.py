"""Metrics of every process that records submissions: API, worker, commands."""

from __future__ import annotations

from typing import Final

from prometheus_client import Counter

SUBMISSIONS: Final = Counter("settle_attempts_submitted", "Hashes recorded for payment attempts", ["purpose"])
