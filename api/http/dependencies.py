"""Dependencies of routes: the session, the client's address, and rate limits."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Annotated, Any

import structlog
from fastapi import Depends, Header, Request
from fastapi.security import APIKeyCookie, APIKeyHeader, HTTPBearer

from api.accounts.callers import Caller, find_program
from api.accounts.sessions import find_session
from api.http.rate_limits import client_address, take
from api.resources import LOCAL_COOKIE, SECURE_COOKIE, ApiServices, Services
from db.accounts.idempotency import KEY_LENGTH_MAX
from db.accounts.rate_limits import Bucket
from db.accounts.sessions import Session
from domain.errors import NotSignedIn

__all__ = [
    "CALLERS_TURN",
    "ONE_TURN",
    "ApiServices",
    "Caller",
    "CallerOfAccount",
    "ChargeKey",
    "OptionalSession",
    "RepeatKey",
    "Services",
    "Session",
    "SignedIn",
    "limit_by_account",
    "limit_by_address",
    "limit_by_caller",
    "limit_by_page",
]

# For the OpenAPI document only: which of the two names applies depends on TLS.
_cookie_scheme = APIKeyCookie(
    name=SECURE_COOKIE,
    scheme_name="session",
    description=f"Set by login. Without TLS, as on a developer's machine, its name is `{LOCAL_COOKIE}_` and the port.",
    auto_error=False,
)


async def _optional_session(request: Request, services: ApiServices) -> Session | None:
    session = await find_session(services, request)
    if session is not None:
        structlog.contextvars.bind_contextvars(billing_account_id=session.billing_account_id)
    return session


OptionalSession = Annotated[Session | None, Depends(_optional_session)]


async def _signed_in(session: OptionalSession, _: Annotated[str | None, Depends(_cookie_scheme)]) -> Session:
    if session is None:
        raise NotSignedIn
    return session


SignedIn = Annotated[Session, Depends(_signed_in)]


# For the OpenAPI document only.
_bearer_scheme = HTTPBearer(scheme_name="serviceKey", description="A service key, `sk-settle-...`.", auto_error=False)
_key_scheme = APIKeyHeader(
    name="x-api-key", scheme_name="serviceKeyHeader", description="The same, as some clients send it.", auto_error=False
)


async def _caller_of_account(
    request: Request,
    services: ApiServices,
    _: Annotated[str | None, Depends(_cookie_scheme)],
    __: Annotated[object, Depends(_bearer_scheme)],
    ___: Annotated[str | None, Depends(_key_scheme)],
) -> Caller:
    # A key goes first: who sends one means it, whatever cookie a client has kept.
    caller = await find_program(services, request)
    if caller is None:
        caller = Caller.of_session(await _signed_in(await find_session(services, request), None))
    structlog.contextvars.bind_contextvars(billing_account_id=caller.billing_account_id)
    return caller


CallerOfAccount = Annotated[Caller, Depends(_caller_of_account)]
"""By session or service key, for routes that programs use as well. Raises `NotSignedIn` and `KeyRefused`."""


async def _turn(session: SignedIn, services: ApiServices) -> AsyncIterator[None]:
    async with services.concurrency.place(session.billing_account_id):
        yield


ONE_TURN = Depends(_turn, scope="function")
"""The session and its concurrency slot, for routes that query the database on behalf of an account."""


async def _callers_turn(caller: CallerOfAccount, services: ApiServices) -> AsyncIterator[None]:
    async with services.concurrency.place(caller.billing_account_id):
        yield


CALLERS_TURN = Depends(_callers_turn, scope="function")
"""The same for routes that programs use as well."""


def _repeat_key(description: str) -> Any:
    return Header(
        alias="idempotency-key",
        min_length=1,
        max_length=KEY_LENGTH_MAX,
        pattern=r"^[\x21-\x7e]+$",
        description=description,
    )


RepeatKey = Annotated[
    str | None, _repeat_key("A repetition with the same body gets the same answer; with another body, 422.")
]
ChargeKey = Annotated[
    str | None, _repeat_key("A repetition with the same body gets the same charge as it stands; with another one, 409.")
]


def limit_by_address(kind: str, per_minute: Callable[[Services], int]) -> Callable[..., Awaitable[None]]:
    """A dependency that counts the request against its address only: there is no session yet."""

    async def limit(request: Request, services: ApiServices) -> None:
        await take(services, kind, [Bucket(f"{kind}:address:{client_address(request)}", per_minute(services))])

    return limit


def limit_by_page(
    kind: str, per_page: Callable[[Services], int], per_address: Callable[[Services], int]
) -> Callable[..., Awaitable[None]]:
    """A dependency that counts the request against its address, then against what it is about: `id` in its path."""

    async def limit(request: Request, services: ApiServices) -> None:
        buckets = [
            Bucket(f"{kind}:address:{client_address(request)}", per_address(services)),
            Bucket(f"{kind}:of:{request.path_params['id']}", per_page(services)),
        ]
        await take(services, kind, buckets)

    return limit


def limit_by_account(
    kind: str, per_account: Callable[[Services], int], per_address: Callable[[Services], int]
) -> Callable[..., Awaitable[None]]:
    """A dependency that counts the request against its account, then against its address."""

    async def limit(request: Request, services: ApiServices, session: SignedIn) -> None:
        buckets = _buckets(kind, session.billing_account_id, per_account(services), request, per_address(services))
        await take(services, kind, buckets)

    return limit


def limit_by_caller(
    kind: str, per_account: Callable[[Services], int], per_address: Callable[[Services], int]
) -> Callable[..., Awaitable[None]]:
    """The same for routes that programs use as well."""

    async def limit(request: Request, services: ApiServices, caller: CallerOfAccount) -> None:
        buckets = _buckets(kind, caller.billing_account_id, per_account(services), request, per_address(services))
        await take(services, kind, buckets)

    return limit


def _buckets(kind: str, billing_account_id: str, per_account: int, request: Request, per_address: int) -> list[Bucket]:
    return [
        Bucket(f"{kind}:account:{billing_account_id}", per_account),
        Bucket(f"{kind}:address:{client_address(request)}", per_address),
    ]
