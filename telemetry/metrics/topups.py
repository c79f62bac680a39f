"""What API and relay each say of their settings for signed payments, so that the two can be compared."""

from __future__ import annotations

from collections.abc import Collection
from typing import Final

from prometheus_client import Gauge

WALLET_FACTORIES: Final = Gauge(
    "settle_smart_wallet_factories",
    "Factories of smart wallets that this process calls, and which: the same for API and relay",
    ["chain", "factories"],
)

NO_FACTORIES: Final = "none"
"""A label without a value counts as absent."""


def note_wallet_factories(chain_id: int, factories: Collection[str]) -> None:
    """Set the gauge to what this process runs with."""
    WALLET_FACTORIES.clear()
    WALLET_FACTORIES.labels(chain_id, ",".join(sorted(factories)) or NO_FACTORIES).set(len(factories))
