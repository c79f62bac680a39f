"""Who calls: a person by the session's cookie, or a program by a service key. Either acts for one account."""

from __future__ import annotations

from dataclasses import dataclass
from uuid import UUID

from fastapi import Request

from api.resources import Services
from db.accounts.sessions import Session
from db.billing.holds import find_key
from domain.billing.keys import hash_key, key_of
from domain.errors import KeyRefused


@dataclass(frozen=True, slots=True)
class Caller:
    """The account that a request acts for, and the user in whose scope its rows are read."""

    user_id: str
    billing_account_id: str
    key_id: UUID | None = None
    """The service key, for a program."""

    @classmethod
    def of_session(cls, session: Session) -> Caller:
        """The person who is signed in."""
        return cls(session.user_id, session.billing_account_id)


async def find_program(services: Services, request: Request) -> Caller | None:
    """The account of the service key that the request names; None where it names none. Raises `KeyRefused`.

    The database is asked each time, so that a key is refused as soon as it is revoked.
    """
    key = key_of(request.headers)
    if key is None:
        return None
    async with services.database.hot_statement() as connection:
        found = await find_key(connection, hash_key(key))
    if found is None or found.state != "active":
        raise KeyRefused("unknown_key" if found is None else found.state)
    return Caller(found.owner_user_id, found.account_id, found.key_id)
