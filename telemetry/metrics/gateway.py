"""Metrics of the gateway, for Prometheus."""

from __future__ import annotations

from typing import Final

from prometheus_client import Counter, Gauge, Histogram

_SECONDS: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300)

CALLS: Final = Counter("settle_gateway_calls", "Calls that were passed on, by how they ended.", ["dialect", "end"])
REFUSALS: Final = Counter("settle_gateway_refusals", "Calls that were refused.", ["code"])
CALL_SECONDS: Final = Histogram(
    "settle_gateway_call_seconds", "From the request to the answer's end.", ["dialect"], buckets=_SECONDS
)
HOLD_SECONDS: Final = Histogram("settle_gateway_hold_seconds", "To hold credits for a call.", buckets=_SECONDS)
SETTLE_SECONDS: Final = Histogram("settle_gateway_settle_seconds", "To charge a call.", buckets=_SECONDS)
FIRST_BYTE_SECONDS: Final = Histogram(
    "settle_gateway_upstream_first_byte_seconds", "Until an upstream begins to answer.", ["upstream"], buckets=_SECONDS
)
OPEN_CONNECTIONS: Final = Gauge("settle_gateway_open_connections", "Connections of clients.")
REFUSED_CONNECTIONS: Final = Counter(
    "settle_gateway_refused_connections", "Connections beyond the limit: answered with a refusal, or closed."
)
OPEN_CALLS: Final = Gauge("settle_gateway_open_calls", "Calls with an open hold.")
DRAINS: Final = Gauge("settle_gateway_drains", "Answers that are read to their end without a client.")
UPSTREAM_ERRORS: Final = Counter(
    "settle_gateway_upstream_errors", "Upstreams that failed a call.", ["upstream", "kind"]
)
DOUBTS: Final = Counter("settle_gateway_doubts", "Charges that are not what the provider reported.", ["doubt"])
CAPTURE_RETRIES: Final = Counter("settle_gateway_capture_retries", "Charges that the database did not take at once.")
LEFT_TO_RESOLVE: Final = Counter(
    "settle_gateway_left_to_resolve", "Charges that were left to who resolves lapsed holds."
)
REFUSED_CAPTURES: Final = Counter(
    "settle_gateway_refused_captures", "Charges that were refused: the hold was unknown, or released.", ["outcome"]
)
COST_CREDITS: Final = Counter("settle_gateway_cost_credits", "What providers take for the calls, in credits at cost.")
ABSORBED_CREDITS: Final = Counter(
    "settle_gateway_absorbed_credits", "The part of it for which no price was charged, and what accounts could not pay."
)
LOST_LEASES: Final = Counter("settle_gateway_lost_leases", "Open calls whose hold was resolved by another process.")
