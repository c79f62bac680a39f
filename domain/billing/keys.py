"""Service keys: how the secret of one is made, and all that is kept of it."""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from hashlib import sha256
from typing import Final

from domain.billing.upstreams import MODEL_CHARS_MAX
from domain.errors import InvalidInput

PREFIX: Final = "sk-settle-"
SECRET_BYTES: Final = 32
HINT_CHARS: Final = 4

LABEL_CHARS_MAX: Final = 80
MODELS_MAX: Final = 100
LIMIT_CREDITS_MAX: Final = 2**63 - 1


@dataclass(frozen=True, slots=True)
class KeySecret:
    """A new key. `key` is shown once, to who made it; only the other two are stored."""

    key: str
    key_hash: str
    """SHA-256 of the whole key, in hex."""
    key_hint: str
    """What people recognize it by: `sk-settle-...abcd`."""

    def __repr__(self) -> str:
        return f"KeySecret({self.key_hint})"  # a secret is in no log


@dataclass(frozen=True, slots=True)
class KeyTerms:
    """What a key may be used for. None is no bound."""

    label: str
    expires_at: datetime | None = None
    limit_day_credits: int | None = None
    limit_month_credits: int | None = None
    models: tuple[str, ...] | None = None
    may_attribute: bool = False


def make_key() -> KeySecret:
    """Make a key from `SECRET_BYTES` of randomness. There is no salt: such a secret cannot be guessed from its hash."""
    key = PREFIX + secrets.token_urlsafe(SECRET_BYTES)
    return KeySecret(key, hash_key(key), f"{PREFIX}...{key[-HINT_CHARS:]}")


def hash_key(key: str) -> str:
    """What a key is stored and found by."""
    # Bytes of a header that are not UTF-8 are a key, too: an unknown one.
    return sha256(key.encode(errors="surrogateescape")).hexdigest()


def key_of(headers: Mapping[str, str]) -> str | None:
    """The key that a request names: `Authorization: Bearer`, whatever the case of the scheme, or `x-api-key`.

    `headers` finds a name in any case.
    """
    scheme, _, token = headers.get("Authorization", "").strip().partition(" ")
    if scheme.lower() == "bearer" and token.strip():
        return token.strip()
    return headers.get("x-api-key", "").strip() or None


def parse_terms(
    *,
    label: str,
    now: datetime,
    expires_at: datetime | None = None,
    limit_day_credits: int | None = None,
    limit_month_credits: int | None = None,
    models: Sequence[str] | None = None,
    may_attribute: bool = False,
) -> KeyTerms:
    """Check what is asked for a new key. Raises `InvalidInput` in the field names of the HTTP interface.

    `expires_at` has a time zone and is later than `now`; limits are credits from 0; `models` names at least one.
    """
    label = label.strip()
    if not 1 <= len(label) <= LABEL_CHARS_MAX or not label.isprintable():
        raise InvalidInput("label", f"expected 1 to {LABEL_CHARS_MAX} printable characters, got {label!r:.100}")
    if expires_at is not None and expires_at.tzinfo is None:
        raise InvalidInput("expiresAt", f"expected a time with its zone, got {expires_at.isoformat()}")
    if expires_at is not None and expires_at <= now:
        raise InvalidInput("expiresAt", f"expected a time to come, got {expires_at.isoformat()}")
    for field, limit in (("limitDayCredits", limit_day_credits), ("limitMonthCredits", limit_month_credits)):
        check_limit(field, limit)
    return KeyTerms(
        label=label,
        expires_at=expires_at,
        limit_day_credits=limit_day_credits,
        limit_month_credits=limit_month_credits,
        models=None if models is None else _parse_models(models),
        may_attribute=may_attribute,
    )


def check_limit(field: str, limit_credits: int | None) -> None:
    """Raise `InvalidInput` naming `field` where a limit of a key or an account is not a number of credits."""
    if limit_credits is not None and not 0 <= limit_credits <= LIMIT_CREDITS_MAX:
        raise InvalidInput(field, f"expected 0 to {LIMIT_CREDITS_MAX} credits, got {limit_credits}")


def _parse_models(models: Sequence[str]) -> tuple[str, ...]:
    names = tuple(dict.fromkeys(model.strip() for model in models))
    if not 1 <= len(names) <= MODELS_MAX:
        raise InvalidInput("models", f"expected 1 to {MODELS_MAX} names of models, got {len(names)}")
    for name in names:
        if not 1 <= len(name) <= MODEL_CHARS_MAX or not name.isprintable():
            raise InvalidInput("models", f"expected names of 1 to {MODEL_CHARS_MAX} characters, got {name!r:.100}")
    return names
