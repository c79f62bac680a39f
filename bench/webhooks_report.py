"""What was found of the delivery of webhooks."""

from __future__ import annotations

from rich.console import Console

from bench.parts import Latency, Part
from commands.output import grouped, table


class Webhooks(Part):
    """What was found of webhooks. Times are from the return of the event's commit to the receiver's 200."""

    accounts: int
    deliveries: int
    delivered: int
    repeated: int
    """Times that the receiver was sent what it had accepted already."""
    deliveries_per_second: float
    at_once: Latency
    """Of all of them, committed as fast as they can be."""
    spaced: Latency
    """Of some that are committed one after the other, with the system idle in between."""

    @property
    def violations(self) -> list[str]:
        """What makes the measurement invalid."""
        missing = self.deliveries - self.delivered
        return [f"{missing} of {self.deliveries} webhooks were not delivered"] if missing else []


def show_webhooks(found: Webhooks, console: Console) -> None:
    """The figures for people."""
    at_once, spaced = found.at_once.shown(), found.spaced.shown()
    console.print(
        table(
            f"Webhooks: {grouped(found.deliveries)} to a receiver on this machine, of {found.accounts} accounts",
            ("what", "found"),
            (
                ("delivered, a second", f"{found.deliveries_per_second:,.1f}"),
                ("committed to accepted, all at once, p50 and p95", f"{at_once[0]} and {at_once[1]} ms"),
                ("the same, one now and then, p50 and p95", f"{spaced[0]} and {spaced[1]} ms"),
                ("sent again although accepted", found.repeated),
            ),
            right=("found",),
        )
    )
