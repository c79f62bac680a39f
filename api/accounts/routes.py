"""`/api/v1/auth`: Sign-In with Ethereum."""

from __future__ import annotations

from typing import Annotated, Final

from fastapi import APIRouter, Body, Depends, Request, Response

from api import examples
from api.accounts.sessions import challenge as new_challenge
from api.accounts.sessions import log_in, sign_out
from api.http.bodies import JsonRoute
from api.http.dependencies import ApiServices, SignedIn, limit_by_address
from api.http.openapi import answered, asked
from api.http.problems import (
    BODY_TOO_LARGE,
    BODY_TOO_SLOW,
    CROSS_SITE_REQUEST,
    INVALID_INPUT,
    MALFORMED_JSON,
    UNSUPPORTED_MEDIA_TYPE,
    documented,
)
from api.models import ChallengeAnswer, ChallengeRequest, LoginRequest, LogoutRequest, SessionAnswer
from db.accounts.sessions import Session
from domain.errors import ChainUnavailable, DatabaseUnavailable, NotSignedIn, RateLimited, SignInRefused

POSTED = (
    CROSS_SITE_REQUEST,
    MALFORMED_JSON,
    UNSUPPORTED_MEDIA_TYPE,
    BODY_TOO_LARGE,
    BODY_TOO_SLOW,
    INVALID_INPUT,
    DatabaseUnavailable,
)
"""Problems of every request with a body."""

router = APIRouter(prefix="/api/v1/auth", tags=["auth"], route_class=JsonRoute)

_limit = limit_by_address("logins", lambda services: services.settings.rate_limits.logins_per_address)


_SESSION: Final = answered("The session.", {"session": examples.SESSION})


@router.post(
    "/challenge",
    operation_id="createChallenge",
    summary="Ask for a message to sign",
    responses={
        200: answered("The message to sign.", {"challenge": examples.CHALLENGE}),
        **documented(*POSTED, RateLimited),
    },
    dependencies=[Depends(_limit)],
)
async def challenge(
    body: Annotated[ChallengeRequest, Body(openapi_examples=asked(challenge=examples.CHALLENGE_REQUEST))],
    services: ApiServices,
) -> ChallengeAnswer:
    """Returns a message as in EIP-4361.

    It names this service's domain and address, the chain, a single-use nonce, and its expiry.
    """
    made = await new_challenge(services, body.address)
    return ChallengeAnswer(**made.model_dump())


@router.post(
    "/login",
    operation_id="logIn",
    summary="Sign in with the signed message",
    responses={
        200: _SESSION
        | {
            "headers": {
                "Set-Cookie": {
                    "description": "The session's cookie, HttpOnly and SameSite=Lax.",
                    "schema": {"type": "string"},
                }
            }
        },
        **documented(*POSTED, SignInRefused, RateLimited, ChainUnavailable),
    },
    dependencies=[Depends(_limit)],
)
async def login(
    body: Annotated[LoginRequest, Body(openapi_examples=asked(login=examples.LOGIN_REQUEST))],
    request: Request,
    response: Response,
    services: ApiServices,
) -> SessionAnswer:
    """Answer a challenge with the wallet's signature; sets the session cookie.

    Creates user, billing account and default key at a wallet's first login. Ends the session that the cookie named
    before. For a smart wallet the chain is asked; where it does not answer (503), the challenge stays valid.
    """
    session = await log_in(
        services, request, response, nonce=body.nonce, message=body.message, signature=body.signature
    )
    return _answer(services, session)


@router.post(
    "/logout",
    operation_id="logOut",
    summary="Sign out",
    status_code=204,
    response_description="The session has ended.",
    responses=documented(*POSTED),
)
async def logout(
    request: Request,
    response: Response,
    services: ApiServices,
    body: Annotated[
        LogoutRequest | None,
        Body(openapi_examples=asked(thisSession=examples.THIS_SESSION, allSessions=examples.ALL_SESSIONS)),
    ] = None,
) -> None:
    """End the session, or all of this wallet's sessions. Succeeds without a session, too."""
    await sign_out(services, request, response, everywhere=body is not None and body.everywhere)


@router.get(
    "/session",
    operation_id="getSession",
    summary="The current session",
    responses={200: _SESSION, **documented(NotSignedIn, DatabaseUnavailable)},
)
async def session(services: ApiServices, session: SignedIn) -> SessionAnswer:
    """The wallet that is signed in, and until when."""
    return _answer(services, session)


def _answer(services: ApiServices, session: Session) -> SessionAnswer:
    return SessionAnswer(
        user_id=session.user_id,
        address=session.wallet_address,
        billing_account_id=session.billing_account_id,
        chain_id=services.settings.chain_id,
        expires_at=session.expires_at,
    )
