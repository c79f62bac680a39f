"""Sign-In with Ethereum (EIP-4361), server side: it writes the message and never parses one.

The signature is verified over the stored bytes, so that no text from a caller is ever parsed.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from typing import Final
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict

from domain.identifiers import Address

STATEMENT: Final = "Sign in to {platform}. This costs nothing and moves no money."
_IN_A_STATEMENT: Final = re.compile(r"[A-Za-z0-9 :/?#\[\]@!$&'()*+,;=._~-]+", re.ASCII)
"""EIP-4361, rule "statement": the reserved and unreserved characters of RFC 3986, and spaces."""


class Challenge(BaseModel):
    """A message to sign, bound to a wallet, this service's origin, a chain and a nonce; valid once and for minutes."""

    model_config = ConfigDict(frozen=True)

    nonce: str
    address: Address
    message: str
    chain_id: int
    issued_at: datetime
    expires_at: datetime


def new_challenge(
    *,
    nonce: str,
    address: str,
    origin: str,
    chain_id: int,
    platform: str,
    issued_at: datetime,
    lifetime: timedelta,
) -> Challenge:
    """Build the challenge for the wallet `address` (EIP-55 checksum form) at the service `origin` (scheme, host and
    port).

    `nonce` is 8 or more unguessable letters and digits (EIP-4361, field "nonce").
    """
    # RFC 3339 as the EIP requires it, in whole seconds because wallets display it.
    issued_at = issued_at.astimezone(UTC).replace(microsecond=0)
    expires_at = issued_at + lifetime
    message = (
        f"{urlsplit(origin).netloc} wants you to sign in with your Ethereum account:\n"
        f"{address}\n"
        "\n"
        f"{STATEMENT.format(platform=platform if _IN_A_STATEMENT.fullmatch(platform) else 'this service')}\n"
        "\n"
        f"URI: {origin}\n"
        "Version: 1\n"
        f"Chain ID: {chain_id}\n"
        f"Nonce: {nonce}\n"
        f"Issued At: {_timestamp(issued_at)}\n"
        f"Expiration Time: {_timestamp(expires_at)}"
    )
    return Challenge(
        nonce=nonce,
        address=address,
        message=message,
        chain_id=chain_id,
        issued_at=issued_at,
        expires_at=expires_at,
    )


def _timestamp(moment: datetime) -> str:
    return moment.strftime("%Y-%m-%dT%H:%M:%SZ")
