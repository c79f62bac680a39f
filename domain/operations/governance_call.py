"""The governance loop: what the platform's own automation asks a model, and what is on record of the answer."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from pathlib import Path
from typing import Any, Final

from domain.identifiers import SYSTEM_TENANT_ACCOUNT_ID
from domain.operations.events import GOVERNANCE_CALL, PlatformEvent
from domain.operations.governance import Income, Value

ANSWER_CHARS_MAX: Final = 20_000
"""Of the answer that is kept; a longer one is cut."""

WAITING_HELPS: Final = frozenset({"in_flight", "key_limit"})
"""Limits that another call, or tomorrow, is within: the budget of a day, and what other calls hold."""


@dataclass(frozen=True, slots=True)
class GovernanceLoopPolicy:
    """The settings of the loop. It has no rights of its own: what it may spend is its key's limit."""

    model: str
    prompt_file: Path
    budget_credits_per_day: int
    gateway_url: str
    service_key: str = field(repr=False)


class CallOutcome(StrEnum):
    """How a governance call ended."""

    ANSWERED = "answered"
    REFUSED = "refused"
    """402: the system tenant's credits or the day's budget do not suffice."""


class GovernanceCall(Value):
    """One call as stored. `key` is derived from the workflow that it belongs to. Amounts are credits."""

    key: str
    scheduled_at: datetime
    outcome: CallOutcome
    model: str
    request_id: str | None
    charged_credits: int
    answer: str | None = None
    limit_source: str | None = None
    """Of a refused call: the limit that it would have passed."""
    detail: str | None = None

    @property
    def words(self) -> str:
        """What operators read of it."""
        if self.outcome is CallOutcome.ANSWERED:
            return f"answered by {self.model}, {self.charged_credits} credits"
        return f"refused: {self.detail or 'insufficient credits'} ({self.limit_source})"


def request_body(*, model: str, prompt: str, income: Income, output_tokens_max: int) -> str:
    """The call's body: the prompt, and the system tenant's movements as JSON. Deterministic."""
    picture = {
        "account": SYSTEM_TENANT_ACCOUNT_ID,
        "since": income.since.isoformat(),
        "until": income.until.isoformat(),
        "balanceCredits": income.balance_credits,
        "creditsByReason": income.by_reason,
        "runwayDays": income.runway_days,
    }
    return json.dumps(
        {
            "model": model,
            "max_tokens": output_tokens_max,
            "messages": [
                {"role": "system", "content": prompt},
                {"role": "user", "content": json.dumps(picture, sort_keys=True)},
            ],
        },
        sort_keys=True,
    )


def answer_text(document: Any) -> str | None:
    """The text of a chat completion; None where it has none."""
    try:
        text = document["choices"][0]["message"]["content"]
    except (KeyError, IndexError, TypeError):
        return None
    return text[:ANSWER_CHARS_MAX] if isinstance(text, str) else None


def problem_of(call: GovernanceCall) -> str | None:
    """What a heartbeat reports of the newest call: a refusal that stays until credits are bought."""
    if call.outcome is not CallOutcome.REFUSED or call.limit_source in WAITING_HELPS:
        return None
    return f"the governance call of {call.scheduled_at:%F %H:%M} UTC was {call.words}"


def governance_call_event(call: GovernanceCall) -> PlatformEvent:
    """The event of every call."""
    return PlatformEvent(
        id=f"{GOVERNANCE_CALL}:{call.key}",
        type=GOVERNANCE_CALL,
        subject=SYSTEM_TENANT_ACCOUNT_ID,
        time=call.scheduled_at,
        data={
            "outcome": call.outcome.value,
            "model": call.model,
            "requestId": call.request_id,
            "chargedCredits": call.charged_credits,
            "answer": call.answer,
            "limitSource": call.limit_source,
            "detail": call.detail,
        },
    )
