"""Calls with an Idempotency-Key: claimed before they are made, their answers given again."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final
from uuid import UUID

from db.statements import Connection

KEY_LENGTH_MAX: Final = 255

_CLAIM: Final = """
    SELECT outcome, key_id, request_id, status, headers, body
      FROM claim_call(%(key_hash)s, %(key)s, %(request_hash)s, %(request_id)s, %(hold_id)s::uuid,
                      %(lease_seconds)s::float8)
"""

_FINISH: Final = """
    SELECT finish_call(%(key_id)s::uuid, %(key)s, %(request_id)s, %(status)s::integer, %(headers)s::jsonb, %(body)s)
"""


@dataclass(frozen=True, slots=True)
class Claim:
    """What `claim_call` says."""

    outcome: str
    """`claimed`, `in_flight`, `answered`, `conflict`, or what is wrong with the key (db/functions/calls.sql)."""
    key_id: UUID | None
    request_id: str | None
    """Of the call that has the claim."""
    status: int | None
    headers: Mapping[str, str] | None
    body: bytes | None
    """None of an answer that was streamed."""


async def claim(
    connection: Connection,
    key_hash: str,
    key: str,
    *,
    request_hash: bytes,
    request_id: str,
    hold_id: UUID,
    lease_seconds: float,
) -> Claim:
    """Claim a call; the claim lasts for the lease, and as long as the hold is open."""
    values = {
        "key_hash": key_hash,
        "key": key,
        "request_hash": request_hash,
        "request_id": request_id,
        "hold_id": str(hold_id),
        "lease_seconds": lease_seconds,
    }
    row = await (await connection.execute(_CLAIM, values)).fetchone()
    assert row is not None  # a function's record
    return Claim(*row)


async def finish(
    connection: Connection,
    key_id: UUID,
    key: str,
    *,
    request_id: str,
    status: int | None,
    headers: Mapping[str, str],
    body: bytes | None,
) -> bool:
    """Store the claimed call's answer; without a status give the claim up. False where another call has it by now."""
    values = {
        "key_id": str(key_id),
        "key": key,
        "request_id": request_id,
        "status": status,
        "headers": json.dumps(dict(headers)),
        "body": body,
    }
    row = await (await connection.execute(_FINISH, values)).fetchone()
    assert row is not None
    return bool(row[0])
