"""What was found of deposit addresses."""

from __future__ import annotations

from rich.console import Console

from bench.parts import Latency, Part
from commands.output import grouped, table


class Deposits(Part):
    """What was found of deposits."""

    addresses: int
    addresses_per_second: float
    deposits: int
    credited: int
    deposits_per_second: float
    confirmed_to_credited: Latency
    watched: int
    derived_seconds: float
    requests_per_block: float
    queries_per_block: float
    pass_seconds: float

    @property
    def violations(self) -> list[str]:
        """What makes the measurement invalid."""
        missing = self.deposits - self.credited
        return [f"{missing} of {self.deposits} deposits were not credited"] if missing else []


def show_deposits(found: Deposits, console: Console) -> None:
    """The figures for people."""
    p50, _, p99 = found.confirmed_to_credited.shown()
    console.print(
        table(
            f"Deposit addresses: {grouped(found.deposits)} deposits, {grouped(found.watched)} watched addresses",
            ("what", "found"),
            (
                ("charges with an address of their own, a second", f"{found.addresses_per_second:,.0f}"),
                ("deposits credited, a second", f"{found.deposits_per_second:,.1f}"),
                ("confirmed to credited, p50 and p99", f"{p50} and {p99} ms"),
                ("requests to a node for each block", f"{found.requests_per_block:.1f}"),
                ("log queries in them, 500 addresses each", f"{found.queries_per_block:.0f}"),
                ("time to read a block for all of them", f"{found.pass_seconds:.2f} s"),
                ("time to derive all of them, once in a worker's life", f"{found.derived_seconds:.1f} s"),
            ),
            right=("found",),
        )
    )
