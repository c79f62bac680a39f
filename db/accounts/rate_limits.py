"""Rate limits, shared by all processes of the API."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

_TAKE: Final = text("SELECT take_from_rate_limits(CAST(:buckets AS text[]), CAST(:per_minute AS integer[]))")


@dataclass(frozen=True, slots=True)
class Bucket:
    """A counter of one client's requests of one kind, and how many fit into a minute (in a burst, or spread)."""

    key: str
    per_minute: int


async def take(connection: AsyncConnection, buckets: Sequence[Bucket]) -> float | None:
    """Take one request from each bucket in order. None where all had one, else the seconds until there is one.

    Every caller names its buckets in the same order of kinds, so that two of them never deadlock.
    """
    values = {"buckets": [bucket.key for bucket in buckets], "per_minute": [bucket.per_minute for bucket in buckets]}
    seconds = (await connection.execute(_TAKE, values)).scalar_one()
    return None if seconds is None else float(seconds)
