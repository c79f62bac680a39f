"""What the settings decide about calls, and bounds of the code."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal
from typing import Final

from domain.billing.usage import Dialect

REQUEST_BYTES_MAX: Final = 32 * 1024 * 1024
"""Anthropic's own bound; OpenAI's is about as high."""

ANSWER_BYTES_MAX: Final = 64 * 1024 * 1024
"""Of an answer that is not streamed, which is held in memory until it is charged."""

HEAD_SECONDS_MAX: Final = 10.0
"""From the connection, or from the first byte of a later request, to the end of a request's head."""

REQUEST_READ_SECONDS_MAX: Final = 60.0
"""For a request's body: a client that sends it drop by drop holds no credits, but a connection."""

CLIENT_WRITE_SECONDS_MAX: Final = 60.0
"""A client that takes nothing for so long has left: its call must not stay open, and its credits held, indefinitely."""

CAPTURE_SECONDS_MAX: Final = 15.0
"""How long a charge is tried again while the database is away, with the answer's end held back. A restart of PostgreSQL
is shorter; after it the lease lapses, and the charge is left to who resolves lapsed holds."""

DRAIN_SECONDS_MAX: Final = 120.0
DRAIN_BYTES_MAX: Final = 16 * 1024 * 1024
DRAINS_MAX: Final = 100
"""Answers that are read to their end without a client, because their upstream bills all of it."""

SHUTDOWN_STREAMS_SECONDS: Final = 15.0
"""After SIGTERM open answers may go on so long; then they are charged for what was produced."""

STORED_ANSWER_BYTES_MAX: Final = 4 * 1024 * 1024
"""A longer answer to a call with an Idempotency-Key is not kept; a repeat of the call is refused."""


@dataclass(frozen=True, slots=True)
class RateLimits:
    """Calls a minute for each account."""

    chat: int
    embeddings: int
    images: int
    audio: int


@dataclass(frozen=True, slots=True)
class GatewayPolicy:
    """The gateway's settings."""

    markup_factor: Decimal
    grace_credits: int
    lease_seconds: int
    rate_limits: RateLimits
    output_tokens_assumed: int
    """How much a call may write that does not say."""
    unpriced_hold_credits: int
    """What is held for a call whose cost only the upstream states."""
    clamps_output: bool
    """Strict mode: the call's own bound is lowered to what can be held for it."""
    read_timeout_seconds: float
    """How long an upstream may say nothing."""
    top_up_url: str | None

    def rate(self, dialect: Dialect) -> tuple[str, int]:
        """The bucket that a call counts in, and how many a minute fit into it."""
        match dialect:
            case Dialect.EMBEDDINGS:
                return "calls-embeddings", self.rate_limits.embeddings
            case Dialect.IMAGES:
                return "calls-images", self.rate_limits.images
            case Dialect.SPEECH | Dialect.TRANSCRIPTIONS:
                return "calls-audio", self.rate_limits.audio
        return "calls-chat", self.rate_limits.chat


ApiKeys = Mapping[str, str]
"""Upstream's name -> its key."""
