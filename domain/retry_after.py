"""`Retry-After` of an HTTP answer (RFC 9110, section 10.2.3): a number of seconds, or a date."""

from __future__ import annotations

from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Final

_DIGITS_READ: Final = 9
"""More is longer than a lifetime."""


def parse_retry_after(text: str | None, now: datetime) -> float | None:
    """Seconds from `now` that a header asks to wait, 0 or more; None where it says nothing usable."""
    if text is None:
        return None
    text = text.strip()
    if text.isascii() and text.isdigit():
        return float(text[:_DIGITS_READ])
    try:
        at = parsedate_to_datetime(text)
    except ValueError:
        return None
    if at.tzinfo is None:
        at = at.replace(tzinfo=UTC)
    return max((at - now).total_seconds(), 0.0)
