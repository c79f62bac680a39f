"""Usage reports: what they are grouped by, and which UTC days they cover."""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import date, timedelta
from enum import StrEnum
from typing import Final

from domain.errors import InvalidInput

USUAL_DAYS: Final = 30
DAYS_MAX: Final = 366
FIRST_DAY: Final = date(2020, 1, 1)
LAST_DAY: Final = date(2999, 12, 31)

_DAY: Final = re.compile(r"\d{4}-\d{2}-\d{2}", re.ASCII)


class UsageBy(StrEnum):
    """What the rows of a report are."""

    KEY = "key"
    MODEL = "model"
    DAY = "day"
    MEMBER = "member"
    """The member of the account who made the key."""

    ATTRIBUTED = "attributed"
    """The account that the caller attributed the call to (`X-Attribute-To`)."""

    ACCOUNT = "account"
    """For operators, who see more than one."""


@dataclass(frozen=True, slots=True)
class UsagePeriod:
    """UTC days by the time of booking, both included."""

    first: date
    last: date

    @property
    def days(self) -> int:
        """How many."""
        return (self.last - self.first).days + 1


def parse_period(first: str | None, last: str | None, *, today: date) -> UsagePeriod:
    """The period from `first` to `last` (`YYYY-MM-DD`); by default the 30 days that end with `last`, or with today.

    Raises `InvalidInput` naming `from` or `to` where one is no day, they are in the wrong order, or there are more than
    `DAYS_MAX` days.
    """
    since = None if first is None else _parse_day("from", first)
    until = max(today, since or today) if last is None else _parse_day("to", last)
    since = since or max(until - timedelta(days=USUAL_DAYS - 1), FIRST_DAY)
    period = UsagePeriod(since, until)
    if period.days < 1:
        raise InvalidInput("to", f"expected a day from {since} on, got {until}")
    if period.days > DAYS_MAX:
        raise InvalidInput("from", f"expected at most {DAYS_MAX} days up to {until}, got {since}")
    return period


def _parse_day(field: str, text: str) -> date:
    try:
        day = date.fromisoformat(text) if _DAY.fullmatch(text) else None
    except ValueError:
        day = None
    if day is None or not FIRST_DAY <= day <= LAST_DAY:
        raise InvalidInput(field, f"expected a UTC day as YYYY-MM-DD, from {FIRST_DAY} to {LAST_DAY}, got {text!r:.40}")
    return day
