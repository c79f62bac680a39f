"""The OpenAPI document: FastAPI's, completed by what it cannot know."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from fastapi import APIRouter, FastAPI

from api.http.problems import Problem

TAGS: Final = [
    {"name": "auth", "description": "Sign-In with Ethereum (EIP-4361); the session is a cookie."},
    {"name": "payments", "description": "Intents, submissions, progress and credits of the session's account."},
    {"name": "deposits", "description": "Payment from anywhere: to an address of the account, or of a charge."},
    {"name": "keys", "description": "Service keys of the session's account, with which programs spend its credits."},
    {"name": "usage", "description": "What the session's account spent."},
    {"name": "webhooks", "description": "Where the account's events are sent to, and what became of each delivery."},
    {"name": "health", "description": "For operators."},
]

_REQUEST_ID: Final = "X-Request-ID"
_HEADERS: Final = {
    _REQUEST_ID: {
        "description": "The request's id in the service's log: the caller's own, where it sent a valid one.",
        "schema": {"type": "string", "pattern": "^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$"},
        "example": "0f6c2f0e5d1f4a4c",
    }
}


class Api(FastAPI):
    """FastAPI with our OpenAPI document."""

    def add_routes_of(self, router: APIRouter) -> None:
        """Serve a router's routes as they are.

        `include_router` builds each of them once more, for a prefix and dependencies that ours do not have: 50 ms of
        the first request to each process.
        """
        self.router.routes.extend(router.routes)

    def openapi(self) -> dict[str, Any]:
        """The document, generated once."""
        if self.openapi_schema is None:
            document = super().openapi()
            components = document["components"]
            # Not given to FastAPI as models, which it would document as application/json.
            problem = Problem.model_json_schema(by_alias=True, ref_template="#/components/schemas/{model}")
            components["schemas"] |= {**problem.pop("$defs"), Problem.__name__: problem}
            components["headers"] = _HEADERS
            for response in _responses(document):
                response.setdefault("headers", {})[_REQUEST_ID] = {"$ref": f"#/components/headers/{_REQUEST_ID}"}
        assert self.openapi_schema is not None
        return self.openapi_schema


def _responses(document: Mapping[str, Any]) -> list[dict[str, Any]]:
    return [
        response
        for operations in document["paths"].values()
        for operation in operations.values()
        for response in operation["responses"].values()
    ]


def answered(
    description: str,
    examples: Mapping[str, Any],
    *,
    media_type: str = "application/json",
    headers: Mapping[str, Any] | None = None,
    links: Mapping[str, Any] | None = None,
    **content: Any,
) -> dict[str, Any]:
    """A route's documented response: examples by name, and links to follow-up calls."""
    return {
        "description": description,
        "content": {media_type: {**content, "examples": {name: {"value": value} for name, value in examples.items()}}},
        **({"headers": dict(headers)} if headers else {}),
        **({"links": dict(links)} if links else {}),
    }


def asked(**examples: Any) -> dict[str, Any]:
    """Examples of a body by name, for `Body(openapi_examples=...)`."""
    return {name: {"value": value} for name, value in examples.items()}


def followed_by(*operation_ids: str, id_from: str = "attemptId") -> dict[str, Any]:
    """Links to calls about what the response is about, whose id is its field `id_from`."""
    value = f"$response.body#/{id_from}"
    return {found: {"operationId": found, "parameters": {"id": value}} for found in operation_ids}
