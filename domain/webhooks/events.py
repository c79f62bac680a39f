"""Types of the events that webhooks carry, and the filters by which an endpoint takes some of them.

Database triggers write the events (`db/functions/webhooks.sql`), in the transaction that causes them.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum
from types import MappingProxyType
from typing import Final

from domain.errors import InvalidInput


class EventType(StrEnum):
    """Type of an event."""

    PAYMENT_SUBMITTED = "payment.submitted"
    PAYMENT_CREDITED = "payment.credited"
    PAYMENT_FAILED = "payment.failed"
    PAYMENT_REVERSED = "payment.reversed"
    DEPOSIT_SEEN = "deposit.seen"
    DEPOSIT_CREDITED = "deposit.credited"
    DEPOSIT_REVERSED = "deposit.reversed"
    CHARGE_NEW = "charge.new"
    CHARGE_PARTIAL = "charge.partial"
    CHARGE_CONFIRMING = "charge.confirming"
    CHARGE_PAID = "charge.paid"
    CHARGE_EXPIRED = "charge.expired"
    BALANCE_EXHAUSTED = "balance.exhausted"
    LIMIT_REACHED = "limit.reached"


MEANINGS: Final = MappingProxyType(
    {
        EventType.PAYMENT_SUBMITTED: "a payment waits for its confirmations",
        EventType.PAYMENT_CREDITED: "a payment was credited",
        EventType.PAYMENT_FAILED: "a payment ended without credits: FAILED (it is not there) or REJECTED (it is wrong)",
        EventType.PAYMENT_REVERSED: "a credited payment was reorganized away, and its credits are reversed",
        EventType.DEPOSIT_SEEN: "a transfer to a deposit address is in a block; it is not confirmed yet",
        EventType.DEPOSIT_CREDITED: "a deposit was credited, for what it is worth",
        EventType.DEPOSIT_REVERSED: "a deposit was reorganized away; if it was credited, its credits are reversed",
        EventType.CHARGE_NEW: "what had come in for a charge was reorganized away: it is as it was when it was made",
        EventType.CHARGE_PARTIAL: "less than a charge asks for has come in",
        EventType.CHARGE_CONFIRMING: "all that a charge asks for has come in, and waits for its confirmations",
        EventType.CHARGE_PAID: "all that a charge asks for is credited",
        EventType.CHARGE_EXPIRED: "a charge's price has run out with nothing received",
        EventType.BALANCE_EXHAUSTED: "a call has used up the balance",
        EventType.LIMIT_REACHED: "a call has passed 80 or 100 percent of a limit of the account or of a key",
    }
)
"""What each type means, for receivers: `docs/webhooks.md` has the same list."""

GROUPS: Final = tuple(dict.fromkeys(f"{kind.partition('.')[0]}.*" for kind in EventType))
"""`payment.*` takes every type of its group, including those of later versions."""


def parse_filter(events: Sequence[str] | None) -> tuple[str, ...] | None:
    """The types and groups that an endpoint takes, each once; None takes all.

    Raises `InvalidInput` for an empty list, and for a name that is neither a type nor a group.
    """
    if events is None:
        return None
    if not events:
        raise InvalidInput("events", "expected types of events, or none of this field for all of them, got []")
    known = {*EventType, *GROUPS}
    for name in events:
        if name not in known:
            expected = ", ".join((*EventType, *GROUPS))
            raise InvalidInput("events", f"expected some of {expected}; got {name!r:.80}")
    return tuple(dict.fromkeys(events))
