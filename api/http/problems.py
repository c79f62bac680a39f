"""RFC 9457 problem documents: every error of the interface, in one table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any, Final

import structlog
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict, Field
from pydantic.alias_generators import to_camel
from starlette.exceptions import HTTPException
from starlette.routing import Match

from domain.deposits.prices import WORDS, PriceProblem
from domain.errors import (
    REPEATABLE,
    Category,
    InvalidInput,
    PriceUnavailable,
    RateLimited,
    SettleError,
    registered,
)

METHODS: Final = ("GET", "POST", "PUT", "PATCH", "DELETE")
PROBLEM_JSON: Final = "application/problem+json"
RETRY_AFTER_UNAVAILABLE_SECONDS: Final = 2
SHOWN_ERRORS_MAX: Final = 20

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class ProblemKind:
    """A kind of problem: stable code, HTTP status, and a title that holds for every occurrence."""

    code: str
    status: int
    title: str
    is_repeatable: bool = False
    """Whether the same request may succeed later."""


STATUSES: Final[Mapping[Category, int]] = {
    Category.INVALID: 422,
    Category.UNAUTHENTICATED: 401,
    Category.FORBIDDEN: 403,
    Category.NOT_FOUND: 404,
    Category.CONFLICT: 409,
    Category.RATE_LIMITED: 429,
    Category.UNAVAILABLE: 503,
    Category.MISCONFIGURED: 500,
    Category.BOOKKEEPING: 500,
    Category.INTERNAL: 500,
}
"""HTTP statuses, the only addition to the registry of errors (`domain.errors`)."""


def kind_of(error: SettleError | type[SettleError]) -> ProblemKind:
    """The problem kind of a domain error."""
    kind = error if isinstance(error, type) else type(error)
    status = STATUSES[kind.category]
    return ProblemKind(error.code, status, kind.title, is_repeatable=kind.category in REPEATABLE)


INVALID_INPUT: Final = kind_of(InvalidInput)
MALFORMED_JSON: Final = ProblemKind("MALFORMED_JSON", 400, "The body is not valid JSON")
CROSS_SITE_REQUEST: Final = ProblemKind("CROSS_SITE_REQUEST", 403, "Cross-site request refused")
NOT_FOUND: Final = ProblemKind("NOT_FOUND", 404, "Not found")
METHOD_NOT_ALLOWED: Final = ProblemKind("METHOD_NOT_ALLOWED", 405, "Method not allowed")
BODY_TOO_SLOW: Final = ProblemKind("BODY_TOO_SLOW", 408, "The body did not arrive in time", is_repeatable=True)
BODY_TOO_LARGE: Final = ProblemKind("BODY_TOO_LARGE", 413, "The body is too large")
UNSUPPORTED_MEDIA_TYPE: Final = ProblemKind("UNSUPPORTED_MEDIA_TYPE", 415, "The body must be application/json")
BAD_REQUEST: Final = ProblemKind("BAD_REQUEST", 400, "The request is malformed")
OUT_OF_TIME: Final = ProblemKind("OUT_OF_TIME", 503, "The request timed out; try again", is_repeatable=True)
INTERNAL: Final = kind_of(SettleError)

KINDS: Final = (
    *(kind_of(error) for error in registered().values()),
    BAD_REQUEST,
    MALFORMED_JSON,
    CROSS_SITE_REQUEST,
    NOT_FOUND,
    METHOD_NOT_ALLOWED,
    BODY_TOO_SLOW,
    BODY_TOO_LARGE,
    UNSUPPORTED_MEDIA_TYPE,
    OUT_OF_TIME,
)
"""All problems that the interface may answer with."""

_BY_STATUS: Final = {
    kind.status: kind
    for kind in (NOT_FOUND, METHOD_NOT_ALLOWED, BODY_TOO_SLOW, BODY_TOO_LARGE, UNSUPPORTED_MEDIA_TYPE, BAD_REQUEST)
}


class FieldError(BaseModel):
    """An invalid value."""

    field: str = Field(description="its name in the request", examples=["amountUsdCents"])
    message: str = Field(examples=["Input should be greater than 0"])


class Problem(BaseModel):
    """An error (RFC 9457)."""

    model_config = ConfigDict(alias_generator=to_camel, populate_by_name=True)

    type: str = Field(description="identifies the kind; nothing is served there", examples=["/problems/INVALID_INPUT"])
    title: str = Field(description="the kind of problem, the same at every occurrence")
    status: int
    detail: str = Field(description="this occurrence, suitable for display")
    code: str = Field(description="stable name of the kind (docs/errors.md)", examples=["INVALID_INPUT"])
    retryable: bool = Field(description="whether the same request may succeed later")
    request_id: str | None = Field(default=None, description="to quote to support")
    errors: list[FieldError] | None = Field(default=None, description="the invalid values")


class ApiProblem(HTTPException):
    """A problem found by the interface itself, not by the domain."""

    def __init__(
        self,
        kind: ProblemKind,
        detail: str | None = None,
        *,
        errors: Sequence[FieldError] = (),
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(kind.status, detail or kind.title, dict(headers) if headers else None)
        self.kind = kind
        self.errors = list(errors)


def problem_response(
    kind: ProblemKind,
    detail: str,
    *,
    request_id: str | None,
    errors: Sequence[FieldError] = (),
    headers: Mapping[str, str] | None = None,
) -> JSONResponse:
    """The document as a response."""
    problem = Problem(
        type=f"/problems/{kind.code}",
        title=kind.title,
        status=kind.status,
        detail=detail,
        code=kind.code,
        retryable=kind.is_repeatable,
        request_id=request_id,
        errors=list(errors)[:SHOWN_ERRORS_MAX] or None,
    )
    body = problem.model_dump(mode="json", by_alias=True, exclude_none=True)
    return JSONResponse(body, kind.status, dict(headers) if headers else None, media_type=PROBLEM_JSON)


def install_problem_handlers(app: FastAPI) -> None:
    """Answer every error of the app as a problem document."""
    app.add_exception_handler(SettleError, _on_settle_error)
    app.add_exception_handler(RequestValidationError, _on_invalid_request)
    app.add_exception_handler(HTTPException, _on_http_exception)
    app.add_exception_handler(Exception, _on_fault)


def documented(*kinds: type[SettleError] | ProblemKind) -> dict[int | str, dict[str, Any]]:
    """The `responses` of a route for OpenAPI: each status with an example of every problem it may stand for."""
    by_status: dict[int, list[ProblemKind]] = {}
    for given in (*kinds, BAD_REQUEST, OUT_OF_TIME, INTERNAL):
        for kind in [given] if isinstance(given, ProblemKind) else _with_finer_ones(given):
            of_status = by_status.setdefault(kind.status, [])
            if kind not in of_status:
                of_status.append(kind)
    return {
        status: {
            "description": "; ".join(f"`{kind.code}`: {kind.title}" for kind in found),
            "content": {
                PROBLEM_JSON: {
                    "schema": {"$ref": f"#/components/schemas/{Problem.__name__}"},
                    "examples": {kind.code: {"value": _example(kind)} for kind in found},
                }
            },
            **({"headers": {"Retry-After": _RETRY_AFTER}} if status in {429, 503} else {}),
        }
        for status, found in sorted(by_status.items())
    }


def _with_finer_ones(error: type[SettleError]) -> list[ProblemKind]:
    """A route that may raise an error may also raise its subclasses."""
    return [kind_of(error), *(kind_of(kind) for kind in registered().values() if error in kind.__mro__[1:])]


_RETRY_AFTER: Final = {"description": "seconds until the request may be retried", "schema": {"type": "integer"}}


def _example(kind: ProblemKind) -> dict[str, Any]:
    return {
        "type": f"/problems/{kind.code}",
        "title": kind.title,
        "status": kind.status,
        "detail": kind.title,
        "code": kind.code,
        "retryable": kind.is_repeatable,
        "requestId": "0f6c2f0e5d1f4a4c",
        **(
            {"errors": [{"field": "amountUsdCents", "message": "expected a whole number"}]}
            if kind.status == 422
            else {}
        ),
    }


def _request_id(request: Request) -> str | None:
    found = request.scope.get("state", {}).get("request_id")
    return found if isinstance(found, str) else None


async def _on_settle_error(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, SettleError)
    kind = kind_of(error)
    detail = error.message
    if kind.status == 500:
        # Not logged elsewhere: to the server it is an answer like any other.
        log.error("request failed", code=error.code, exc_info=error)
        detail = kind.title
    elif kind.status == 503:
        # The server and the reason are logged only: the caller can do nothing with them.
        log.warning("dependency unavailable", code=error.code, reason=error.message)
        why = f": {WORDS[PriceProblem(error.problem)]}" if isinstance(error, PriceUnavailable) else ""
        detail = f"{kind.title}{why}; try again shortly"
    return problem_response(
        kind,
        detail,
        request_id=_request_id(request),
        errors=_named(error) if isinstance(error, InvalidInput) else [],
        headers=_retry_after(error, kind),
    )


def _named(error: InvalidInput) -> list[FieldError]:
    return [FieldError(field=error.field, message=error.message.removeprefix(f"{error.field}: "))]


def _retry_after(error: SettleError, kind: ProblemKind) -> dict[str, str] | None:
    if isinstance(error, RateLimited):
        return {"Retry-After": str(error.retry_after_seconds)}
    return {"Retry-After": str(RETRY_AFTER_UNAVAILABLE_SECONDS)} if kind.status == 503 else None


async def _on_invalid_request(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)
    errors = [FieldError(field=_field(found["loc"]), message=str(found["msg"])[:200]) for found in error.errors()]
    named = "; ".join(f"{found.field}: {found.message}" for found in errors[:3])
    return problem_response(INVALID_INPUT, named, request_id=_request_id(request), errors=errors)


def _field(location: Sequence[object]) -> str:
    """The value's name as the caller wrote it, without where FastAPI found it."""
    names = [str(part) for part in location if part not in {"body", "query", "path", "header", "cookie"}]
    return ".".join(names)[:80] or "body"


async def _on_http_exception(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    request_id = _request_id(request)
    if isinstance(error, ApiProblem):
        return problem_response(
            error.kind, error.detail, request_id=request_id, errors=error.errors, headers=error.headers
        )
    headers = error.headers
    if headers and "Allow" in headers:
        headers = {**headers, "Allow": ", ".join(_allowed_methods(request))}
    kind = _BY_STATUS.get(error.status_code) or ProblemKind(
        HTTPStatus(error.status_code).name,
        error.status_code,
        HTTPStatus(error.status_code).phrase,
        is_repeatable=error.status_code >= 500,
    )
    return problem_response(kind, kind.title, request_id=request_id, headers=headers)


def _allowed_methods(request: Request) -> list[str]:
    """The methods of a path: each is a route of its own, and a refusal knows only the first."""
    routes = request.app.router.routes
    return [
        method
        for method in METHODS
        if any(route.matches({**request.scope, "method": method})[0] is Match.FULL for route in routes)
    ]


async def _on_fault(request: Request, error: Exception) -> JSONResponse:
    """Logged where the request ends (`api.http.middleware`), as are errors raised outside the app."""
    return problem_response(INTERNAL, INTERNAL.title, request_id=_request_id(request))
