"""Metrics of the HTTP interface, for Prometheus."""

from __future__ import annotations

from typing import Final

from prometheus_client import Counter, Gauge, Histogram

REQUESTS: Final = Counter("settle_http_requests", "HTTP requests answered.", ["method", "route", "status"])
REQUEST_SECONDS: Final = Histogram(
    "settle_http_request_seconds",
    "From the request's first byte to the response's head.",
    ["route"],
    buckets=(0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30),
)
LOGINS: Final = Counter("settle_logins", "Logins by outcome.", ["outcome"])
RATE_LIMITED: Final = Counter("settle_rate_limited", "Requests refused by a rate limit.", ["kind"])
EVENT_STREAMS: Final = Gauge("settle_event_streams", "Event streams that are open.")
