"""Standard Webhooks: how a webhook is signed, and the form of its secrets (https://www.standardwebhooks.com)."""

from __future__ import annotations

import hmac
import secrets
from base64 import b64encode
from collections.abc import Iterable, Mapping
from datetime import datetime
from hashlib import sha256
from typing import Final

SECRET_PREFIX: Final = "whsec_"
SECRET_BYTES: Final = 32
SCHEME: Final = "v1"


def make_secret() -> bytes:
    """A new secret."""
    return secrets.token_bytes(SECRET_BYTES)


def shown_secret(secret: bytes) -> str:
    """A secret as its receiver configures it."""
    return SECRET_PREFIX + b64encode(secret).decode()


def signed_headers(
    webhook_id: str, sent_at: datetime, body: bytes, signing_secrets: Iterable[bytes]
) -> Mapping[str, str]:
    """The headers that prove who sent a webhook, and when: one signature for each secret that is in force.

    `webhook_id` is the same whenever the event is sent, so that a receiver recognizes it; `sent_at` is of this try, so
    that a recorded request cannot be played to the receiver later.
    """
    seconds = int(sent_at.timestamp())
    signed = f"{webhook_id}.{seconds}.".encode() + body
    signatures = [
        f"{SCHEME},{b64encode(hmac.new(secret, signed, sha256).digest()).decode()}" for secret in signing_secrets
    ]
    if not signatures:
        raise ValueError("expected at least one secret")
    return {"webhook-id": webhook_id, "webhook-timestamp": str(seconds), "webhook-signature": " ".join(signatures)}
