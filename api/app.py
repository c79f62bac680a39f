"""The ASGI application: routes, and the middleware around every request."""

from __future__ import annotations

from importlib.metadata import version

from starlette.types import ASGIApp
from uvicorn.middleware.proxy_headers import ProxyHeadersMiddleware

from api import health
from api.accounts import routes as auth
from api.billing import routes as billing
from api.deposits import pay as charge_payments
from api.deposits import routes as deposits
from api.health import Readiness
from api.http.bodies import BODY_BYTES_MAX
from api.http.middleware import (
    ANSWER_SECONDS_MAX,
    BODY_SECONDS_MAX,
    HeadAsGet,
    RequestContext,
    RequestLimits,
    ResponseTimeout,
    SameOriginOnly,
    SecurityHeaders,
)
from api.http.openapi import TAGS, Api
from api.http.problems import install_problem_handlers
from api.operators import pages as operators
from api.pages import credits as pages
from api.pages import pay as pay_page
from api.pages import usage as usage_page
from api.payments import routes as payments
from api.payments import topups
from api.resources import Services
from api.webhooks import routes as webhooks

DESCRIPTION = """\
Prepaid credits, bought with USDC and spent on AI models.

Sign in with a wallet (`/api/v1/auth`), make an intent, pay it, submit the transaction's hash, and watch
it being confirmed. Or take payments from anywhere, at an address (`/api/v1/charges`). Make a service key for
the gateway (`/api/v1/keys`), and read what was spent with it (`/api/v1/usage`). Errors are RFC 9457 problem
documents with a stable `code`. Every answer carries `X-Request-ID`.
"""


def build_api() -> Api:
    """Routes and error handlers; enough to generate the OpenAPI document."""
    app = Api(
        title="settle",
        version=version("settle"),
        description=DESCRIPTION,
        openapi_tags=TAGS,
        # FastAPI's default page loads scripts from another host.
        docs_url=None,
        redoc_url=None,
        # A trailing slash makes another address; the redirect would repeat whatever host the caller names.
        redirect_slashes=False,
        max_body_size=BODY_BYTES_MAX,
    )
    app.add_routes_of(auth.router)
    app.add_routes_of(payments.router)
    app.add_routes_of(deposits.router)
    app.add_routes_of(charge_payments.router)
    app.add_routes_of(topups.router)
    app.add_routes_of(billing.router)
    app.add_routes_of(webhooks.router)
    app.add_routes_of(health.router)
    install_problem_handlers(app)
    return app


def build_app(
    services: Services,
    *,
    trusted_proxies: tuple[str, ...] = (),
    body_seconds: float = BODY_SECONDS_MAX,
    answer_seconds: float = ANSWER_SECONDS_MAX,
) -> ASGIApp:
    """The whole application. `trusted_proxies` are the addresses and networks whose `X-Forwarded-For` is trusted."""
    api = build_api()
    api.state.services = services
    api.state.readiness = Readiness()
    pages.install(api)
    usage_page.install(api)
    pay_page.install(api)
    operators.install(api)
    app: ASGIApp = HeadAsGet(api)
    app = SameOriginOnly(app, origin=services.settings.origin)
    app = RequestLimits(app, body_bytes=BODY_BYTES_MAX, body_seconds=body_seconds)
    app = ResponseTimeout(app, seconds=answer_seconds)
    app = SecurityHeaders(app, is_secure=services.settings.is_secure)
    app = RequestContext(app)
    if trusted_proxies:
        app = ProxyHeadersMiddleware(app, trusted_hosts=list(trusted_proxies))  # type: ignore[arg-type, assignment]
    return app
