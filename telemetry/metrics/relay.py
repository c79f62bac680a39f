"""Metrics of the relay. Wei are shown as the chain's coin: a gauge is a double."""

from __future__ import annotations

from typing import Final

from prometheus_client import Counter, Gauge

RELAY_BALANCE: Final = Gauge("settle_relay_balance_coins", "Gas that the relay's account holds, in the chain's coin")
RELAY_BALANCE_MIN: Final = Gauge("settle_relay_balance_min_coins", "Below it gas is to be sent to the relay's account")
RELAY_SPENT: Final = Gauge("settle_relay_spent_coins", "Gas spent or bound in the last day, in the chain's coin")
RELAY_SPENT_MAX: Final = Gauge("settle_relay_spent_max_coins", "What may be spent in a day, in the chain's coin")
RELAY_OPEN: Final = Gauge("settle_relay_open_transactions", "Nonces whose transaction is not confirmed yet")
RELAY_OLDEST: Final = Gauge("settle_relay_oldest_open_seconds", "Age of the oldest unconfirmed transaction")
RELAY_WAITING: Final = Gauge("settle_relay_waiting_authorizations", "Claimed authorizations that were not sent")
RELAY_TRANSACTIONS: Final = Counter("settle_relay_transactions", "Transactions of the relay", ["outcome"])
RELAY_PASSES_FAILED: Final = Counter("settle_relay_passes_failed", "Passes that ended with an error", ["code"])

WEI_PER_COIN: Final = 10**18
