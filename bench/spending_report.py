"""What the bench found about calls through the gateway, with the aims beside it."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Final

from pydantic import computed_field
from rich.console import Console

from bench.parts import Aim, Measured, Part, Range
from commands.output import grouped, table

CALLS_AIM: Final = 324.0
"""Calls a second: LiteLLM's figure on two cores (GoModel's bench of June 2026), which debits nothing durably."""
CALLS_STRETCH: Final = 950.0
"""Portkey's, in the same bench."""
ADDED_P50_AIM_MS: Final = 4.0
ADDED_P99_AIM_MS: Final = 15.0
HOT_AIM: Final = 0.6
HOT_ACCOUNT: Final = "one hot account to many"
MEMORY_AIM_MB: Final = 200.0
READY_AIM_SECONDS: Final = 3.0
LITELLM_AIM: Final = 3.0


class Added(Part):
    """One call at a time: percentiles through the gateway and straight, and what it adds to them."""

    count: int
    gateway_p50_ms: float
    gateway_p99_ms: float
    straight_p50_ms: float
    straight_p99_ms: float
    added_p50_ms: float
    added_p99_ms: float

    @classmethod
    def of(cls, gateway: Sequence[float], straight: Sequence[float]) -> Added:
        """Of two series of seconds."""
        percentiles = [
            round(percentile(series, share) * 1000, 2) for series in (gateway, straight) for share in (0.5, 0.99)
        ]
        through_50, through_99, straight_50, straight_99 = percentiles
        return cls(
            count=len(gateway),
            gateway_p50_ms=through_50,
            gateway_p99_ms=through_99,
            straight_p50_ms=straight_50,
            straight_p99_ms=straight_99,
            added_p50_ms=round(through_50 - straight_50, 2),
            added_p99_ms=round(through_99 - straight_99, 2),
        )


def percentile(samples: Sequence[float], share: float) -> float:
    """The smallest sample that at least `share` of all do not exceed."""
    return sorted(samples)[max(math.ceil(share * len(samples)) - 1, 0)]


class OtherProxy(Part):
    """LiteLLM's proxy before the same upstream, measured in the same rounds."""

    version: str
    calls_per_second: Range
    ratio: Range
    """The gateway's rate to its."""
    memory_mb: float
    ready_seconds: float
    failed: int
    first_errors: list[str]


class Spending(Part):
    """Calls through one gateway process: each with a hold, a posting and a receipt, `synchronous_commit=on`."""

    connections: int
    accounts: int
    calls: Measured
    """Calls against the upstream alone; the ratio says how much of the clients' and the upstream's rate is left."""
    hot_account: Measured
    """All calls on one account, against as many over all accounts."""
    latency: Added
    first_token: Added
    memory_mb: float
    ready_seconds: float
    charged: int
    failed: int
    first_errors: list[str]
    litellm: OtherProxy | None
    litellm_missing: str | None
    """Why LiteLLM was not measured, where it was asked for."""
    cpu_ms_per_call: dict[str, float]
    """Where the time of a call goes: CPU time of each process, in milliseconds a call, at full load."""

    @computed_field  # type: ignore[prop-decorator]
    @property
    def aims(self) -> tuple[Aim, ...]:
        """Every aim."""
        rate = self.calls.product_per_second.median
        found = [
            Aim.at_most("added latency, p50", self.latency.added_p50_ms, ADDED_P50_AIM_MS, unit="ms"),
            Aim.at_most("added latency, p99", self.latency.added_p99_ms, ADDED_P99_AIM_MS, unit="ms"),
            Aim.at_least(f"calls/s at {self.connections} connections", rate, CALLS_AIM, unit="/s"),
            Aim(name="failed calls", wanted="0", found=str(self.failed), met=self.failed == 0),
            Aim.at_least(HOT_ACCOUNT, self.hot_account.ratio.median, HOT_AIM, unit=""),
            Aim.at_most("memory", self.memory_mb, MEMORY_AIM_MB, unit="MB"),
            Aim.at_most("ready after", self.ready_seconds, READY_AIM_SECONDS, unit="s"),
        ]
        if self.litellm is not None:
            ratio = self.litellm.ratio.median
            found.append(Aim.at_least(f"rate to LiteLLM {self.litellm.version}", ratio, LITELLM_AIM, unit="x"))
        return tuple(found)


def show_spending(spending: Spending, console: Console) -> None:
    """The same for people."""
    console.print(
        table(
            f"Calls through the gateway, {spending.connections} connections, {spending.accounts} accounts",
            ("what", "found", "aim", ""),
            [(aim.name, aim.found, aim.wanted, aim.verdict) for aim in spending.aims],
            right=("found", "aim"),
        )
    )
    for line in _conditions(spending):
        console.print(line, markup=False)


def _conditions(spending: Spending) -> Iterator[str]:
    """What the figures were measured under, and what else was found."""
    calls, latency, first = spending.calls, spending.latency, spending.first_token
    yield (
        f"{grouped(spending.charged)} calls were charged by one gateway, each with a hold, an entry and a receipt; "
        f"clients, gateway, upstream and PostgreSQL share the machine. Straight to the upstream the same clients make "
        f"{calls.baseline_per_second.median:,.0f} calls a second."
    )
    yield (
        f"One at a time: p50 {latency.gateway_p50_ms:.1f} ms through the gateway, {latency.straight_p50_ms:.1f} ms "
        f"straight; p99 {latency.gateway_p99_ms:.1f} and {latency.straight_p99_ms:.1f} ms ({latency.count} each). "
        f"First token of a stream: {first.added_p50_ms:.1f} ms added at p50, {first.added_p99_ms:.1f} ms at p99."
    )
    yield "CPU time of a call at full load: " + ", ".join(
        f"{name} {milliseconds:.2f} ms" for name, milliseconds in spending.cpu_ms_per_call.items()
    )
    if spending.litellm is not None:
        other = spending.litellm
        yield (
            f"LiteLLM {other.version} before the same upstream, without a database: "
            f"{other.calls_per_second.median:,.0f} calls a second, {other.failed} failed, {other.memory_mb:.0f} MB, "
            f"ready after {other.ready_seconds:.0f} s."
        )
    if spending.litellm_missing is not None:
        yield f"LiteLLM was not measured: {spending.litellm_missing}"
