"""For which account a call counts, and which one pays: what the caller asks for. Its key decides whether it may."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from domain.billing.requests import Body, InvalidRequest

ATTRIBUTE_HEADER: Final = "X-Attribute-To"
BILL_HEADER: Final = "X-Bill-To"

_ATTRIBUTE_FIELDS: Final = ("attribute_to", "attributed_to")
_BILL_FIELDS: Final = ("bill_to", "billing_account_id")
"""Of the body, or of its `metadata`."""


@dataclass(frozen=True, slots=True)
class AskedAccounts:
    """None: the key's own."""

    attribute_to: str | None
    bill_to: str | None


def asked_accounts(headers: Mapping[str, str], body: Body) -> AskedAccounts:
    """Which accounts the headers, or fields of the body, name. Raises `InvalidRequest` where the two differ."""
    return AskedAccounts(
        attribute_to=_one(ATTRIBUTE_HEADER, headers, body, _ATTRIBUTE_FIELDS),
        bill_to=_one(BILL_HEADER, headers, body, _BILL_FIELDS),
    )


def _one(header: str, headers: Mapping[str, str], body: Body, fields: tuple[str, ...]) -> str | None:
    metadata = body.get("metadata")
    named = {header: headers.get(header, "").strip() or None}
    for name in fields:
        named[name] = body.get(name)
        if isinstance(metadata, Mapping):
            named[f"metadata.{name}"] = metadata.get(name)
    found = {name: account for name, account in named.items() if account is not None}
    if len(set(map(str, found.values()))) > 1:
        raise InvalidRequest(f"{' and '.join(found)} name different accounts", next(iter(found)))
    for name, account in found.items():
        if not isinstance(account, str) or not 0 < len(account) <= 200 or not account.isprintable():
            raise InvalidRequest(f"{name} is invalid: expected an account's id", name)
        return account
    return None
