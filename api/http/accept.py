"""Which of two representations a client asks for (RFC 9110, 12.5.1)."""

from __future__ import annotations

from typing import Final

CSV: Final = "text/csv"
JSON: Final = "application/json"


def prefers_csv(accept: str | None) -> bool:
    """Whether CSV is preferred to JSON. Without a preference it is JSON, and also where neither is acceptable."""
    weights = _weights(accept or "")
    return _weight(weights, CSV) > _weight(weights, JSON)


def _weight(weights: dict[str, float], media_type: str) -> float:
    """By the most specific range that covers the type."""
    ranges = (media_type, f"{media_type.partition('/')[0]}/*", "*/*")
    return next((weights[found] for found in ranges if found in weights), 0.0)


def _weights(accept: str) -> dict[str, float]:
    found = {}
    for part in accept.split(","):
        media_range, *parameters = (text.strip().lower() for text in part.split(";"))
        quality = next((text[2:] for text in parameters if text.startswith("q=")), "1")
        try:
            found[media_range] = float(quality)
        except ValueError:
            found[media_range] = 0.0
    return found
