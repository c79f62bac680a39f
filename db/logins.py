"""Test of a login: whether the role of an address is accepted with the address's password."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Final

import psycopg

from db.engine import connection_arguments


class LoginResult(StrEnum):
    """Result of a login."""

    ACCEPTED = "accepted"
    REFUSED = "refused"
    """The server asked for the password and rejected it."""

    FAILED = "failed"
    """The server accepts no such login, whatever the password: the database is missing, or connections are not
    allowed.
    """

    UNREACHABLE = "unreachable"
    """No server answered at the address."""


@dataclass(frozen=True, slots=True)
class Login:
    """The result, and the message of the server or the network."""

    result: LoginResult
    role: str | None
    """The role that the server assigned."""

    detail: str


# A failed login has no SQLSTATE for a client of libpq, only the server's message, which may be in another language:
# known messages are classified, and any other one after the password was sent counts as a rejection.
_NOT_THE_PASSWORD: Final = (
    "does not exist",
    "too many",
    "remaining connection slots",
    "starting up",
    "shutting down",
    "not permitted",
    "permission denied",
    "not currently accepting",
)


def try_login(url: str) -> Login:
    """Log in and out again."""
    try:
        with psycopg.connect(**connection_arguments(url, application_name="settle migrate")) as opened:
            [(role,)] = opened.execute("SELECT current_user::text").fetchall()
    except psycopg.OperationalError as error:
        detail = str(error).strip().splitlines()[0]
        if error.pgconn is None or not ("FATAL" in detail or error.pgconn.used_password or error.pgconn.needs_password):
            return Login(LoginResult.UNREACHABLE, None, detail)
        was_asked = error.pgconn.used_password and not any(words in detail for words in _NOT_THE_PASSWORD)
        return Login(LoginResult.REFUSED if was_asked else LoginResult.FAILED, None, detail)
    return Login(LoginResult.ACCEPTED, role, "")
