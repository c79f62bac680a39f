"""Calls with an `Idempotency-Key`: made once, whatever the client repeats."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Final
from uuid import UUID, uuid4

import structlog
from aiohttp import web

from db.billing.claims import KEY_LENGTH_MAX
from domain.errors import DatabaseUnavailable
from gateway import refusals
from gateway.books import CallBooks
from gateway.call_account import Caller, Refused, refusal_of_key
from gateway.policy import STORED_ANSWER_BYTES_MAX

HEADER: Final = "Idempotency-Key"
REPLAYED: Final = "Idempotent-Replayed"

_KEPT_HEADERS: Final = frozenset({"content-type", "x-request-id", "request-id", "x-credits-charged"})

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class CallClaim:
    """The claim of a call that has an Idempotency-Key."""

    books: CallBooks
    key_id: UUID
    key: str
    hold_id: UUID

    async def finish(self, request_id: str, status: int | None, headers: dict[str, str], body: bytes | None) -> None:
        """Store the answer, or give the claim up. Where the database does not take it, the claim ends by itself.

        Raises nothing: the call was charged, and its client is to have the answer.
        """
        is_kept = body is not None and len(body) <= STORED_ANSWER_BYTES_MAX
        kept = {name: value for name, value in headers.items() if name.lower() in _KEPT_HEADERS}
        try:
            await self.books.finish(
                self.key_id,
                self.key,
                request_id=request_id,
                status=status,
                headers=kept,
                body=body if is_kept else None,
            )
        except DatabaseUnavailable as error:
            log.warning("an answer is not kept", request_id=request_id, reason=error.message)
        except Exception:
            log.exception("an answer is not kept", request_id=request_id)


async def claim_call(
    books: CallBooks, request: web.Request, body: bytes, caller: Caller
) -> CallClaim | web.Response | None:
    """The claim of a call that asks for one, or the answer that was given. Raises `Refused`."""
    key = request.headers.get(HEADER)
    if key is None:
        return None
    if not 0 < len(key) <= KEY_LENGTH_MAX or not key.isascii() or not key.isprintable():
        expected = f"1 to {KEY_LENGTH_MAX} printable ASCII characters"
        raise Refused(refusals.invalid_request(f"{HEADER} is invalid: expected {expected}"))
    hold_id = uuid4()
    request_hash = hashlib.sha256(b"\0".join((request.path.encode(), repr(caller.accounts).encode(), body))).digest()
    try:
        found = await books.claim(
            caller.key_hash, key, request_hash=request_hash, request_id=caller.request_id, hold_id=hold_id
        )
    except DatabaseUnavailable as error:
        raise Refused(refusals.unavailable("The call cannot be claimed now: try again")) from error
    if found.outcome == "claimed":
        assert found.key_id is not None
        return CallClaim(books, found.key_id, key, hold_id)
    if found.outcome == "in_flight":
        raise Refused(refusals.call_in_flight(found.request_id))
    if found.outcome == "conflict":
        raise Refused(refusals.idempotency_key_reused())
    if found.outcome != "answered":
        raise Refused(refusal_of_key(found.outcome))
    if found.body is None or found.status is None:
        raise Refused(refusals.answer_not_kept(found.request_id))
    return web.Response(
        status=found.status, headers={**(found.headers or {}), REPLAYED: "true"}, body=bytes(found.body)
    )
