"""What the upstream received, produced and billed."""

from __future__ import annotations

import json
import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, date, datetime
from decimal import Decimal
from typing import Any, Final

from devstack.upstream.behaviour import PLAIN
from devstack.upstream.generation import Generation
from devstack.upstream.prices import price_of
from devstack.upstream.requests import Dialect
from devstack.upstream.tokens import Tokens

CALLS_MAX: Final = 20_000
"""Older ones are forgotten; what they cost stays in the sums."""


@dataclass(slots=True)
class Call:
    """One request for a generation."""

    number: int
    path: str
    dialect: Dialect
    raw_headers: Sequence[tuple[bytes, bytes]]
    body: bytes
    received_at: float = field(default_factory=time.time)
    """Unix seconds."""
    status: int | None = None
    generation: Generation | None = None
    is_billed: bool = False
    has_ended: bool = False
    was_cancelled: bool = False
    """The generation stopped because the client hung up."""
    hung_up: bool = False
    """The client hung up before the end."""
    ended_at: float | None = None
    billed: Tokens = field(default_factory=Tokens)
    billed_usd: Decimal = Decimal(0)
    lookups: int = 0
    """How often its record was asked for."""

    @property
    def started(self) -> datetime:
        """When it was received, in UTC; on the day it is billed on."""
        moment = datetime.fromtimestamp(self.received_at, UTC)
        return datetime.combine(self.day, moment.timetz())

    @property
    def day(self) -> date:
        """The day it is billed on."""
        behaviour = self.generation.asked.behaviour if self.generation else PLAIN
        return behaviour.billing_day(datetime.fromtimestamp(self.received_at, UTC).date())

    def view(self) -> dict[str, Any]:
        """The call as JSON."""
        generation = self.generation
        return {
            "number": self.number,
            "path": self.path,
            "dialect": self.dialect.value,
            "received_at": self.received_at,
            "headers": [[name.decode("latin-1"), value.decode("latin-1")] for name, value in self.raw_headers],
            "body": _readable(self.body),
            "status": self.status,
            "id": generation.shown_id if generation else None,
            "generation_id": generation.id if generation else None,
            "model": generation.asked.model if generation else None,
            "stream": generation.asked.stream if generation else False,
            "produced_tokens": generation.produced if generation else 0,
            "tokens": _tokens_view(self.billed),
            "billed_usd": format(self.billed_usd, "f"),
            "hung_up": self.hung_up,
            "was_cancelled": self.was_cancelled,
            "has_ended": self.has_ended,
        }


@dataclass(slots=True)
class Sum:
    """What was billed on one day for one model through one dialect."""

    day: date
    model: str
    dialect: Dialect
    requests: int = 0
    tokens: Tokens = field(default_factory=Tokens)
    usd: Decimal = Decimal(0)


class Records:
    """All calls, the newest of them in full."""

    def __init__(self) -> None:
        self._calls: deque[Call] = deque()
        self._by_id: dict[str, Call] = {}
        self._sums: dict[tuple[date, str, Dialect], Sum] = {}
        self._received = 0

    def begin(self, path: str, dialect: Dialect, raw_headers: Sequence[tuple[bytes, bytes]], body: bytes) -> Call:
        """Record a request."""
        self._received += 1
        call = Call(self._received, path, dialect, raw_headers, body)
        self._calls.append(call)
        if len(self._calls) > CALLS_MAX:
            oldest = self._calls.popleft()
            if oldest.generation:
                self._by_id.pop(oldest.generation.id, None)
        return call

    def attach(self, call: Call, generation: Generation) -> None:
        """The call is being answered by this generation."""
        call.generation = generation
        self._by_id[generation.id] = call
        if (shown := generation.shown_id) is not None:
            self._by_id[shown] = call

    def end(self, call: Call) -> None:
        """The call is over: bill what it has produced, where it is billed."""
        if call.has_ended:
            return
        call.has_ended = True
        call.ended_at = time.time()
        generation = call.generation
        if generation is None or not call.is_billed:
            return
        model = generation.asked.model
        call.billed = generation.tokens
        call.billed_usd = price_of(model).cost_usd(call.billed)
        key = (call.day, model, call.dialect)
        total = self._sums.get(key)
        if total is None:
            total = self._sums[key] = Sum(*key)
        total.requests += 1
        total.tokens = total.tokens.plus(call.billed)
        total.usd += call.billed_usd

    def calls(self, after: int = 0) -> Iterator[Call]:
        """Calls with a higher number, the oldest first."""
        return (call for call in self._calls if call.number > after)

    def sums(self) -> list[Sum]:
        """What was billed, by day, model and dialect."""
        return sorted(self._sums.values(), key=lambda total: (total.day, total.model, total.dialect))

    def look_up(self, ident: str) -> Call | None:
        """The provider's own record of a generation: None while it is not there yet, or never."""
        call = self._by_id.get(ident)
        if call is None or not call.is_billed or call.generation is None:
            return None
        call.lookups += 1
        behaviour = call.generation.asked.behaviour
        is_there = (
            call.ended_at is not None
            and behaviour.record
            and call.lookups > behaviour.record_misses
            and time.time() >= call.ended_at + behaviour.record_delay
        )
        return call if is_there else None

    def clear(self) -> None:
        """Forget everything; calls in progress are billed when they end."""
        self._calls.clear()
        self._by_id.clear()
        self._sums.clear()

    def billed_view(self) -> dict[str, Any]:
        """All that was billed, as JSON; money as decimal text."""
        sums = self.sums()
        total = Tokens()
        for one in sums:
            total = total.plus(one.tokens)
        return {
            "requests": sum(one.requests for one in sums),
            "usd": format(sum((one.usd for one in sums), Decimal(0)), "f"),
            "tokens": _tokens_view(total),
            "by_day": [
                {
                    "day": one.day.isoformat(),
                    "model": one.model,
                    "dialect": one.dialect.value,
                    "requests": one.requests,
                    "usd": format(one.usd, "f"),
                    "tokens": _tokens_view(one.tokens),
                }
                for one in sums
            ],
        }


def _readable(body: bytes) -> Any:
    try:
        return json.loads(body)
    except ValueError:
        return body.decode(errors="replace")


def _tokens_view(tokens: Tokens) -> dict[str, int]:
    return {
        "prompt": tokens.prompt,
        "cached": tokens.cached,
        "cache_write": tokens.cache_write,
        "output": tokens.output,
        "reasoning": tokens.reasoning,
    }
