"""Service keys: their secrets, and what may be asked of one."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from hashlib import sha256

import pytest

from domain.billing.keys import LABEL_CHARS_MAX, MODELS_MAX, hash_key, make_key, parse_terms
from domain.errors import InvalidInput

NOW = datetime(2026, 11, 28, 12, tzinfo=UTC)


def test_a_key_has_32_bytes_of_randomness_and_is_kept_as_its_hash() -> None:
    secret, other = make_key(), make_key()
    assert re.fullmatch(r"sk-settle-[A-Za-z0-9_-]{43}", secret.key)
    assert secret.key != other.key
    assert secret.key_hash == sha256(secret.key.encode()).hexdigest() == hash_key(secret.key)
    assert secret.key_hint == f"sk-settle-...{secret.key[-4:]}"


def test_a_printed_secret_shows_only_its_hint() -> None:
    secret = make_key()
    assert secret.key not in repr(secret) and secret.key_hash not in f"{secret}"


def test_terms_are_taken_as_asked() -> None:
    terms = parse_terms(
        label="  CI  ", now=NOW, expires_at=NOW + timedelta(seconds=1), limit_day_credits=0, models=["b", "a", "b"]
    )
    assert (terms.label, terms.limit_day_credits, terms.models) == ("CI", 0, ("b", "a"))
    assert terms.limit_month_credits is None and not terms.may_attribute


@pytest.mark.parametrize(
    ("field", "asked"),
    [
        ("label", {"label": " "}),
        ("label", {"label": "x" * (LABEL_CHARS_MAX + 1)}),
        ("label", {"label": "a\nb"}),
        ("expiresAt", {"expires_at": NOW}),
        ("expiresAt", {"expires_at": (NOW + timedelta(days=1)).replace(tzinfo=None)}),
        ("limitDayCredits", {"limit_day_credits": -1}),
        ("limitMonthCredits", {"limit_month_credits": 2**63}),
        ("models", {"models": []}),
        ("models", {"models": [""]}),
        ("models", {"models": ["x" * 201]}),
        ("models", {"models": [str(number) for number in range(MODELS_MAX + 1)]}),
    ],
)
def test_what_cannot_be_asked_of_a_key_is_refused_by_its_field(field: str, asked: dict[str, object]) -> None:
    with pytest.raises(InvalidInput) as refusal:
        parse_terms(**{"label": "CI", "now": NOW, **asked})  # type: ignore[arg-type]
    assert refusal.value.field == field
