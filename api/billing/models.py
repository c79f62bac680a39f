"""Bodies about service keys and usage; the answers about one key or one call are in `services/billing/`."""

from __future__ import annotations

import re
from datetime import datetime
from typing import Annotated, Final

from pydantic import BeforeValidator, Field, TypeAdapter, WithJsonSchema

from api.models import StrictRequestModel
from domain.billing.keys import LABEL_CHARS_MAX, MODELS_MAX
from domain.billing.upstreams import MODEL_CHARS_MAX
from services.answers import ResponseModel
from services.billing.keys import OVERLAP_MAX, OVERLAP_USUAL, KeyView
from services.billing.reports import CallView

CREDITS_MAX: Final = 2**53 - 1
"""The largest number that every reader of JSON keeps exactly: 900 million US dollars."""

YEAR_END: Final = 3_000

_TIME: Final = re.compile(r"\d{4}-\d{2}-\d{2}[Tt]\d{2}:\d{2}:\d{2}(\.\d+)?([Zz]|[+-]\d{2}:\d{2})", re.ASCII)


def _parse_time(value: object) -> object:
    if value is None:
        return None
    if not isinstance(value, str) or not _TIME.fullmatch(value):
        raise ValueError("expected a time with its zone, such as 2027-01-31T00:00:00Z")
    found = datetime.fromisoformat(value.upper())
    if found.year >= YEAR_END:
        raise ValueError(f"expected a time before the year {YEAR_END}")
    return found


Time = Annotated[
    datetime | None,
    BeforeValidator(_parse_time),
    WithJsonSchema({"anyOf": [{"type": "string", "format": "date-time"}, {"type": "null"}]}),
]
_Limit = Annotated[int, Field(ge=0, le=CREDITS_MAX)]
_Model = Annotated[str, Field(min_length=1, max_length=MODEL_CHARS_MAX)]


TIME: Final = TypeAdapter(Time)


class NewKeyRequest(StrictRequestModel):
    """A key to make. The account is the session's."""

    label: str = Field(min_length=1, max_length=LABEL_CHARS_MAX, examples=["Agent in production"])
    expires_at: Time = Field(default=None, description="null: it does not expire")
    limit_day_credits: _Limit | None = Field(default=None, description="per UTC day; null: no limit")
    limit_month_credits: _Limit | None = Field(default=None, description="per UTC month; null: no limit")
    models: Annotated[list[_Model], Field(min_length=1, max_length=MODELS_MAX)] | None = Field(
        default=None, description="exact names of the only models it may call; null: all", examples=[["gpt-4o-mini"]]
    )


class RotateRequest(StrictRequestModel):
    """How to replace a key."""

    overlap_seconds: int = Field(
        default=int(OVERLAP_USUAL.total_seconds()),
        ge=0,
        le=int(OVERLAP_MAX.total_seconds()),
        description="how long the old key is accepted beside the new one",
    )


class KeyPage(ResponseModel):
    """Service keys of the account, the newest first."""

    keys: list[KeyView]
    next_cursor: str | None = Field(default=None, description="`cursor` of the next page, older ones; null at the end")


class CallPage(ResponseModel):
    """Calls of the account with their receipts, the last booked first."""

    calls: list[CallView]
    next_cursor: str | None = Field(default=None, description="`cursor` of the next page, older ones; null at the end")
