"""Request bodies: JSON only, decoded by pydantic.

The standard decoder recurses on the interpreter's stack, and a dependency of the wallet library raises the recursion
limit far enough for a nested body to overflow it. pydantic's decoder has a bound of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any, Final

from fastapi import Request, Response
from fastapi.routing import APIRoute
from pydantic_core import from_json

from api.http.problems import BODY_TOO_SLOW, MALFORMED_JSON, UNSUPPORTED_MEDIA_TYPE, ApiProblem, FieldError

BODY_BYTES_MAX: Final = 64 * 1024
"""A smart wallet's signature is the largest legitimate value, a few kilobytes."""


class JsonRequest(Request):
    """A request whose body must be JSON."""

    async def body(self) -> bytes:
        """The body. Raises `ApiProblem` for another media type, and where it does not arrive in time."""
        try:
            body = await super().body()
        except TimeoutError:
            raise ApiProblem(BODY_TOO_SLOW, headers={"Connection": "close"}) from None
        media_type = self.headers.get("content-type", "").partition(";")[0].strip().lower()
        if body and media_type != "application/json":
            raise ApiProblem(UNSUPPORTED_MEDIA_TYPE, errors=[FieldError(field="body", message="expected JSON")])
        return body

    async def json(self) -> Any:
        """The decoded body. Raises `ApiProblem` for invalid JSON."""
        try:
            # NaN is not JSON, but the field's validation gives the better error: no field accepts it.
            return from_json(await self.body(), allow_inf_nan=True)
        except ValueError as error:
            reason = str(error)[:200]
            raise ApiProblem(
                MALFORMED_JSON, f"body: {reason}", errors=[FieldError(field="body", message=reason)]
            ) from None


class JsonRoute(APIRoute):
    """A route that reads `JsonRequest`s."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """FastAPI's handler, given our request."""
        handle = super().get_route_handler()

        async def read_json(request: Request) -> Response:
            return await handle(JsonRequest(request.scope, request.receive))

        return read_json
