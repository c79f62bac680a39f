"""Billing accounts: their kinds, the roles of their members, and what may be asked of a new one."""

from __future__ import annotations

from enum import StrEnum
from typing import Final

from domain.errors import InvalidInput

ACCOUNT_NAME_CHARS_MAX: Final = 80


class AccountKind(StrEnum):
    """Whose an account is."""

    PERSONAL = "personal"
    """A wallet's own; each has one, which its purchases are credited to."""

    ORGANIZATION = "organization"
    """Has members, and keys of its own."""

    PLATFORM_SERVICE = "platform_service"
    """Of a service of the platform itself: never refused for lack of credits, always billed and reported."""


class Tier(StrEnum):
    """What a platform service is for; in reports only."""

    INTERNAL = "internal"
    DEMO = "demo"
    TESTING = "testing"


class MemberRole(StrEnum):
    """What a member may do: owners and admins manage an organization's account, members use it."""

    OWNER = "owner"
    ADMIN = "admin"
    MEMBER = "member"


def check_new_account(kind: AccountKind, tier: Tier | None, name: str | None) -> None:
    """Raise `InvalidInput` where an account cannot be opened so: a tier is a platform service's, and it has one."""
    if (tier is not None) != (kind is AccountKind.PLATFORM_SERVICE):
        expected = "one of internal, demo, testing" if tier is None else f"none, as the account is {kind.value}"
        raise InvalidInput("--tier", f"expected {expected}")
    if name is not None and (not 1 <= len(name) <= ACCOUNT_NAME_CHARS_MAX or not name.isprintable()):
        raise InvalidInput("--name", f"expected 1 to {ACCOUNT_NAME_CHARS_MAX} printable characters, got {name!r:.100}")
    if name is not None and kind is AccountKind.PERSONAL:
        raise InvalidInput("--name", "expected none: a personal account goes by its wallet")
