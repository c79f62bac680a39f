"""Errors in each dialect's shape.

OpenAI: https://platform.openai.com/docs/guides/error-codes. Anthropic: https://docs.anthropic.com/en/api/errors.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from devstack.upstream.requests import Dialect

_OPENAI: Final[Mapping[int, tuple[str, str | None]]] = {
    400: ("invalid_request_error", None),
    401: ("invalid_request_error", "invalid_api_key"),
    403: ("permission_error", None),
    404: ("invalid_request_error", "model_not_found"),
    429: ("requests", "rate_limit_exceeded"),
    500: ("server_error", None),
    503: ("server_error", "service_unavailable"),
}
"""Type and code of each status."""
_ANTHROPIC: Final[Mapping[int, str]] = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    500: "api_error",
    503: "overloaded_error",
    529: "overloaded_error",
}
MESSAGES: Final[Mapping[int, str]] = {
    401: "Incorrect API key provided.",
    404: "The model does not exist or you do not have access to it.",
    429: "Rate limit reached. Please try again in 1s.",
    500: "The server had an error while processing your request. Sorry about that!",
    503: "The engine is currently overloaded, please try again later.",
    529: "Overloaded",
}

HTML_PAGE: Final = b"<html>\r\n<body>\r\n<h1>502 Bad Gateway</h1>\r\n</body>\r\n</html>\r\n"


def error_object(dialect: Dialect | None, status: int, message: str = "", param: str | None = None) -> dict[str, Any]:
    """What stands under `error`."""
    text = message or MESSAGES.get(status, f"The request failed with status {status}.")
    if dialect is Dialect.MESSAGES:
        return {"type": _ANTHROPIC.get(status, "api_error"), "message": text}
    kind, code = _OPENAI.get(status, ("server_error" if status >= 500 else "invalid_request_error", None))
    return {"message": text, "type": kind, "param": param, "code": code}


def error_body(dialect: Dialect | None, error: dict[str, Any], request_id: str) -> dict[str, Any]:
    """A whole body with the error; OpenAI's where there is no dialect."""
    if dialect is Dialect.MESSAGES:
        return {"type": "error", "error": error, "request_id": request_id}
    return {"error": error}
